"""Editing of files.img: only what belongs to the moved host changes, and it changes to what is asked."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migration.criu import PRIVATE, _import_pycriu
from migration.errors import CriuMissing
from migration.images import (
    BadImage,
    address_to_words,
    join,
    readdressed,
    rewrite_files,
    sent_until,
    split,
    tcp_stream_image,
    words_to_address,
)
from migration.inet import Flow, Relocation, State, plain

HEADER = b"\x01\x02\x03\x04\x05\x06\x07\x08"
OLD, NEW = IPv4Address("10.0.2.2"), IPv4Address("10.0.3.3")

v4 = st.ip_addresses(v=4)
v6 = st.ip_addresses(v=6)
mapped = v4.map(lambda a: IPv6Address(b"\0" * 10 + b"\xff\xff" + a.packed))
own = st.sampled_from([OLD, IPv6Address(f"::ffff:{OLD}")])
ports = st.integers(1, 65535)
socket_fields = st.fixed_dictionaries(
    {
        "source": v4 | v6 | mapped | own,
        "target": v4 | mapped,
        "src_port": ports,
        "dst_port": ports,
        "state": st.sampled_from([State.ESTABLISHED, State.LISTEN, State.CLOSE_WAIT, State.CLOSE]),
        "proto": st.sampled_from([6, 17]),
        "backlog": st.integers(0, 4096),
    }
)


@pytest.fixture(scope="module")
def fdinfo() -> Any:
    """CRIU's messages."""
    try:
        return _import_pycriu(PRIVATE / "python")[1]
    except CriuMissing as ex:
        pytest.skip(str(ex))


def socket_entry(fdinfo: Any, number: int, fields: dict[str, Any]) -> Any:
    """Make the entry of a socket in files.img."""
    entry = fdinfo.file_entry(type=fdinfo.INETSK, id=number)
    isk = entry.isk
    isk.id, isk.ino, isk.type, isk.flags = number, 1000 + number, 1, 2
    isk.family = 2 if len(fields["source"].packed) == 4 else 10
    isk.src_addr[:] = address_to_words(fields["source"])
    isk.dst_addr[:] = address_to_words(fields["target"])
    isk.src_port, isk.dst_port = fields["src_port"], fields["dst_port"]
    isk.state, isk.proto, isk.backlog = fields["state"], fields["proto"], fields["backlog"]
    isk.fown.SetInParent()
    isk.fown.uid = isk.fown.euid = isk.fown.signum = isk.fown.pid_type = isk.fown.pid = 0
    isk.opts.SetInParent()
    isk.opts.so_sndbuf = isk.opts.so_rcvbuf = 1
    isk.opts.so_snd_tmo_sec = isk.opts.so_snd_tmo_usec = isk.opts.so_rcv_tmo_sec = (
        isk.opts.so_rcv_tmo_usec
    ) = 0
    return entry


def file_entry(fdinfo: Any, name: str, size: int) -> Any:
    """Make the entry of a regular file."""
    entry = fdinfo.file_entry(type=fdinfo.REG, id=77)
    entry.reg.id, entry.reg.flags, entry.reg.pos, entry.reg.name, entry.reg.size = 77, 1, 0, name, size
    entry.reg.fown.uid = entry.reg.fown.euid = entry.reg.fown.signum = 0
    entry.reg.fown.pid_type = entry.reg.fown.pid = 0
    return entry


def image_of(entries: list[Any]) -> bytes:
    """Write a files.img."""
    return join(HEADER, [entry.SerializeToString() for entry in entries])


def move(ports: dict[Flow, int] | None = None) -> Relocation:
    """Move from OLD to NEW."""
    return Relocation(OLD, NEW, ports or {})


@given(st.lists(st.binary(max_size=50)))
def test_split_and_join_are_inverse(messages: list[bytes]) -> None:
    """An image is its header and its messages, nothing else."""
    assert split(join(HEADER, messages)) == (HEADER, messages)


@pytest.mark.parametrize("image", [b"", HEADER + b"\x01", HEADER + b"\x05\0\0\0abc"])
def test_truncated_images_are_refused(image: bytes) -> None:
    """A cut image is an error, never a shorter program."""
    with pytest.raises(BadImage):
        split(image)


@given(v4 | v6)
def test_addresses_keep_their_value(address: IPv4Address | IPv6Address) -> None:
    """Words and addresses are two forms of one thing."""
    assert words_to_address(address_to_words(address)) == address


def test_addresses_are_in_network_order() -> None:
    """10.0.2.2 is stored as its four bytes."""
    assert address_to_words(OLD) == [0x0202000A]
    assert readdressed([0, 0, 0xFFFF0000, 0x0202000A], NEW) == [0, 0, 0xFFFF0000, 0x0303000A]


@given(st.lists(socket_fields, max_size=6))
def test_only_the_hosts_own_address_changes(fdinfo: Any, sockets: list[dict[str, Any]]) -> None:
    """Every socket at the old address gets the new one; no other field of any entry changes."""
    before = [socket_entry(fdinfo, number, fields) for number, fields in enumerate(sockets)]
    result = rewrite_files(image_of(before), move(), fdinfo, frozenset())
    _, messages = split(result.image)
    after = [fdinfo.file_entry.FromString(message) for message in messages]
    local = {(plain(s["source"]), s["src_port"]) for s in sockets}
    for fields, old, new in zip(sockets, before, after, strict=True):
        source = plain(fields["source"])
        assert plain(words_to_address(new.isk.src_addr)) == (NEW if source == OLD else source)
        assert len(new.isk.src_addr) == len(old.isk.src_addr)
        target = plain(fields["target"])
        if target != OLD or (target, fields["dst_port"]) not in local:
            assert list(new.isk.dst_addr) == list(old.isk.dst_addr)
        for entry in (old, new):
            del entry.isk.src_addr[:], entry.isk.dst_addr[:]
        assert old == new
    assert len(result.before) == len(result.after) == len(sockets)


@given(st.lists(socket_fields, max_size=6))
def test_there_and_back_is_where_it_was(fdinfo: Any, sockets: list[dict[str, Any]]) -> None:
    """Moving back restores the image, unless something was at the new address before."""
    if any(NEW in (plain(s["source"]), plain(s["target"])) for s in sockets):
        return
    image = image_of([socket_entry(fdinfo, number, fields) for number, fields in enumerate(sockets)])
    there = rewrite_files(image, move(), fdinfo, frozenset())
    back = rewrite_files(there.image, Relocation(NEW, OLD, {}), fdinfo, frozenset())
    assert back.image == image


def test_ports_of_single_connections_change(fdinfo: Any) -> None:
    """A connection whose port is taken at the destination gets another; its peer stays."""
    peer = IPv4Address("10.0.1.1")
    fields = {"target": peer, "state": State.ESTABLISHED, "proto": 6, "backlog": 0, "source": OLD}
    entries = [
        socket_entry(fdinfo, 1, {**fields, "src_port": 40000, "dst_port": 7000}),
        socket_entry(fdinfo, 2, {**fields, "src_port": 40000, "dst_port": 7001}),
    ]
    result = rewrite_files(image_of(entries), move({(6, 40000, peer, 7000): 50000}), fdinfo, frozenset())
    assert [(s.local_port, s.remote_port) for s in result.after] == [(50000, 7000), (40000, 7001)]


def test_connection_with_itself_moves_at_both_ends(fdinfo: Any) -> None:
    """Two ends of one connection in one program find each other at the new address."""
    fields = {"source": OLD, "target": OLD, "state": State.ESTABLISHED, "proto": 6, "backlog": 0}
    entries = [
        socket_entry(fdinfo, 1, {**fields, "src_port": 40000, "dst_port": 7000}),
        socket_entry(fdinfo, 2, {**fields, "src_port": 7000, "dst_port": 40000}),
    ]
    result = rewrite_files(image_of(entries), move(), fdinfo, frozenset())
    assert {(s.local, s.remote) for s in result.after} == {(NEW, NEW)}


def test_size_of_growing_logs_is_not_compared(fdinfo: Any) -> None:
    """A program's log may grow; other files keep their check."""
    entries = [file_entry(fdinfo, "/tmp/app.log", 10), file_entry(fdinfo, "/tmp/data", 20)]
    result = rewrite_files(image_of(entries), move(), fdinfo, frozenset({Path("/tmp/app.log")}))
    log, data = (fdinfo.file_entry.FromString(message) for message in split(result.image)[1])
    assert not log.reg.HasField("size")
    assert data.reg.size == 20


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**20), st.integers(0, 2**20), st.binary(max_size=100))
def test_how_far_a_stream_counts_as_sent(
    behind: int, unsent: int, unacknowledged: int, queues: bytes
) -> None:
    """Behind the whole send queue, less what had not been sent; the queues' bytes follow the message."""
    tcp_stream = _import_pycriu(PRIVATE / "python")[2]
    entry = tcp_stream.tcp_stream_entry(
        inq_len=0, inq_seq=1, outq_len=unsent + unacknowledged, outq_seq=behind, opt_mask=0, snd_wscale=7,
        mss_clamp=1460, unsq_len=unsent,
    )  # fmt: skip
    image = join(HEADER, [entry.SerializeToString()]) + queues
    assert sent_until(image, tcp_stream) == (behind - unsent) % 2**32
    with pytest.raises(BadImage):
        sent_until(image[:14], tcp_stream)


def test_the_name_of_a_stream_image() -> None:
    """CRIU writes the socket's inode in hexadecimal."""
    assert tcp_stream_image(0x1A2B) == "tcp-stream-1a2b.img"
