"""Modes of transfer, and the choice among them. Pure, but for asking CRIU what its kernel can do."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
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


# Up to this resident size a program is simply stopped and copied, whatever else there is. What a client waits for took
# about 1.6 ms for each MiB in mode stop, and about 30 ms of any size in mode lazy (docs/benchmarks.md); here the two
# are some 20 ms apart.
SMALL = 24 << 20
# Post-copy alone has a failure with no way back. So auto takes it only where stopping would take longer than that.
PAUSE_BUDGET = 1.0
# Bytes a second at which a stopped program is written, carried and read again, for the estimate of its pause.
RATES = {Via.NETWORK: 500e6, Via.SHARED: 2e9}


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
    pause_budget: float | None = None
    """Seconds for which mode auto may stop a program rather than run it without its pages; None means PAUSE_BUDGET."""

    def over(self, default: Wish) -> Wish:
        """Fill in from a default what this one leaves open."""
        budget = default.pause_budget if self.pause_budget is None else self.pause_budget
        return Wish(self.mode or default.mode, self.via or default.via, budget)


DEFAULT_WISH = Wish()


@dataclass(frozen=True, slots=True)
class Choice:
    """How a migration's memory moves."""

    mode: Mode
    via: Via
    why: str = field(default="asked for", compare=False)
    """Why this mode, for the report."""


STOP_SHARED = Choice(Mode.STOP, Via.SHARED)


def parse_wish(mode: str | None, via: str | None, pause_budget: float | str | None = None) -> Wish:
    """Read a mode, a transfer and a pause budget as users write them; raises ValueError with one sentence."""
    return Wish(
        None if mode is None else _member(Mode, mode, "mode"),
        None if via is None else _member(Via, via, "transfer"),
        None if pause_budget is None else parse_budget(pause_budget),
    )


def parse_budget(text: float | str) -> float:
    """Read a pause budget; raises ValueError with one sentence."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{text!r} is not a pause budget: give seconds, from 0 up")
    return seconds


def _member(kind: Any, text: str, what: str) -> Any:
    try:
        return kind(text)
    except ValueError:
        names = ", ".join(member.value for member in kind)
        raise ValueError(f"there is no {what} {text!r} (there are: {names})") from None


def choose(
    name: str,
    wish: Wish,
    size: int,
    kernel: Kernel,
    can_network: bool,
    *,
    has_locks: bool = False,
    rate: float | None = None,
) -> Choice:
    """Settle how a program of `size` bytes moves; raises Refused for what cannot be.

    With file locks, the original has to end before the copy is built. In post-copy any failure to build it would
    then be the end of the program. `rate` is what the network is limited to, in bytes a second.
    """
    via = wish.via or (Via.NETWORK if can_network else Via.SHARED)
    if via is Via.NETWORK and not can_network:
        raise Refused(
            f"{name} cannot be moved over the network: its hosts have no management link (ask for transfer shared)"
        )
    mode, why = wish.mode or Mode.AUTO, "asked for"
    if mode is Mode.AUTO:
        budget = PAUSE_BUDGET if wish.pause_budget is None else wish.pause_budget
        mode, why = suitable(size, kernel, pause(size, via, rate), budget, has_locks)
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
    return Choice(mode, via, why)


def pause(size: int, via: Via, rate: float | None = None) -> float:
    """Estimate for how many seconds a program of `size` bytes would be stopped, over a network limited to `rate`."""
    limited = via is Via.NETWORK and rate is not None
    return size / (min(RATES[via], rate) if limited and rate is not None else RATES[via])


def suitable(
    size: int, kernel: Kernel, seconds: float, budget: float = PAUSE_BUDGET, has_locks: bool = False
) -> tuple[Mode, str]:
    """Pick the mode with the shortest freeze that risks nothing, or as little as the pause budget allows; say why.

    Pre-copy comes first where there is a choice: it can be rolled back at any time. `seconds` is the estimate of the
    pause in mode stop, which can, too.
    """
    if size <= SMALL:
        return Mode.STOP, f"{_mib(size)} are stopped and copied at once"
    if kernel.tracks_dirty:
        return Mode.PRE, f"{_mib(size)}, and this kernel tracks which pages are written"
    stopping = f"stopping {_mib(size)} takes about {seconds:.2g} s"
    if seconds <= budget:
        return Mode.STOP, f"{stopping}, within the pause budget of {budget:g} s"
    if not kernel.has_userfault:
        return Mode.STOP, f"{stopping}, and this kernel has nothing else"
    if has_locks:
        return Mode.STOP, f"{stopping}, and a program with file locks can be moved in no other way"
    return Mode.LAZY, (
        f"{stopping}, more than the pause budget of {budget:g} s; "
        "if the source is lost before the last page has arrived, so is the program"
    )


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"


def probe(criu: Criu, custody: Custody, host: int) -> Kernel:
    """Ask CRIU for the kernel's features (some 20 ms)."""
    worker = Worker(criu, custody, host, "ask for the kernel's features", Path("/dev/null"))
    try:
        answer = worker.features()
    finally:
        worker.close()
    return Kernel(tracks_dirty=bool(answer.mem_track), has_userfault=bool(answer.lazy_pages))
