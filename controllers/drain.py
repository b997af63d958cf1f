"""Waiting until nothing is on its way to a host any more.

After the switch holds a location's packets, some may still be between the switch and the host's sockets: in queues
of this or further switches, and in the kernel's per-CPU backlogs. Two steps bring them in:

  - a marker: a datagram sent through the switch to the host behind everything else, seen arriving by a packet
    socket inside the host's network namespace;
  - a flush of the backlogs: what veth devices pass on waits in one FIFO per CPU (`softnet_data.input_pkt_queue`,
    the same for all namespaces), and so does what goes over loopback. A thread that visits every CPU and sends itself a
    datagram there knows, when it has it, that all before it was processed. A packet that crosses several devices queues
    once per device, hence several rounds.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import struct
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from controllers.frames import DISCARD_PORT, marker
from controllers.hosts import Host
from controllers.switchlink import OP_RESUME, Packets, SwitchLink
from migration.slowness import scaled
from migration.steering import IpProtocol, SteeringError

ROUNDS = 4
_CLONE_NEWNET = 0x40000000
_ETH_P_IP = 0x0800
_SO_ATTACH_FILTER = 26
_FLUSH_S = scaled(2.0)
_MARKER_S = scaled(2.0)
_MARKER_AGAIN_S = 0.05

# Classic BPF on the IPv4 header: UDP to the discard port, nothing else (it must not cost the host's traffic anything).
_FILTER = [
    (0x30, 0, 0, 9),  # ldb [9]: protocol
    (0x15, 0, 3, int(IpProtocol.UDP)),
    (0x28, 0, 0, 22),  # ldh [22]: destination port behind 20 bytes of header
    (0x15, 0, 1, DISCARD_PORT),
    (0x06, 0, 0, 0xFFFF),
    (0x06, 0, 0, 0),
]


# Begins a hold and sends packets behind it.
Begin = Callable[[Packets], Awaitable[None]]


class Tap:
    """A packet socket in a host's network namespace that sees markers arrive."""

    def __init__(self, host: Host) -> None:
        self._socket = _socket_in(host)
        _attach(self._socket)
        self._socket.setblocking(False)
        self.turn = asyncio.Lock()
        """Of several programs that leave the host at once, one at a time listens."""

    async def wait_for(self, token: bytes, timeout: float) -> bool:
        """Wait for a marker; False if it did not come in time."""
        try:
            await asyncio.wait_for(self._see(token), timeout)
        except asyncio.TimeoutError:
            return False
        return True

    async def _see(self, token: bytes) -> None:
        loop = asyncio.get_running_loop()
        while not (await loop.sock_recv(self._socket, 256)).endswith(token):
            pass

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()


def _socket_in(host: Host) -> socket.socket:
    """Open a packet socket in a host's namespace; a thread of its own enters it, and ends."""
    made: list[socket.socket] = []
    failed: list[OSError] = []

    def enter() -> None:
        try:
            with Path(f"/proc/{host.pid}/ns/net").open("rb") as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET) != 0:
                    raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            made.append(socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ETH_P_IP)))
        except OSError as ex:
            failed.append(ex)

    thread = threading.Thread(target=enter, name=f"tap-{host.name}")
    thread.start()
    thread.join()
    if failed:
        raise SteeringError(f"cannot listen in the network of {host.name}: {failed[0].strerror}") from failed[
            0
        ]
    return made[0]


def _attach(sock: socket.socket) -> None:
    code = b"".join(struct.pack("HBBI", *instruction) for instruction in _FILTER)
    buffer = ctypes.create_string_buffer(code)
    program = struct.pack("HL", len(_FILTER), ctypes.addressof(buffer))
    sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)


class Drainer:
    """Waits until nothing that a switch has let pass is still on its way to a host."""

    def __init__(self) -> None:
        self._taps: dict[str, Tap] = {}
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="drain")

    async def open(self, host: Host) -> None:
        """Get ready to see markers arrive at a host; call it when there is time."""
        if host.name not in self._taps:
            loop = asyncio.get_running_loop()
            self._taps[host.name] = await loop.run_in_executor(self._executor, Tap, host)

    async def drain(
        self,
        host: Host,
        link: SwitchLink,
        hold: int,
        crossed: Callable[[], None] = lambda: None,
        begin: Begin | None = None,
    ) -> None:
        """Return when everything that had passed the hold has arrived.

        `crossed` is called before that, as soon as all of it has crossed the network and is in the host's kernel.
        `begin` sends the first marker, behind what begins the hold.
        """
        await self.measure(host, link, hold, begin)
        crossed()
        flush_backlogs()  # takes 0.2 ms; to wait for a thread that does it takes as long again

    async def measure(self, host: Host, link: SwitchLink, hold: int, begin: Begin | None = None) -> float:
        """Return how many seconds a packet takes from here to the host; raises SteeringError if none comes through."""
        await self.open(host)
        tap = self._taps[host.name]
        async with tap.turn:
            sent = time.monotonic()
            await _see_through(tap, host, link, hold, begin)
            return time.monotonic() - sent

    def close(self, host: str | None = None) -> None:
        """Stop listening at a host; without one, at all of them, and for good."""
        for name in [host] if host is not None else list(self._taps):
            if (tap := self._taps.pop(name, None)) is not None:
                # The kernel waits for an RCU grace period when a packet socket ends (10 ms): not on the loop.
                self._executor.submit(tap.close)
        if host is None:
            self._executor.shutdown()


async def _see_through(tap: Tap, host: Host, link: SwitchLink, hold: int, begin: Begin | None) -> None:
    """Send a marker through the switch and see it arrive; again if it was lost."""
    deadline = time.monotonic() + _MARKER_S
    send = begin or link.packets_out
    while True:
        token = os.urandom(16)
        # As if it came in on the port it will leave by: any port does, nothing is looked up by it.
        await send(Packets(OP_RESUME, hold, [(host.port, marker(host.address, token))]))
        send = link.packets_out
        if await tap.wait_for(token, _MARKER_AGAIN_S):
            return
        if time.monotonic() > deadline:
            raise SteeringError(f"a packet sent to {host.name} ({host.address}) did not arrive there")


def flush_backlogs(rounds: int = ROUNDS) -> None:
    """Visit every CPU and pass datagrams through its backlog, one after another. Runs in the calling thread.

    A packet never leaves the CPU that it is on: what it still has to cross is behind it in the same backlog.
    """
    cpus = os.sched_getaffinity(0)
    try:
        with _loopback() as echo:
            for cpu in cpus:
                os.sched_setaffinity(0, {cpu})
                for _ in range(rounds):
                    echo.send(b"p4ferry")
                    echo.recv(16)
    except OSError as ex:
        raise SteeringError(f"cannot flush the kernel's receive queues over loopback: {ex}") from ex
    finally:
        os.sched_setaffinity(0, cpus)


@contextlib.contextmanager
def _loopback() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as echo:
        echo.bind(("127.0.0.1", 0))
        echo.connect(echo.getsockname())
        echo.settimeout(_FLUSH_S)
        yield echo
