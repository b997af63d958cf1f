"""What a migration asks of whatever runs the programs: plain processes now, containers later.

A passage is one way of one program from host to host. Its calls come in this order, and `back_out` may
come at any point before `end_source`:

    open_passage → take_turn → [start_freeze →] freeze → transfer → restore → end_source → resume → complete → close

Until `end_source` the original is there, running or frozen; until `resume` the copy has not run one
instruction. So at every moment at most one of the two runs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from .deadline import Deadline
from .inet import InetSocket
from .journal import Note
from .model import App, Host
from .neighbours import Surroundings
from .transfer.modes import Choice, Wish

Releasing = Callable[[], Callable[[], None]]
"""Gets ready to let held packets go, and returns what does it; see Steering.releasing."""


def nothing_to_release() -> Callable[[], None]:
    """Do nothing, and return what does nothing."""
    return lambda: None


class Passage(Protocol):
    """One program between two hosts."""

    @property
    def images(self) -> Path:
        """The folder that `freeze` fills; nobody changes it."""

    @property
    def moved(self) -> Path:
        """The folder that `restore` reads, which the caller fills from `images`."""

    @property
    def parts(self) -> Sequence[Passage]:
        """The passages that have an image each: this one, or those of programs that were started apart."""

    @property
    def copies(self) -> Sequence[int]:
        """What `restore` has built, by the parts."""

    def take_turn(self) -> None:
        """Just before anything is held: let what works from here on go ahead of others."""

    def start_freeze(self) -> bool:
        """Let the program be stopped from now on, while the caller does something else; say whether that is possible.

        `freeze` waits for it, and whatever looks at the program's sockets comes later.
        """

    def freeze(self, stopped: Callable[[], None] = lambda: None) -> None:
        """Stop the program and write its whole state to `images`; call `stopped` in between."""

    @property
    def has_locks(self) -> bool:
        """Say, after `freeze`, whether the program holds file locks: its copy gets them only when it has ended.

        `end_source` then comes before `restore`, and only `revive` leads back.
        """

    def transfer(self, changed: Mapping[str, bytes]) -> int:
        """Bring the image to the destination with some files changed; return its bytes."""

    def restore(self, begun: Callable[[], None] = lambda: None) -> int:
        """Build the program at the destination, stopped before its first instruction; return its PID.

        `begun` is called as soon as CRIU is at work: what it does costs no time.
        """

    @property
    def has_run(self) -> bool:
        """Return True if the copy may have executed an instruction: from then on its image is no way back."""

    def end_source(self) -> None:
        """End the frozen original; its connections are not closed, only forgotten."""

    def resume(self, releasing: Releasing = nothing_to_release) -> None:
        """Let the copy run; raises MigrationError if it does not.

        `releasing` is called when that has begun, and what it returned as soon as the copy's sockets may have packets:
        what they do costs no time. Where several programs, or others than CRIU, are let go, neither is.
        """

    def complete(self) -> None:
        """Return when the copy needs nothing of its source any more; raises MemoryLost, the copy having ended."""

    @property
    def warnings(self) -> Sequence[str]:
        """What the copy has lost of what the original had, a sentence each."""

    def account(self) -> dict[str, Any]:
        """Say how the memory moved: the report's "transfer"."""

    def bury_source(self) -> None:
        """Return when no socket of the original is left that could send anything."""

    def back_out(self) -> None:
        """Destroy what `restore` built, and let the original run on as if nothing had been."""

    def revive(self, note: Note) -> int:
        """Build and run the program at its source again after the original has ended; return its PID.

        `note` is told the PID before it runs.
        """

    def close(self) -> None:
        """Let go of everything that is not the program."""


class Runtime(Protocol):
    """A way of running programs in hosts."""

    @property
    def name(self) -> str:
        """What reports call it."""

    @property
    def fdinfo(self) -> Any:
        """The messages of files.img, as the CRIU in use has them (pycriu.images.fdinfo_pb2)."""

    @property
    def tcp_stream(self) -> Any:
        """The message of tcp-stream-*.img (pycriu.images.tcp_stream_pb2)."""

    def check(self, app: App, destination: Host, surroundings: Surroundings) -> None:
        """Raise Refused if the program, as it is now, cannot be moved."""

    def sockets(self, app: App) -> list[InetSocket]:
        """List the Internet sockets that the program's processes have open."""

    def is_running(self, app: App) -> bool:
        """Say whether the program runs."""

    def ending(self, app: App) -> dict[str, Any] | None:
        """Return how the program has ended, as the report's "ended"; None if it runs."""

    def image_estimate(self, app: App) -> int:
        """Bound the size of the program's checkpoint, in bytes."""

    def choose(self, app: App, destination: Host, wish: Wish) -> Choice:
        """Settle how the program's memory moves; raises Refused for what cannot be."""

    def open_passage(
        self, app: App, destination: Host, folder: Path, *, lock: bool, deadline: Deadline, choice: Choice
    ) -> Passage:
        """Get ready to freeze; `lock` makes the source drop packets for the frozen program.

        What the passage waits for must end with the deadline.
        """

    def end_leftovers(self) -> None:
        """End everything but programs that the migrations of a controller that was killed have left at work."""

    def end_copy(self, pid: int, *, if_half_built: bool) -> None:
        """End a copy: in any case, or only if it has not run yet."""

    def wake(self, app: App) -> None:
        """Let a program run on that is still stopped for a migration whose controller was killed."""

    def revive(self, app: App, host: Host, images: Path, note: Note) -> int:
        """Restore a program at its source from the images that a crashed migration left; return its PID."""

    def tidy(self, app: App, other: Host) -> None:
        """Remove what a migration whose controller was killed has left on the host that a program is not on."""
