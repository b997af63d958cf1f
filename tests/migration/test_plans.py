"""What the network is told, and what is refused, as a function of the sockets alone."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

import pytest

from migration.errors import Refused
from migration.inet import InetSocket, Relocation, State, build_move, reverse
from migration.model import App, Host
from migration.preflight import check_ports, check_sockets, choose_ports
from migration.steering import IpProtocol
from migration.workspace import check_room

OLD, NEW, PEER = IPv4Address("10.0.2.2"), IPv4Address("10.0.3.3"), IPv4Address("10.0.1.1")
ANY = IPv4Address("0.0.0.0")
HERE, THERE = Host("h2", 2, OLD), Host("h3", 3, NEW)
APP = App("echo", HERE, 22, Path("/tmp/echo.log"))
LISTENER = InetSocket(6, State.LISTEN, ANY, 7000, ANY, 0)
CONNECTION = InetSocket(6, State.ESTABLISHED, OLD, 7000, PEER, 40000)


def build(*sockets: InetSocket) -> list[str]:
    """Build a move and write it down shortly."""
    move = build_move("m", "h2", "h3", sockets, Relocation(OLD, NEW, {}))
    listeners = [
        f"{m.old.protocol.name} {m.old.address}:{m.old.port} {m.new.address}" for m in move.listeners
    ]
    return listeners + [
        f"{m.new.address}:{m.new.port} {m.peer.address}:{m.peer.port}" for m in move.connections
    ]


@pytest.mark.parametrize(
    ("sockets", "expected"),
    [
        ([LISTENER], ["TCP 10.0.2.2:7000 10.0.3.3"]),
        ([replace(LISTENER, local=IPv6Address("::"))], ["TCP 10.0.2.2:7000 10.0.3.3"]),
        ([replace(LISTENER, local=OLD)], ["TCP 10.0.2.2:7000 10.0.3.3"]),
        ([LISTENER, replace(LISTENER, local=OLD)], ["TCP 10.0.2.2:7000 10.0.3.3"]),
        ([replace(LISTENER, local=IPv4Address("127.0.0.1"))], []),
        ([InetSocket(17, State.CLOSE, ANY, 53, ANY, 0)], ["UDP 10.0.2.2:53 10.0.3.3"]),
        ([InetSocket(17, State.CLOSE, ANY, 0, ANY, 0)], []),
        ([CONNECTION], ["10.0.3.3:7000 10.0.1.1:40000"]),
        ([replace(CONNECTION, protocol=17)], ["10.0.3.3:7000 10.0.1.1:40000"]),
        ([replace(CONNECTION, local=IPv4Address("127.0.0.1"))], []),
    ],
)
def test_move_names_what_peers_can_see(sockets: list[InetSocket], expected: list[str]) -> None:
    """Listeners carry the hosts' addresses even when bound to any; loopback is nobody's business."""
    assert build(*sockets) == expected


def test_connections_within_the_program_are_its_own() -> None:
    """Both ends move together, so the network need not know."""
    inner = [
        InetSocket(6, State.ESTABLISHED, OLD, 40000, OLD, 7000),
        InetSocket(6, State.ESTABLISHED, OLD, 7000, OLD, 40000),
    ]
    assert build(*inner) == []


def test_reverse_is_its_own_inverse() -> None:
    """The way back of the way back is the way."""
    move = build_move("m", "h2", "h3", [LISTENER, CONNECTION], Relocation(OLD, NEW, {}))
    assert replace(reverse(reverse(move)), id="m") == move


@pytest.mark.parametrize(
    ("socket", "reason"),
    [
        (
            replace(CONNECTION, local=IPv6Address("fd00::2"), remote=IPv6Address("fd00::1")),
            "only IPv4 is carried",
        ),
        (replace(LISTENER, local=IPv4Address("10.9.9.9")), "not bound to h2's address 10.0.2.2"),
        (replace(CONNECTION, remote=NEW), "h3's own address as its peer"),
    ],
)
def test_sockets_that_cannot_go_are_named(socket: InetSocket, reason: str) -> None:
    """A refusal says which socket and why."""
    with pytest.raises(Refused, match=reason):
        check_sockets(APP, THERE, [socket])


def test_taken_ports() -> None:
    """A listener is refused; a connection gets another port, unless it belongs to a listener."""
    taken = [
        InetSocket(6, State.LISTEN, ANY, 7000, ANY, 0),
        InetSocket(6, State.ESTABLISHED, NEW, 40001, PEER, 80),
    ]
    with pytest.raises(Refused, match="TCP port 7000 is taken on h3"):
        check_ports(APP, THERE, [LISTENER], taken)
    check_ports(APP, THERE, [replace(LISTENER, protocol=17)], taken)
    outgoing = InetSocket(6, State.ESTABLISHED, OLD, 40001, PEER, 7000)
    chosen = choose_ports([outgoing, replace(outgoing, local_port=40002)], taken)
    assert list(chosen) == [(IpProtocol.TCP, 40001, PEER, 7000)]
    assert chosen[IpProtocol.TCP, 40001, PEER, 7000] not in (40001, 40002)


def test_no_room_is_refused(tmp_path: Path) -> None:
    """An image that cannot fit is not begun."""
    check_room(tmp_path, 1 << 20, "echo")
    with pytest.raises(Refused, match="no room for the image of echo"):
        check_room(tmp_path, 1 << 60, "echo")
