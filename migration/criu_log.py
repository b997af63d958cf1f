"""CRIU's log: which of its errors is the cause of a failure. Standard library only: set-up's probe uses it, too.

CRIU logs an error where it happens, then again in every function that returns because of it, and at the end that all
has failed. Some errors it survives: they come first, are no cause, and are recognised in two ways. Known ones by their
words; any, in a log that has ordinary lines, by CRIU's going on for a while.
"""

from __future__ import annotations

import re

GOES_ON = 40
"""Ordinary lines after an error that show that CRIU went on; giving up logs fewer."""
_ERROR = re.compile(r"^(?:\([\d.]+\)\s*)?(?:pie:\s*\d+:\s*|\d+:\s*)?Error \([^)]*\): ?(.*)$")
_HARMLESS = tuple(
    map(
        re.compile,
        (
            "Can't setup RLIMIT_NOFILE",  # without CAP_SYS_RESOURCE
            "tun: Unable to create tun",  # without /dev/net/tun, when it asks what the kernel can
            "Unable to detach from ",  # the process has ended
            "(delete|Can't delete|Could not delete) .*table (inet )?CRIU",  # unlocking in another namespace
            r"/run/criu\.kdat|Can't (save|rename|unlink) kdat",  # its cache of what the kernel can
        ),
    )
)
_CONSEQUENCE = tuple(
    map(
        re.compile,
        (
            r"\bFAILED\b",
            r"\(pid: \d+\).* failed with -?\d+",
            r"^Unable to open fd=",
            r"failed when initializing kerndat",
            r"^Could not initialize kernel features detection",
            r"^(\d+ )?(exited, status=|killed by signal|stopped by signal)",
            r"^Failed to wait inprogress tasks",
            r"^Failed to fill self vdso symtable|^vdso: Failed to fill self vdso symtable",
            r"^(Can't|Unable to) kill ",
            r"^Pre-dumping finished with an error",
        ),
    )
)


def errors(text: str) -> list[str]:
    """Return what went wrong, in the log's order: errors that CRIU did not survive, without times and positions."""
    found: list[str] = []
    ordinary = 0
    for line in text.splitlines():
        match = _ERROR.match(line.strip())
        if match is None:
            ordinary += bool(line.strip())
            continue
        if ordinary > GOES_ON:
            found.clear()
        ordinary = 0
        if not _matches(_HARMLESS, match[1]):
            found.append(match[1].strip())
    if ordinary > GOES_ON:
        found.clear()
    return found


def cause(lines: list[str]) -> str | None:
    """Return the error that the others follow from, None if there is none."""
    return next((line for line in lines if not _matches(_CONSEQUENCE, line)), lines[0] if lines else None)


def _matches(patterns: tuple[re.Pattern[str], ...], line: str) -> bool:
    return any(pattern.search(line) for pattern in patterns)
