"""The C preprocessor that P4 programs use, on tokens instead of text.

#include (quoted, angled), #define (object-like and function-like, with # and ##), #undef, #if #ifdef #ifndef #elif
#else #endif with integer expressions and defined(), #error, #line and #pragma (both ignored). Because a macro is
replaced by tokens that carry the position of its use, every later message points at what the user wrote.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import Diagnostics
from .lexer import Lexer, Token
from .preprocessor_expressions import evaluate_condition
from .source import SourceFile, Sources

MAX_INCLUDE_DEPTH = 64
# From a `#` at the start of a line to the end of the (continued) line.
DIRECTIVE = re.compile(r"(?:[^\n\\/]|\\\r?\n|\\.|/(?!\*|/)|//[^\n]*|/\*.*?\*/)*", re.DOTALL)
SKIP_TO_DIRECTIVE = re.compile(
    r"/\*.*?\*/|//[^\n]*|\"(?:[^\"\\\n]|\\.)*\"|(?P<hash>^[ \t]*\#)", re.DOTALL | re.MULTILINE
)
BUILT_IN_INCLUDE = Path(__file__).with_name("include")


@dataclass(frozen=True, slots=True)
class Macro:
    """A #define; `params` is None for an object-like macro."""

    name: str
    params: tuple[str, ...] | None
    body: tuple[Token, ...]


@dataclass(slots=True)
class _Branch:
    """An open #if: whether its text counts, whether any branch of it did, where it stands."""

    active: bool
    taken: bool
    pos: int
    seen_else: bool = False


class Preprocessor:
    """Turns files into one list of tokens."""

    def __init__(self, sources: Sources, diagnostics: Diagnostics, include_dirs: Sequence[Path] = ()) -> None:
        self.sources = sources
        self.diagnostics = diagnostics
        self.include_dirs = [*include_dirs, BUILT_IN_INCLUDE]
        self.macros: dict[str, Macro] = {}
        self.included: list[Path] = []
        self.output: list[Token] = []
        self._stack: list[Path] = []

    def define(self, name: str, value: str) -> None:
        """Define a macro as -D does."""
        source = self.sources.add("<command line>", value)
        self.macros[name] = Macro(name, None, tuple(Lexer(source, self.diagnostics).tokens()))

    def run(
        self, path: Path, text: str, undefined: Iterable[str] = (), defines: Mapping[str, str] | None = None
    ) -> list[Token]:
        """Preprocess a program; -U wins over -D as it does with cpp when it comes last."""
        for name, value in {"__p4c__": "1", "__P4C__": "1", "__p4c_major__": "1", **(defines or {})}.items():
            self.define(name, value)
        for name in undefined:
            self.macros.pop(name, None)
        source = self.sources.add(str(path), text, path)
        self._file(source, path)
        end = source.base + len(source.text)
        self.output.append(Token("EOF", "", end, end, True))
        return self.output

    def _file(self, source: SourceFile, path: Path) -> None:
        self._stack.append(path)
        lexer = Lexer(source, self.diagnostics)
        branches: list[_Branch] = []
        line: list[Token] = []
        has_macro = False
        macros = self.macros
        for token in lexer.tokens():
            if token.kind == "#" and token.line_start:
                self._flush(line, has_macro)
                line, has_macro = [], False
                self._directive(token, lexer, branches, source, path)
                continue
            if token.text in macros and token.kind != "STR":
                has_macro = True
            line.append(token)
        self._flush(line, has_macro)
        for branch in branches:
            self.diagnostics.error("this #if is never closed by #endif", branch.pos)
        self._stack.pop()

    def _flush(self, tokens: list[Token], has_macro: bool) -> None:
        self.output.extend(self.expand(tokens) if has_macro else tokens)

    # ---- directives

    def _directive(
        self, mark: Token, lexer: Lexer, branches: list[_Branch], source: SourceFile, path: Path
    ) -> None:
        words = self._directive_words(lexer, source)
        if not words:
            return
        name, rest = words[0].text, words[1:]
        conditional = {"if", "ifdef", "ifndef", "elif", "else", "endif"}
        if name in conditional:
            self._conditional(name, words[0], rest, branches)
            while branches and not branches[-1].active:
                if not self._skip(lexer, source, branches):
                    return
            return
        if name == "include":
            self._include(words[0], lexer, rest, source, path)
        elif name == "define":
            self._define(words[0], rest)
        elif name == "undef":
            if len(rest) != 1:
                self.diagnostics.error("#undef takes one name", words[0].pos)
            else:
                self.macros.pop(rest[0].text, None)
        elif name == "error":
            text = self.sources.text(words[0].end, source.base + lexer.offset).strip()
            self.diagnostics.error(f"#error {text}", words[0].pos, words[0].end)
        elif name == "warning":
            text = self.sources.text(words[0].end, source.base + lexer.offset).strip()
            self.diagnostics.warn("preprocessor", f"#warning {text}", words[0].pos, words[0].end)
        elif name not in ("line", "pragma") and words[0].kind != "INT":
            self.diagnostics.error(f"unknown directive '#{name}'", words[0].pos, words[0].end)

    def _directive_words(self, lexer: Lexer, source: SourceFile) -> list[Token]:
        """Take the rest of a directive's line as tokens."""
        found = DIRECTIVE.match(source.text, lexer.offset)
        end = found.end() if found else len(source.text)
        if re.match(r"[ \t]*include\b", source.text[lexer.offset : end]):
            # What an #include names is no P4 text; _include reads it itself.
            at = source.text.index("include", lexer.offset)
            lexer.offset = end
            return [Token("ID", "include", source.base + at, source.base + at + 7)]
        line = SourceFile(source.name, source.text[:end], source.base)
        inner = Lexer(line, self.diagnostics, in_directive=True)
        inner.offset = lexer.offset
        lexer.offset = end
        return list(inner.tokens())

    def _conditional(self, name: str, word: Token, rest: list[Token], branches: list[_Branch]) -> None:
        if name in ("if", "ifdef", "ifndef"):
            value = self._condition(name, word, rest)
            branches.append(_Branch(value, value, word.pos))
            return
        if not branches:
            self.diagnostics.error(f"#{name} without #if", word.pos, word.end)
            return
        branch = branches[-1]
        if name == "endif":
            branches.pop()
        elif branch.seen_else:
            self.diagnostics.error(f"#{name} after #else", word.pos, word.end)
        elif name == "else":
            branch.seen_else = True
            branch.active = not branch.taken
            branch.taken = True
        else:
            branch.active = not branch.taken and self._condition("if", word, rest)
            branch.taken = branch.taken or branch.active

    def _condition(self, name: str, word: Token, rest: list[Token]) -> bool:
        if name != "if":
            if len(rest) != 1:
                self.diagnostics.error(f"#{name} takes one name", word.pos, word.end)
                return False
            return (rest[0].text in self.macros) == (name == "ifdef")
        if not rest:
            self.diagnostics.error(f"#{word.text} needs an expression", word.pos, word.end)
            return False
        tokens: list[Token] = []
        at = 0
        while at < len(rest):
            token = rest[at]
            if token.text == "defined":
                bracket = at + 1 < len(rest) and rest[at + 1].kind == "("
                at += 2 if bracket else 1
                known = at < len(rest) and rest[at].text in self.macros
                tokens.append(Token("INT", str(int(known)), token.pos, token.end))
                at += 2 if bracket else 1
                continue
            tokens.append(token)
            at += 1
        return evaluate_condition(self.expand(tokens), word, self.diagnostics) != 0

    def _skip(self, lexer: Lexer, source: SourceFile, branches: list[_Branch]) -> bool:
        """Move behind the text that does not count; False at the end of the file."""
        depth = 0
        while True:
            found = SKIP_TO_DIRECTIVE.search(source.text, lexer.offset)
            if found is None:
                lexer.offset = len(source.text)
                return False
            lexer.offset = found.end()
            if found["hash"] is None:
                continue
            words = self._directive_words(lexer, source)
            name = words[0].text if words else ""
            if name in ("if", "ifdef", "ifndef"):
                depth += 1
            elif depth and name == "endif":
                depth -= 1
            elif not depth and name in ("elif", "else", "endif"):
                self._conditional(name, words[0], words[1:], branches)
                return True

    def _include(self, word: Token, lexer: Lexer, rest: list[Token], source: SourceFile, path: Path) -> None:
        text = source.text[word.end - source.base : lexer.offset]
        found = re.match(r"\s*(?:\"([^\"]+)\"|<([^>]+)>)\s*(?://.*|/\*.*)?$", text, re.DOTALL)
        if found is None:
            expanded = self.expand(
                list(Lexer(SourceFile(source.name, text, word.end), self.diagnostics).tokens())
            )
            joined = "".join(token.text for token in expanded)
            found = re.match(r"(?:\"([^\"]+)\"|<([^>]+)>)$", joined)
        if found is None:
            self.diagnostics.error('#include needs "file" or <file>', word.pos, word.end)
            return
        name = found[1] or found[2]
        start = word.end + max(text.find(name), 0)
        folders = [path.parent, *self.include_dirs] if found[1] else self.include_dirs
        if len(self._stack) >= MAX_INCLUDE_DEPTH:
            self.diagnostics.error(
                f"'{name}' is included too deeply: does a file include itself?", start, start + len(name)
            )
            return
        for folder in folders:
            candidate = folder / name
            if candidate.is_file():
                self._include_file(candidate, start, start + len(name))
                return
        self.diagnostics.error(f"cannot find the file '{name}' to include", start, start + len(name))

    def _include_file(self, path: Path, start: int, end: int) -> None:
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as ex:
            reason = ex.strerror if isinstance(ex, OSError) else "it is not UTF-8 text"
            self.diagnostics.error(f"cannot read '{path}': {reason}", start, end)
            return
        self.included.append(path)
        self._file(self.sources.add(str(path), text, path), path)

    def _define(self, word: Token, rest: list[Token]) -> None:
        if not rest or not (rest[0].text[0].isalpha() or rest[0].text[0] == "_"):
            self.diagnostics.error("#define needs a name", word.pos, word.end)
            return
        name, body = rest[0], rest[1:]
        params: tuple[str, ...] | None = None
        # Only a bracket that touches the name makes a function-like macro.
        if body and body[0].kind == "(" and body[0].pos == name.end:
            close = next((i for i, t in enumerate(body) if t.kind == ")"), None)
            if close is None:
                self.diagnostics.error(
                    f"the parameters of macro '{name.text}' are not closed by ')'", name.pos, name.end
                )
                return
            params = tuple(t.text for t in body[1:close] if t.kind != ",")
            body = body[close + 1 :]
        self.macros[name.text] = Macro(name.text, params, tuple(body))

    # ---- expansion

    def expand(self, tokens: Sequence[Token], hidden: frozenset[str] = frozenset()) -> list[Token]:
        """Replace macros, in what replaced them too; a macro is not replaced within itself."""
        result: list[Token] = []
        at = 0
        while at < len(tokens):
            token = tokens[at]
            macro = self.macros.get(token.text) if token.text not in hidden and token.kind != "STR" else None
            at += 1
            if token.text == "__LINE__":
                line = str(self.sources.locate(token.pos).line)
                result.append(Token("INT", line, token.pos, token.end))
            elif macro is None:
                result.append(token)
            elif macro.params is None:
                body = self._paste([Token(t.kind, t.text, token.pos, token.end) for t in macro.body])
                result.extend(self.expand(body, hidden | {macro.name}))
            elif at >= len(tokens) or tokens[at].kind != "(":
                result.append(token)
            else:
                arguments, at = self._arguments(tokens, at, token)
                body = self._substitute(macro, arguments, token, hidden)
                result.extend(self.expand(body, hidden | {macro.name}))
        return result

    def _arguments(self, tokens: Sequence[Token], at: int, name: Token) -> tuple[list[list[Token]], int]:
        arguments: list[list[Token]] = [[]]
        depth = 0
        while at < len(tokens):
            token = tokens[at]
            at += 1
            if token.kind == "(":
                depth += 1
                if depth == 1:
                    continue
            elif token.kind == ")":
                depth -= 1
                if depth == 0:
                    return arguments, at
            if token.kind == "," and depth == 1:
                arguments.append([])
            else:
                arguments[-1].append(token)
        self.diagnostics.error(
            f"the arguments of macro '{name.text}' are not closed by ')'", name.pos, name.end
        )
        return arguments, at

    def _substitute(
        self, macro: Macro, arguments: list[list[Token]], use: Token, hidden: frozenset[str]
    ) -> list[Token]:
        params = macro.params or ()
        if not params and arguments == [[]]:
            arguments = []
        if len(arguments) != len(params):
            self.diagnostics.error(
                f"macro '{macro.name}' takes {len(params)} argument(s), {len(arguments)} given",
                use.pos,
                use.end,
            )
            return []
        values = dict(zip(params, arguments, strict=True))
        result: list[Token] = []
        body = macro.body
        for at, token in enumerate(body):
            pasted = (at and body[at - 1].kind == "##") or (at + 1 < len(body) and body[at + 1].kind == "##")
            if at and body[at - 1].kind == "#" and token.text in values:
                text = " ".join(t.text for t in values[token.text]).replace("\\", "\\\\").replace('"', '\\"')
                result[-1] = Token("STR", f'"{text}"', use.pos, use.end)
            elif token.text in values:
                argument = values[token.text]
                result.extend(argument if pasted else self.expand(argument, hidden))
            else:
                result.append(Token(token.kind, token.text, use.pos, use.end))
        return self._paste(result)

    def _paste(self, tokens: list[Token]) -> list[Token]:
        """Join what stands on both sides of ##."""
        if not any(token.kind == "##" for token in tokens):
            return tokens
        result: list[Token] = []
        join = False
        for token in tokens:
            if token.kind == "##":
                join = True
            elif join and result:
                left = result.pop()
                text = SourceFile("<paste>", left.text + token.text, 0)
                for made in Lexer(text, self.diagnostics).tokens():
                    result.append(Token(made.kind, made.text, left.pos, left.end))
                join = False
            else:
                result.append(token)
        return result


def render(tokens: Sequence[Token], sources: Sources) -> str:
    """Write preprocessed tokens as text with #line marks (for -E)."""
    lines: list[str] = []
    row: list[str] = []
    previous: Token | None = None
    place: tuple[str, int] | None = None
    for token in tokens[:-1]:
        at = sources.locate(token.pos)
        if place != (at.file, at.line):
            if row:
                lines.append("".join(row))
            if place is None or place[0] != at.file or not place[1] <= at.line <= place[1] + 8:
                lines.append(f'#line {at.line} "{at.file}"')
            else:
                lines.extend([""] * (at.line - place[1] - 1))
            row = [" " * (at.column - 1)]
            place = (at.file, at.line)
        elif previous is not None and (token.pos > previous.end or token.pos == previous.pos):
            row.append(" ")
        row.append(token.text)
        previous = token
    if row:
        lines.append("".join(row))
    return "\n".join(lines) + "\n"
