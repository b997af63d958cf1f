"""Text to tokens: one regular expression, one pass.

A token's `kind` is its own text for operators and keywords, and ID, INT or STR for the rest; so the parser compares
kinds only. `>` is never joined with what follows, because `register<bit<8>>` closes two brackets; the expression
parser joins adjacent ones to `>>` and `>=`. Directive lines are left to the preprocessor (kind `#`).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from .errors import Diagnostics
from .source import SourceFile

_WORDS = """
    abstract action actions apply bool bit const control default else entries enum error exit extern false for
    header header_union if in inout int key list match_kind type out parser package return select state string
    struct switch table this transition true tuple typedef varbit valueset void break continue"""
KEYWORDS = frozenset(_WORDS.split())
# P4_16 section 6.3 (grammar: nonTypeName): words that may still name things.
SOFT_KEYWORDS = frozenset(
    ["apply", "key", "actions", "state", "entries", "type", "list", "break", "continue", "for"]
)

TOKEN = re.compile(
    r"""(?P<space>[ \t\r\f\v]+|\\\r?\n)
      | (?P<newline>\n)
      | (?P<comment>//[^\n]*|/\*.*?\*/)
      | (?P<id>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<int>[0-9](?:[0-9a-zA-Z_])*)
      | (?P<str>"(?:[^"\\\n]|\\.)*")
      | (?P<op>&&&|\.\.\.|\.\.|\|\+\||\|-\||\+\+|<<=|[|&^+\-*/%=!<]=|<<|&&|\|\||[-+*/%&|^~!<>=?:;,.(){}\[\]@])
      | (?P<hash>\#\#?)""",
    re.VERBOSE | re.DOTALL,
)
INTEGER = re.compile(
    r"(?:(?P<width>[0-9]+)(?P<sign>[ws]))?(?:0[xX](?P<hex>[0-9a-fA-F_]+)|0[bB](?P<bin>[01_]+)|0[oO](?P<oct>[0-7_]+)|(?:0[dD])?(?P<dec>[0-9_]+))$"
)


@dataclass(frozen=True, slots=True)
class Token:
    """A word of the program; `pos` to `end` is what the user wrote (for macros: the macro's name)."""

    kind: str
    text: str
    pos: int
    end: int
    line_start: bool = False


class Lexer:
    """Hands out the tokens of one file; `offset` may be moved by the preprocessor to skip text."""

    def __init__(self, source: SourceFile, diagnostics: Diagnostics, in_directive: bool = False) -> None:
        self.source = source
        self.diagnostics = diagnostics
        self.in_directive = in_directive
        self.offset = 0

    def tokens(self) -> Iterator[Token]:
        """Yield the tokens from `offset` on; a `#` that starts a line comes as kind `#`."""
        text, base, match = self.source.text, self.source.base, TOKEN.match
        length = len(text)
        first = True
        while self.offset < length:
            found = match(text, self.offset)
            start = self.offset
            if found is None or (found.group() == "/" and text.startswith("/*", start)):
                self._bad_character(start)
                self.offset += 1
                continue
            group = found.lastgroup
            self.offset = end = found.end()
            if group == "space" or group == "comment":
                continue
            if group == "newline":
                first = True
                continue
            word = found.group()
            if group == "id":
                kind = word if word in KEYWORDS else "ID"
            elif group == "int":
                kind = "INT"
            elif group == "str":
                kind = "STR"
            else:
                kind = word
            if kind[0] == "#" and not first and not self.in_directive:
                self.diagnostics.error("'#' may only start a line", base + start)
                continue
            yield Token(kind, word, base + start, base + end, first)
            first = False

    def _bad_character(self, start: int) -> None:
        text = self.source.text
        if text.startswith("/*", start):
            self.diagnostics.error("comment is never closed", self.source.base + start)
            self.offset = len(text) - 1
        elif text[start] == '"':
            self.diagnostics.error("string is never closed", self.source.base + start)
            newline = text.find("\n", start)
            self.offset = (newline if newline >= 0 else len(text)) - 1
        else:
            self.diagnostics.error(f"unexpected character {text[start]!r}", self.source.base + start)


@dataclass(frozen=True, slots=True)
class IntegerLiteral:
    """A number as written; width None means the arbitrary-precision `int`."""

    value: int
    width: int | None
    signed: bool


def parse_integer(text: str) -> IntegerLiteral | str:
    """Read an integer literal (P4_16 section 6.4.3.2), or say what is wrong with it."""
    found = INTEGER.match(text)
    if found is None:
        return f"'{text}' is not a number"
    for group, base in (("hex", 16), ("bin", 2), ("oct", 8), ("dec", 10)):
        digits = found.group(group)
        if digits is not None:
            if not digits.strip("_"):
                return f"'{text}' is not a number"
            value = int(digits.replace("_", ""), base)
            break
    if found["width"] is None:
        return IntegerLiteral(value, None, True)
    width = int(found["width"])
    signed = found["sign"] == "s"
    if width == 0 and value != 0:
        return f"'{text}': a number of width 0 can only be 0"
    return IntegerLiteral(value, width, signed)


def unescape(text: str) -> str:
    """Return the characters that a quoted string literal stands for."""
    return re.sub(r"\\(.)", lambda m: {"n": "\n", "t": "\t"}.get(m[1], m[1]), text[1:-1])
