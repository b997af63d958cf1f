"""What a test demands of whoever runs it: the table in NAME.desc, and what in it no move of ours can give.

A description is a Python dictionary of strings. It is read as one, and never run. The words are those of CRIU's
test/zdtm.py: a flavor is where the test can run (`h`: a process among others, `ns`: in namespaces of its own), flags
say how it wants to be treated, options are those that CRIU must be given for it.
"""

from __future__ import annotations

import ast
import platform
import shlex
from collections.abc import Mapping
from dataclasses import dataclass

from migration.transfer.modes import Mode

_ANYWHERE = "h ns uns"
_LIMIT_S = 30.0
_UNFIT = {
    "noauto": "it runs only when it is asked for by its name",
    "crlib": "it wants a plug-in of CRIU's",
    "pre-dump-notify": "it wants to be told before each dump",
}
"""Flags that leave a test out, and why. "suid" does not: a program of a host may be root's."""
_OPTIONS = {
    "--tcp-established",
    "--file-locks",
    "--link-remap",
    "--ghost-limit",
    "--ghost-fiemap",
    "--no-ghost-fiemap",
}
"""What every move gives CRIU anyway, or refuses what would need it."""
_MACHINES = {
    "aarch64": "aarch64",
    "armv7l": "arm",
    "ppc64le": "ppc64le",
    "s390x": "s390x",
    "x86_64": "x86_64",
}


@dataclass(frozen=True)
class Description:
    """What a test's description says, with what holds where it says nothing."""

    flavors: frozenset[str] = frozenset(_ANYWHERE.split())
    flags: frozenset[str] = frozenset()
    options: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    machines: frozenset[str] = frozenset()
    limit_s: float = _LIMIT_S
    """In which it is ready, and in which it ends, on the reference machine."""
    fault: str = ""
    """Why it could not be read; the rest is as if there were none."""

    @property
    def is_of_root(self) -> bool:
        """Say whether it must run as root; otherwise it is an ordinary user's."""
        return "suid" in self.flags

    @property
    def is_beyond_criu(self) -> bool:
        """Say whether CRIU is to give up: we must refuse it."""
        return "crfail" in self.flags

    @property
    def needs_move(self) -> bool:
        """Say whether it only passes after a restore."""
        return "reqrst" in self.flags


def parse(text: str) -> Description:
    """Read a description; an empty one demands nothing."""
    if not text.strip():
        return Description()
    try:
        found = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError):
        return Description(fault="its description is a program, and no table")
    if not isinstance(found, Mapping):
        return Description(fault="its description is no table")
    options = [
        option
        for key in ("opts", "dopts", "ropts")
        for option in shlex.split(str(found.get(key, "")))
        if option.startswith("--")
    ]
    return Description(
        frozenset(str(found.get("flavor", _ANYWHERE)).split()),
        frozenset(str(found.get("flags", "")).split()),
        tuple(dict.fromkeys(option.partition("=")[0] for option in options)),
        tuple(str(found.get("feature", "")).split()),
        frozenset(str(found.get("arch", "")).split()),
        float(found.get("timeout", _LIMIT_S)),
    )


def why_not(description: Description, *, is_named: bool, machine: str = platform.machine()) -> str | None:
    """Say why a test is left out, None if it is not; one that was asked for by its name takes part if it can."""
    if description.fault:
        return description.fault
    if "h" not in description.flavors:
        return "it wants namespaces, mounts and a root of its own (no flavor h)"
    for flag, reason in _UNFIT.items():
        if flag in description.flags and not (flag == "noauto" and is_named):
            return f"{reason} ({flag})"
    for option in description.options:
        if option not in _OPTIONS:
            return f"it wants CRIU's option {option}, which no move gives"
    if description.machines and _MACHINES.get(machine, machine) not in description.machines:
        return f"it is for {' and '.join(sorted(description.machines))}"
    return None


def why_not_by(description: Description, mode: Mode) -> str | None:
    """Say why a test is left out of a mode."""
    if mode is Mode.LAZY and "nolazy" in description.flags:
        return "it is not for post-copy (nolazy)"
    return None
