"""What all these programs have in common: they check themselves over and over, and print one line a round."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable


def rounds(check: Callable[[int], object]) -> None:
    """Call `check` with 1, 2, 3, … for ever; a round that finds something wrong is the last."""
    number = 0
    while True:
        number += 1
        try:
            check(number)
        except BaseException as ex:
            print(f"BAD round {number}: {type(ex).__name__}: {ex}", flush=True)
            sys.exit(1)
        print(f"ok {number}", flush=True)
        time.sleep(0.02)
