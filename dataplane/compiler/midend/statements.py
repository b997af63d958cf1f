"""Statements and calls to steps."""

from __future__ import annotations

from .. import ast, ir
from .. import types as t
from .body import Body, ControlBody
from .env import ActionClosure, BlockInstance, Env
from .externs import ExternLowering
from .values import clamp_to, lower_type


class StatementLowering(ExternLowering):
    """Lowers statements; calls of actions, functions and controls are inlined."""

    def statements(self, items: list[ast.Stmt | ast.Decl], env: Env, body: Body) -> None:
        """Lower statements in order."""
        for item in items:
            if isinstance(item, ast.Decl):
                self.local(item, env, body)
            else:
                self.statement(item, env, body)

    def local(self, decl: ast.Decl, env: Env, body: Body) -> None:
        """Make a variable; constants stand for their values."""
        if isinstance(decl, ast.Variable):
            variable = self.variable(decl.name, decl.type)
            env.bind(decl, variable)
            if decl.init is not None:
                self.assign(
                    variable, self.value(decl.init, env, body), (decl.pos, decl.init.end), body, decl.init
                )
        elif isinstance(decl, ast.Instance):
            raise self.refusal(f"instance '{decl.name}' within statements", decl)

    def statement(self, stmt: ast.Stmt, env: Env, body: Body) -> None:
        """Lower one statement."""
        if isinstance(stmt, ast.Block):
            self.statements(stmt.items, Env(env), body)
        elif isinstance(stmt, ast.Assign):
            self.assignment(stmt, env, body)
        elif isinstance(stmt, ast.CallStmt):
            self.call_statement(stmt.call, env, body)
        elif isinstance(stmt, ast.If):
            self.conditional(stmt, env, body)
        elif isinstance(stmt, ast.Switch):
            self.switch(stmt, env, body)
        elif isinstance(stmt, ast.Return):
            self.return_(stmt, env, body)
        elif isinstance(stmt, ast.Exit):
            self.exit(stmt, body)

    def exit(self, stmt: ast.Exit, body: Body) -> None:
        body.step(ir.Step("exit", (), (stmt.pos, stmt.end)))
        body.leave(None, stmt)

    # ---- assignment

    def assignment(self, stmt: ast.Assign, env: Env, body: Body) -> None:
        span = (stmt.pos, stmt.end)
        right = self.value(stmt.right, env, body)
        if isinstance(stmt.left, ast.Slice):
            self.assign_slice(stmt.left, right, env, body, span)
        else:
            self.assign(self.value(stmt.left, env, body), right, span, body, stmt)

    def assign_slice(self, left: ast.Slice, right: ir.Value, env: Env, body: Body, span: ir.Span) -> None:
        """x[h:l] = v becomes x = x & ~mask | v << l & mask."""
        if isinstance(left.expr, ast.Slice):
            raise self.refusal("a slice of a slice on the left of '='", left)
        target = self.expr(left.expr, env, body)
        assert isinstance(right, ir.Expr)
        high, low = left.high.const, left.low.const
        width = t.width_of(target.type) or 0
        kind = t.Bits(width)
        mask = ((1 << (high - low + 1)) - 1) << low
        kept = ir.Op(kind, "&", target, ir.Const(kind, ((1 << width) - 1) ^ mask))
        wide = clamp_to(right, kind)
        shifted = ir.Op(kind, "<<", wide, ir.Const(t.INT, low)) if low else wide
        new = ir.Op(kind, "|", kept, ir.Op(kind, "&", shifted, ir.Const(kind, mask)))
        body.step(ir.Step("assign", (target, new), span))

    def assign(self, left: ir.Value, right: ir.Value, span: ir.Span, body: Body, node: ast.Node) -> None:
        """Assign, part by part where there are parts."""
        if isinstance(left, ir.DontCare):
            return
        if isinstance(left, ir.Struct) and isinstance(right, ir.Struct):
            self.assign_struct(left, right, span, body, node)
        elif isinstance(left, ir.HeaderRef) and isinstance(right, ir.Struct):
            if left.index is not None or left.which:
                raise self.refusal("a list assigned to an element chosen when the packet comes", node)
            body.step(ir.Step("add_header", (left,), span))
            own: dict[str, ir.Value] = {
                name: ir.Field(lower_type(kind), left.name, name) for name, kind in left.type.fields.items()
            }
            self.assign_struct(ir.Struct(left.type, own), right, span, body, node)
        elif isinstance(left, ir.HeaderRef):
            body.step(ir.Step("assign_header", (left, right), span))
        elif isinstance(left, ir.UnionRef):
            body.step(ir.Step("assign_union", (left, right), span))
        elif isinstance(left, ir.StackRef):
            element = left.type.element
            is_union = isinstance(element, t.StructLike) and element.kind == "header_union"
            body.step(
                ir.Step("assign_union_stack" if is_union else "assign_header_stack", (left, right), span)
            )
        elif isinstance(left, ir.Expr) and isinstance(right, ir.Expr):
            operation = "assign_VL" if isinstance(left.type, t.VarBits) else "assign"
            if left != right:
                body.step(ir.Step(operation, (left, right), span))
        else:
            raise self.refusal("this assignment", node)

    def assign_struct(
        self, left: ir.Struct, right: ir.Struct, span: ir.Span, body: Body, node: ast.Node
    ) -> None:
        if list(left.fields) != list(right.fields):
            raise self.refusal("this assignment", node)
        values = dict(right.fields)
        if right.header is None and len(values) > 1:
            # { a, b } may be read from what is being written: keep what changes on the way.
            written = {value for value in left.fields.values() if isinstance(value, ir.Field)}
            for name, value in values.items():
                if (
                    isinstance(value, ir.Expr)
                    and not isinstance(value, ir.Const)
                    and written & fields_of(value)
                ):
                    copy = self.variable("tmp", value.type)
                    self.assign(copy, value, span, body, node)
                    values[name] = copy
        for name, target in left.fields.items():
            self.assign(target, values[name], span, body, node)

    # ---- control flow

    def conditional(self, stmt: ast.If, env: Env, body: Body) -> None:
        if isinstance(body, ControlBody) and self.hit_or_miss(stmt, env, body):
            return
        cond = self.expr(stmt.cond, env, body)
        orelse = stmt.orelse
        body.branch(
            cond,
            lambda inner: self.statement(stmt.then, env, inner),
            (lambda inner: self.statement(orelse, env, inner)) if orelse is not None else None,
            (stmt.cond.pos, stmt.cond.end),
        )

    def hit_or_miss(self, stmt: ast.If, env: Env, body: ControlBody) -> bool:
        """Lower `if (t.apply().hit)` and its kin; False if it is another condition."""
        cond, wanted = stmt.cond, True
        while isinstance(cond, ast.Unary) and cond.op == "!":
            cond, wanted = cond.expr, not wanted
        if not isinstance(cond, ast.Member) or not isinstance(cond.expr.type, t.ApplyResult):
            return False
        table = self.table_of(cond.expr, env, body)
        if cond.name == "miss":
            wanted = not wanted
        node = ir.Apply(table.name, table, span=(stmt.cond.pos, stmt.cond.end))
        body.add(node)
        orelse = stmt.orelse
        then, then_dead = body.nested(lambda inner: self.statement(stmt.then, env, inner))
        other, other_dead = body.nested(
            (lambda inner: self.statement(orelse, env, inner)) if orelse is not None else None
        )
        node.hit, node.miss = (then, other) if wanted else (other, then)
        body.dead = body.dead or (then_dead and other_dead)
        return True

    def table_of(self, call: ast.Expr, env: Env, body: Body) -> ir.Table:
        """Return the table of `t.apply()`, with its keys computed."""
        raise NotImplementedError

    def apply_result(self, expr: ast.Member, env: Env, body: Body) -> ir.Value:
        """Lower table.apply().hit as a value: a variable that the two ways out of the table set."""
        if not isinstance(body, ControlBody):
            raise self.refusal("applying a table here", expr)
        table = self.table_of(expr.expr, env, body)
        result = self.variable("hit", t.BOOL)
        assert isinstance(result, ir.Field)
        span = (expr.pos, expr.end)
        node = ir.Apply(table.name, table, span=span)
        body.add(node)

        def setter(value: bool) -> list[ir.Node]:
            step = ir.Step("assign", (result, ir.Const(t.BOOL, value)), span)
            return body.nested(lambda inner: inner.step(step))[0]

        node.hit, node.miss = setter(expr.name == "hit"), setter(expr.name != "hit")
        return result

    def switch(self, stmt: ast.Switch, env: Env, body: Body) -> None:
        if isinstance(stmt.expr.type, t.ActionRun):
            assert isinstance(stmt.expr, ast.Member) and isinstance(body, ControlBody)
            self.action_switch(stmt, stmt.expr.expr, env, body)
            return
        value = self.expr(stmt.expr, env, body)
        if not isinstance(value, (ir.Const, ir.Field)):
            saved = self.variable("switch", value.type)
            self.assign(saved, value, (stmt.expr.pos, stmt.expr.end), body, stmt)
            assert isinstance(saved, ir.Field)
            value = saved
        groups: list[tuple[list[ast.Expr], ast.Block]] = []
        labels: list[ast.Expr] = []
        for case in stmt.cases:
            labels.append(case.label)
            if case.block is not None:
                groups.append((labels, case.block))
                labels = []
        self.value_cases(value, groups, env, body, stmt)

    def value_cases(
        self,
        value: ir.Expr,
        groups: list[tuple[list[ast.Expr], ast.Block]],
        env: Env,
        body: Body,
        stmt: ast.Switch,
    ) -> None:
        if not groups:
            return
        labels, block = groups[0]
        if any(isinstance(label, ast.Default) for label in labels):
            self.statement(block, env, body)
            return
        cond: ir.Expr | None = None
        for label in labels:
            test = ir.Op(t.BOOL, "==", value, self.expr(label, env, body))
            cond = test if cond is None else ir.Op(t.BOOL, "or", cond, test)
        assert cond is not None
        body.branch(
            cond,
            lambda inner: self.statement(block, env, inner),
            lambda inner: self.value_cases(value, groups[1:], env, inner, stmt),
            (stmt.expr.pos, stmt.expr.end),
        )

    def action_switch(self, stmt: ast.Switch, call: ast.Expr, env: Env, body: ControlBody) -> None:
        table = self.table_of(call, env, body)
        node = ir.Apply(table.name, table, cases=[], span=(stmt.expr.pos, stmt.expr.end))
        body.add(node)
        labels: list[ir.Action] = []
        default = False
        assert node.cases is not None
        for case in stmt.cases:
            if isinstance(case.label, ast.Default):
                default = True
            else:
                assert isinstance(case.label, ast.Name)
                decl = case.label.ref
                labels.extend(use.action for use in table.actions if use.action.decl is decl)
            if case.block is None:
                continue
            block = case.block
            nodes, _ = body.nested(lambda inner, block=block: self.statement(block, env, inner))  # type: ignore[misc]
            if labels:
                node.cases.append((labels, nodes))
            if default:
                node.otherwise = nodes
            labels = []

    def return_(self, stmt: ast.Return, env: Env, body: Body) -> None:
        frame = self.frames[-1]
        if stmt.value is not None and frame.result is not None:
            self.assign(frame.result, self.value(stmt.value, env, body), (stmt.pos, stmt.end), body, stmt)
        body.leave(frame.label, stmt)

    # ---- calls

    def call_statement(self, call: ast.Call, env: Env, body: Body) -> None:
        kind = call.func.type
        if isinstance(kind, t.ActionType):
            self.call_action(call, env, body)
        elif isinstance(kind, t.Callable) and kind.name == "apply" and isinstance(kind.owner, t.TableType):
            table = self.table_of(call, env, body)
            assert isinstance(body, ControlBody)
            body.add(ir.Apply(table.name, table, span=(call.pos, call.end)))
        elif isinstance(kind, t.Callable) and kind.name == "apply" and isinstance(kind.owner, t.Block):
            self.apply_block(call, env, body)
        else:
            self.call(call, env, body)

    def call_action(self, call: ast.Call, env: Env, body: Body) -> None:
        """Inline an action's call."""
        assert isinstance(call.func, ast.Name)
        closure = env.get(call.func.ref) or ActionClosure(call.func.ref, Env(), call.func.name)
        assert isinstance(closure, ActionClosure)
        self.inline_action(closure, call, env, body)

    def inline_action(self, closure: ActionClosure, call: ast.Call, env: Env, body: Body) -> None:
        inner = Env(closure.env)
        self.bind_arguments(closure.decl.params, call, env, inner, body)
        self.framed(closure.decl.body.items, inner, body, None)

    def bind_arguments(
        self, params: list[ast.Param], call: ast.Call, env: Env, inner: Env, body: Body
    ) -> None:
        """Bind parameters to arguments, copying values in (P4_16 section 6.8)."""
        for param, argument in zip(params, call.args, strict=True):
            span = (argument.pos, argument.end)
            if isinstance(argument, ast.Slice) and param.direction in ("out", "inout"):
                raise self.refusal("a slice as an 'out' argument", argument)
            value = self.value(argument, env, body)
            if isinstance(value, (ir.Const, ir.Text, ir.PacketRef)) or isinstance(param.type, t.Extern):
                inner.bind(param, value)
                continue
            if param.direction in ("out", "inout") and not isinstance(value, ir.DontCare):
                # Bound to the argument itself: what differs from copying is only seen when arguments overlap.
                inner.bind(param, value)
                continue
            if isinstance(value, (ir.HeaderRef, ir.UnionRef, ir.StackRef)) or (
                isinstance(value, ir.Struct) and value.header is not None
            ):
                inner.bind(param, value)
                continue
            copy = self.variable(param.name, param.type)
            if not isinstance(value, ir.DontCare):
                self.assign(copy, value, span, body, argument)
            inner.bind(param, copy)

    def call_function(self, function: ast.Function, call: ast.Call, env: Env, body: Body) -> ir.Value:
        """Inline a function's call."""
        if function in self.inlining:
            raise self.diagnostics.failure(f"function '{function.name}' calls itself", call.pos, call.end)
        assert function.body is not None
        inner = Env()
        self.inlining.append(function)
        self.bind_arguments(function.params, call, env, inner, body)
        result = None if function.result is t.VOID else self.variable(function.name, function.result)
        self.framed(function.body.items, inner, body, result)
        self.inlining.pop()
        return result if result is not None else ir.DontCare()

    # ---- blocks

    def apply_block(self, call: ast.Call, env: Env, body: Body) -> None:
        """Inline `instance.apply(...)` or `Type.apply(...)`."""
        assert isinstance(call.func, ast.Member)
        target = call.func.expr
        assert isinstance(target, (ast.Name, ast.TypeRef))
        found = env.get(target.ref) if isinstance(target, ast.Name) else None
        if found is None and isinstance(target.type, t.TypeOf) and isinstance(target.type.type, t.Block):
            # Type.apply(…) is an instance without a name of its own (P4_16 section 15.1).
            decl = target.type.type.decl
            assert not isinstance(decl, ast.PackageDecl)
            found = BlockInstance(decl, Env(), f"{self.prefixes[-1]}.{t.annotated_name(decl) or decl.name}")
        assert isinstance(found, BlockInstance)
        self.inline_block(found, call, env, body)

    prefixes: list[str]

    def inline_block(self, instance: BlockInstance, call: ast.Call, env: Env, body: Body) -> None:
        """Inline a parser or control (in controls.py and parsers.py)."""
        raise NotImplementedError


def fields_of(value: ir.Expr) -> set[ir.Field]:
    """Return the fields that a value is computed from."""
    if isinstance(value, ir.Field):
        return {value}
    if isinstance(value, ir.Op):
        return fields_of(value.right) | (fields_of(value.left) if value.left is not None else set())
    if isinstance(value, ir.Mux):
        return fields_of(value.cond) | fields_of(value.yes) | fields_of(value.no)
    return set()
