"""The images of everything that moves in one migration: read, rewritten and handed over together.

A passage has one part for each image: one for a program or a group that was started as such, several for programs that
were started apart. Connections between the parts move at both ends.
"""

from __future__ import annotations

from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from .images import FILES_IMAGE, OpenFiles, Rewritten
from .inet import InetSocket, Relocation, local_ends
from .runtime import Passage
from .steering import Spoken
from .streams import inner_streams, sent_by_inode


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


def transfer(passage: Passage, images: Images, own: IPv4Address, tcp_stream: Any) -> int:
    """Bring the images to the destination with the new addresses in them; return their bytes."""
    size = 0
    for part, rewritten in zip(passage.parts, images.parts, strict=True):
        streams = inner_streams(part.images, rewritten.before, own, tcp_stream)
        size += part.transfer({FILES_IMAGE: rewritten.image, **streams})
    return size
