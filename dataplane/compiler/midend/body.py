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
        self.conditions: list[ir.Expr] = []
        self.dead: object | None = None  # the label whose rest is skipped
        self.starts: dict[object, int] = {}
        self.flags: dict[object, ir.Field] = {}

    def flag(self, name: str) -> ir.Field:
        """Make a truth value that is kept."""
        made = self.variable(name, t.BOOL)
        assert isinstance(made, ir.Field)
        return made

    def live(self) -> ir.Expr | None:
        """Return the condition under which the next step happens; None: always."""
        parts = [*self.conditions, *(ir.Op(t.BOOL, "not", None, flag) for flag in self.flags.values())]
        if not parts:
            return None
        result = parts[0]
        for part in parts[1:]:
            result = ir.Op(t.BOOL, "and", result, part)
        return result

    def step(self, step: ir.Step) -> None:
        """Add a step, under the current condition."""
        if self.dead is not None:
            return
        live = self.live()
        if live is not None:
            target = step.params[0] if step.params else None
            value = step.params[1] if len(step.params) > 1 else None
            if step.op != "assign" or not isinstance(target, ir.Expr) or not isinstance(value, ir.Expr):
                raise self.diagnostics.failure(
                    "only assignments can depend on a condition within an action (BMv2 has no branches in actions); "
                    "move this into the control's apply block",
                    *step.span,
                )
            step = ir.Step("assign", (target, ir.Mux(target.type, live, value, target)), step.span)
        self.steps.append(step)

    def branch(self, cond: ir.Expr, then: Build, orelse: Build | None, span: ir.Span) -> None:
        """Turn branches into conditional assignments."""
        if self.dead is not None:
            return
        if isinstance(cond, ir.Const):
            if cond.value:
                then(self)
            elif orelse is not None:
                orelse(self)
            return
        # The condition is kept: what it depends on may change within the branch.
        saved = self.flag("cond")
        self.steps.append(ir.Step("assign", (saved, cond), span))
        left = [self.under(saved, then)]
        left.append(self.under(ir.Op(t.BOOL, "not", None, saved), orelse) if orelse is not None else None)
        if left[0] is not None and left[0] == left[1]:
            self.dead = left[0]

    def under(self, cond: ir.Expr, build: Build) -> object | None:
        """Do something under a condition; returns the label that it always leaves."""
        self.conditions.append(cond)
        build(self)
        self.conditions.pop()
        left, self.dead = self.dead, None
        return left

    def leave(self, label: object, node: ast.Node) -> None:
        """Skip the rest, up to the end of what the label names."""
        if self.dead is not None:
            return
        if self.live() is not None:
            flag = self.flags.get(label) or self.flag("returned")
            self.step(ir.Step("assign", (flag, ir.Const(t.BOOL, True)), (node.pos, node.end)))
            if label not in self.flags:
                self.flags[label] = flag
                clear = ir.Step("assign", (flag, ir.Const(t.BOOL, False)), (node.pos, node.end))
                self.steps.insert(self.starts.get(label, 0), clear)
        self.dead = label if label is not None else self

    def labelled(self, label: object, build: Build) -> None:
        """Add something that `leave` can leave."""
        if self.dead is not None:
            return
        self.starts[label] = len(self.steps)
        conditions, self.conditions = self.conditions, list(self.conditions)
        build(self)
        self.conditions = conditions
        self.flags.pop(label, None)
        if self.dead is label:
            self.dead = None


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

    def nested(self, build: Build | None) -> tuple[list[ir.Node], bool]:
        """Return the flow that `build` makes, and whether it never reaches its end."""
        inner = ControlBody(self.hide)
        if build is not None and not self.dead:
            build(inner)
        inner.flush()
        return inner.nodes, inner.dead

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
        node.yes, yes_dead = self.nested(then)
        node.no, no_dead = self.nested(orelse)
        self.dead = yes_dead and no_dead

    def leave(self, label: object, node: ast.Node) -> None:
        """Go on behind what the label names."""
        self.add(ir.Leave("", label))
        self.dead = True

    def labelled(self, label: object, build: Build) -> None:
        """Add something that `leave` can leave."""
        if self.dead:
            return
        self.flush()
        self.nodes.append(ir.Labelled("", label, self.nested(build)[0]))
