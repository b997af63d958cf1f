"""Statements."""

from __future__ import annotations

from dataclasses import dataclass

from .. import ast
from .. import types as t
from ..errors import Abort
from .calls import CallChecker
from .scope import Scope


@dataclass(frozen=True, slots=True)
class Context:
    """Where statements stand: "parser", "control", "action" or "function", and what return gives."""

    kind: str
    result: t.Type = t.VOID


class StatementChecker(CallChecker):
    """Checks statements and local declarations."""

    def block(self, block: ast.Block, outer: Scope, context: Context) -> None:
        """Check a block in a scope of its own."""
        self.statements(block.items, Scope(outer, self.diagnostics), context)

    def statements(self, items: list[ast.Stmt | ast.Decl], scope: Scope, context: Context) -> None:
        """Check statements in order; after an error go on with the next."""
        for item in items:
            try:
                if isinstance(item, ast.Decl):
                    self.local(item, scope)
                else:
                    self.statement(item, scope, context)
            except Abort:
                if isinstance(item, ast.Decl) and item.name not in scope.names:
                    scope.declare(item)

    def local(self, decl: ast.Decl, scope: Scope) -> None:
        """Check a constant, variable or instance."""
        if isinstance(decl, ast.Variable):
            self.variable(decl, scope)
        elif isinstance(decl, ast.Const):
            self.constant(decl, scope)
        elif isinstance(decl, ast.Instance):
            self.instance(decl, scope)
        else:
            raise TypeError(type(decl).__name__)
        scope.declare(decl)

    def variable(self, decl: ast.Variable, scope: Scope) -> None:
        decl.type = self.resolve(decl.type_expr, scope)
        if decl.type in (t.INT, t.VOID, t.STRING, t.MATCH_KIND) or isinstance(decl.type, (t.Extern, t.Block)):
            raise self.diagnostics.failure(
                f"a variable cannot have type {decl.type}", decl.type_expr.pos, decl.type_expr.end
            )
        if decl.init is not None:
            decl.init = self.coerce(self.expr(decl.init, scope), decl.type, f"the value of '{decl.name}'")

    def constant(self, decl: ast.Const, scope: Scope) -> None:
        decl.type = self.resolve(decl.type_expr, scope)
        decl.value = self.coerce(self.expr(decl.value, scope), decl.type, f"the value of '{decl.name}'")
        if not self.is_constant(decl.value):
            raise self.diagnostics.failure(
                f"the value of constant '{decl.name}' is not known at compile time",
                decl.value.pos,
                decl.value.end,
            )

    def is_constant(self, expr: ast.Expr) -> bool:
        if isinstance(expr, (ast.ListExpr, ast.StructExpr)):
            return all(self.is_constant(item) for item in expr.items)
        return expr.const is not None

    def instance(self, decl: ast.Instance, scope: Scope) -> None:
        decl.type = self.resolve(decl.type_expr, scope)
        place = ast.Node(decl.type_expr.pos, decl.end)
        decl.type = self.construct(decl.type, place, decl.args, decl.names, scope)

    def statement(self, stmt: ast.Stmt, scope: Scope, context: Context) -> None:
        """Check one statement."""
        if isinstance(stmt, ast.Block):
            self.block(stmt, scope, context)
        elif isinstance(stmt, ast.Assign):
            stmt.left = self.expr(stmt.left, scope)
            self.lvalue(stmt.left, "the left side of '='")
            right = self.expr(stmt.right, scope)
            stmt.right = self.coerce(right, stmt.left.type, "the value")
        elif isinstance(stmt, ast.CallStmt):
            self.expr(stmt.call, scope)
            self.calls_allowed(stmt.call, context)
        elif isinstance(stmt, ast.If):
            stmt.cond = self.coerce(self.expr(stmt.cond, scope), t.BOOL, "the condition")
            for branch in (stmt.then, stmt.orelse):
                if branch is not None:
                    self.statements([branch], Scope(scope, self.diagnostics), context)
        elif isinstance(stmt, ast.Switch):
            self.switch(stmt, scope, context)
        elif isinstance(stmt, ast.Return):
            self.return_(stmt, scope, context)
        elif isinstance(stmt, ast.Exit):
            if context.kind in ("parser", "function"):
                raise self.diagnostics.failure(
                    f"'exit' is not allowed in a {context.kind}", stmt.pos, stmt.end
                )
        elif not isinstance(stmt, ast.Empty):
            raise TypeError(type(stmt).__name__)

    def calls_allowed(self, call: ast.Call, context: Context) -> None:
        kind = call.func.type
        if isinstance(kind, t.Callable) and kind.name == "apply" and kind.owner is not None:
            is_table = isinstance(kind.owner, t.TableType)
            if context.kind in ("action", "function") or (context.kind == "parser" and is_table):
                raise self.diagnostics.failure(
                    f"'apply' cannot be called in a {context.kind}", call.pos, call.end
                )
        if isinstance(kind, t.ActionType) and context.kind in ("parser", "function"):
            raise self.diagnostics.failure(
                f"an action cannot be called in a {context.kind}", call.pos, call.end
            )

    def return_(self, stmt: ast.Return, scope: Scope, context: Context) -> None:
        if context.kind == "parser":
            raise self.diagnostics.failure("'return' is not allowed in a parser", stmt.pos, stmt.end)
        if stmt.value is None:
            if context.result is not t.VOID:
                raise self.diagnostics.failure(
                    f"'return' needs a value of type {context.result}", stmt.pos, stmt.end
                )
            return
        if context.result is t.VOID:
            raise self.diagnostics.failure("'return' cannot have a value here", stmt.pos, stmt.end)
        stmt.value = self.coerce(self.expr(stmt.value, scope), context.result, "the returned value")

    def switch(self, stmt: ast.Switch, scope: Scope, context: Context) -> None:
        stmt.expr = self.expr(stmt.expr, scope)
        kind = stmt.expr.type
        seen: set[object] = set()
        for at, case in enumerate(stmt.cases):
            if isinstance(case.label, ast.Default):
                if at != len(stmt.cases) - 1:
                    self.diagnostics.error("'default' must be the last label", case.pos, case.end)
                key: object = "default"
            elif isinstance(kind, t.ActionRun):
                key = self.action_label(case, kind, scope)
            else:
                case.label = self.coerce(self.expr(case.label, scope), kind, "the label")
                key = case.label.const
                if key is None:
                    raise self.diagnostics.failure(
                        "a label must be known at compile time", case.pos, case.end
                    )
            if key in seen:
                self.diagnostics.error("this label stands twice in the switch", case.pos, case.end)
            seen.add(key)
            if case.block is not None:
                self.block(case.block, scope, context)

    def action_label(self, case: ast.SwitchCase, kind: t.ActionRun, scope: Scope) -> object:
        label = case.label
        names = [_action_name(ref) for ref in kind.decl.actions]
        if not isinstance(label, ast.Name) or label.name not in names:
            text = label.name if isinstance(label, ast.Name) else "this"
            raise self.diagnostics.failure(
                f"'{text}' is not an action of table '{kind.decl.name}'", case.pos, case.end
            )
        self.expr(label, scope)
        return label.ref


def _action_name(ref: ast.ActionRef) -> str:
    name = ref.call.func if isinstance(ref.call, ast.Call) else ref.call
    return name.name if isinstance(name, ast.Name) else ""
