"""Connections of a program with itself, by any of its addresses: whatever way it goes, their ends know each other."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address

from hypothesis import given
from hypothesis import strategies as st

from migration.inet import InetSocket, Relocation, State, build_move, local_ends
from migration.steering import IpProtocol

HOSTS = [IPv4Address(f"10.0.{n}.{n}") for n in range(1, 5)]
HOME, PORT = HOSTS[0], 7300
places = st.sampled_from(HOSTS)


def listener() -> InetSocket:
    """Make a listener for any address."""
    return InetSocket(IpProtocol.TCP, State.LISTEN, IPv4Address("0.0.0.0"), PORT, IPv4Address("0.0.0.0"), 0)


def call(here: IPv4Address, port: int, inode: int) -> list[InetSocket]:
    """Let a program at a host call itself by its first address; return both ends."""
    near = InetSocket(IpProtocol.TCP, State.ESTABLISHED, here, port, HOME, PORT, inode)
    return [near, replace(near, local_port=PORT, remote=here, remote_port=port, inode=inode + 1)]


@given(st.lists(st.tuples(places, st.integers(0, 2)), min_size=1, max_size=8))
def test_ends_know_each_other_wherever_they_go(way: list[tuple[IPv4Address, int]]) -> None:
    """An end called over the switch keeps the name of its peer; within the host both change theirs, in every move."""
    here, sockets, called = HOME, [listener(), *call(HOME, 40000, 1)], {1: HOME}
    for place, calls in way:
        for _ in range(calls):
            inode = 2 * len(called) + 1
            sockets += call(here, 40000 + inode, inode)
            called[inode] = here
        if place == here:
            continue
        relocation = Relocation(here, place, {})
        move = build_move("m", "a", "b", sockets, relocation)
        ends = local_ends(sockets, here)
        sockets = [relocation.apply(one, ends) for one in sockets]
        here = place
        by_inode = {one.inode: one for one in sockets}
        for inode, first in called.items():
            near, far = by_inode[inode], by_inode[inode + 1]
            assert (near.local, far.local) == (here, here)
            # Within the host, as it began, both say where they are; over the switch, how each was called first.
            expected = (here, here) if first == HOME else (HOME, first)
            assert (near.remote, far.remote) == expected
        within = sum(first == HOME for first in called.values())
        assert (len(move.inner), len(move.connections)) == (2 * within, 2 * (len(called) - within))
