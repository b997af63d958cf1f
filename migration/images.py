"""Reading and editing CRIU's image of open files. Pure: bytes in, bytes and values out.

A local address occurs in one place of a checkpoint, the INETSK entries of files.img: `src_addr` and `dst_addr`
are lists of 32-bit words in network byte order (one for IPv4, four for IPv6, v4-mapped addresses included).
tcp-stream-*.img holds sequence numbers, windows and queues, but no address: one message, then the queues' bytes.

An image file is two 32-bit magics, then entries of a 32-bit length and a protobuf message. The messages are
CRIU's own (pycriu), so fields of versions to come survive the editing.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import Any

from .inet import Address, InetSocket, Relocation, local_ends, plain

AF_INET = 2
AF_INET6 = 10
FILES_IMAGE = "files.img"
INVENTORY_IMAGE = "inventory.img"
_HEADER = struct.Struct("<II")
_LENGTH = struct.Struct("<I")
_WORD = struct.Struct("<I")


class BadImage(Exception):
    """An image file does not have the shape that CRIU gives it."""


@dataclass(frozen=True, slots=True)
class Rewritten:
    """A new files.img, and the Internet sockets in it before and after."""

    image: bytes
    before: tuple[InetSocket, ...]
    after: tuple[InetSocket, ...]


def split(image: bytes) -> tuple[bytes, list[bytes]]:
    """Cut an image file into its magics and its messages."""
    if len(image) < _HEADER.size:
        raise BadImage(f"an image of {len(image)} bytes has no header")
    messages = []
    at = _HEADER.size
    while at < len(image):
        if at + _LENGTH.size > len(image):
            raise BadImage(f"the image ends within a length at byte {at}")
        (length,) = _LENGTH.unpack_from(image, at)
        at += _LENGTH.size
        if at + length > len(image):
            raise BadImage(f"the image ends within the entry at byte {at}")
        messages.append(image[at : at + length])
        at += length
    return image[: _HEADER.size], messages


def sent_until(image: bytes, tcp_stream: Any) -> int:
    """Return the sequence number behind the last byte that a tcp-stream image counts as sent (SND.NXT).

    `tcp_stream` is pycriu's module tcp_stream_pb2. CRIU's outq_seq is that behind the whole send queue, of which
    the last unsq_len bytes had not been sent.
    """
    start = _HEADER.size + _LENGTH.size
    if len(image) < start:
        raise BadImage(f"a tcp-stream image of {len(image)} bytes has no entry")
    (length,) = _LENGTH.unpack_from(image, _HEADER.size)
    if len(image) < start + length:
        raise BadImage("the tcp-stream image ends within its entry")
    entry = tcp_stream.tcp_stream_entry.FromString(image[start : start + length])
    return int(entry.outq_seq - entry.unsq_len) & 0xFFFFFFFF


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


def readdressed(words: Sequence[int], address: Address) -> list[int]:
    """Write `address` in the form that `words` have: IPv4, or v4-mapped."""
    if len(words) == 4 and isinstance(address, IPv4Address):
        address = IPv6Address(b"\0" * 10 + b"\xff\xff" + address.packed)
    return address_to_words(address)


def to_socket(entry: Any) -> InetSocket:
    """Read one inet_sk_entry."""
    return InetSocket(
        protocol=entry.proto,
        state=entry.state,
        local=plain(words_to_address(entry.src_addr)),
        local_port=entry.src_port,
        remote=plain(words_to_address(entry.dst_addr)),
        remote_port=entry.dst_port,
        inode=entry.ino,
    )


def rewrite_files(image: bytes, relocation: Relocation, fdinfo: Any, growing: frozenset[Path]) -> Rewritten:
    """Move the sockets of a files.img to their new addresses; `fdinfo` is pycriu's module of that name.

    `growing` are log files, whose size may differ at restore: CRIU then does not compare it.
    """
    header, messages = split(image)
    entries = [fdinfo.file_entry.FromString(message) for message in messages]
    inet = [entry.isk for entry in entries if entry.HasField("isk")]
    before = tuple(to_socket(entry) for entry in inet)
    ends = local_ends(before, relocation.old)
    after = tuple(relocation.apply(socket, ends) for socket in before)
    for entry, old, new in zip(inet, before, after, strict=True):
        if new != old:
            readdress(entry, new)
    for entry in entries:
        if entry.HasField("reg") and Path(entry.reg.name) in growing:
            entry.reg.ClearField("size")
    return Rewritten(join(header, (entry.SerializeToString() for entry in entries)), before, after)


def readdress(entry: Any, socket: InetSocket) -> None:
    """Write a socket's addresses and local port into its inet_sk_entry."""
    entry.src_addr[:] = readdressed(entry.src_addr, socket.local)
    entry.dst_addr[:] = readdressed(entry.dst_addr, socket.remote)
    entry.src_port = socket.local_port
