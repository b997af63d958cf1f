"""Reading how far connections had sent from their images."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migration import messages
from migration.images import join, message_at, tcp_stream_image
from migration.inet import InetSocket, State
from migration.steering import Spoken
from migration.streams import HAS_CLOSED, HAS_HEARD_END, sent_by_inode, without_queues

HERE, PEER = IPv4Address("10.0.2.2"), IPv4Address("10.0.1.1")


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 100)), max_size=8))
def test_every_connection_with_an_image_is_read(
    tmp_path_factory: object, ends: list[tuple[int, int]]
) -> None:
    """By inode; listeners, UDP and sockets without an image are left out, and queues do not matter."""
    folder = Path(str(tmp_path_factory.mktemp("images")))  # type: ignore[attr-defined]
    tcp_stream = messages.load(messages.TCP_STREAM)
    sockets = [
        InetSocket(6, State.LISTEN, HERE, 1, HERE, 0, 900),
        InetSocket(17, State.ESTABLISHED, HERE, 1, PEER, 1, 901),
        InetSocket(6, State.ESTABLISHED, HERE, 1, PEER, 2, 902),
    ]
    for inode, (behind, unsent) in enumerate(ends):
        entry = tcp_stream.tcp_stream_entry(
            inq_len=0, inq_seq=1, outq_len=unsent, outq_seq=behind, opt_mask=0, snd_wscale=7,
            mss_clamp=1460, unsq_len=unsent,
        )  # fmt: skip
        image = join(b"\0" * 8, [entry.SerializeToString()]) + b"queue" * 1000
        (folder / tcp_stream_image(inode)).write_bytes(image)
        sockets.append(InetSocket(6, State.ESTABLISHED, HERE, 7, PEER, inode + 1, inode))
    expected = {inode: Spoken((behind - unsent) % 2**32) for inode, (behind, unsent) in enumerate(ends)}
    assert sent_by_inode(folder, sockets, tcp_stream) == expected


def test_connections_within_the_host(tmp_path: Path) -> None:
    """Both ends count, in one folder or in two, whichever directions are closed."""
    tcp_stream = messages.load(messages.TCP_STREAM)
    loopback = IPv4Address("127.0.0.1")
    sockets = {
        "a": [
            InetSocket(6, State.ESTABLISHED, HERE, 1, HERE, 2, 10),
            InetSocket(6, State.FIN_WAIT1, loopback, 3, loopback, 4, 11),
            InetSocket(6, State.ESTABLISHED, HERE, 5, PEER, 6, 12),
            InetSocket(6, State.ESTABLISHED, HERE, 8, HERE, 9, 13),
        ],
        "b": [
            InetSocket(6, State.ESTABLISHED, HERE, 2, HERE, 1, 20),
            InetSocket(6, State.CLOSE_WAIT, loopback, 4, loopback, 3, 21),
        ],
    }
    for folder, found in sockets.items():
        (tmp_path / folder).mkdir()
        for one in found:
            entry = tcp_stream.tcp_stream_entry(
                inq_len=2, inq_seq=104, outq_len=6, outq_seq=106, opt_mask=0, snd_wscale=7, mss_clamp=1460,
                unsq_len=3,
            )  # fmt: skip
            image = join(b"\0" * 8, [entry.SerializeToString()]) + b"inqueue!"
            (tmp_path / folder / tcp_stream_image(one.inode)).write_bytes(image)
    parts = [(tmp_path / folder, found) for folder, found in sockets.items()]
    (first, second), rest = without_queues(parts, HERE, tcp_stream)
    # And not 13, whose peer is elsewhere: it only has this address as its identity.
    assert set(first) == {tcp_stream_image(10), tcp_stream_image(11)}
    assert set(second) == {tcp_stream_image(20), tcp_stream_image(21)}
    assert all(image.endswith(b"in") for image in (*first.values(), *second.values()))
    assert rest.unsaid == dict.fromkeys((10, 11, 20, 21), b"e!")
    assert (rest.reopened, rest.closing) == ({11: (True, False), 21: (False, True)}, [11])


# States of two ends that have both heard all ends of directions, or not, and how many of them the first has sent, its
# peer has heard, and the other way round.
PAIRS = [
    (State.ESTABLISHED, State.ESTABLISHED),
    (State.FIN_WAIT1, State.ESTABLISHED),
    (State.FIN_WAIT1, State.FIN_WAIT1),
    (State.FIN_WAIT2, State.CLOSE_WAIT),
    (State.FIN_WAIT2, State.LAST_ACK),
    (State.CLOSING, State.FIN_WAIT2),
]


@given(
    st.sampled_from([*PAIRS, *(pair[::-1] for pair in PAIRS)]),
    st.lists(
        st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 20), st.integers(0, 20)), min_size=2, max_size=2
    ),
)
def test_open_again_both_ends_agree(
    tmp_path_factory: pytest.TempPathFactory, states: tuple[State, State], streams: list[tuple[int, int, int]]
) -> None:
    """Of how far either has spoken, wherever in the circle of numbers; what is left is exactly what was not heard."""
    tcp_stream = messages.load(messages.TCP_STREAM)
    folder = tmp_path_factory.mktemp("pair")
    sockets = [
        InetSocket(6, states[0], HERE, 1, HERE, 2, 10),
        InetSocket(6, states[1], HERE, 2, HERE, 1, 20),
    ]
    closed = [state in HAS_CLOSED for state in states]
    heard_end = [state in HAS_HEARD_END for state in states]
    for one, other in ((0, 1), (1, 0)):
        begin, heard, unheard = streams[one]
        if heard_end[other]:
            unheard = 0
        their_begin, i_heard, _ = streams[other]
        entry = tcp_stream.tcp_stream_entry(
            inq_len=i_heard, inq_seq=(their_begin + i_heard + heard_end[one]) % 2**32,
            outq_len=heard + unheard, outq_seq=(begin + heard + unheard + closed[one]) % 2**32,
            opt_mask=0, snd_wscale=7, mss_clamp=1460, unsq_len=0,
        )  # fmt: skip
        content = b"i" * i_heard + b"h" * heard + b"u" * unheard
        image = join(b"\0" * 8, [entry.SerializeToString()]) + content
        (folder / tcp_stream_image(sockets[one].inode)).write_bytes(image)
    (changed,), rest = without_queues([(folder, sockets)], HERE, tcp_stream)
    entries = []
    for one in sockets:
        image = changed[tcp_stream_image(one.inode)]
        entry = tcp_stream.tcp_stream_entry.FromString(message_at(image, 8)[0])
        assert (entry.outq_len, image.endswith(b"u")) == (0, False)
        entries.append(entry)
    for one, other in ((0, 1), (1, 0)):
        begin, heard, unheard = streams[one]
        assert entries[one].outq_seq == entries[other].inq_seq == (begin + heard) % 2**32
        left = b"" if heard_end[other] else b"u" * unheard
        assert rest.unsaid.get(sockets[one].inode, b"") == left
    assert {sockets.index(s) for s in sockets if s.inode in rest.closing} == {n for n in (0, 1) if closed[n]}
    if State.FIN_WAIT2 in states:
        assert rest.closing[0] == sockets[states.index(State.FIN_WAIT2)].inode
