"""Modes of transfer, and the choice among them. Pure, but for asking CRIU what its kernel can do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from ..criu import Criu, Worker
from ..custody import Custody
from ..errors import Refused


class Mode(str, Enum):
    """When memory pages move."""

    STOP = "stop"  # while the program is frozen
    LAZY = "lazy"  # after it runs at its destination: post-copy
    PRE = "pre"  # before the freeze, and once more what was written meanwhile: pre-copy
    AUTO = "auto"  # the one of them that suits


class Via(str, Enum):
    """Where image files and pages move."""

    NETWORK = "network"
    SHARED = "shared"


# Up to this resident size a program is simply stopped and copied. Post-copy alone has a failure with no way back,
# so it has to be worth it. What a client waits for took about 1.6 ms for each MiB in mode stop, and about 30 ms of
# any size in mode lazy (docs/benchmarks.md); here the two are some 20 ms apart.
SMALL = 24 << 20


@dataclass(frozen=True, slots=True)
class Kernel:
    """What a mode needs of the kernel, as CRIU finds it."""

    tracks_dirty: bool
    has_userfault: bool


@dataclass(frozen=True, slots=True)
class Wish:
    """What the user asked for; None leaves it open: auto, and the network where the hosts have a management link."""

    mode: Mode | None = None
    via: Via | None = None

    def over(self, default: Wish) -> Wish:
        """Fill in from a default what this one leaves open."""
        return Wish(self.mode or default.mode, self.via or default.via)


DEFAULT_WISH = Wish()


@dataclass(frozen=True, slots=True)
class Choice:
    """How a migration's memory moves."""

    mode: Mode
    via: Via


STOP_SHARED = Choice(Mode.STOP, Via.SHARED)


def parse_wish(mode: str | None, via: str | None) -> Wish:
    """Read a mode and a transfer as users write them; raises ValueError with one sentence."""
    return Wish(
        None if mode is None else _member(Mode, mode, "mode"),
        None if via is None else _member(Via, via, "transfer"),
    )


def _member(kind: Any, text: str, what: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        names = ", ".join(member.value for member in kind)
        raise ValueError(f"there is no {what} {text!r} (there are: {names})") from None


def choose(
    name: str, wish: Wish, size: int, kernel: Kernel, can_network: bool, *, has_locks: bool = False
) -> Choice:
    """Settle how a program of `size` bytes moves; raises Refused for what cannot be.

    With file locks, the original has to end before the copy is built. In post-copy any failure to build it would
    then be the end of the program.
    """
    via = wish.via or (Via.NETWORK if can_network else Via.SHARED)
    if via is Via.NETWORK and not can_network:
        raise Refused(
            f"{name} cannot be moved over the network: its hosts have no management link (ask for transfer shared)"
        )
    mode = wish.mode or Mode.AUTO
    if mode is Mode.AUTO:
        mode = suitable(size, kernel, has_locks)
    if mode is Mode.PRE and not kernel.tracks_dirty:
        raise Refused(
            f"{name} cannot be moved in mode pre: this kernel does not track which pages are written "
            "(soft-dirty, CRIU's mem_dirty_track); ask for mode lazy or stop"
        )
    if mode is Mode.LAZY and not kernel.has_userfault:
        raise Refused(
            f"{name} cannot be moved in mode lazy: this kernel has no usable userfaultfd; ask for mode stop"
        )
    if mode is Mode.LAZY and has_locks:
        raise Refused(f"{name} cannot be moved in mode lazy: it holds file locks; ask for mode stop")
    return Choice(mode, via)


def suitable(size: int, kernel: Kernel, has_locks: bool = False) -> Mode:
    """Pick the mode with the shortest freeze that the kernel has.

    Pre-copy comes first where there is a choice: it can be rolled back at any time.
    """
    if size <= SMALL:
        return Mode.STOP
    if kernel.tracks_dirty:
        return Mode.PRE
    return Mode.LAZY if kernel.has_userfault and not has_locks else Mode.STOP


def probe(criu: Criu, custody: Custody, host: int) -> Kernel:
    """Ask CRIU for the kernel's features (some 20 ms)."""
    worker = Worker(criu, custody, host, "ask for the kernel's features", Path("/dev/null"))
    try:
        answer = worker.features()
    finally:
        worker.close()
    return Kernel(tracks_dirty=bool(answer.mem_track), has_userfault=bool(answer.lazy_pages))
