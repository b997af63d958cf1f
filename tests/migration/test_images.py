"""Editing of files.img: only what belongs to the moved host changes, and it changes to what is asked."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migration import messages
from migration.errors import CriuMissing
from migration.images import (
    BadImage,
    OpenFiles,
    address_to_words,
    as_sent,
    join,
    readdressed,
    rewrite_files,
    split,
    spoken,
    tcp_stream_image,
    without_queue,
    words_to_address,
)
from migration.inet import Flow, Relocation, State, plain
from migration.steering import Spoken

HEADER = b"\x01\x02\x03\x04\x05\x06\x07\x08"
OLD, NEW = IPv4Address("10.0.2.2"), IPv4Address("10.0.3.3")

v4 = st.ip_addresses(v=4)
v6 = st.ip_addresses(v=6)
mapped = v4.map(lambda a: IPv6Address(b"\0" * 10 + b"\xff\xff" + a.packed))
own = st.sampled_from([OLD, IPv6Address(f"::ffff:{OLD}")])
anywhere = st.sampled_from(["0.0.0.0", "::", "127.0.0.1", "127.3.2.1", "::1", "::ffff:127.0.0.1"]).map(
    ip_address
)
ports = st.integers(1, 65535)
socket_fields = st.fixed_dictionaries(
    {
        "source": anywhere | own,
        "target": v4 | v6 | mapped | own,
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
        return messages.load(messages.FDINFO)
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


def with_unknown(entry: Any, content: bytes) -> Any:
    """Give an entry and its socket a field that this pycriu does not know."""
    field = b"\xfa\x7f" + bytes([len(content)]) + content  # number 2047, bytes
    inner = entry.isk.SerializeToString() + field
    entry.ClearField("isk")
    whole = entry.SerializeToString() + b"\x22" + varint(len(inner)) + inner + field
    return type(entry).FromString(whole)


def varint(number: int) -> bytes:
    """Encode a length as protobuf does."""
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes(out + bytes([number]))


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
    assert list(readdressed([0, 0, 0xFFFF0000, 0x0202000A], NEW)) == [0, 0, 0xFFFF0000, 0x0303000A]


@given(st.lists(socket_fields, max_size=6), st.binary(max_size=20))
def test_only_the_hosts_own_address_changes(
    fdinfo: Any, sockets: list[dict[str, Any]], unknown: bytes
) -> None:
    """Every socket at the old address gets the new one; no other field of any entry changes, known or unknown."""
    before = [with_unknown(socket_entry(fdinfo, n, fields), unknown) for n, fields in enumerate(sockets)]
    result = rewrite_files(image_of(before), move(), fdinfo, frozenset())
    header, messages = split(result.image)
    after = [fdinfo.file_entry.FromString(message) for message in messages]
    assert header == HEADER
    for fields, old, new in zip(sockets, before, after, strict=True):
        source, target = plain(fields["source"]), plain(fields["target"])
        stays = target != OLD or not any(is_peer(other, fields) for other in sockets)
        assert plain(words_to_address(new.isk.src_addr)) == (NEW if source == OLD else source)
        assert plain(words_to_address(new.isk.dst_addr)) == (target if stays else NEW)
        assert len(new.isk.src_addr) == len(old.isk.src_addr)
        assert len(new.isk.dst_addr) == len(old.isk.dst_addr)
        if stays:
            assert list(new.isk.dst_addr) == list(old.isk.dst_addr)
        for entry in (old, new):
            del entry.isk.src_addr[:], entry.isk.dst_addr[:]
        assert old.SerializeToString(deterministic=True) == new.SerializeToString(deterministic=True)
    assert len(result.before) == len(result.after) == len(sockets)


def is_peer(other: dict[str, Any], fields: dict[str, Any]) -> bool:
    """Say whether one socket is where another one's packets go, by the fields of their entries."""
    is_connected = other["state"] in (State.ESTABLISHED, State.CLOSE_WAIT)
    here = plain(other["source"])
    if not is_connected and here.is_unspecified:
        here = OLD
    if (other["proto"], here, other["src_port"]) != (
        fields["proto"],
        plain(fields["target"]),
        fields["dst_port"],
    ):
        return False
    back = plain(other["target"]), other["dst_port"]
    if is_connected:
        return back == (plain(fields["source"]), fields["src_port"])
    return bool(fields["proto"] == 17)  # a listener of TCP's is no connection's end


@given(st.lists(st.binary(max_size=60), max_size=5), st.lists(socket_fields, max_size=3))
def test_entries_without_addresses_stay_byte_for_byte(
    fdinfo: Any, contents: list[bytes], sockets: list[dict[str, Any]]
) -> None:
    """Files, pipes and what a later CRIU may add are not even written anew."""
    others = [b"\x08\x01\x10\x07" + b"\xfa\x7f" + bytes([len(c)]) + c for c in contents]
    entries = [socket_entry(fdinfo, n, fields).SerializeToString() for n, fields in enumerate(sockets)]
    result = rewrite_files(join(HEADER, others + entries), move(), fdinfo, frozenset())
    assert split(result.image)[1][: len(others)] == others


@given(socket_fields, v4 | v6 | mapped)
def test_image_of_another_host_is_refused(fdinfo: Any, fields: dict[str, Any], address: Any) -> None:
    """A socket bound to an address that does not move would not find it at the new place."""
    image = image_of([socket_entry(fdinfo, 1, {**fields, "source": address})])
    local = plain(address)
    if local == OLD or local.is_unspecified or local.is_loopback:
        rewrite_files(image, move(), fdinfo, frozenset())
        return
    with pytest.raises(BadImage, match="bound to no address of its host"):
        rewrite_files(image, move(), fdinfo, frozenset())


@given(st.lists(socket_fields, max_size=6))
def test_there_and_back_is_where_it_was(fdinfo: Any, sockets: list[dict[str, Any]]) -> None:
    """Moving back restores the image, unless something was at the new address before."""
    if any(plain(s["target"]) == NEW for s in sockets):
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


@given(st.lists(st.tuples(ports, ports), min_size=1, max_size=5, unique=True), st.integers(50000, 60000))
def test_group_moves_both_ends_of_what_connects_it(
    fdinfo: Any, pairs: list[tuple[int, int]], port: int
) -> None:
    """Two programs' images agree on every connection between them, also when a port changes on the way."""
    fields = {"source": OLD, "target": OLD, "state": State.ESTABLISHED, "proto": 6, "backlog": 0}
    clients = [{**fields, "src_port": a, "dst_port": b} for a, b in pairs]
    servers = [{**fields, "src_port": b, "dst_port": a} for a, b in pairs]
    taken = {(6, pairs[0][0], OLD, pairs[0][1]): port}
    moved = []
    for own, other in ((clients, servers), (servers, clients)):
        companions = frozenset((6, OLD, int(s["src_port"]), OLD, int(s["dst_port"])) for s in other)
        image = image_of([socket_entry(fdinfo, n, one) for n, one in enumerate(own)])
        moved.append(OpenFiles(image, fdinfo).move(move(taken), companions).after)
    assert [(s.local, s.local_port, s.remote, s.remote_port) for s in moved[0]] == [
        (s.remote, s.remote_port, s.local, s.local_port) for s in moved[1]
    ]
    assert {s.local for s in (*moved[0], *moved[1])} == {NEW}
    assert moved[0][0].local_port == port


@given(st.integers(0, 3), st.integers(0, 2), st.integers(0, 2), st.integers(0, 5))
def test_expired_periodic_timers_go_on(fdinfo: Any, ticks: int, left: int, interval: int, flags: int) -> None:
    """A periodic timerfd that nobody has read since it expired is armed again; every other stays as it is."""
    entry = fdinfo.file_entry(type=fdinfo.TIMERFD, id=5)
    timer = entry.tfd
    timer.id, timer.flags, timer.clockid, timer.ticks, timer.settime_flags = 5, flags, 1, ticks, 0
    timer.vsec, timer.vnsec, timer.isec, timer.insec = 0, left, 0, interval
    timer.fown.uid = timer.fown.euid = timer.fown.signum = timer.fown.pid_type = timer.fown.pid = 0
    [message] = split(rewrite_files(image_of([entry]), move(), fdinfo, frozenset()).image)[1]
    if ticks and interval and not left:
        timer.vnsec = 1
    assert fdinfo.file_entry.FromString(message) == entry


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
    tcp_stream = messages.load(messages.TCP_STREAM)
    entry = tcp_stream.tcp_stream_entry(
        inq_len=0, inq_seq=1, outq_len=unsent + unacknowledged, outq_seq=behind, opt_mask=0, snd_wscale=7,
        mss_clamp=1460, unsq_len=unsent,
    )  # fmt: skip
    image = join(HEADER, [entry.SerializeToString()]) + queues
    assert spoken(image, tcp_stream) == Spoken((behind - unsent) % 2**32)
    entry.opt_mask, entry.timestamp = 1, 77
    image = join(HEADER, [entry.SerializeToString()]) + queues
    assert spoken(image, tcp_stream) == Spoken((behind - unsent) % 2**32, 77)
    with pytest.raises(BadImage):
        spoken(image[:14], tcp_stream)


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**20), st.binary(max_size=100))
def test_queue_that_counts_as_sent(behind: int, unsent: int, queues: bytes) -> None:
    """Only the length of what had not been sent changes; an image without any stays as it is."""
    tcp_stream = messages.load(messages.TCP_STREAM)
    entry = tcp_stream.tcp_stream_entry(
        inq_len=0, inq_seq=1, outq_len=unsent, outq_seq=behind, opt_mask=0, snd_wscale=7, mss_clamp=1460,
        unsq_len=unsent,
    )  # fmt: skip
    image = join(HEADER, [entry.SerializeToString()]) + queues
    changed = as_sent(image, tcp_stream)
    entry.unsq_len = 0
    assert changed == (join(HEADER, [entry.SerializeToString()]) + queues if unsent else None)


@given(
    st.integers(0, 2**32 - 1), st.binary(max_size=50), st.binary(min_size=1, max_size=50), st.integers(0, 50),
    st.integers(0, 90),
)  # fmt: skip
def test_queue_of_which_the_peer_knows(
    start: int, received: bytes, sending: bytes, unsent: int, room: int
) -> None:
    """What the peer has is acknowledged, the rest is taken out; what was received stays, and so does all else."""
    tcp_stream = messages.load(messages.TCP_STREAM)
    unsent = min(unsent, len(sending))
    heard = len(sending) - unsent
    entry = tcp_stream.tcp_stream_entry(
        inq_len=len(received), inq_seq=7, outq_len=len(sending), outq_seq=(start + len(sending)) % 2**32,
        opt_mask=3, snd_wscale=7, mss_clamp=1460, unsq_len=unsent, snd_wl1=9, snd_wnd=40, max_window=60,
        rcv_wnd=8, rcv_wup=7, timestamp=5,
    )  # fmt: skip
    peer = tcp_stream.tcp_stream_entry(
        inq_len=0, inq_seq=(start + heard) % 2**32, outq_len=0, outq_seq=7, opt_mask=3, snd_wscale=7,
        mss_clamp=1460, rcv_wnd=heard + room, rcv_wup=start,
    )  # fmt: skip
    there = join(HEADER, [peer.SerializeToString()])
    image = join(HEADER, [entry.SerializeToString()]) + received + sending
    changed, left = without_queue(image, there, tcp_stream)
    entry.outq_seq, entry.outq_len, entry.unsq_len = peer.inq_seq, 0, 0
    entry.snd_wnd, entry.max_window = room, max(60, room)
    assert changed == join(HEADER, [entry.SerializeToString()]) + received
    assert left == sending[heard:]
    with pytest.raises(BadImage, match="ends within its queues"):
        without_queue(image[:-1], there, tcp_stream)


@given(st.integers(0, 2**32 - 1), st.integers(-50, 50).filter(lambda off: not 0 <= off <= 10))
def test_queue_that_does_not_fit_its_peer(start: int, off: int) -> None:
    """A peer that has received what the queue does not hold was written at another time."""
    tcp_stream = messages.load(messages.TCP_STREAM)
    ends = [
        tcp_stream.tcp_stream_entry(
            inq_len=0, inq_seq=(start + off) % 2**32, outq_len=10, outq_seq=(start + 10) % 2**32, opt_mask=0,
            snd_wscale=7, mss_clamp=1460,
        )
        for _ in range(2)
    ]  # fmt: skip
    image, peer = (join(HEADER, [entry.SerializeToString()]) + b"0123456789" for entry in ends)
    with pytest.raises(BadImage, match="while packets went from one to the other"):
        without_queue(image, peer, tcp_stream)


def test_the_name_of_a_stream_image() -> None:
    """CRIU writes the socket's inode in hexadecimal."""
    assert tcp_stream_image(0x1A2B) == "tcp-stream-1a2b.img"


def test_sockets_are_bound_to_the_new_hosts_interface(fdinfo: Any) -> None:
    """By the name that it has there; the loopback interface keeps its own."""
    fields: dict[str, Any] = {"source": ip_address("0.0.0.0"), "target": ip_address("0.0.0.0")}
    fields |= {"src_port": 7000, "dst_port": 0, "state": State.LISTEN, "proto": 6, "backlog": 5}
    entries = [socket_entry(fdinfo, number, fields) for number in (1, 2)]
    for entry, device in zip(entries, ("h2-eth0", "lo"), strict=True):
        entry.isk.opts.so_bound_dev = device
    relocation = Relocation(OLD, NEW, {}, {"h2-eth0": "h3-eth0"})
    after = split(rewrite_files(image_of(entries), relocation, fdinfo, frozenset()).image)[1]
    found = [fdinfo.file_entry.FromString(message).isk.opts.so_bound_dev for message in after]
    assert found == ["h3-eth0", "lo"]
