"""How much slower than the reference machine this one is, and time-outs that take account of it.

A time-out tells what is broken from what works. Its seconds are those of the reference machine; in an emulated machine,
or on a small board, the same work takes ten times as long and is not broken. The factor is measured once, by a loop,
and handed to child processes in the environment (`P4FERRY_SLOW`, a number from 1 to 100; set it to overrule this).
"""

from __future__ import annotations

import functools
import os
import time

VARIABLE = "P4FERRY_SLOW"
_TURNS = 20_000
_REFERENCE_S = 0.0007  # for so many empty turns on the reference machine
_MOST = 100.0


@functools.cache
def factor() -> float:
    """Return how many times as long as on the reference machine a calculation takes: 1 up to 100."""
    text = os.environ.get(VARIABLE, "")
    found = parse(text) if text.strip() else measure()
    if found is None:
        # Modules ask while they are imported, where nobody catches an error of ours yet.
        raise SystemExit(f"{VARIABLE}={text} is no number from 1 to {_MOST:g}: unset it, and it is measured")
    os.environ[VARIABLE] = f"{found:.1f}"
    return found


def scaled(seconds: float) -> float:
    """Return a time-out for this machine from one for the reference machine."""
    return seconds * factor()


def parse(text: str) -> float | None:
    """Return the factor that a user has set; None for what is no number from 1 to 100."""
    try:
        found = float(text)
    except ValueError:
        return None
    return found if 1 <= found <= _MOST else None


def measure() -> float:
    """Time a loop: the median of seven runs, since a machine that other work shares is slow now and then."""
    typical = sorted(_timed() for _ in range(7))[3]
    return min(max(1.0, typical / _REFERENCE_S), _MOST)


def _timed() -> float:
    begin = time.perf_counter()
    for _ in range(_TURNS):
        pass
    return time.perf_counter() - begin
