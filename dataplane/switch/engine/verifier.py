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
    r"propagating |(\d+:)? ?R\d+(_rw?|_w)?=|-- END|func#\d|Validating |Live regs|peak_states|\s*$)"
)
_QUOTE = re.compile(r"^; *(?P<text>\S.*?)(?: @ (?P<file>\S+):(?P<line>\d+))?$")
_LINES = 4
SOURCE_NAME = "pipeline.c"
"""What the compiler is told that a generated program is called."""
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
        quote = _QUOTE.match(line)
        if quote is None:
            continue
        position = _beside(quote["text"], source) if quote["file"] in (None, SOURCE_NAME) else None
        if quote["file"] == SOURCE_NAME:
            position = _above("\n".join(source.split("\n")[: int(quote["line"])])) or position
        if position:
            return f"{position}, then {ours}" if ours else position
        ours = ours or _header_of(quote["text"])
    return ours or None


def _beside(quoted: str, source: str) -> str | None:
    """Return the position on a C line, else the last one above the first line that reads so."""
    own = _POSITION.search(quoted)
    if own:
        return own[1] or own[2]
    at = source.find(quoted)
    return _above(source[:at]) if at >= 0 else None


def _above(source: str) -> str | None:
    """Return the last position in a text."""
    found = list(_POSITION.finditer(source))
    return (found[-1][1] or found[-1][2]) if found else None


@cache
def _headers() -> dict[str, str]:
    return {path.name: path.read_text() for path in sorted(_INCLUDE.glob("*.h"))}


def _header_of(quoted: str) -> str:
    """Return the header of ours that a line stands in."""
    return next((name for name, text in _headers().items() if quoted in text), "")
