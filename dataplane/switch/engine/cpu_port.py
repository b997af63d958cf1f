"""The CPU port: an interface of our own, from which packet-outs enter the pipeline.

The interface is one end of a veth pair. The program sits on its way out (tc egress), so it runs inside the send
call: when `send` returns, the packet is through the pipeline. The packet-out header does not travel in the packet
but in a map beside it, which is why the packet can be an ordinary GSO packet.
"""

from __future__ import annotations

import errno
import socket
import struct
import zlib
from pathlib import Path

from pyroute2 import IPRoute, NetlinkError

from dataplane.switch.engine.offload import ETHERNET_BYTES, segmentation
from dataplane.switch.engine.source import PACKET_OUT_MARK
from dataplane.switch.pipeline import BadEntry, PipelineError

_SOL_PACKET, _PACKET_VNET_HDR = 263, 15
_SO_MARK, _SO_SNDBUFFORCE = 36, 32
_SEND_BUFFER = 8 << 20
MTU = 65535
_NAME_MAX = 15


def interface_name(device_id: int) -> str:
    """Return the CPU port's name, short enough for an interface with any of P4Runtime's 64 bit ids."""
    name = f"p4cpu{device_id}"
    return name if len(name) < _NAME_MAX else f"p4cpu-{zlib.crc32(name.encode()):08x}"


def _claim(name: str, device_id: int) -> socket.socket:
    """Take a device id for this process: an abstract socket belongs to one namespace, and dies with its process."""
    claim = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    try:
        claim.bind(f"\0p4ferry/{name}")
    except OSError as ex:
        claim.close()
        raise PipelineError(
            f"device id {device_id} is in use by another switch of this network namespace"
        ) from ex
    return claim


class CpuPort:
    """The interface and the socket that sends on it."""

    def __init__(self, device_id: int, mtu: int) -> None:
        self.name = interface_name(device_id)
        self._peer = f"{self.name}p"
        self._device_id = device_id
        self._mtu = mtu
        self._claim = _claim(self.name, device_id)
        try:
            self.ifindex = self._make()
        except BaseException:
            self._claim.close()
            raise
        try:
            self._socket = self._open()
        except OSError as ex:
            self._remove()
            self._claim.close()
            raise PipelineError(
                f"cannot open a packet socket on {self.name}: {ex.strerror} (root is needed)"
            ) from ex

    def _make(self) -> int:
        try:
            with IPRoute() as ip:
                # One that a killed run of the same device left is as good: packets may wait behind it (see `plug`).
                if not ip.link_lookup(ifname=self.name):
                    ip.link("add", ifname=self.name, kind="veth", peer={"ifname": self._peer}, mtu=MTU)
                for name in (self.name, self._peer):
                    _disable_ipv6(name)
                    index = ip.link_lookup(ifname=name)[0]
                    # IFF_NOARP: nothing of the host's own shall go out here.
                    ip.link("set", index=index, state="up", arp=False)
                return int(ip.link_lookup(ifname=self.name)[0])
        except NetlinkError as ex:
            raise PipelineError(f"cannot make the CPU port {self.name}: {ex} (root is needed)") from ex

    def _open(self) -> socket.socket:
        sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        sock.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        sock.setsockopt(socket.SOL_SOCKET, _SO_MARK, PACKET_OUT_MARK)
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _SEND_BUFFER)
        return sock

    def plug_name(self, number: int, lane: str = "q") -> str:
        """Return the name of an interface for what waits (see `plug`), in a lane that has a letter for its name."""
        name = f"p4{lane}{self._device_id}.{number}"
        return name if len(name) <= _NAME_MAX else f"p4{lane}{zlib.crc32(self.name.encode()):08x}.{number}"

    def send(self, cell: memoryview, front: bytes, frame: bytes) -> None:
        """Send a frame through the pipeline with its packet-out header beside it; `cell` is where that goes.

        One at a time: the engine's lock is held.
        """
        packet = bytearray(frame)
        try:
            offload = segmentation(packet, self._mtu)
        except ValueError as ex:
            raise BadEntry(f"packet-out refused: {ex}") from ex
        packet.extend(bytes(max(0, ETHERNET_BYTES - len(packet))))
        ethertype = int.from_bytes(packet[12:14], "big")
        struct.pack_into("=II", cell, 0, len(frame), len(front))
        cell[8 : 8 + len(front)] = front
        try:
            self._socket.sendmsg([offload, packet], [], 0, (self.name, ethertype))
        except OSError as ex:
            # ENOBUFS: the program dropped it, or the output port could not take it.
            if ex.errno != errno.ENOBUFS:
                raise PipelineError(f"packet-out failed on {self.name}: {ex.strerror}") from ex

    def close(self) -> None:
        self._socket.close()
        self._remove()
        self._claim.close()

    def _remove(self) -> None:
        with IPRoute() as ip:
            for index in ip.link_lookup(ifname=self.name):
                ip.link("del", index=index)


def _disable_ipv6(name: str) -> None:
    """Keep the host from speaking IPv6 on an interface; without IPv6 there is nothing to keep it from."""
    path = Path("/proc/sys/net/ipv6/conf") / name / "disable_ipv6"
    if path.exists():
        path.write_text("1")
