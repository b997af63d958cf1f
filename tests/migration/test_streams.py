"""Reading how far connections had sent from their images."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from migration.criu import PRIVATE, _import_pycriu
from migration.images import join, tcp_stream_image
from migration.inet import InetSocket, State
from migration.steering import Spoken
from migration.streams import sent_by_inode

HERE, PEER = IPv4Address("10.0.2.2"), IPv4Address("10.0.1.1")


@given(st.lists(st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 100)), max_size=8))
def test_every_connection_with_an_image_is_read(
    tmp_path_factory: object, ends: list[tuple[int, int]]
) -> None:
    """By inode; listeners, UDP and sockets without an image are left out, and queues do not matter."""
    folder = Path(str(tmp_path_factory.mktemp("images")))  # type: ignore[attr-defined]
    tcp_stream = _import_pycriu(PRIVATE / "python")[2]
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
