"""What declarations mean in one instance of a block, and unique names."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .. import ast, ir


@dataclass(frozen=True, slots=True)
class BlockInstance:
    """An instance of a parser or control, not applied yet."""

    decl: ast.ParserDecl | ast.ControlDecl
    env: Env
    name: str


@dataclass(frozen=True, slots=True)
class ActionClosure:
    """An action with what its names mean."""

    decl: ast.Action
    env: Env
    name: str


Binding = ir.Value | ir.Extern | ir.Table | ir.ValueSet | BlockInstance | ActionClosure


class Env:
    """Maps declarations to what they stand for; looks outwards."""

    def __init__(self, parent: Env | None = None) -> None:
        self.parent = parent
        self.bindings: dict[ast.Decl, Binding] = {}

    def bind(self, decl: ast.Decl, binding: Binding) -> None:
        """Say what a declaration stands for."""
        self.bindings[decl] = binding

    def get(self, decl: ast.Decl) -> Binding | None:
        """Return what a declaration stands for."""
        env: Env | None = self
        while env is not None:
            found = env.bindings.get(decl)
            if found is not None:
                return found
            env = env.parent
        return None


class Names:
    """Hands out names that are used once, numbered like p4c's: x_0, x_1 for variables."""

    def __init__(self) -> None:
        self.used: set[str] = set()

    def new(self, base: str) -> str:
        """Return `base`, or with a number if it is taken."""
        return self._take(base) if base not in self.used else self.numbered(base)

    def numbered(self, base: str) -> str:
        """Return `base` with a number."""
        stem = re.sub(r"_[0-9]+$", "", base)
        number = 0
        while f"{stem}_{number}" in self.used:
            number += 1
        return self._take(f"{stem}_{number}")

    def _take(self, name: str) -> str:
        self.used.add(name)
        return name
