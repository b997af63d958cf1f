"""A small network for migrations, without P4: hosts around a router that rewrites addresses with nftables.

The router holds packets with an NFQUEUE before it rewrites them, so what is held goes to wherever its
addressee lives when it is let go. Everything lives in network namespaces with the prefix `mg`.
"""

from __future__ import annotations

import ctypes
import os
import select
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path

from controllers.frames import flow_of, is_known
from migration.model import Host
from migration.namespaces import in_netns
from migration.steering import Endpoint, HeldStats, Move, Receivers, Spoken, SteeringError
from topo.waiting import wait_until

RULES = """
table ip steering {
    set held { type inet_proto . ipv4_addr . inet_service; }
    set leaving { type inet_proto . ipv4_addr . inet_service; }
    map to_address { type inet_proto . ipv4_addr . inet_service : ipv4_addr; }
    map to_port { type inet_proto . ipv4_addr . inet_service : inet_service; }
    map as_address { type inet_proto . ipv4_addr . inet_service : ipv4_addr; }
    map as_port { type inet_proto . ipv4_addr . inet_service : inet_service; }
    chain hold {
        type filter hook prerouting priority -300;
        ip protocol . ip daddr . th dport @held meta mark set 1
        ip protocol . ip saddr . th sport @leaving meta mark set 2
    }
    chain move {
        type filter hook prerouting priority -100;
        ip protocol tcp tcp dport set ip protocol . ip daddr . th dport map @to_port
        ip daddr set ip protocol . ip daddr . th dport map @to_address
        ip saddr set ip protocol . ip saddr . th sport map @as_address
        ip protocol tcp tcp sport set ip protocol . ip saddr . th sport map @as_port
    }
}
"""


# At priority -150, between the two chains. (nft's own "queue" is often not built into kernels.)
QUEUE_RULE = "iptables-legacy -t mangle -A PREROUTING -m mark --mark {} -j NFQUEUE --queue-num {}"
TO_MOVED, FROM_MOVED = 0, 1  # the queues' numbers


class Nft:
    """libnftables in this process: a change takes a fraction of what starting `nft` takes."""

    def __init__(self) -> None:
        self._lib = ctypes.CDLL("libnftables.so.1")
        self._lib.nft_ctx_new.restype = ctypes.c_void_p
        self._lib.nft_ctx_get_error_buffer.restype = ctypes.c_char_p
        self._context = ctypes.c_void_p(self._lib.nft_ctx_new(0))
        self._lib.nft_ctx_buffer_error(self._context)

    def run(self, commands: str) -> None:
        """Apply commands as one transaction."""
        if self._lib.nft_run_cmd_from_buffer(self._context, commands.encode()) != 0:
            raise OSError(self._lib.nft_ctx_get_error_buffer(self._context).decode())

    def close(self) -> None:
        """Free libnftables' state."""
        self._lib.nft_ctx_free(self._context)


# <linux/netfilter/nfnetlink_queue.h>
NETLINK_NETFILTER = 12
NFQNL_PACKET, NFQNL_VERDICT, NFQNL_CONFIG = 0x300, 0x301, 0x302
NFQA_PACKET_HDR, NFQA_VERDICT_HDR, NFQA_CAP_LEN = 1, 2, 13
NFQA_CFG_CMD, NFQA_CFG_PARAMS, NFQA_CFG_QUEUE_MAXLEN, NFQA_CFG_MASK, NFQA_CFG_FLAGS = 1, 2, 3, 4, 5
NFQA_PAYLOAD = 10
NFQA_CFG_F_GSO = 4
NF_DROP, NF_ACCEPT = 0, 1
HEADERS = 120  # bytes of a packet that are looked at: IPv4 and TCP, with all options


def attribute(kind: int, value: bytes) -> bytes:
    """Encode a netlink attribute."""
    return struct.pack("=HH", 4 + len(value), kind) + value + b"\0" * (-len(value) % 4)


def message(kind: int, attributes: bytes, queue: int) -> bytes:
    """Encode an nfnetlink message for a queue."""
    body = struct.pack(">BBH", socket.AF_UNSPEC, 0, queue) + attributes
    return struct.pack("=IHHII", 16 + len(body), kind, 1, 0, 0) + body


@dataclass(frozen=True)
class Kept:
    """A packet in a queue: its id there, its IPv4 packet's beginning, and its length."""

    id: int
    head: bytes
    length: int


class Queue:
    """An NFQUEUE that keeps packets until told to let them go."""

    def __init__(self, number: int) -> None:
        self._number = number
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, NETLINK_NETFILTER)
        self._socket.setsockopt(socket.SOL_SOCKET, 33, 64 << 20)  # SO_RCVBUFFORCE
        for attributes in (
            attribute(NFQA_CFG_CMD, struct.pack(">BBH", 1, 0, socket.AF_INET)),
            attribute(NFQA_CFG_PARAMS, struct.pack(">IB", HEADERS, 2)),  # copy that much of the payload
            attribute(NFQA_CFG_QUEUE_MAXLEN, struct.pack(">I", 100_000)),
            attribute(NFQA_CFG_FLAGS, struct.pack(">I", NFQA_CFG_F_GSO))
            + attribute(NFQA_CFG_MASK, struct.pack(">I", NFQA_CFG_F_GSO)),
        ):
            self._send(NFQNL_CONFIG, attributes)
        self._lock = threading.Lock()
        self._kept: list[Kept] = []
        self.holding = False
        self._end = os.eventfd(0)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _send(self, kind: int, attributes: bytes) -> None:
        self._socket.send(message(kind, attributes, self._number))

    def _run(self) -> None:
        poller = select.poll()
        for source in (self._socket, self._end):
            poller.register(source, select.POLLIN)
        while self._end not in (ready := dict(poller.poll())):
            assert self._socket.fileno() in ready
            try:
                data = self._socket.recv(1 << 16)
            except OSError:
                return
            at = 0
            while at < len(data):
                length, kind = struct.unpack_from("=IH", data, at)
                if kind == NFQNL_PACKET:
                    self._keep(data[at + 20 : at + length])
                at += (length + 3) & ~3

    def _keep(self, attributes: bytes) -> None:
        found = {}
        at = 0
        while at < len(attributes):
            length, kind = struct.unpack_from("=HH", attributes, at)
            found[kind & 0x7FFF] = attributes[at + 4 : at + length]
            at += (length + 3) & ~3
        (packet,) = struct.unpack_from(">I", found[NFQA_PACKET_HDR])
        head = found.get(NFQA_PAYLOAD, b"")
        size = int.from_bytes(found[NFQA_CAP_LEN], "big") if NFQA_CAP_LEN in found else len(head)
        with self._lock:
            if self.holding:
                self._kept.append(Kept(packet, head, size))
            else:
                self._judge(packet, NF_ACCEPT)

    def _judge(self, packet: int, verdict: int) -> None:
        self._send(NFQNL_VERDICT, attribute(NFQA_VERDICT_HDR, struct.pack(">II", verdict, packet)))

    def hold(self) -> None:
        """Keep what comes from now on."""
        self.holding = True

    def let_pass(self, wanted: Callable[[Kept], bool]) -> None:
        """Let some packets go, in order, and go on keeping the others."""
        with self._lock:
            for packet in self._kept:
                if wanted(packet):
                    self._judge(packet.id, NF_ACCEPT)
            self._kept = [packet for packet in self._kept if not wanted(packet)]

    def forget(self) -> None:
        """Drop what is kept, and go on keeping what comes."""
        with self._lock:
            for packet in self._kept:
                self._judge(packet.id, NF_DROP)
            self._kept.clear()

    def release(self, verdict: int = NF_ACCEPT) -> HeldStats:
        """Let everything go, in order, or drop it; keep nothing any more."""
        with self._lock:
            kept, self._kept = self._kept, []
            self.holding = False
            for packet in kept:
                self._judge(packet.id, verdict)
        return HeldStats(len(kept), sum(packet.length for packet in kept), 0)

    def close(self) -> None:
        """Unbind the queue."""
        os.eventfd_write(self._end, 1)
        self._thread.join()
        self._socket.close()
        os.close(self._end)


def key(endpoint: Endpoint) -> str:
    """Write an endpoint as an nftables key."""
    return f"{endpoint.protocol.name.lower()} . {endpoint.address} . {endpoint.port}"


@dataclass
class RouterSteering:
    """Steering by the router: a map of where each identity lives, and queues for those on the move.

    What the frozen source's kernel sends beyond the image must not reach the peers (see MovedConnection.sent): it is
    kept from the hold on, and dropped once the source is gone.
    """

    router: int
    hosts: dict[str, IPv4Address]
    calls: list[str] = field(default_factory=list)
    fail_once: str = ""  # the method that refuses its next call, after it has acted

    def __post_init__(self) -> None:
        self.location: dict[Endpoint, Endpoint] = {}
        self.held: set[Endpoint] = set()
        self.before: dict[str, dict[Endpoint, Endpoint]] = {}
        self.turn = threading.Lock()  # one queue: one move holds at a time
        self.owner = ""
        self.guard = threading.RLock()
        self.nft = in_netns(self.router, Nft)  # its netlink socket stays there
        self.queue = in_netns(self.router, lambda: Queue(TO_MOVED))
        self.sent = in_netns(self.router, lambda: Queue(FROM_MOVED))
        self.leaving: set[Endpoint] = set()
        self._nft(RULES)

    def _nft(self, commands: str) -> None:
        with self.guard:
            self.nft.run(commands)

    def identity(self, location: Endpoint) -> Endpoint:
        """Return what peers call the endpoint that lives at `location`."""
        return next((who for who, where in self.location.items() if where == location), location)

    def pairs(self, move: Move) -> list[tuple[Endpoint, Endpoint]]:
        """List old and new location of all that moves."""
        pairs = [(m.old, m.new) for m in move.listeners] + [(m.old, m.new) for m in move.connections]
        return list(dict.fromkeys(pairs))

    def prepare(self, move: Move) -> None:
        self.calls.append("prepare")
        self._speak(move)
        self.refuse("prepare")

    def _speak(self, move: Move) -> None:
        commands = ""
        for old, new in self.pairs(move):
            who = self.identity(old)
            if who != new:
                commands += f"add element ip steering as_address {{ {key(new)} : {who.address} }}\n"
            if who.port != new.port:
                half = Endpoint(who.protocol, who.address, new.port)
                commands += f"add element ip steering as_port {{ {key(half)} : {who.port} }}\n"
        if commands:
            self._nft(commands)

    def hold(self, move: Move, at_once: bool = False, begun: Callable[[], None] = lambda: None) -> None:
        self.calls.append("hold")
        begun()
        self._hold(move)
        self.refuse("hold")

    def start_hold(self, move: Move) -> None:
        self.calls.append("start_hold")
        self._start_hold(move)
        self.refuse("start_hold")

    def drained(self, move: Move) -> None:
        self.calls.append("drained")
        self._flush(self.hosts[move.source])
        self.refuse("drained")

    def muted(self, move: Move) -> None:
        self.calls.append("muted")
        self.refuse("muted")

    def _hold(self, move: Move) -> None:
        self._start_hold(move)
        self._flush(self.hosts[move.source])

    def _start_hold(self, move: Move) -> None:
        if self.owner != move.id:
            assert self.turn.acquire(timeout=20)
            self.owner = move.id
        self.queue.hold()
        self.sent.hold()
        leaving = {old for old, _ in self.pairs(move)} - self.leaving
        if leaving:
            self._nft("".join(f"add element ip steering leaving {{ {key(old)} }}\n" for old in leaving))
            self.leaving |= leaving
        new = {self.identity(old) for old, _ in self.pairs(move)} - self.held
        if new:
            self._nft("".join(f"add element ip steering held {{ {key(who)} }}\n" for who in new))
            self.held |= new

    def _flush(self, address: IPv4Address) -> None:
        """Wait for an echo from the host: what was on its way before has arrived before."""

        def ping() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM, socket.IPPROTO_ICMP) as probe:
                probe.settimeout(1)
                probe.sendto(struct.pack(">BBHHH", 8, 0, 0, 0, 1), (str(address), 0))
                probe.recv(100)

        in_netns(self.router, ping)

    def extend(self, move: Move) -> None:
        self.calls.append("extend")
        self._speak(move)
        self._hold(move)

    def switch_over(self, move: Move) -> None:
        self.calls.append("switch_over")
        self.before.setdefault(move.id, dict(self.location))
        commands = ""
        for old, new in self.pairs(move):
            who = self.identity(old)
            commands += self._forget(who)
            if who != new:
                commands += self._place(who, new)
        if commands:
            self._nft(commands)
        until = {(c.old, c.peer): c.sent for c in move.connections}
        self.sent.let_pass(lambda packet: knows(packet, until))
        self.refuse("switch_over")

    def _forget(self, who: Endpoint) -> str:
        if who not in self.location:
            return ""
        where = self.location.pop(who)
        half = Endpoint(who.protocol, who.address, where.port)
        commands = f"delete element ip steering to_address {{ {key(half)} }}\n"
        if where.port != who.port:
            commands += f"delete element ip steering to_port {{ {key(who)} }}\n"
        return commands

    def _place(self, who: Endpoint, where: Endpoint) -> str:
        self.location[who] = where
        # The port is looked up first, by the identity; then the address, by the identity's with the new port.
        half = Endpoint(who.protocol, who.address, where.port)
        commands = f"add element ip steering to_address {{ {key(half)} : {where.address} }}\n"
        if where.port != who.port:
            commands += f"add element ip steering to_port {{ {key(who)} : {where.port} }}\n"
        return commands

    def releasing(self, move: Move, room: int | None = None) -> Callable[[], None]:
        return lambda: None

    def release(self, move: Move, receivers: Receivers | None = None) -> HeldStats:
        self.calls.append("release")
        if self.owner != move.id:
            return HeldStats()
        is_switched = move.id in self.before
        if not is_switched:
            self._let_leave(NF_ACCEPT)
        stats = self.queue.release()
        if self.held:
            self._nft("".join(f"delete element ip steering held {{ {key(who)} }}\n" for who in self.held))
            self.held.clear()
        if not is_switched:
            self._give_up_turn()
        self.refuse("release")
        return stats

    def _let_leave(self, verdict: int) -> None:
        """Hold nothing from the source any more."""
        if self.leaving:
            self._nft("".join(f"delete element ip steering leaving {{ {key(e)} }}\n" for e in self.leaving))
            self.leaving.clear()
        self.sent.release(verdict)

    def _give_up_turn(self) -> None:
        self.owner = ""
        self.turn.release()

    def disown(self, move: Move) -> None:
        self.calls.append("disown")
        until = {(c.old, c.peer): c.sent for c in move.connections}
        self.sent.let_pass(lambda packet: knows(packet, until))
        self.sent.forget()

    def switch_back(self, move: Move) -> None:
        self.calls.append("switch_back")
        before = self.before.pop(move.id, None)
        if before is None:
            return
        commands = ""
        for old, new in self.pairs(move):
            who = self.identity(new)
            commands += self._forget(who)
            if who != old:
                commands += self._place(who, old)
        if commands:
            self._nft(commands)

    def finish(self, move: Move) -> None:
        self.calls.append("finish")
        if self.before.pop(move.id, None) is not None and self.owner == move.id:
            self._let_leave(NF_DROP)
            self._give_up_turn()
        self.refuse("finish")

    def refuse(self, method: str) -> None:
        """Fail if this method is the one to fail."""
        if self.fail_once == method:
            self.fail_once = ""
            raise SteeringError(f"the router refuses to {method}")

    def close(self) -> None:
        self.queue.close()
        self.sent.close()
        self.nft.close()


def knows(packet: Kept, until: Mapping[tuple[Endpoint, Endpoint], Spoken | None]) -> bool:
    """Say whether the image knows a packet."""
    frame = b"\0" * 12 + b"\x08\x00" + packet.head
    flow = flow_of(frame)
    spoken = until.get(flow) if flow is not None else None
    return spoken is None or is_known(frame, spoken)


def ip(*commands: str, namespace: str = "") -> None:
    """Let one ip(8) do some commands, in a network namespace or the machine's."""
    place = ["-n", namespace] if namespace else []
    subprocess.run(
        ["ip", *place, "-batch", "-"], input="\n".join(commands), text=True, check=True, timeout=10
    )


@dataclass
class RoutedNetwork:
    """Hosts named A, B, C, … around one router."""

    hosts: dict[str, Host]
    steering: RouterSteering


def is_in(pid: int, namespace: str) -> bool:
    """Say whether a process is in a network namespace yet."""
    return Path(f"/proc/{pid}/ns/net").stat().st_ino == Path(f"/run/netns/{namespace}").stat().st_ino


def holder(namespace: str) -> int:
    """Keep a network namespace by a process of its own, as Mininet does; return its PID."""
    process = subprocess.Popen(
        ["nsenter", f"--net=/run/netns/{namespace}", "sleep", "infinity"], start_new_session=True
    )
    return process.pid


@contextmanager
def routed_network(names: str = "ABC") -> Iterator[RoutedNetwork]:
    """Build the network, and take it down again."""
    mark = f"mg{os.getpid() % 10000}"
    router = f"{mark}r"
    spaces = [router, *(f"{mark}{name}" for name in names)]
    pids: list[int] = []
    try:
        ip(*(f"netns add {space}" for space in spaces))
        pids += map(holder, spaces)
        assert wait_until(lambda: all(map(is_in, pids, spaces)), 5.0)
        inner = ["link set lo up"]
        for number, space in enumerate(spaces[1:], 1):
            inner += [
                f"link add name p{number} type veth peer name eth0 netns {space}",
                f"addr add 10.77.{number}.1/24 dev p{number}",
                f"link set p{number} up",
            ]
        ip(*inner, namespace=router)
        hosts = {}
        for number, (name, pid) in enumerate(zip(names, pids[1:], strict=True), 1):
            ip(
                "link set lo up",
                f"addr add 10.77.{number}.2/24 dev eth0",
                "link set eth0 up",
                f"route add default via 10.77.{number}.1",
                namespace=f"{mark}{name}",
            )
            hosts[name] = Host(name, pid, IPv4Address(f"10.77.{number}.2"))
        in_netns(pids[0], configure_router)
        steering = RouterSteering(pids[0], {name: host.address for name, host in hosts.items()})
        try:
            yield RoutedNetwork(hosts, steering)
        finally:
            steering.close()
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
        there = {entry.name for entry in Path("/run/netns").iterdir()}
        ip(*(f"netns del {space}" for space in spaces if space in there))


def configure_router() -> None:
    """Let the router forward, and let probes of its own pass."""
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    for mark, number in ((1, TO_MOVED), (2, FROM_MOVED)):
        subprocess.run(QUEUE_RULE.format(mark, number).split(), check=True, timeout=10)
    Path("/proc/sys/net/ipv4/ping_group_range").write_text("0 2147483647")
