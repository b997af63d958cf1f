"""Where lowered statements go: an action's steps, a control's flow, a parser's states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from .. import ast, ir
from .. import types as t
from ..errors import Diagnostics

Build = Callable[["Body"], None]


class Body(Protocol):
    """Takes steps and branches in the order in which they happen."""

    kind: str

    def step(self, step: ir.Step) -> None:
        """Add a step."""

    def branch(self, cond: ir.Expr, then: Build, orelse: Build | None, span: ir.Span) -> None:
        """Add what happens only under a condition."""

    def leave(self, label: object, node: ast.Node) -> None:
        """Go on behind what the label names."""

    def labelled(self, label: object, build: Build) -> None:
        """Add something that `leave` can leave."""


class ActionBody:
    """Straight steps. BMv2's actions have no branches: assignments under a condition become `c ? new : old`."""

    kind = "action"

    def __init__(self, diagnostics: Diagnostics, variable: Callable[[str, t.Type], ir.Value]) -> None:
        self.steps: list[ir.Step] = []
        self.diagnostics = diagnostics
        self.variable = variable
        self.live: ir.Expr | None = None  # None: always
        self.left: set[object] = set()
        self.own: set[str] = set()

    def step(self, step: ir.Step) -> None:
        """Add a step, under the current condition."""
        if self.left:
            return
        if self.live is not None:
            target = step.params[0] if step.params else None
            if step.op != "assign" or not isinstance(target, ir.Expr):
                self.diagnostics.fail(
                    "only assignments can depend on a condition within an action (BMv2 has no branches in actions); "
                    "move this into the control's apply block",
                    *step.span,
                )
            value = step.params[1]
            assert isinstance(value, ir.Expr)
            step = ir.Step("assign", (target, ir.Mux(target.type, self.live, value, target)), step.span)
        self.steps.append(step)

    def branch(self, cond: ir.Expr, then: Build, orelse: Build | None, span: ir.Span) -> None:
        """Turn branches into conditional assignments."""
        if self.left:
            return
        if isinstance(cond, ir.Const):
            if cond.value:
                then(self)
            elif orelse is not None:
                orelse(self)
            return
        outer = self.live
        # The condition is kept: what it depends on may change within the branch.
        saved = self.variable("cond", t.BOOL)
        assert isinstance(saved, ir.Field)
        self.steps.append(ir.Step("assign", (saved, cond), span))
        negated = ir.Op(t.BOOL, "not", None, saved)
        left_then = self._under(saved, outer, then)
        left_else = self._under(negated, outer, orelse) if orelse is not None else set()
        self.live = outer
        self.left |= left_then & left_else
        if left_then and not left_else:
            self.live = negated if outer is None else ir.Op(t.BOOL, "and", outer, negated)
        elif left_else and not left_then:
            self.live = saved if outer is None else ir.Op(t.BOOL, "and", outer, saved)

    def _under(self, cond: ir.Expr, outer: ir.Expr | None, build: Build) -> set[object]:
        self.live = cond if outer is None else ir.Op(t.BOOL, "and", outer, cond)
        before = self.live
        build(self)
        left = set(self.left)
        if self.live is not before and not left:
            # A return deeper inside: what follows depends on more than this branch knows how to say.
            self.diagnostics.fail(
                "'return' nested in several conditions within an action is not supported", None
            )
        self.left = set()
        return left

    def leave(self, label: object, node: ast.Node) -> None:
        """Skip the rest."""
        self.left.add(label)

    def labelled(self, label: object, build: Build) -> None:
        """Add something that `leave` can leave."""
        outer = self.live
        build(self)
        self.left.discard(label)
        self.live = outer


class ControlBody:
    """The flow of a control; consecutive steps are put into one hidden table, as p4c does."""

    kind = "control"

    def __init__(self, hide: Callable[[list[ir.Step]], ir.Table]) -> None:
        self.nodes: list[ir.Node] = []
        self.pending: list[ir.Step] = []
        self.hide = hide
        self.dead = False

    def step(self, step: ir.Step) -> None:
        """Add a step."""
        if not self.dead:
            self.pending.append(step)

    def flush(self) -> None:
        """Put the steps so far into a hidden table."""
        if self.pending:
            table = self.hide(self.pending)
            self.pending = []
            self.nodes.append(ir.Apply(table.name, table))

    def add(self, node: ir.Node) -> None:
        """Add a node behind the steps."""
        if self.dead:
            return
        self.flush()
        self.nodes.append(node)

    def nested(self, build: Build | None) -> list[ir.Node]:
        """Return the flow that `build` makes."""
        inner = ControlBody(self.hide)
        if build is not None:
            build(inner)
        inner.flush()
        return inner.nodes

    def branch(self, cond: ir.Expr, then: Build, orelse: Build | None, span: ir.Span) -> None:
        """Add a conditional."""
        if self.dead:
            return
        if isinstance(cond, ir.Const):
            if cond.value:
                then(self)
            elif orelse is not None:
                orelse(self)
            return
        self.flush()
        node = ir.Branch("", cond, [], [], span)
        self.nodes.append(node)
        node.yes, node.no = self.nested(then), self.nested(orelse)

    def leave(self, label: object, node: ast.Node) -> None:
        """Go on behind what the label names."""
        self.add(ir.Leave("", label))
        self.dead = True

    def labelled(self, label: object, build: Build) -> None:
        """Add something that `leave` can leave."""
        if self.dead:
            return
        self.flush()
        self.nodes.append(ir.Labelled("", label, self.nested(build)))
