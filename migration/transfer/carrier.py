"""What a passage sees of a transfer: where its images go, what its CRIU workers are told, and what is to be waited for.

    prepare → freeze → carry → restoring → built → commit → complete → close

A carrier is made before the freeze with all that its mode needs: connections, page server, lazy-pages daemon, rounds
of pre-copy. `bring_back` fetches home what a restore at the source needs; in post-copy nothing can.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from pathlib import Path
from typing import Any

from ..criu import Aside, Criu, Worker
from ..custody import Custody
from ..deadline import Deadline
from ..images import INVENTORY_IMAGE
from ..model import Host
from ..slowness import scaled
from ..workspace import fill, pages_in
from . import home, wire
from .early import Early
from .lazy import LazyPages
from .link import Link, connect, pair
from .modes import Choice, Mode, Via
from .pageserver import PageServer
from .precopy import PreCopy

WIRE_TIMEOUT = scaled(300.0)


class Carrier:
    """The way of one program's image; `images` is at the source, `moved` at the destination."""

    pre_copy = PreCopy

    def __init__(
        self,
        criu: Criu,
        custody: Custody,
        pid: int,
        source: Host,
        destination: Host,
        folder: Path,
        choice: Choice,
        *,
        place: int,
    ) -> None:
        """Get ready; `place` is the process in whose namespaces CRIU dumps."""
        self.images, self.moved = folder / "images", folder / "moved"
        self.choice = choice
        self._stack = ExitStack()
        self._inventory = b""
        self._bytes = 0
        self._lazy: LazyPages | None = None
        self._pre: PreCopy | None = None
        self._pages: PageServer | None = None
        self._wire: Link | None = None
        self._receiver: wire.Receiver | None = None
        self.early: Early | None = None
        """What has to be attended to while the dump goes on."""
        self.dumper_files: list[socket.socket] = []
        by_network = choice.via is Via.NETWORK
        try:
            if by_network:
                self._wire = self._closing(connect(source, destination))
            if choice.mode is Mode.LAZY:
                link = self._closing(connect(source, destination) if by_network else pair())
                self._lazy = LazyPages(criu, custody, pid, destination, folder, self.moved, link)
                self._stack.callback(self._lazy.close)
                self.dumper_files = [link.near]
            elif choice.mode is Mode.PRE:
                near = folder / ("near" if by_network else "rounds")
                far = folder / "far" if by_network else near
                self._pre = self.pre_copy(
                    criu, custody, pid, source, destination, near, far, by_network, place
                )
                self._pre.run()
                (self.moved / "parent").symlink_to(self._parent_there())
            if by_network and self._lazy is None:
                link = self._closing(connect(source, destination))
                parent = self._pre.parent(self._pre.far, self.moved) if self._pre else None
                self._pages = PageServer(criu, custody, destination, self.moved, link, parent)
                self._stack.callback(self._pages.close)
                self.dumper_files = [link.near]
        except BaseException:
            self.close()
            raise

    def _closing(self, link: Link) -> Link:
        self._stack.callback(link.close)
        return link

    def _parent_there(self) -> str:
        assert self._pre is not None
        parent = self._pre.parent(self._pre.far, self.moved)
        assert parent is not None
        return parent

    # ---- before the freeze

    def adjust_dump(self, options: Any) -> None:
        """Tell a dump where its pages go."""
        if self._lazy is not None:
            self._lazy.adjust_dump(options)
        if self._pre is not None:
            self._pre.adjust(options, self.images)
        if self._pages is not None:
            self._pages.use(options, 4)

    def adjust_restore(self, options: Any) -> None:
        """Tell a restore where its pages come from."""
        if self._lazy is not None:
            options.lazy_pages = True

    def wait_until_ready(self) -> None:
        """Return when everything that can be done before the freeze has been done."""
        if self._lazy is not None:
            self._lazy.wait_until_ready()
        if self._pages is not None:
            self._pages.wait_until_ready()
        if self._wire is not None:
            self._receiver = wire.Receiver(self._wire.far, self.moved, frozenset({INVENTORY_IMAGE}))
            self.early = Early(self.images, self._wire.near)
            self._stack.callback(self.early.close)

    @property
    def helpers(self) -> Sequence[int]:
        """The processes that write the image beside the dump."""
        return (self._pages.pid,) if self._pages is not None else ()

    # ---- in the freeze

    def freezing(self) -> AbstractContextManager[None]:
        """Surround the dump."""
        return self._pages.watched() if self._pages is not None else nullcontext()

    def frozen(self, pids: Iterable[int]) -> None:
        """The dump is complete."""
        if self._lazy is not None:
            self._lazy.frozen(pids)

    def carry(self, changed: Mapping[str, bytes]) -> int:
        """Bring the image to the destination, with some files changed; return its bytes."""
        if self._wire is None:
            self._bytes = fill(self.images, self.moved, changed)
            self._inventory = (self.images / INVENTORY_IMAGE).read_bytes()
            return self._bytes
        assert self.early is not None
        files, ahead = self.early.rest()
        sent = ahead + wire.send(self._wire.near, {**files, **changed})
        if self._pages is not None:
            self._pages.finish()
        assert self._receiver is not None
        self._receiver.wait(WIRE_TIMEOUT)
        self._inventory = self._receiver.kept[INVENTORY_IMAGE]
        self._bytes = sent + (pages_in(self.moved) if self._pages is not None else 0)
        return self._bytes

    def restoring(self, dumper: Worker) -> bytes:
        """Get ready for the restore; return the inventory that it waits for."""
        if self._lazy is not None:
            self._lazy.serve(dumper, self.moved, self._inventory)
        return self._inventory

    def building(self, dumper: Worker) -> AbstractContextManager[Aside | None]:
        """Return what is to be seen to until the copy is built."""
        return nullcontext() if self._lazy is None else self._lazy.end_watch(dumper)

    def restore_begun(self) -> None:
        """The restore has what it waited for: there is time for other things."""
        if self._pages is not None:
            self._pages.ask()

    def built(self) -> None:
        """The copy is there, and has not run."""
        if self._pages is not None:
            self._pages.confirm()
        if self._lazy is not None:
            self._lazy.guard()

    @property
    def keeps_source(self) -> bool:
        """Say whether the original, frozen, and the dump worker have to live on after the commit."""
        return self._lazy is not None

    def commit(self, dumper: Worker, kill: Callable[[], None]) -> None:
        """End the frozen original, unless it is kept for its pages; raises before that, or not at all."""
        if self._lazy is not None:
            self._lazy.commit(dumper)
        else:
            kill()

    def running(self, pids: Iterable[int], kill: Callable[[], None]) -> None:
        """The copy runs: an original that is kept for its pages is silent from now on, and ends when it has done."""
        if self._lazy is not None:
            self._lazy.running(pids, kill)

    def release_source(self) -> None:
        """End an original that was kept, whether its pages are there or not."""
        if self._lazy is not None:
            self._lazy.release_source()

    # ---- after it

    def complete(self, copy: int, deadline: Deadline) -> None:
        """Return when the program needs nothing of its source any more; raises MemoryLost."""
        if self._lazy is not None:
            self._lazy.complete(copy, deadline)

    @property
    def warnings(self) -> Sequence[str]:
        """Return what the program could see of the transfer."""
        return self._lazy.warnings if self._lazy is not None else []

    def back_out(self, dumper: Worker, pids: Iterable[int]) -> bool:
        """Before the commit: let the original run; say whether that was done, else the caller does it."""
        return self._lazy is not None and self._lazy.back_out(dumper, pids)

    def stand_down(self) -> None:
        """Before the copy is destroyed: end what would take its death for the end of the transfer."""
        if self._lazy is not None:
            self._lazy.stand_down()

    def bring_back(self) -> None:
        """Fetch home the pages that only the destination has; raises MemoryLost if nobody has them."""
        if self._wire is not None:
            home.fetch(self.images.parent, self._wire)
        else:
            home.check(self.images.parent)

    def report(self) -> dict[str, Any]:
        """Return the report's "transfer"."""
        rounds = list(self._pre.rounds) if self._pre is not None else []
        late = self._lazy.received if self._lazy is not None else 0
        return {
            "mode": self.choice.mode.value,
            "via": self.choice.via.value,
            "why": self.choice.why,
            "bytes": self._bytes + late + sum(rounds),
            "rounds": len(rounds),
            "pages_done_ms": self._lazy.pages_done_ms if self._lazy is not None else None,
        }

    def close(self) -> None:
        """End every process of the transfer, and its connections."""
        if self._receiver is not None:
            self._receiver.close()
        self._stack.close()
