"""What everybody can see of a test's processes in /proc: descriptors, mappings, signals, identities.

A test looks for its own thing only. So what is seen of it before its moves is compared with what is seen after them;
what changed between two looks before the moves changes by itself, and is not compared.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from migration import tree

State = Mapping[str, str]
"""By what one would call it: what it is."""
_STATUS = (
    "Name", "Umask", "Uid", "Gid", "Groups", "NSpgid", "NSsid", "Threads", "SigPnd", "ShdPnd", "SigBlk", "SigIgn",
    "SigCgt", "CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb", "NoNewPrivs", "Seccomp", "THP_enabled", "Cpus_allowed",
)  # fmt: skip
_NUMBERS = re.compile(r"(?<=:\[)\d+(?=\]$)|(?<=^/proc/)\d+")
"""What the kernel counts, and gives to a copy anew: sockets, pipes, and processes as seen from here."""
_ANEW = "/memfd:/dev/zero (deleted)", "/dev/zero (deleted)"
"""What /proc calls shared memory without a file when CRIU has made it, and what it calls it otherwise."""
_TERMINAL = "/dev/tty"
"""What was opened by this name has its terminal's after a move; the report warns of it."""
_MOST = 4


def look(root: int) -> State:
    """Look at a process and all that descend from it; of one that ends meanwhile a part may be missing."""
    found: dict[str, str] = {}
    for pid in tree.processes(root):
        with contextlib.suppress(OSError):
            name = f"process {tree.inside(pid)}"
            letter = tree.state(pid)
            found[name] = {"T": "stopped", "Z": "dead"}.get(letter, "alive")
            found |= {
                f"{name}, {key}": value
                for key, value in _status(pid)
                if not (letter == "T" and key.endswith("Pnd") and _only_stops(value))
            }
            if letter != "Z":
                found |= {f"{name}, {key}": value for key, value in (*_descriptors(pid), *_mappings(pid))}
    return found


def _status(pid: int) -> Iterator[tuple[str, str]]:
    for line in tree.read(f"/proc/{pid}/status").splitlines():
        key, _, value = line.partition(":")
        if key in _STATUS:
            yield key, value.split()[-1] if key.startswith("NS") else " ".join(value.split())


def _only_stops(signals: str) -> bool:
    """Say whether of a stopped process only what would stop it waits: whatever continues it takes that away."""
    stops = (signal.SIGSTOP, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU)
    return not int(signals, 16) & ~sum(1 << number - 1 for number in stops)


def _descriptors(pid: int) -> Iterator[tuple[str, str]]:
    folder = Path(f"/proc/{pid}/fd")
    for path in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            target = os.fspath(path.readlink()).replace(*_ANEW)
            if target != _TERMINAL:
                yield f"descriptor {path.name}", _NUMBERS.sub("…", target)


def _mappings(pid: int) -> Iterator[tuple[str, str]]:
    for begin, end, kind in merged(tree.read(f"/proc/{pid}/maps").splitlines()):
        yield f"memory at {begin:x}-{end:x}", kind


def merged(lines: Iterable[str]) -> list[tuple[int, int, str]]:
    """Return the mappings of a process, neighbours of one kind as one: the kernel may have merged them or not."""
    found: list[tuple[int, int, str]] = []
    for line in lines:
        words = line.split(maxsplit=5)
        begin, end = (int(address, 16) for address in words[0].split("-"))
        kind = f"{words[1]} {words[5] if len(words) > 5 else ''}".strip().replace(*_ANEW)
        if found and found[-1][1:] == (begin, kind):
            begin = found.pop()[0]
        found.append((begin, end, kind))
    return found


def differences(before: State, again: State, after: State) -> str:
    """Say what is another after the moves than it was, twice, before them; nothing if all is the same."""
    found = []
    for key, value in before.items():
        if again.get(key) == value and after.get(key) != value:
            found.append(f"{key}: {value or 'nothing'} → {after.get(key, 'gone')}")
    if before.keys() == again.keys():
        found += [
            f"{key}: new, {value}"
            for key, value in after.items()
            if key not in before and not value.startswith("/dev/pts/")
        ]
    more = f" and {len(found) - _MOST} more" if len(found) > _MOST else ""
    return "; ".join(found[:_MOST]) + more
