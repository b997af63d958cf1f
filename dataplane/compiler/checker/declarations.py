"""Declarations: types, externs, actions, tables, parsers, controls, packages."""

from __future__ import annotations

from collections.abc import Sequence

from .. import ast
from .. import types as t
from ..errors import Abort, Diagnostics
from ..folding import wrap
from .scope import Scope
from .statements import Context
from .tables import TableChecker


class Checker(TableChecker):
    """Checks a whole program; `main` is its package instance afterwards."""

    def __init__(self, diagnostics: Diagnostics) -> None:
        super().__init__(diagnostics)
        self.scope = Scope(None, diagnostics)
        self.errors = []
        self.match_kinds = set()
        self.main: ast.Instance | None = None

    def program(self, program: ast.Program) -> None:
        """Check every declaration; errors are collected."""
        for decl in program.decls:
            try:
                self.declaration(decl, self.scope)
            except Abort:
                # Declared all the same: its uses are not wrong because of it.
                if decl.name not in self.scope.names and not isinstance(decl, (ast.ErrorDecl, ast.Function)):
                    self.scope.declare(decl)
                    if not isinstance(decl, (ast.Const, ast.Instance, ast.Action)):
                        self.types.setdefault(decl, t.UNKNOWN)

    def declaration(self, decl: ast.Decl, scope: Scope) -> None:
        """Check a declaration and add its name to the scope."""
        if isinstance(decl, ast.ErrorDecl):
            self.members(decl)
            return
        if isinstance(decl, ast.StructDecl):
            self.types[decl] = self.struct(decl, scope)
        elif isinstance(decl, ast.EnumDecl):
            self.types[decl] = self.enum(decl, scope)
        elif isinstance(decl, ast.Typedef):
            target = self.resolve(decl.target, scope)
            self.types[decl] = self.new_type(decl, target) if decl.distinct else target
        elif isinstance(decl, ast.ExternDecl):
            self.extern(decl, scope)
            return
        elif isinstance(decl, ast.Function):
            self.function(decl, scope)
            return
        elif isinstance(decl, ast.Action):
            self.action(decl, scope)
        elif isinstance(decl, ast.ParserDecl):
            self.parser(decl, scope)
            return
        elif isinstance(decl, ast.ControlDecl):
            self.control(decl, scope)
            return
        elif isinstance(decl, ast.PackageDecl):
            self.types[decl] = t.Block(decl)
            self.params(decl.params, self.type_scope(decl.type_params, scope))
        elif isinstance(decl, (ast.Const, ast.Variable, ast.Instance)):
            self.local(decl, scope)
            self.find_main(decl)
            return
        else:
            raise TypeError(type(decl).__name__)
        scope.declare(decl)

    def find_main(self, decl: ast.Decl) -> None:
        if not isinstance(decl, ast.Instance) or not isinstance(decl.type, t.Block):
            return
        if isinstance(decl.type.decl, ast.PackageDecl) and decl.name == "main":
            self.main = decl

    # ---- types

    def members(self, decl: ast.ErrorDecl) -> None:
        """Add the members of error { } or match_kind { }, which may come in several parts."""
        for member in decl.members:
            if decl.name == "match_kind":
                self.match_kinds.add(member.name)
            elif member.name in self.errors:
                self.diagnostics.error(f"error '{member.name}' is declared twice", member.pos, member.end)
            else:
                self.errors.append(member.name)

    def new_type(self, decl: ast.Typedef, target: t.Type) -> t.Type:
        if not isinstance(t.underlying(target), t.Bits) and target is not t.BOOL:
            raise self.diagnostics.failure(f"'type' cannot be made of {target}", decl.pos, decl.end)
        return t.NewType(decl.name, target, decl)

    def struct(self, decl: ast.StructDecl, scope: Scope) -> t.StructLike:
        if decl.type_params:
            raise self.diagnostics.failure(
                f"generic {decl.kind}s ('{decl.name}<…>') are not supported", decl.pos, decl.end
            )
        result = t.StructLike(decl.kind, decl.name, decl)
        self.types[decl] = result
        varbits = 0
        for field in decl.fields:
            kind = self.resolve(field.type_expr, scope)
            if field.name in result.fields:
                self.diagnostics.error(f"'{decl.name}' has field '{field.name}' twice", field.pos, field.end)
            result.fields[field.name] = kind
            problem = self.field_problem(decl.kind, kind)
            if problem is not None:
                self.diagnostics.error(
                    f"a {decl.kind} cannot have a field of type {kind}{problem}", field.pos, field.end
                )
            varbits += isinstance(kind, t.VarBits)
        if varbits > 1:
            self.diagnostics.error(f"header '{decl.name}' has more than one varbit field", decl.pos, decl.end)
        return result

    @staticmethod
    def field_problem(kind: str, field: t.Type) -> str | None:
        base = t.underlying(field)
        if kind == "header_union":
            return None if isinstance(base, t.StructLike) and base.kind == "header" else " (only headers)"
        if kind == "header":
            fits = isinstance(base, (t.Bits, t.VarBits)) or base is t.BOOL
            if isinstance(base, t.StructLike) and base.kind == "struct":
                return " (structs within headers are not supported)"
            return None if fits else ""
        fits = not isinstance(base, (t.Extern, t.Block)) and base not in (
            t.INT,
            t.VOID,
            t.STRING,
            t.MATCH_KIND,
        )
        return None if fits else ""

    def enum(self, decl: ast.EnumDecl, scope: Scope) -> t.Type:
        names = [m.name for m in decl.members]
        for member in decl.members:
            if names.count(member.name) > 1:
                self.diagnostics.error(
                    f"enum '{decl.name}' has '{member.name}' twice", member.pos, member.end
                )
        if decl.underlying is None:
            return t.Enum(decl.name, decl, names)
        underlying = self.resolve(decl.underlying, scope)
        if not isinstance(underlying, t.Bits):
            raise self.diagnostics.failure(
                f"an enum's values cannot be {underlying}", decl.underlying.pos, decl.underlying.end
            )
        result = t.SerEnum(decl.name, decl, underlying)
        for member in decl.members:
            if member.value is None:
                self.diagnostics.error(
                    f"'{member.name}' needs a value: enum '{decl.name}' has type {underlying}",
                    member.pos,
                    member.end,
                )
                continue
            value = self.coerce(
                self.plain(self.expr(member.value, scope)), underlying, f"the value of '{member.name}'"
            )
            if not isinstance(value.const, int):
                self.diagnostics.error(
                    f"the value of '{member.name}' is not known at compile time", value.pos, value.end
                )
                continue
            result.members[member.name] = wrap(value.const, underlying)
        return result

    # ---- externs, functions, actions

    def type_scope(self, params: Sequence[ast.TypeParam], outer: Scope) -> Scope:
        """Return a scope in which the type parameters are types."""
        if not params:
            return outer
        scope = Scope(outer, self.diagnostics)
        for param in params:
            self.types[param] = t.TypeVar(param.name, param)
            scope.declare(param)
        return scope

    def params(self, params: Sequence[ast.Param], scope: Scope) -> None:
        """Resolve parameters' types and defaults."""
        names: set[str] = set()
        for param in params:
            param.type = self.resolve(param.type_expr, scope)
            if param.name in names:
                self.diagnostics.error(f"parameter '{param.name}' is declared twice", param.pos, param.end)
            names.add(param.name)
            if param.default is not None:
                param.default = self.coerce(
                    self.expr(param.default, scope), param.type, f"the default of '{param.name}'"
                )

    def extern(self, decl: ast.ExternDecl, scope: Scope) -> None:
        kind = t.Extern(decl)
        self.types[decl] = kind
        scope.declare(decl)
        inner = self.type_scope(decl.type_params, scope)
        for method in decl.methods:
            own = self.type_scope(method.type_params, inner)
            method.result = self.resolve(method.returns, own) if method.returns else t.VOID
            self.params(method.params, own)

    def function(self, decl: ast.Function, scope: Scope) -> None:
        inner = self.type_scope(decl.type_params, scope)
        decl.result = self.resolve(decl.returns, inner) if decl.returns else t.VOID
        self.params(decl.params, inner)
        scope.declare(decl)
        if decl.body is not None:
            if decl.type_params:
                raise self.diagnostics.failure(
                    f"generic functions ('{decl.name}<…>') are not supported", decl.pos, decl.end
                )
            self.block(decl.body, self.param_scope(decl.params, inner), Context("function", decl.result))

    def param_scope(self, params: Sequence[ast.Param], outer: Scope) -> Scope:
        scope = Scope(outer, self.diagnostics)
        for param in params:
            if param.name not in scope.names:
                scope.declare(param)
        return scope

    def action(self, decl: ast.Action, scope: Scope) -> None:
        self.params(decl.params, scope)
        data = False
        for param in decl.params:
            if param.direction and data:
                self.diagnostics.error(
                    f"parameter '{param.name}' has a direction; those without one (action data) come last",
                    param.pos,
                )
            data = data or not param.direction
        self.block(decl.body, self.param_scope(decl.params, scope), Context("action"))

    # ---- parsers and controls

    def parser(self, decl: ast.ParserDecl, outer: Scope) -> None:
        scope = self.block_scope(decl, outer)
        if decl.states is None:
            return
        for local in decl.locals:
            self.guarded_local(local, scope)
        states = Scope(scope, self.diagnostics)
        for state in decl.states:
            if state.name in ("accept", "reject"):
                self.diagnostics.error(
                    f"state '{state.name}' is built in and cannot be declared", state.pos, state.end
                )
            states.declare(state)
        if all(state.name != "start" for state in decl.states):
            self.diagnostics.error(f"parser '{decl.name}' has no state 'start'", decl.pos, decl.end)
        for state in decl.states:
            inner = Scope(states, self.diagnostics)
            self.statements(state.statements, inner, Context("parser"))
            try:
                self.transition(state, inner)
            except Abort:
                continue

    def block_scope(self, decl: ast.ParserDecl | ast.ControlDecl, outer: Scope) -> Scope:
        self.types[decl] = t.Block(decl)
        outer.declare(decl)
        inner = self.type_scope(decl.type_params, outer)
        self.params(decl.params, inner)
        self.params(decl.constructor_params, inner)
        concrete = decl.states if isinstance(decl, ast.ParserDecl) else decl.body
        if decl.type_params and concrete is not None:
            raise self.diagnostics.failure(
                f"'{decl.name}': a generic parser or control can only be a type", decl.pos, decl.end
            )
        return self.param_scope([*decl.params, *decl.constructor_params], inner)

    def guarded_local(self, decl: ast.Decl, scope: Scope) -> None:
        """Check a local declaration; after an error its name is known all the same."""
        try:
            if isinstance(decl, ast.ValueSet):
                decl.type = self.resolve(decl.element, scope)
                self.constant_int(decl.size, scope, "the size of a value set")
                scope.declare(decl)
            elif isinstance(decl, ast.Action):
                self.action(decl, scope)
                scope.declare(decl)
            elif isinstance(decl, ast.Table):
                self.table(decl, scope)
                scope.declare(decl)
            else:
                self.local(decl, scope)
        except Abort:
            if decl.name not in scope.names:
                scope.declare(decl)

    def transition(self, state: ast.State, scope: Scope) -> None:
        if isinstance(state.transition, ast.Name):
            self.state_name(state.transition, scope)
        elif isinstance(state.transition, ast.Select):
            select = state.transition
            select.exprs = [self.expr(e, scope) for e in select.exprs]
            for expr in select.exprs:
                if expr.type is t.INT:
                    raise self.diagnostics.failure("a select key needs a width", expr.pos, expr.end)
            kinds = [e.type for e in select.exprs]
            for case in select.cases:
                self.keys(case.keys, kinds, scope, "select")
                self.state_name(case.state, scope)

    def state_name(self, name: ast.Name, scope: Scope) -> None:
        if name.name in ("accept", "reject"):
            return
        found = scope.find(name.name)
        if not isinstance(found, ast.State):
            self.diagnostics.error(
                f"there is no state '{name.name}'{scope.suggestion(name.name)}", name.pos, name.end
            )
            return
        name.ref = found

    def control(self, decl: ast.ControlDecl, outer: Scope) -> None:
        scope = self.block_scope(decl, outer)
        if decl.body is None:
            return
        for local in decl.locals:
            self.guarded_local(local, scope)
        self.block(decl.body, scope, Context("control"))
