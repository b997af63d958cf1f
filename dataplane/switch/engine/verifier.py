"""A verifier's complaint, told so that the reader finds the P4 line.

The log's form changes from kernel to kernel: up to 5.15 each path's register states stand on lines of their own, up to
6.1 the search for exact values is told in between (`last_idx`, `regs=`), and from 6.9 on a quoted C line carries its
place (`@ pipeline.c:12`).
"""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_POSITION = re.compile(r"/\* (.+:\d+(?::\d+)?)\s*\*/|/\* \w[\w ]* [\w.$]+, (.+?) \*/")
_NOISE = re.compile(
    r"^(processed \d+ insns|verification time|stack depth|mark_precise|from \d+ to|last_idx \d|regs=|parent |"
    r"propagating |(\d+: )?R\d+(_rw?|_w)?=|-- END|func#\d|Validating |Live regs|peak_states|\s*$)"
)
_LINES = 4
_INCLUDE = Path(__file__).parent / "include"


def summary(log: str, source: str) -> str:
    """Return the last useful lines of a log, and the P4 position that they belong to."""
    lines = [line for line in log.splitlines() if not _NOISE.match(line)]
    tail = "; ".join(line.strip() for line in lines[-_LINES:]) or "the log is empty"
    position = _position(lines, source)
    return f"{tail} (P4: {position})" if position else tail


def _position(lines: list[str], source: str) -> str | None:
    """Find the last C line that the log quotes, and the P4 position beside or above it.

    Code of ours (include/) has no position: the last one before it is where the packet came from.
    """
    ours = ""
    for line in reversed(lines):
        if not line.startswith(";"):
            continue
        quoted = re.sub(r"\s*@ .*$", "", line.removeprefix(";")).strip()
        if not quoted:
            continue
        position = _beside(quoted, source)
        if position:
            return f"{position}, then {ours}" if ours else position
        ours = ours or _header_of(quoted)
    return ours or None


def _beside(quoted: str, source: str) -> str | None:
    own = _POSITION.search(quoted)
    if own:
        return own[1] or own[2]
    at = source.find(quoted)
    above = list(_POSITION.finditer(source, 0, at)) if at >= 0 else []
    return (above[-1][1] or above[-1][2]) if above else None


@cache
def _headers() -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(_INCLUDE.glob("*.h"))}


def _header_of(quoted: str) -> str:
    """Return the header of ours that a line stands in."""
    return next((name for name, text in _headers().items() if quoted in text), "")
