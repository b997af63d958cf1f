"""The images of everything that moves in one migration: read, rewritten and handed over together.

A passage has one part for each image: one for a program or a group that was started as such, several for programs that
were started apart. Connections between the parts move at both ends.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from .fifos import without_content
from .images import FILES_IMAGE, OpenFiles, Rewritten, reopened
from .inet import InetSocket, Relocation, local_ends
from .runtime import Passage
from .steering import Spoken
from .streams import Ends, ends_of, sent_by_inode, without_queues


@dataclass(frozen=True)
class Images:
    """The rewritten images of a passage's parts, in their order."""

    parts: tuple[Rewritten, ...]

    @property
    def before(self) -> list[InetSocket]:
        """All sockets as they were."""
        return [socket for part in self.parts for socket in part.before]

    @property
    def after(self) -> list[InetSocket]:
        """All sockets as they will be."""
        return [socket for part in self.parts for socket in part.after]


def rewrite(passage: Passage, relocation: Relocation, fdinfo: Any, logs: frozenset[Path]) -> Images:
    """Change the addresses in copies of the images."""
    files = [OpenFiles((part.images / FILES_IMAGE).read_bytes(), fdinfo, logs) for part in passage.parts]
    if len(files) == 1:
        return Images((files[0].move(relocation),))
    ends = frozenset().union(*(local_ends(one.sockets, relocation.old) for one in files))
    return Images(tuple(one.move(relocation, ends) for one in files))


def sent(passage: Passage, images: Images, tcp_stream: Any) -> dict[int, Spoken]:
    """Read how far the images count each connection's bytes as sent, by inode."""
    found: dict[int, Spoken] = {}
    for part, rewritten in zip(passage.parts, images.parts, strict=True):
        found |= sent_by_inode(part.images, rewritten.before, tcp_stream)
    return found


@dataclass(frozen=True, slots=True)
class Handover:
    """What a transfer brought to the destination, in bytes, and what it could not bring in images."""

    size: int
    unsaid: Mapping[Ends, bytes]
    """By its new ends, what a connection within the host had written and its peer had not received."""
    closing: Sequence[Ends]
    """Those that close their direction, behind that, in this order."""


def transfer(
    passage: Passage,
    images: Images,
    own: IPv4Address,
    tcp_stream: Any,
    fdinfo: Any,
    is_shared: Callable[[str], bool],
) -> Handover:
    """Bring the images to the destination with the new addresses in them.

    `is_shared` says of a path whether the file is the same one there.
    """
    parts = list(zip(passage.parts, images.parts, strict=True))
    streams, rest = without_queues([(part.images, one.before) for part, one in parts], own, tcp_stream)
    size = 0
    for (part, rewritten), changed in zip(parts, streams, strict=True):
        # An original that ends before its copy is built takes the content of its FIFOs along.
        fifos = {} if passage.has_locks else without_content(part.images, fdinfo, is_shared)
        files = reopened(rewritten.image, rest.reopened, fdinfo) if rest.reopened else rewritten.image
        size += part.transfer({FILES_IMAGE: files, **changed, **fifos})
    ends = {one.inode: ends_of(one) for one in images.after}
    unsaid = {ends[inode]: content for inode, content in rest.unsaid.items()}
    return Handover(size, unsaid, [ends[inode] for inode in rest.closing])
