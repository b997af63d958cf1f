"""A verifier's complaint, told so that the reader finds the P4 line."""

from __future__ import annotations

import re

_POSITION = re.compile(r"/\* (.+:\d+(?::\d+)?)\s*\*/|/\* \w[\w ]* [\w.$]+, (.+?) \*/")
_NOISE = re.compile(r"^(processed \d+ insns|verification time|stack depth|mark_precise|from \d+ to|\s*$)")
_LINES = 4


def summary(log: str, source: str) -> str:
    """Return the last useful lines of a log, and the P4 position that they belong to."""
    lines = [line for line in log.splitlines() if not _NOISE.match(line)]
    tail = "; ".join(line.strip() for line in lines[-_LINES:]) or "the log is empty"
    position = _position(lines, source)
    return f"{tail} (P4: {position})" if position else tail


def _position(lines: list[str], source: str) -> str | None:
    """Find the last C line that the log quotes, and the P4 position beside or above it."""
    for line in reversed(lines):
        if not line.startswith(";"):
            continue
        quoted = re.sub(r"\s*@ .*$", "", line.removeprefix(";")).strip()
        if not quoted:
            continue
        own = _POSITION.search(quoted)
        if own:
            return own[1] or own[2]
        at = source.find(quoted)
        above = list(_POSITION.finditer(source, 0, at)) if at >= 0 else []
        if above:
            return above[-1][1] or above[-1][2]
    return None
