"""When and where a program's memory moves unless somebody says otherwise, and how bandwidths are written.

Standard library only: the main program's options are looked at before anything is installed.
"""

from __future__ import annotations

import re

from topo.errors import BadNetwork

# How a testbed's migrations move memory where nobody says.
DEFAULT_MODE = "auto"
DEFAULT_TRANSFER = "network"
_UNITS = {"": 1, "k": 1_000, "m": 1_000_000, "g": 1_000_000_000}
_MIN_RATE = 64_000


def parse_rate(text: str) -> int:
    """Read a bandwidth as tc writes it (100mbit, 1.5gbit) in bits a second; raises BadNetwork."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([kmg]?)bit", text.strip().lower())
    rate = int(float(match[1]) * _UNITS[match[2]]) if match else 0
    if rate < _MIN_RATE:
        raise BadNetwork(f"{text!r} is not a bandwidth from 64kbit up, such as 100mbit or 1gbit")
    return rate
