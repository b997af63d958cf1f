"""Rates, delays and losses of links: what users ask for, checked, as the parameters of Mininet's TCLink.

Names and units are p4-utils' and Mininet's: `bw` in Mbit/s, `delay` and `jitter` in milliseconds or as tc(8) writes
times ("10ms"), `loss` in percent, `max_queue_size` in packets. Both directions get the same. A rate is HTB's, the rest
netem's (tc-netem(8)); where the kernel has no netem a link goes without, and a line says so.
"""

from __future__ import annotations

import re
from typing import Any

from mininet.link import TCIntf, TCLink
from mininet.log import warn

from topo.errors import BadNetwork
from topo.netem import has_netem

OPTIONS = ("bw", "delay", "jitter", "loss", "max_queue_size")
NETEM = ("delay", "jitter", "loss", "max_queue_size")
"""What only netem can do."""
MOST_MBIT = 1000
"""Above it Mininet's TCIntf ignores a rate."""
_QUANTUM = 60000  # bytes
_TIME = re.compile(r"[0-9]+(\.[0-9]+)?(us|usec|usecs|ms|msec|msecs|s|sec|secs)")


class ShapedIntf(TCIntf):
    """Mininet's interface with a rate, without the kernel's warning about a class that has all of it."""

    def bwCmds(self, *args: Any, **kwargs: Any) -> tuple[list[str], str]:
        """Return Mininet's commands; HTB derives a quantum from the rate, and warns above 200,000 bytes (tc-htb(8))."""
        commands, parent = super().bwCmds(*args, **kwargs)
        return [f"{each} quantum {_QUANTUM}" if " htb rate" in each else each for each in commands], parent


def parse(link: str, options: dict[str, Any]) -> dict[str, Any]:
    """Return checked TCLink parameters from a user's options; None means no setting; raises BadNetwork."""
    given = {name: value for name, value in options.items() if name in OPTIONS and value is not None}
    for name in ("delay", "jitter"):
        if name in given:
            given[name] = _time(link, name, given[name])
    for name, least, most, unit in (
        ("bw", 0, MOST_MBIT, "Mbit/s, more than 0"),
        ("loss", 0, 100, "percent"),
        ("max_queue_size", 1, 10**9, "packets"),
    ):
        if name in given:
            given[name] = _number(link, name, given[name], least, most, unit)
    if "jitter" in given and "delay" not in given:
        raise BadNetwork(f"link {link}: jitter is the variation of a delay: give delay, too")
    return given


def links(link: str, given: dict[str, Any]) -> dict[str, Any]:
    """Return what Mininet's addLink takes to make such a link: nothing special for one without settings."""
    possible = without_netem(link, given)
    return {"cls": TCLink, "cls1": ShapedIntf, "cls2": ShapedIntf, **possible} if possible else {}


def without_netem(link: str, params: dict[str, Any]) -> dict[str, Any]:
    """Leave out what the kernel cannot do with a link, and say so."""
    asked = [name for name in NETEM if params.get(name) is not None]
    if not asked or has_netem():
        return params
    warn(f"*** link {link}: the kernel has no netem, the link goes without {', '.join(asked)}\n")
    return {name: value for name, value in params.items() if name not in asked}


def _time(link: str, name: str, value: Any) -> str:
    if isinstance(value, str) and _TIME.fullmatch(value):
        return value
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < float("inf"):
        return f"{value}ms"
    raise BadNetwork(f"link {link}: {name} {value!r} is neither milliseconds nor a time such as '10ms'")


def _number(link: str, name: str, value: Any, least: float, most: float, unit: str) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= most or (name == "bw" and value == 0):
        raise BadNetwork(f"link {link}: {name} {value!r} is not a number from {least} to {most} ({unit})")
    return float(value) if name != "max_queue_size" else int(value)
