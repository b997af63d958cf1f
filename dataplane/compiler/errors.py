"""What the compiler has to say to its user.

CompileError                the program (or the command) is at fault; carries every message, formatted
Abort                       internal: unwinds to the next place where compilation can go on

A message is `file:line:col: error: text`, the source line and a caret. Nothing else may reach the user: whatever the
compiler cannot translate is refused by name, at its position.
"""

from __future__ import annotations

from dataclasses import dataclass

from .source import Sources

MAX_ERRORS = 20


class CompileError(Exception):
    """The program cannot be compiled; str() is what the user is shown."""


class Abort(Exception):
    """An error was reported, and what depends on the erroneous part is to be skipped."""


@dataclass(frozen=True, slots=True)
class Diagnostic:
    """One message with its place."""

    severity: str
    message: str
    pos: int | None
    length: int = 1


class Diagnostics:
    """Collects messages; the same message at the same place is kept once."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources
        self.messages: list[Diagnostic] = []
        self.disabled_warnings: set[str] | None = set()
        self.warnings_are_errors = False
        self.max_errors = MAX_ERRORS

    @property
    def error_count(self) -> int:
        """Count the errors so far."""
        return sum(1 for message in self.messages if message.severity == "error")

    def error(self, message: str, pos: int | None, end: int | None = None) -> None:
        """Report an error and go on."""
        self._add("error", message, pos, end)
        if self.error_count >= self.max_errors:
            raise CompileError(self.render())

    def failure(self, message: str, pos: int | None, end: int | None = None) -> Abort:
        """Report an error; what it returns is to be raised, to give up on the construct."""
        self.error(message, pos, end)
        return Abort()

    def warn(self, kind: str, message: str, pos: int | None, end: int | None = None) -> None:
        """Report a warning of a kind that --Wdisable=KIND can silence."""
        if self.disabled_warnings is None or kind in self.disabled_warnings:
            return
        self._add(
            "error" if self.warnings_are_errors else "warning", f"{message} [--Wdisable={kind}]", pos, end
        )

    def _add(self, severity: str, message: str, pos: int | None, end: int | None) -> None:
        length = max(1, end - pos) if pos is not None and end is not None else 1
        diagnostic = Diagnostic(severity, message, pos, length)
        if diagnostic not in self.messages:
            self.messages.append(diagnostic)

    def check(self) -> None:
        """Raise CompileError if there was an error."""
        if self.error_count:
            raise CompileError(self.render())

    def render(self, severity: str | None = None) -> str:
        """Format all messages (or those of one severity)."""
        chosen = [m for m in self.messages if severity in (None, m.severity)]
        return "\n".join(self._format(message) for message in chosen)

    def _format(self, message: Diagnostic) -> str:
        if message.pos is None:
            return f"p4ferry-p4c: {message.severity}: {message.message}"
        place = self.sources.locate(message.pos)
        line = self.sources.line_text(message.pos)
        # Tabs stay tabs in front of the caret, so that it stands right whatever their width.
        margin = "".join("\t" if c == "\t" else " " for c in line[: place.column - 1])
        caret = "^" * max(1, min(message.length, len(line) - place.column + 1))
        head = f"{place.file}:{place.line}:{place.column}: {message.severity}: {message.message}"
        return f"{head}\n{line}\n{margin}{caret}"
