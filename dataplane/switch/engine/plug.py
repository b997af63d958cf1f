"""A plug: a network interface whose queue keeps packets until it is opened.

The interface is a macvlan on the CPU port, so what leaves it passes the program on the CPU port's way out. Its queue is
a token bucket (tbf). Closed, that gets one byte a second, and dummies go in front: two take all the tokens, the third
waits for as many, 18 hours, and everything behind it waits as well. Opened, there are tokens for all. Opened a little
(`open_for`), there are as many as those who receive have room.

Nothing is copied: a TCP packet that waits still belongs to the socket that sent it, whose kernel therefore knows that
it has not left yet, and neither repeats it nor sends more than its queue limit allows (tcp_small_queue_check and
skb_still_in_host_queue in Linux). Any other is nobody's by then (`hold` in runtime.h).
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pyroute2 import IPRoute, NetlinkError

from dataplane.switch.engine.holdable import DATAGRAM_OVERHEAD, ETHERNET_DATAGRAM, LONGEST, QUEUES
from dataplane.switch.pipeline import PipelineError

_NEWQDISC = 36
_REQUEST, _ACK, _REPLACE, _CREATE = 1, 4, 0x100, 0x400
_ROOT, _HANDLE = 0xFFFFFFFF, 0x00010000
_KIND, _OPTIONS = 1, 2
_PARMS, _RATE64, _BURST, _PEAK_BURST = 1, 4, 6, 7
_LINK_ETHERNET = 1
_SO_SNDBUFFORCE = 32
_ERROR = 2

_DUMMIES = 3
# The kernel counts a GSO packet with all the headers that it will have: a good deal more than its bytes.
_TRICKLE, _FEW = 1, (_DUMMIES - 1) * LONGEST
_FLOOD, _MANY = 12_500_000_000, 1 << 30
_LIMIT = 1 << 30
_LANES = 2
_DRIP = 2
"""The rate of a plug that is open a little: not that of a closed one, which has a dummy in front."""
_MAX_OVERHEAD = 65535
RUN = 64
"""Packets that a processor takes out of a queue before it receives them (net.core.dev_weight)."""


@dataclass(frozen=True)
class Slice:
    """How much leaves a plug that is open a little: so many packets, and no more than so many bytes.

    The token bucket that counts packets has them count for `_MAX_OVERHEAD` bytes each, and for their own within the
    size of one. The one that counts bytes has half of each byte and half of DATAGRAM_OVERHEAD.
    """

    packets: int
    bytes: int

    @staticmethod
    def within(room: int, packets: int) -> Slice:
        """Return the slice of so many packets, or fewer that take no more memory than `room` where they are received.

        It is one packet at least. A bucket has to be larger than any packet, for tbf drops what is not: where the room
        is not, packets are counted as the largest of Ethernet.
        """
        most = room // 2 - DATAGRAM_OVERHEAD // 2
        if most < LONGEST:
            return Slice(max(1, min(packets, room // ETHERNET_DATAGRAM)), LONGEST * RUN)
        return Slice(packets, min(most, LONGEST * RUN))


class Plugs:
    """Makes plugs, closes and opens them."""

    def __init__(self, cpu_port: int) -> None:
        """Open the sockets; `cpu_port` is the index of the CPU port's interface."""
        self._cpu_port = cpu_port
        self._netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._netlink.bind((0, 0))
        self._packet = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        # A closed plug's dummy takes room of the socket that has sent it. All plugs may be closed at once, and a call
        # that waited here would wait for ever: those who could open one come one at a time.
        self._packet.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, 2 * QUEUES * _LANES * _DUMMIES * LONGEST)
        self._packet.setblocking(False)

    def make(self, name: str) -> tuple[int, int, int]:
        """Make a closed plug; return its interface's index, and the packets and bytes that wait there.

        Some do if a switch that was killed has left it. Raises PipelineError where the kernel cannot.
        """
        try:
            with IPRoute() as ip:
                for index in ip.link_lookup(ifname=name):
                    packets, size, rate = _waiting(ip, index)
                    if packets and rate == _DRIP:
                        return index, packets, size
                    if packets and size >= LONGEST:
                        return index, packets - 1, size - LONGEST  # closed: a dummy is in front
                    ip.link("del", index=index)
                ip.link("add", ifname=name, kind="macvlan", link=self._cpu_port, macvlan_mode="private")
                index = int(ip.link_lookup(ifname=name)[0])
                try:
                    _disable_ipv6(name)
                    self._shape(index, _TRICKLE, _FEW, create=True)
                    ip.link("set", index=index, state="up", arp=False)
                    self._fill(name)
                except BaseException:
                    ip.link("del", index=index)
                    raise
                return index, 0, 0
        except (NetlinkError, OSError) as ex:
            raise PipelineError(f"this kernel has no hold queues (macvlan and tbf are needed): {ex}") from ex

    def close(self, name: str, index: int) -> None:
        """Let what comes from now on wait; what was in front must have left."""
        self._shape(index, _TRICKLE, _FEW)
        self._fill(name)

    def _fill(self, name: str) -> None:
        for _ in range(_DUMMIES):
            self._packet.sendto(bytes(LONGEST), (name, 0))

    def open(self, name: str, index: int, cpu: int | None = None) -> None:
        """Let everything go, from a certain CPU if possible."""
        with contextlib.ExitStack() as stack:
            if cpu is not None:
                stack.enter_context(_on_cpu(cpu))
            self._shape(index, _FLOOD, _MANY)
            self._packet.sendto(bytes(60), (name, 0))  # a queue looks at its tokens when something comes

    def open_for(self, name: str, index: int, some: Slice, is_closed: bool) -> None:
        """Let a slice go; what is behind it goes on waiting.

        A plug that `is_closed` has a dummy in front, which leaves as well.
        """
        packets, size = some.packets - 1, some.bytes
        if is_closed:
            packets, size = packets + 1, size + LONGEST + DATAGRAM_OVERHEAD // 2
        # The kernel adds the overhead to each size that it is given, as to a packet's.
        count = packets * _MAX_OVERHEAD + LONGEST * (2 if is_closed else 1)
        self._shape(index, _DRIP, count, overhead=_MAX_OVERHEAD, peak=(size, DATAGRAM_OVERHEAD // 2))
        self._packet.sendto(bytes(60), (name, 0))

    def waiting(self, index: int) -> int:
        """Return how many packets wait there, dummies included."""
        with IPRoute() as ip:
            return _waiting(ip, index)[0]

    def _shape(
        self,
        index: int,
        rate: int,
        burst: int,
        create: bool = False,
        overhead: int = 0,
        peak: tuple[int, int] | None = None,
    ) -> None:
        """Set the token bucket's rate, in bytes a second, and size; it is full then.

        Each packet counts for `overhead` bytes more than it has. `peak` is the size of a second bucket that a packet
        has to pass, of the least rate that tbf accepts for it, and the overhead of a packet there.
        """
        parameters = _ratespec(rate, overhead)
        parameters += _ratespec(rate + 1, peak[1]) if peak is not None else bytes(12)
        parameters += struct.pack("=III", _LIMIT, 0, 0)
        options = _attribute(_PARMS, parameters) + _attribute(_RATE64, struct.pack("=Q", rate))
        options += _attribute(_BURST, struct.pack("=I", burst))
        if peak is not None:
            options += _attribute(_PEAK_BURST, struct.pack("=I", peak[0]))
        body = struct.pack("=BxHiIII", 0, 0, index, _HANDLE, _ROOT, 0)
        body += _attribute(_KIND, b"tbf\0") + _attribute(_OPTIONS, options)
        flags = _REQUEST | _ACK | (_CREATE | _REPLACE if create else 0)
        self._netlink.send(struct.pack("=IHHII", 16 + len(body), _NEWQDISC, flags, 1, 0) + body)
        reply = self._netlink.recv(4096)
        kind, error = struct.unpack_from("=4xH10xi", reply)
        if kind != _ERROR or error:
            raise OSError(-error, os.strerror(-error))

    def end(self) -> None:
        """Close the sockets; the interfaces go with the CPU port."""
        self._netlink.close()
        self._packet.close()


def _waiting(ip: IPRoute, index: int) -> tuple[int, int, int]:
    """Return the packets and bytes in an interface's queue, and the rate at which they leave it."""
    for qdisc in ip.get_qdiscs(index):
        queue = qdisc.get_nested("TCA_STATS2", "TCA_STATS_QUEUE")
        if qdisc.get_attr("TCA_KIND") == "tbf" and queue is not None:
            rate = int(qdisc.get_nested("TCA_OPTIONS", "TCA_TBF_PARMS")["rate"])
            return int(queue["qlen"]), int(queue["backlog"]), rate
    return 0, 0, 0


def _ratespec(rate: int, overhead: int) -> bytes:
    return struct.pack("=BBHHHI", 0, _LINK_ETHERNET, overhead, 0, 0, min(rate, 0xFFFFFFFF))


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _disable_ipv6(name: str) -> None:
    """Keep the host's own IPv6 from sending there; without IPv6 there is nothing to keep it from."""
    path = Path("/proc/sys/net/ipv6/conf") / name / "disable_ipv6"
    if path.exists():
        path.write_text("1")


@contextlib.contextmanager
def _on_cpu(cpu: int) -> Iterator[None]:
    """Run the calling thread on a CPU, ahead of what else runs there, as far as that is allowed."""
    before = os.sched_getaffinity(0)
    policy, parameters = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, {cpu})
        yield
    finally:
        with contextlib.suppress(OSError):
            os.sched_setaffinity(0, before)
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, policy, parameters)
