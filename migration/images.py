"""Reading and editing CRIU's image of open files. Pure: bytes in, bytes and values out.

A local address occurs in one place of a checkpoint, the INETSK entries of files.img: `src_addr` and `dst_addr`
are lists of 32-bit words in network byte order (one for IPv4, four for IPv6, v4-mapped addresses included).
tcp-stream-*.img holds sequence numbers, windows and queues, but no address: one message, then the queues' bytes.

An image file is two 32-bit magics, then entries of a 32-bit length and a protobuf message. The messages are
CRIU's own (pycriu), so fields of versions to come survive the editing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from .inet import Address, Ends, InetSocket, Relocation, State, local_ends, plain
from .steering import Spoken

AF_INET = 2
AF_INET6 = 10
FILES_IMAGE = "files.img"
INVENTORY_IMAGE = "inventory.img"
LOCKS_IMAGE = "filelocks.img"
# The machine's clocks at the dump of a program that has no time namespace of its own.
CLOCKS_IMAGE = "timens-0.img"
_HEADER = struct.Struct("<II")
_LENGTH = struct.Struct("<I")
_WORD = struct.Struct("<I")
_SHUT_READ, _SHUT_WRITE = 1, 2  # bits of sk_shutdown in CRIU's images/sk-inet.proto
_MASK = 0xFFFFFFFF
_TIMESTAMPS = 1  # TCPI_OPT_TIMESTAMPS of <linux/tcp.h>, which CRIU's opt_mask uses


class BadImage(Exception):
    """An image file does not have the shape that CRIU gives it."""


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A new files.img, and the Internet sockets in it before and after."""

    image: bytes
    before: tuple[InetSocket, ...]
    after: tuple[InetSocket, ...]


def has_locks(images: Path) -> bool:
    """Say whether the image in a folder holds file locks."""
    locks = images / LOCKS_IMAGE
    return locks.exists() and split(locks.read_bytes())[1] != []


def is_needed(name: str) -> bool:
    """Say whether a file of a dump's folder is to be restored from.

    CRIU's logs are not, and neither are the machine's clocks: with them, CRIU puts the copy into a time namespace, in
    which its clocks go on from the dump. Hosts share one machine, whose clocks the copy simply keeps; and a time
    namespace would have to be made by every restore, and dumped, in a process of its own, by every further dump.
    """
    return name.endswith(".img") and name != CLOCKS_IMAGE


def split(image: bytes) -> tuple[bytes, list[bytes]]:
    """Cut an image file into its magics and its messages."""
    header = header_of(image)
    messages = []
    at = len(header)
    while at < len(image):
        message, at = message_at(image, at)
        messages.append(message)
    return header, messages


def header_of(image: bytes) -> bytes:
    """Return the magics of an image file; raises BadImage."""
    if len(image) < _HEADER.size:
        raise BadImage(f"an image of {len(image)} bytes has no header")
    return image[: _HEADER.size]


def message_at(image: bytes, at: int) -> tuple[bytes, int]:
    """Return the message that begins at a byte of an image file, and where it ends; raises BadImage."""
    if at + _LENGTH.size > len(image):
        raise BadImage(f"the image ends within a length at byte {at}")
    (length,) = _LENGTH.unpack_from(image, at)
    at += _LENGTH.size
    if at + length > len(image):
        raise BadImage(f"the image ends within the entry at byte {at}")
    return image[at : at + length], at + length


def spoken(image: bytes, tcp_stream: Any) -> Spoken:
    """Return how far a tcp-stream image counts its connection's bytes as sent (SND.NXT), and its timestamp clock.

    `tcp_stream` is pycriu's module tcp_stream_pb2. CRIU's outq_seq is that behind the whole send queue, of which
    the last unsq_len bytes had not been sent.
    """
    entry = tcp_stream.tcp_stream_entry.FromString(_split_stream(image)[1])
    stamp = int(entry.timestamp) if entry.opt_mask & _TIMESTAMPS and entry.HasField("timestamp") else None
    return Spoken(int(entry.outq_seq - entry.unsq_len) & 0xFFFFFFFF, stamp)


def as_sent(image: bytes, tcp_stream: Any) -> bytes | None:
    """Let a tcp-stream image count its whole send queue as sent; None if it does already."""
    header, message, queues = _split_stream(image)
    entry = tcp_stream.tcp_stream_entry.FromString(message)
    if not entry.unsq_len:
        return None
    entry.unsq_len = 0
    return join(header, [entry.SerializeToString()]) + queues


def without_queue(
    image: bytes,
    peer: bytes,
    tcp_stream: Any,
    has_closed: bool = False,
    has_heard_end: bool = False,
    peer_has_heard_end: bool = False,
) -> tuple[bytes, bytes]:
    """Empty the send queue of a tcp-stream image whose peer is in the image `peer`, taken at the same time.

    Returns the image as if the peer had acknowledged all that it has received, and said what room it has, and nothing
    were queued; and the queue's bytes that the peer has not received. Raises BadImage if the peer has received what
    the queue does not hold: bytes of this connection would be lost.

    The end of a direction counts as one byte (RFC 9293, 3.4), of which the lengths of CRIU's images say nothing
    (soccr/soccr.c). An end that `has_closed` its own direction has not in the image that is returned, and one that
    `has_heard_end` of the other one has not heard of it.
    """
    header, message, queues = _split_stream(image)
    entry = tcp_stream.tcp_stream_entry.FromString(message)
    other = tcp_stream.tcp_stream_entry.FromString(_split_stream(peer)[1])
    said = (entry.outq_seq - has_closed) & _MASK
    acknowledged = (other.inq_seq - peer_has_heard_end) & _MASK
    heard = (acknowledged - said + entry.outq_len) & _MASK
    if heard > entry.outq_len:
        raise BadImage("two ends of a connection were written while packets went from one to the other")
    if len(queues) < entry.inq_len + entry.outq_len:
        raise BadImage("the tcp-stream image ends within its queues")
    received, sending = queues[: entry.inq_len], queues[entry.inq_len : entry.inq_len + entry.outq_len]
    entry.outq_seq = acknowledged
    entry.outq_len = entry.unsq_len = 0
    entry.inq_seq = (entry.inq_seq - has_heard_end) & _MASK
    if entry.HasField("rcv_wnd") and has_heard_end:
        entry.rcv_wup, entry.rcv_wnd = (entry.rcv_wup - 1) & _MASK, entry.rcv_wnd + 1
    if entry.HasField("snd_wnd") and other.HasField("rcv_wnd"):
        room = (other.rcv_wup + other.rcv_wnd - acknowledged) & _MASK
        entry.snd_wnd = room if room < 1 << 31 else 0
        entry.max_window = max(entry.max_window, entry.snd_wnd)
    return join(header, [entry.SerializeToString()]) + received, sending[heard:]


def _split_stream(image: bytes) -> tuple[bytes, bytes, bytes]:
    """Cut a tcp-stream image into its magics, its message, and the queues."""
    start = _HEADER.size + _LENGTH.size
    if len(image) < start:
        raise BadImage(f"a tcp-stream image of {len(image)} bytes has no entry")
    (length,) = _LENGTH.unpack_from(image, _HEADER.size)
    if len(image) < start + length:
        raise BadImage("the tcp-stream image ends within its entry")
    return image[: _HEADER.size], image[start : start + length], image[start + length :]


def tcp_stream_image(inode: int) -> str:
    """Return the name of a socket's stream image."""
    return f"tcp-stream-{inode:x}.img"


def join(header: bytes, messages: Iterable[bytes]) -> bytes:
    """Put an image file together again."""
    return header + b"".join(_LENGTH.pack(len(message)) + message for message in messages)


def words_to_address(words: Sequence[int]) -> Address:
    """Read an address as CRIU stores it."""
    packed = b"".join(_WORD.pack(word) for word in words)
    if len(packed) == 4:
        return IPv4Address(packed)
    if len(packed) == 16:
        return IPv6Address(packed)
    raise BadImage(f"an address of {len(words)} words")


def address_to_words(address: Address) -> list[int]:
    """Write an address as CRIU stores it."""
    return [word for (word,) in _WORD.iter_unpack(address.packed)]


def readdressed(words: Sequence[int], address: Address) -> Sequence[int]:
    """Write `address` in the form that `words` have: IPv4, or v4-mapped."""
    return _written(address, len(words) == 4)


@lru_cache(maxsize=4096)
def _written(address: Address, as_ipv6: bool) -> tuple[int, ...]:
    if as_ipv6 and isinstance(address, IPv4Address):
        address = IPv6Address(b"\0" * 10 + b"\xff\xff" + address.packed)
    return tuple(address_to_words(address))


def to_socket(entry: Any) -> InetSocket:
    """Read one inet_sk_entry."""
    return InetSocket(
        protocol=entry.proto,
        state=entry.state,
        local=_known_address(tuple(entry.src_addr)),
        local_port=entry.src_port,
        remote=_known_address(tuple(entry.dst_addr)),
        remote_port=entry.dst_port,
        inode=entry.ino,
    )


@lru_cache(maxsize=4096)
def _known_address(words: tuple[int, ...]) -> Address:
    """Read an address, v4-mapped ones as what they are on the wire; thousands of sockets share a few."""
    return plain(words_to_address(words))


class OpenFiles:
    """The entries of a files.img, of which some are to be changed; `fdinfo` is pycriu's module of that name."""

    def __init__(self, image: bytes, fdinfo: Any, growing: frozenset[Path] = frozenset()) -> None:
        """Read an image. `growing` are log files, whose size may differ at restore: CRIU then does not compare it."""
        self._header, self._messages = split(image)
        self._sockets: list[tuple[int, Any]] = []
        for number, message in enumerate(self._messages):
            entry = fdinfo.file_entry.FromString(message)
            if entry.HasField("isk"):
                self._sockets.append((number, entry))
            elif (entry.HasField("reg") and let_grow(entry.reg, growing)) or (
                entry.HasField("tfd") and rearm(entry.tfd)
            ):
                self._messages[number] = entry.SerializeToString()
        self.sockets = tuple(to_socket(entry.isk) for _, entry in self._sockets)

    def move(self, relocation: Relocation, companions: Ends = frozenset()) -> Rewritten:
        """Move the sockets to their new addresses.

        `companions` are the local ends of other programs that move along, in this host's addresses. Raises BadImage
        when a socket is bound to an address that is neither the old host's nor a loopback one: the image is not of
        that host, and the socket would not find its address at the new one.
        """
        before = self.sockets
        for socket in before:
            if not (socket.is_bound_to_any or socket.local == relocation.old or socket.local.is_loopback):
                raise BadImage(f"{socket} in the image is bound to no address of its host ({relocation.old})")
        ends = local_ends(before, relocation.old) | companions
        after = tuple(relocation.apply(socket, ends) for socket in before)
        for (number, entry), old, new in zip(self._sockets, before, after, strict=True):
            device = relocation.devices.get(entry.isk.opts.so_bound_dev)
            if device is not None:
                entry.isk.opts.so_bound_dev = device
            if new is not old:
                readdress(entry.isk, old, new)
            if new is not old or device is not None:
                self._messages[number] = entry.SerializeToString()
        return Rewritten(join(self._header, self._messages), before, after)


def rewrite_files(image: bytes, relocation: Relocation, fdinfo: Any, growing: frozenset[Path]) -> Rewritten:
    """Move the sockets of one program's files.img; see OpenFiles."""
    return OpenFiles(image, fdinfo, growing).move(relocation)


def reopened(image: bytes, ends: Mapping[int, tuple[bool, bool]], fdinfo: Any) -> bytes:
    """Make connections of a files.img open again, by inode: the end's own direction if it was closed, and the other."""
    header, messages = split(image)
    for number, message in enumerate(messages):
        entry = fdinfo.file_entry.FromString(message)
        if entry.HasField("isk") and entry.isk.ino in ends:
            has_closed, has_heard_end = ends[entry.isk.ino]
            entry.isk.state = State.ESTABLISHED
            entry.isk.shutdown &= ~(_SHUT_WRITE * has_closed | _SHUT_READ * has_heard_end)
            if not entry.isk.shutdown:
                entry.isk.ClearField("shutdown")
            messages[number] = entry.SerializeToString()
    return join(header, messages)


def readdress(entry: Any, before: InetSocket, socket: InetSocket) -> None:
    """Write what has changed of a socket's addresses and ports into its inet_sk_entry."""
    if socket.local != before.local:
        entry.src_addr[:] = readdressed(entry.src_addr, socket.local)
    if socket.remote != before.remote:
        entry.dst_addr[:] = readdressed(entry.dst_addr, socket.remote)
    entry.src_port = socket.local_port
    entry.dst_port = socket.remote_port


def let_grow(entry: Any, growing: frozenset[Path]) -> bool:
    """Take the size away from a growing file's reg_file_entry; say whether it is one."""
    if not growing or Path(entry.name) not in growing:
        return False
    entry.ClearField("size")
    return True


def rearm(entry: Any) -> bool:
    """Let a periodic timer go on that had expired and not been read; say whether it is one.

    The kernel stops such a timer until it is read, so its remaining time is 0, and CRIU's restore takes that for
    "disarmed". One nanosecond from now is the same as expired.
    """
    has_expired = entry.ticks > 0 and entry.vsec == entry.vnsec == 0
    if not has_expired or entry.isec == entry.insec == 0:
        return False
    entry.vnsec = 1
    return True
