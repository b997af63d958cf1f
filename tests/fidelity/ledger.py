"""docs/fidelity.md, written from the tables."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path

from migration.sockopts import LEVELS, OPTIONS, Option, Rule
from tests.fidelity.entries import (
    CONTAINER,
    CONTAINER_LOST,
    DOCKER_LOST,
    ENGINE_REFUSED,
    GROUPS,
    HIDDEN,
    PODMAN_LOST,
    REFUSED,
    WARNED,
    Entry,
)

LEDGER = Path(__file__).resolve().parents[2] / "docs" / "fidelity.md"
HEAD = """# What a move changes

After a move that says `completed`, a program finds no difference in itself, its sockets and its files but for what is
on this page. It is written by `.venv/bin/python -m tests.fidelity --ledger` from the tables that the code and the tests
go by; a test compares both. `tests/migration/test_fidelity.py` sets each thing, moves the program there and back,
by stop and by post-copy, and reads it again; `make fidelity` does so over the network, by pre-copy, in a group and in
containers, too.

- **restored**: as it was, before the copy runs its first instruction.
- **refused**: the move does not begin (`outcome` is `refused`, `frozen_ms` 0), and the reason names the thing.
- **warned of**: the move is made, and the report's `warnings`, a list of sentences, names what was lost.

What else is refused (terminals from outside, devices, namespaces, files that are not at the destination, …) says
`migration/refusals.py`.
A program's first address stays its own: it can bind it, call itself by it, and its sockets have it. That takes a
control group (v2) of its own: without one (a container of Docker's or Podman's, or of runc's on control groups v1) the
report says so, and `getsockname` tells where the program is now. A port that it binds after its move, at its first
address or at any, is known to itself and under the address of the host that it is on.
"""
IN_CONTAINERS = """## In containers

In a container all of this page holds as far as the container can have the thing: `make fidelity` sets and reads each in
containers of runc's, Docker's and Podman's, and prints why one cannot be had there (no capability, no such device, a
system call that its seccomp filter forbids). What is refused or warned of is so there, too, but for this:
"""
_RULES = {
    Rule.KEPT: "restored",
    Rule.ALWAYS: "restored",
    Rule.CRIU: "restored (by CRIU)",
    Rule.LOST: "warned of",
    Rule.READING: "a reading",
}


def text() -> str:
    """Return what the page has to say."""
    lines = [HEAD]
    titles = {
        "process": "Process and threads",
        "memory": "Memory",
        "files": "Descriptors",
        "terminals": "Pseudoterminals, both ends of which are the program's",
        "multicast": "Multicast",
    }
    lines += ["## Restored\n"]
    for group, entries in GROUPS.items():
        lines += [f"**{titles[group]}**: {'; '.join(map(_named, entries))}.\n"]
    lines += ["## Refused before the freeze\n", *_bullets(REFUSED)]
    lines += ["\n## Warned of in the report\n", *_bullets(WARNED)]
    lines += [
        "\nBesides: any option that the destination's kernel does not take, by its name; and a post-copy whose last",
        "pages come so slowly that the program is stopped (SIGSTOP) and continued for them, which it could notice.\n",
        *_inside(),
        "## Not seen\n",
        "What no call tells from outside of the program, and so is neither restored nor warned of:\n",
        *_bullets(HIDDEN),
        "\n## Options of sockets\n",
        "All that `getsockopt` tells, by level. *A reading* is what the kernel measures, counts or derives.\n",
    ]
    for level, name in LEVELS.items():
        options = [option for option in OPTIONS if option.level == level]
        lines += [
            f"### {name}\n",
            "| number | option | after a move | |",
            "|---|---|---|---|",
            *map(_row, options),
            "",
        ]
    return "\n".join(lines).rstrip("\n") + "\n"


def _inside() -> Iterator[str]:
    """Say what holds in containers, by their kinds."""
    yield IN_CONTAINERS
    yield "| what is not restored | runc | Docker | Podman |\n|---|---|---|---|"
    tables = (CONTAINER_LOST, DOCKER_LOST, PODMAN_LOST)
    for name in dict.fromkeys(name for table in tables for name in table):
        cells = ["warned of" if name in table else "restored" for table in tables]
        yield f"| {name} | {' | '.join(cells)} |"
    for group in ENGINE_REFUSED:
        yield f"| {group} | restored | refused | refused |"
    lost = {name for table in tables for name in table}
    own = (entry for entry in CONTAINER if entry.name not in lost)
    yield f"\nRestored of what a container has for itself: {'; '.join(map(_named, own))}.\n"


def _named(entry: Entry) -> str:
    return f"{entry.name} ({entry.note})" if entry.note else entry.name


def _bullets(entries: Iterable[Entry]) -> Iterator[str]:
    return (f"- {entry.name}{f': {entry.note}' if entry.note else ''}" for entry in entries)


def _row(option: Option) -> str:
    return f"| {option.number} | {option.name} | {_RULES[option.rule]} | {option.note} |"
