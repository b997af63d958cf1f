"""Reading how far connections had sent from their images."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from migration import messages
from migration.images import join, tcp_stream_image
from migration.inet import InetSocket, State
from migration.steering import Spoken
from migration.streams import sent_by_inode, without_queues

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
    """Both ends count, in one folder or in two; an end that is closing keeps its queue as sent."""
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
    (first, second), unsaid = without_queues(parts, HERE, tcp_stream)
    assert {name: image[-8:].endswith(b"inqueue!") for name, image in first.items()} == {
        tcp_stream_image(10): False,  # nothing is queued any more
        tcp_stream_image(11): True,  # all of it counts as sent
    }  # and not 13, whose peer is elsewhere: it only has this address as its identity
    assert all(image.endswith(b"in") for image in second.values())
    assert set(second) == {tcp_stream_image(20), tcp_stream_image(21)}
    assert unsaid == {10: b"e!", 20: b"e!", 21: b"e!"}
