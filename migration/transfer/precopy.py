"""Pre-copy: the pages of a running program, round by round, each with what was written since the one before.

A round is a CRIU pre-dump: the program stands still while its page tables are read and their dirty bits cleared,
and runs on while the pages move. The rounds end when little is left, when a round no longer helps (the program
writes as fast as pages move), or after MAX_ROUNDS. The last dump, in the freeze, takes the last round as parent.

Round N is in the folders `pre-N` of both sides: at the source CRIU's inventory, at the destination the pages (one
and the same folder in a shared transfer). The restore finds them through links named `parent`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from ..criu import Criu, Worker
from ..custody import Custody
from ..model import Host
from ..workspace import pages_in
from .link import Link, connect
from .pageserver import PageServer

MAX_ROUNDS = 8
# So much moves within a freeze of a few tens of milliseconds.
LITTLE = 16 << 20
# A round that moved more than this share of the one before: the program writes about as fast.
NO_HELP = 0.8
PRE_DUMP_LOG = "pre-dump.log"


def is_enough(rounds: Sequence[int]) -> bool:
    """Say, from the bytes of each round so far, whether the freeze should come now."""
    if not rounds:
        return False
    if rounds[-1] <= LITTLE or len(rounds) >= MAX_ROUNDS:
        return True
    return len(rounds) > 1 and rounds[-1] > rounds[-2] * NO_HELP


@dataclass
class PreCopy:
    """The rounds of one migration."""

    criu: Criu
    custody: Custody
    pid: int
    source: Host
    destination: Host
    near: Path  # where the source's folders of rounds are
    far: Path  # where the destination's are; the same in a shared transfer
    by_network: bool
    place: int  # the process in whose namespaces CRIU works, which are those of the program's mounts
    rounds: list[int] = field(default_factory=list)
    request: ClassVar[str] = "SINGLE_PRE_DUMP"

    def run(self, check: Callable[[], None] = lambda: None) -> None:
        """Do rounds until it is enough; `check` may raise between them."""
        while not is_enough(self.rounds):
            check()
            self.rounds.append(self.round(len(self.rounds) + 1))

    def parent(self, side: Path, folder: Path) -> str | None:
        """Return the last round's folder on a side (`near` or `far`), as seen from another folder there."""
        return os.path.relpath(side / f"pre-{len(self.rounds)}", folder) if self.rounds else None

    def adjust(self, options: Any, folder: Path) -> None:
        """Make a dump into `folder` a successor of the rounds so far."""
        options.track_mem = True
        if (parent := self.parent(self.near, folder)) is not None:
            options.parent_img = parent

    def round(self, number: int) -> int:
        """Move the pages written since the last round; return their bytes."""
        near, far = self.near / f"pre-{number}", self.far / f"pre-{number}"
        for folder in {near, far}:
            folder.mkdir(mode=0o700, parents=True)
        if not self.by_network:
            self._pre_dump(near, None, None)
        else:
            link = connect(self.source, self.destination)
            server = PageServer(
                self.criu, self.custody, self.destination, far, link, self.parent(self.far, far)
            )
            try:
                server.wait_until_ready()
                self._pre_dump(near, link, server)
                server.finish()
                server.confirm()
            finally:
                server.close()
        return pages_in(far)

    def _pre_dump(self, folder: Path, link: Link | None, server: PageServer | None) -> None:
        def adjust(options: Any) -> None:
            self.adjust(options, folder)
            if server is not None:
                server.use(options, 4)

        action = f"copy its memory on {self.source.name} while it runs"
        files = [link.near] if link is not None else []
        worker = Worker(self.criu, self.custody, self.place, action, folder / PRE_DUMP_LOG, *files)
        try:
            with server.watched() if server is not None else nullcontext():
                worker.request(self.request, folder, pid=self.pid, adjust=adjust)
                worker.finish()
        finally:
            worker.close()
