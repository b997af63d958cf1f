"""The token cursor below the grammar, names of types, and annotations."""

from __future__ import annotations

from collections.abc import Sequence

from .. import ast
from ..errors import Abort, Diagnostics
from ..lexer import SOFT_KEYWORDS, Token, unescape


class Backtrack(Exception):
    """A trial parse did not fit."""


class ParserBase:
    """Looks at tokens, takes them, and says what is missing."""

    def __init__(self, tokens: Sequence[Token], diagnostics: Diagnostics) -> None:
        self.tokens = tokens
        self.diagnostics = diagnostics
        self.at = 0
        self.token = tokens[0]
        self.type_names: set[str] = set()
        self.trial = 0

    # ---- cursor

    def advance(self) -> Token:
        """Take the current token."""
        token = self.token
        if token.kind != "EOF":
            self.at += 1
            self.token = self.tokens[self.at]
        return token

    def peek(self, ahead: int = 1) -> Token:
        """Look at a later token."""
        return self.tokens[min(self.at + ahead, len(self.tokens) - 1)]

    def back_to(self, at: int) -> None:
        """Return to a token that was current before."""
        self.at = at
        self.token = self.tokens[at]

    @property
    def last_end(self) -> int:
        """Return where the last taken token ended."""
        return self.tokens[self.at - 1].end if self.at else 0

    def accept(self, kind: str) -> Token | None:
        """Take the current token if it is of a kind."""
        return self.advance() if self.token.kind == kind else None

    def expect(self, kind: str, where: str = "") -> Token:
        """Take a token of a kind, or say that it is missing."""
        if self.token.kind == kind:
            return self.advance()
        raise self.unexpected(f"'{kind}'", where)

    def unexpected(self, wanted: str, where: str = "") -> Abort:
        """Report that something else was expected here; to be raised."""
        if self.trial:
            raise Backtrack
        found = "the end of the file" if self.token.kind == "EOF" else f"'{self.token.text}'"
        after = f" {where}" if where else ""
        return self.diagnostics.failure(
            f"expected {wanted}{after}, found {found}", self.token.pos, self.token.end
        )

    def skip_block(self) -> None:
        """Move behind the current statement or block, to go on after an error."""
        depth = 0
        while self.token.kind != "EOF":
            kind = self.advance().kind
            if kind == "{":
                depth += 1
            elif kind == "}":
                depth -= 1
                if depth <= 0:
                    return
            elif kind == ";" and depth <= 0:
                return

    # ---- names

    def is_name(self, token: Token | None = None) -> bool:
        """Say whether a token may name something (nonTypeName)."""
        kind = (token or self.token).kind
        return kind == "ID" or kind in SOFT_KEYWORDS

    def name(self, what: str = "a name") -> Token:
        """name: IDENTIFIER | words that are keywords elsewhere."""
        if self.is_name():
            return self.advance()
        raise self.unexpected(what)

    def at_type_name(self) -> bool:
        """Say whether the current token is the name of a type that was declared before."""
        return self.token.kind == "ID" and self.token.text in self.type_names

    # ---- annotations

    def annotations(self) -> list[ast.Annotation]:
        """optAnnotations: annotation*"""
        found = []
        while self.token.kind == "@":
            found.append(self.annotation())
        return found

    def annotation(self) -> ast.Annotation:
        """annotation: @name | @name ( tokens ) | @name [ expressions | key = value, ... ]"""
        start = self.advance()
        name = self.advance()  # keywords are allowed here
        result = ast.Annotation(start.pos, name.end, name.text)
        if self.token.kind in ("(", "[") and (name.text != "pragma"):
            structured = self.token.kind == "["
            self._annotation_body(result, structured)
            result.structured = structured
            result.end = self.last_end
        return result

    def _annotation_body(self, result: ast.Annotation, structured: bool) -> None:
        opening, closing = ("[", "]") if structured else ("(", ")")
        begin = self.at + 1
        depth = 0
        result.body = []
        while self.token.kind != "EOF":
            token = self.advance()
            depth += (token.kind == opening) - (token.kind == closing)
            if depth == 0:
                break
            if depth > 1 or token.kind != opening:
                result.body.append(token.text)
        else:
            raise self.unexpected(f"'{closing}'", "after the annotation")
        # Bodies are free text; those that read as expressions are kept as such.
        end = self.at
        self.back_to(begin)
        self.trial += 1
        try:
            while self.at < end - 1:
                result.args.append(self.annotation_argument())
                if not self.accept(","):
                    break
            if self.at != end - 1:
                result.args.clear()
        except (Backtrack, Abort):
            result.args.clear()
        finally:
            self.trial -= 1
            self.back_to(end)

    def annotation_argument(self) -> ast.Expr:
        """expression, or key = value (kept as a StructExpr of one field)"""
        if self.is_name() and self.peek().kind == "=":
            key = self.advance()
            self.advance()
            value = self.expression()
            return ast.StructExpr(key.pos, value.end, [key.text], [value])
        return self.expression()

    def string(self) -> ast.String:
        """STRING_LITERAL"""
        token = self.expect("STR")
        return ast.String(token.pos, token.end, unescape(token.text))

    def expression(self, level: int = 0) -> ast.Expr:
        """Parse an expression (in expressions.py)."""
        raise NotImplementedError
