"""Nested scopes of names."""

from __future__ import annotations

from difflib import get_close_matches

from .. import ast
from ..errors import Diagnostics

Named = ast.Decl | list[ast.Function]


class Scope:
    """The names that one block declares; looks outwards for the others."""

    def __init__(self, parent: Scope | None, diagnostics: Diagnostics) -> None:
        self.parent = parent
        self.diagnostics = diagnostics
        self.names: dict[str, Named] = {}

    def declare(self, decl: ast.Decl) -> None:
        """Add a declaration; functions may be overloaded by their number of parameters."""
        present = self.names.get(decl.name)
        if isinstance(decl, ast.Function):
            if present is None:
                self.names[decl.name] = [decl]
                return
            if isinstance(present, list) and all(len(f.params) != len(decl.params) for f in present):
                present.append(decl)
                return
        if isinstance(present, ast.Decl) and _is_block_type(present) and not _is_block_type(decl):
            self.diagnostics.warn(
                "shadow",
                f"'{decl.name}' hides the type of that name in the architecture, and p4c finds that ambiguous; "
                f'name it otherwise (@name("{decl.name}") keeps its control-plane name)',
                decl.pos,
                decl.end,
            )
            self.names[decl.name] = decl
            return
        if present is not None:
            first = present[0] if isinstance(present, list) else present
            place = self.diagnostics.sources.locate(first.pos)
            self.diagnostics.error(
                f"'{decl.name}' is declared twice; the first time at {place.file}:{place.line}:{place.column}",
                decl.pos,
                decl.end,
            )
            return
        self.names[decl.name] = decl

    def find(self, name: str) -> Named | None:
        """Return what a name means here, or None."""
        scope: Scope | None = self
        while scope is not None:
            found = scope.names.get(name)
            if found is not None:
                return found
            scope = scope.parent
        return None

    def top(self) -> Scope:
        """Return the outermost scope."""
        scope = self
        while scope.parent is not None:
            scope = scope.parent
        return scope

    def suggestion(self, name: str) -> str:
        """Return a hint with a similar name, if there is one."""
        known: set[str] = set()
        scope: Scope | None = self
        while scope is not None:
            known.update(scope.names)
            scope = scope.parent
        close = get_close_matches(name, known, 1)
        return f" (did you mean '{close[0]}'?)" if close else ""


def _is_block_type(decl: ast.Decl) -> bool:
    """Say whether a declaration is only the type of parsers or controls."""
    if isinstance(decl, ast.ParserDecl):
        return decl.states is None
    return isinstance(decl, ast.ControlDecl) and decl.body is None
