"""A runtime and a passage for a party: several programs that were started apart and move in one transaction.

    PartyRuntime(Runtimes)    asks the runtimes about each member, and sums up
    PartyPassage              one passage for each member, in step

The members are stopped together and only then written down, so that what one has sent the other has, or has not, in
both images. Their copies are built side by side, and run when every original has ended.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from .deadline import Deadline
from .dropping import Dropping, End
from .engines.runtime import Part, Runtimes
from .errors import MigrationError, Refused
from .groups import member_folder, members
from .images import FILES_IMAGE, OpenFiles
from .inet import InetSocket
from .journal import Note
from .model import App, Host
from .neighbours import Surroundings
from .runtime import Releasing, nothing_to_release
from .steering import IpProtocol
from .streams import is_inner
from .transfer.modes import Choice, Mode, Wish

T = TypeVar("T")


class PartyRuntime:
    """See runtime.Runtime; every App may be a Party."""

    def __init__(self, runtime: Runtimes) -> None:
        self._runtime = runtime
        self.name = runtime.name

    @property
    def fdinfo(self) -> Any:
        """The messages of files.img."""
        return self._runtime.fdinfo

    @property
    def tcp_stream(self) -> Any:
        """The message of tcp-stream-*.img."""
        return self._runtime.tcp_stream

    def check(self, app: App, destination: Host, surroundings: Surroundings) -> None:
        """Refuse the first member that CRIU could not carry."""
        for member in members(app):
            self._runtime.check(member, destination, surroundings)

    def sockets(self, app: App) -> list[InetSocket]:
        """List the sockets of all."""
        return [socket for member in members(app) for socket in self._runtime.sockets(member)]

    def is_running(self, app: App) -> bool:
        """Say whether all run."""
        return all(self._runtime.is_running(member) for member in members(app))

    def ending(self, app: App) -> dict[str, Any] | None:
        """Return how those that have ended did so, by their names; None if all run."""
        endings = {member.name: self._runtime.ending(member) for member in members(app)}
        return {name: how for name, how in endings.items() if how is not None} or None

    def image_estimate(self, app: App) -> int:
        """Bound the size of all checkpoints together."""
        return sum(self._runtime.image_estimate(member) for member in members(app))

    def choose(self, app: App, destination: Host, wish: Wish) -> Choice:
        """Settle how the memory of all moves: post-copy could fail for one when another is past its way back."""
        if wish.mode is Mode.LAZY:
            raise Refused(f"{app.name} cannot be moved together in mode lazy: ask for mode stop, or pre")
        is_asked = wish.mode is not Mode.AUTO and wish.mode is not None
        wish = replace(wish, mode=wish.mode if is_asked else Mode.STOP)
        first, *_ = [self._runtime.choose(member, destination, wish) for member in members(app)]
        return (
            first if is_asked else replace(first, why="programs that move together can all be brought back")
        )

    def open_passage(
        self, app: App, destination: Host, folder: Path, *, lock: bool, deadline: Deadline, choice: Choice
    ) -> PartyPassage:
        """Get all ready."""
        return PartyPassage(self._runtime, members(app), destination, folder, lock, deadline, choice)

    def end_leftovers(self) -> None:
        """See runtime.Runtime."""
        self._runtime.end_leftovers()

    def end_copy(self, pid: int, *, if_half_built: bool) -> None:
        """End the copy of one member."""
        self._runtime.end_copy(pid, if_half_built=if_half_built)

    def wake(self, app: App) -> None:
        """Let all run on."""
        for member in members(app):
            self._runtime.wake(member)

    def revive(self, app: App, host: Host, images: Path, note: Note) -> int:
        """Restore one member at its source."""
        return self._runtime.revive(app, host, images, note)

    def tidy(self, app: App, other: Host) -> None:
        """Remove what is left of one member on the other host."""
        self._runtime.tidy(app, other)


class PartyPassage:
    """See runtime.Passage."""

    def __init__(
        self,
        runtime: Runtimes,
        apps: Sequence[App],
        destination: Host,
        folder: Path,
        lock: bool,
        deadline: Deadline,
        choice: Choice,
    ) -> None:
        self._apps = apps
        self._source, self._destination = apps[0].host, destination
        self._are_engines = all(app.engine is not None for app in apps)
        self._fdinfo = runtime.fdinfo
        self._running = runtime.is_running
        self.images = self.moved = folder
        self.parts: list[Part] = []
        try:
            for app in apps:
                place = member_folder(folder, app)
                place.mkdir(mode=0o700)
                part = runtime.open_passage(
                    app, destination, place, lock=lock, choice=choice, deadline=deadline, is_alone=False
                )
                self.parts.append(part)
        except BaseException:
            self.close()
            raise

    @property
    def copies(self) -> Sequence[int]:
        """What has been restored, by the members."""
        return [pid for part in self.parts for pid in part.copies]

    @property
    def has_locks(self) -> bool:
        """Say whether one of them holds file locks."""
        return any(part.has_locks for part in self.parts)

    @property
    def has_run(self) -> bool:
        """Return True if one of the copies may have."""
        return any(part.has_run for part in self.parts)

    def take_turn(self) -> None:
        """See runtime.Passage."""
        for part in self.parts:
            part.take_turn()

    def start_freeze(self) -> bool:
        """Stop nobody: the others would still talk to it."""
        return False

    def freeze(self, stopped: Callable[[], None] = lambda: None) -> None:
        """Stop all, then write each down: processes one after the other, for each takes all of a processor."""
        together([part.stop for part in self.parts])
        stopped()
        if self._are_engines:
            together([part.dump for part in self.parts])
            return
        for part in self.parts:
            part.dump()

    def transfer(self, changed: Mapping[str, bytes]) -> int:
        """Every part has files of its own to change."""
        raise NotImplementedError("a party is handed over part by part")

    def restore(self, begun: Callable[[], None] = lambda: None) -> int:
        """Build all copies side by side.

        The sockets of an engine's copy may speak when it has been built, while those that they speak to are not there.
        """
        first, *others = self.parts
        with contextlib.ExitStack() as stack:
            if self._are_engines:
                ends = self._inner_ends(self._destination)
                name = f"{self.images.name}-restore"
                stack.enter_context(Dropping(self._destination.pid, name, ends))
            return together([lambda: first.restore(begun), *(part.restore for part in others)])[0]

    def end_source(self) -> None:
        """End all originals."""
        for part in self.parts:
            part.end_source()

    def resume(self, releasing: Releasing = nothing_to_release) -> None:
        """Let all copies run, none before every one can: of what has run the image is no way back."""
        meeting = threading.Barrier(len(self.parts))
        together([partial(self._resume, part, meeting) for part in self.parts])
        for app, pid in zip(self._apps, self.copies, strict=True):
            app.pid = pid

    def _resume(self, part: Part, meeting: threading.Barrier) -> None:
        """Let one copy run when all have come so far; an engine's are built, and need not wait."""

        def meet() -> None:
            try:
                meeting.wait()
            except threading.BrokenBarrierError as ex:
                raise MigrationError("another one of the programs could not be let go") from ex

        try:
            part.resume(lambda: meet)
        except BaseException:
            meeting.abort()
            raise

    def bury_source(self) -> None:
        """Return when no socket of any original is left."""
        together([part.bury_source for part in self.parts])

    def complete(self) -> None:
        """Wait for nothing: memory does not come later."""

    @property
    def warnings(self) -> Sequence[str]:
        """What the members have lost."""
        pairs = zip(self._apps, self.parts, strict=True)
        return [f"{app.name}: {warning}" for app, part in pairs for warning in part.warnings]

    def account(self) -> dict[str, Any]:
        """Say how the memory of all moved."""
        accounts = [part.account() for part in self.parts]
        return {
            **accounts[0],
            "bytes": sum(one["bytes"] for one in accounts),
            "rounds": max(one["rounds"] for one in accounts),
        }

    def back_out(self) -> None:
        """Let every original run on; raises MigrationError, leaving them frozen, if one has not outlived this."""
        dead = [app.name for app in self._apps if not self._running(app)]
        if dead:
            raise MigrationError(f"{', '.join(dead)} did not outlive the attempt")
        together([part.back_out for part in self.parts])

    def revive(self, note: Note) -> int:
        """Restore the originals that are gone, and then let the others run on: their peers must be there by then."""
        pairs = list(zip(self._apps, self.parts, strict=True))
        alive = [part for app, part in pairs if not part.has_ended and self._running(app)]
        # A frozen peer's kernel goes on talking, and would be answered with a reset while the sockets are not there.
        with Dropping(self._source.pid, f"{self.images.name}-revive", self._inner_ends(self._source)):
            for app, part in pairs:
                if part not in alive:
                    if not part.has_ended:
                        with contextlib.suppress(
                            MigrationError
                        ):  # it is dead: this takes its sockets from CRIU
                            part.back_out()

                    def known(pid: int, app: App = app) -> None:
                        app.pid = pid
                        note(pid)

                    app.pid = part.revive(known)
        for part in alive:
            part.back_out()
        return self._apps[0].pid

    def _inner_ends(self, host: Host) -> list[End]:
        """List where the connections within a host end, by the images."""
        images = [part.images / FILES_IMAGE for part in self.parts]
        sockets = [s for i in images if i.exists() for s in OpenFiles(i.read_bytes(), self._fdinfo).sockets]
        return [
            End(IpProtocol.TCP, socket.local, socket.local_port)
            for socket in sockets
            if is_inner(socket, host.address)
        ]

    def close(self) -> None:
        """Let go of every part."""
        together([part.close for part in self.parts])


def together(actions: Sequence[Callable[[], T]]) -> list[T]:
    """Call all at the same time; when all have ended, return what they returned or raise what the first one raised."""
    results: dict[int, T] = {}
    errors: dict[int, BaseException] = {}

    def run(number: int, action: Callable[[], T]) -> None:
        try:
            results[number] = action()
        except BaseException as ex:
            errors[number] = ex

    threads = [threading.Thread(target=run, args=pair, daemon=True) for pair in enumerate(actions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[min(errors)]
    return [results[number] for number in range(len(actions))]
