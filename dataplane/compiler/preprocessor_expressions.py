"""Integer expressions of #if and #elif, with C's operators and precedence."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from .errors import Abort, Diagnostics
from .lexer import Token, parse_integer

BINARY: tuple[dict[str, Callable[[int, int], int]], ...] = (
    {"||": lambda a, b: int(bool(a) or bool(b))},
    {"&&": lambda a, b: int(bool(a) and bool(b))},
    {"|": lambda a, b: a | b},
    {"^": lambda a, b: a ^ b},
    {"&": lambda a, b: a & b},
    {"==": lambda a, b: int(a == b), "!=": lambda a, b: int(a != b)},
    {
        "<": lambda a, b: int(a < b),
        ">": lambda a, b: int(a > b),
        "<=": lambda a, b: int(a <= b),
        ">=": lambda a, b: int(a >= b),
    },
    {"<<": lambda a, b: a << b, ">>": lambda a, b: a >> b},
    {"+": lambda a, b: a + b, "-": lambda a, b: a - b},
    {"*": lambda a, b: a * b, "/": lambda a, b: _divide(a, b), "%": lambda a, b: a - b * _divide(a, b)},
)
MAX_SHIFT = 4096


def _divide(a: int, b: int) -> int:
    quotient = abs(a) // abs(b)
    return quotient if (a < 0) == (b < 0) else -quotient


class _Evaluator:
    def __init__(self, tokens: Sequence[Token], word: Token, diagnostics: Diagnostics) -> None:
        self.tokens = tokens
        self.word = word
        self.diagnostics = diagnostics
        self.at = 0

    def operator(self) -> tuple[str, int]:
        """Return the operator that comes next, and of how many tokens it is made (`>` comes alone)."""
        if self.at >= len(self.tokens):
            return "", 0
        token = self.tokens[self.at]
        if token.kind == ">" and self.at + 1 < len(self.tokens):
            following = self.tokens[self.at + 1]
            if following.pos == token.end and following.kind in (">", "="):
                return ">" + following.kind, 2
        return token.kind, 1

    def ternary(self) -> int:
        condition = self.binary(0)
        if self.operator()[0] != "?":
            return condition
        self.at += 1
        yes = self.ternary()
        self.expect(":")
        no = self.ternary()
        return yes if condition else no

    def binary(self, level: int) -> int:
        if level == len(BINARY):
            return self.unary()
        value = self.binary(level + 1)
        while True:
            operator, length = self.operator()
            if operator not in BINARY[level]:
                return value
            token = self.tokens[self.at]
            self.at += length
            right = self.binary(level + 1)
            if operator in ("/", "%") and right == 0:
                raise self.diagnostics.failure(
                    "division by zero in a preprocessor expression", token.pos, token.end
                )
            if operator in ("<<", ">>") and not 0 <= right <= MAX_SHIFT:
                raise self.diagnostics.failure(
                    "shift by an impossible amount in a preprocessor expression", token.pos, token.end
                )
            value = BINARY[level][operator](value, right)

    def unary(self) -> int:
        if self.at >= len(self.tokens):
            raise self.diagnostics.failure(
                f"the expression of #{self.word.text} is incomplete", self.word.pos, self.word.end
            )
        token = self.tokens[self.at]
        self.at += 1
        if token.kind == "(":
            value = self.ternary()
            self.expect(")")
            return value
        if token.kind in ("!", "-", "+", "~"):
            value = self.unary()
            return {"!": int(not value), "-": -value, "+": value, "~": ~value}[token.kind]
        if token.kind == "INT":
            literal = parse_integer(token.text)
            if isinstance(literal, str):
                raise self.diagnostics.failure(literal, token.pos, token.end)
            return literal.value
        if token.text == "true":
            return 1
        if token.text[0].isalpha() or token.text[0] == "_":
            return 0  # as in C: what is not defined counts as 0
        raise self.diagnostics.failure(
            f"'{token.text}' does not belong into a preprocessor expression", token.pos, token.end
        )

    def expect(self, kind: str) -> None:
        if self.operator()[0] != kind:
            token = self.tokens[self.at] if self.at < len(self.tokens) else self.word
            raise self.diagnostics.failure(
                f"'{kind}' is missing in a preprocessor expression", token.pos, token.end
            )
        self.at += 1


def evaluate_condition(tokens: Sequence[Token], word: Token, diagnostics: Diagnostics) -> int:
    """Evaluate an expression whose macros are expanded; 0 after an error."""
    evaluator = _Evaluator(tokens, word, diagnostics)
    try:
        value = evaluator.ternary()
        if evaluator.at < len(tokens):
            token = tokens[evaluator.at]
            raise diagnostics.failure(
                f"'{token.text}' is unexpected in a preprocessor expression", token.pos, token.end
            )
    except Abort:
        return 0
    return value
