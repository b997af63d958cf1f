"""Calls: functions, methods, actions, apply, constructors."""

from __future__ import annotations

from collections.abc import Sequence

from .. import ast
from .. import types as t
from .expressions import ExpressionChecker
from .scope import Scope
from .types import Bindings


class CallChecker(ExpressionChecker):
    """Finds what is called and matches arguments with parameters."""

    def check_call(self, expr: ast.Call, scope: Scope) -> ast.Expr:
        expr.func = self.expr(expr.func, scope)
        kind = expr.func.type
        if kind is t.UNKNOWN:
            return expr
        if isinstance(kind, t.TypeOf):
            expr.type = self.construct(kind.type, expr, expr.args, expr.names, scope)
        elif isinstance(kind, t.ActionType):
            expr.type = t.VOID
            self.arguments(expr, kind.decl.params, scope, {}, f"action '{kind.decl.name}'")
        elif isinstance(kind, t.Callable) and kind.overloads:
            self.call_function(expr, kind, scope)
        elif isinstance(kind, t.Callable):
            self.call_built_in(expr, kind, scope)
        else:
            raise self.diagnostics.failure(f"{kind} cannot be called", expr.pos, expr.end)
        return expr

    # ---- functions and methods

    def call_function(self, expr: ast.Call, kind: t.Callable, scope: Scope) -> None:
        matching = [f for f in kind.overloads if self.accepts(f.params, expr)]
        if not matching:
            counts = sorted({len(f.params) for f in kind.overloads})
            wanted = " or ".join(map(str, counts))
            raise self.diagnostics.failure(
                f"'{kind.name}' takes {wanted} argument(s), {len(expr.args)} given", expr.pos, expr.end
            )
        function = matching[0]
        bindings: Bindings = {}
        if isinstance(kind.owner, t.Extern) and kind.owner.args:
            bindings.update(zip(self.type_vars(kind.owner.decl.type_params), kind.owner.args, strict=True))
        variables = self.type_vars(function.type_params)
        if expr.type_args:
            if len(expr.type_args) != len(variables):
                raise self.diagnostics.failure(
                    f"'{kind.name}' takes {len(variables)} type argument(s), {len(expr.type_args)} given",
                    expr.pos,
                    expr.end,
                )
            for variable, written in zip(variables, expr.type_args, strict=True):
                resolved = self.resolve(written, scope)
                if resolved is not t.ANY:
                    bindings[variable] = resolved
        self.arguments(expr, function.params, scope, bindings, f"'{kind.name}'")
        result = self.substitute(function.result, bindings)
        if isinstance(result, t.TypeVar):
            raise self.diagnostics.failure(
                f"the type argument <{result}> of '{kind.name}' is missing", expr.pos, expr.end
            )
        expr.type = result
        expr.func.type = t.Callable(kind.name, (function,), kind.owner)

    @staticmethod
    def accepts(params: Sequence[ast.Param], expr: ast.Call) -> bool:
        needed = sum(1 for p in params if p.default is None and not p.annotation("optional"))
        return needed <= len(expr.args) <= len(params)

    def arguments(
        self, expr: ast.Call, params: Sequence[ast.Param], scope: Scope, bindings: Bindings, what: str
    ) -> None:
        """Check arguments, bring them into the order of the parameters, and convert them."""
        self.order_arguments(expr, params, what)
        checked = [self.expr(argument, scope) for argument in expr.args]
        for param, argument in zip(params, checked, strict=False):
            self.unify(param.type, argument.type, bindings)
        for at, (param, argument) in enumerate(zip(params, checked, strict=False)):
            want = self.substitute(param.type, bindings)
            label = f"argument '{param.name}' of {what}"
            if want is t.INT and isinstance(param.type, t.TypeVar):
                raise self.diagnostics.failure(
                    f"{label} needs a width; write it as in 16w{argument.const or 0}",
                    argument.pos,
                    argument.end,
                )
            expr.args[at] = self.coerce(argument, want, label)
            if param.direction in ("out", "inout"):
                self.lvalue(expr.args[at], label)
            elif not param.direction and not param.of_action and self.must_be_constant(param, expr.args[at]):
                raise self.diagnostics.failure(
                    f"{label} must be known at compile time", argument.pos, argument.end
                )

    @staticmethod
    def must_be_constant(param: ast.Param, argument: ast.Expr) -> bool:
        kind = t.underlying(argument.type)
        if isinstance(argument, ast.Default):
            return False
        return argument.const is None and (
            isinstance(kind, (t.Bits, t.Enum)) or kind in (t.BOOL, t.INT, t.STRING)
        )

    def order_arguments(self, expr: ast.Call, params: Sequence[ast.Param], what: str) -> None:
        if any(expr.names):
            by_name = dict(zip(expr.names, expr.args, strict=True))
            if None in by_name or len(by_name) != len(expr.args):
                raise self.diagnostics.failure("name all arguments, each once, or none", expr.pos, expr.end)
            for name in by_name:
                if all(p.name != name for p in params):
                    raise self.diagnostics.failure(f"{what} has no parameter '{name}'", expr.pos, expr.end)
            missing = [p for p in params if p.name not in by_name and p.default is None]
            if missing:
                raise self.diagnostics.failure(
                    f"argument '{missing[0].name}' of {what} is missing", expr.pos, expr.end
                )
            expr.args = [by_name[p.name] if p.name in by_name else self.default_of(p) for p in params]
            expr.names = [None] * len(expr.args)
        elif len(expr.args) < len(params) and self.accepts(params, expr):
            expr.args.extend(self.default_of(p) for p in params[len(expr.args) :])
            expr.names = [None] * len(expr.args)
        if len(expr.args) != len(params):
            raise self.diagnostics.failure(
                f"{what} takes {len(params)} argument(s), {len(expr.args)} given", expr.pos, expr.end
            )

    @staticmethod
    def default_of(param: ast.Param) -> ast.Expr:
        return param.default if param.default is not None else ast.Default(param.pos, param.end)

    def lvalue(self, expr: ast.Expr, what: str) -> None:
        """Report what cannot be written to."""
        root = expr
        while isinstance(root, (ast.Member, ast.Index, ast.Slice)):
            root = root.expr
        if isinstance(expr, ast.Default):
            return
        if not isinstance(root, ast.Name) or not isinstance(root.ref, (ast.Variable, ast.Param)):
            raise self.diagnostics.failure(
                f"{what} must be something that can be written to", expr.pos, expr.end
            )
        if isinstance(root.ref, ast.Param):
            read_only = root.ref.direction == "in" or (root.ref.direction == "" and not _is_extern(root.type))
            if read_only:
                kind = (
                    "an action's"
                    if root.ref.of_action
                    else "an 'in'"
                    if root.ref.direction
                    else "a directionless"
                )
                raise self.diagnostics.failure(
                    f"'{root.ref.name}' is {kind} parameter and cannot be written to", expr.pos, expr.end
                )
        if (
            isinstance(expr, ast.Member)
            and expr.name in ("lastIndex", "size")
            and isinstance(expr.expr.type, t.Stack)
        ):
            raise self.diagnostics.failure(
                f"'{expr.name}' of a header stack cannot be written to", expr.pos, expr.end
            )

    # ---- built-in methods and apply

    def call_built_in(self, expr: ast.Call, kind: t.Callable, scope: Scope) -> None:
        owner = kind.owner
        assert isinstance(expr.func, ast.Member)
        if kind.name == "apply":
            if isinstance(owner, t.TableType):
                self.no_arguments(expr, f"table '{owner.decl.name}'")
                expr.type = t.ApplyResult(owner.decl)
            elif isinstance(owner, t.Block):
                self.apply_block(expr, owner, scope)
            return
        if kind.name in ("push_front", "pop_front"):
            if len(expr.args) != 1:
                raise self.diagnostics.failure(f"'{kind.name}' takes one argument", expr.pos, expr.end)
            expr.args[0] = self.expr(expr.args[0], scope)
            if not isinstance(expr.args[0].const, int) or expr.args[0].const < 0:
                raise self.diagnostics.failure(
                    f"'{kind.name}' needs a number known at compile time", expr.pos, expr.end
                )
            expr.type = t.VOID
        else:
            self.no_arguments(expr, f"'{kind.name}'")
            expr.type = t.BOOL if kind.name == "isValid" else t.VOID
        if kind.name.startswith("minSizeIn"):
            expr.type = t.INT
            bits = (
                sum(t.width_of(f) or 0 for f in owner.fields.values())
                if isinstance(owner, t.StructLike)
                else 0
            )
            expr.const = (bits + 7) // 8 if kind.name == "minSizeInBytes" else bits
        if kind.name in ("setValid", "setInvalid", "push_front", "pop_front"):
            self.lvalue(expr.func.expr, f"what '{kind.name}' is applied to")

    def no_arguments(self, expr: ast.Call, what: str) -> None:
        if expr.args:
            raise self.diagnostics.failure(f"{what} takes no arguments", expr.pos, expr.end)

    def apply_block(self, expr: ast.Call, owner: t.Block, scope: Scope) -> None:
        bindings: Bindings = dict(zip(self.type_vars(owner.decl.type_params), owner.args, strict=False))
        self.arguments(expr, owner.decl.params, scope, bindings, f"'{owner.decl.name}.apply'")
        expr.type = t.VOID

    # ---- constructors

    def construct(
        self, kind: t.Type, node: ast.Node, args: list[ast.Expr], names: list[str | None], scope: Scope
    ) -> t.Type:
        """Check constructor arguments; returns the instance's type."""
        call = ast.Call(node.pos, node.end, ast.Default(node.pos, node.end), [], args, names)
        bindings: Bindings = {}
        if isinstance(kind, t.Extern):
            constructors = [m for m in kind.decl.methods if m.name == kind.decl.name]
            matching = [m for m in constructors if self.accepts(m.params, call)]
            if constructors and not matching:
                counts = " or ".join(str(len(m.params)) for m in constructors)
                raise self.diagnostics.failure(
                    f"extern '{kind}' takes {counts} constructor argument(s), {len(args)} given",
                    node.pos,
                    node.end,
                )
            params = matching[0].params if matching else []
        elif isinstance(kind, t.Block):
            decl = kind.decl
            if isinstance(decl, ast.PackageDecl):
                params = decl.params
            else:
                is_type = decl.states is None if isinstance(decl, ast.ParserDecl) else decl.body is None
                if is_type:
                    raise self.diagnostics.failure(
                        f"'{decl.name}' is only a type and has no instances", node.pos, node.end
                    )
                params = decl.constructor_params
        else:
            raise self.diagnostics.failure(f"{kind} has no constructor", node.pos, node.end)
        variables = self.type_vars(kind.decl.type_params)
        if kind.args:
            bindings.update(zip(variables, kind.args, strict=True))
        self.constructor_arguments(call, params, scope, bindings, str(kind))
        args[:] = call.args
        names[:] = [None] * len(args)
        if isinstance(kind, t.Extern) and variables and not kind.args:
            if all(v in bindings for v in variables):
                return t.Extern(kind.decl, tuple(bindings[v] for v in variables))
            wanted = ", ".join(v.name for v in variables)
            raise self.diagnostics.failure(
                f"'{kind}' needs its type arguments <{wanted}>", node.pos, node.end
            )
        return kind

    def constructor_arguments(
        self, call: ast.Call, params: Sequence[ast.Param], scope: Scope, bindings: Bindings, what: str
    ) -> None:
        self.order_arguments(call, params, f"'{what}'")
        for at, param in enumerate(params):
            argument = self.expr(call.args[at], scope)
            if isinstance(argument.type, t.Block) and isinstance(param.type, t.Block):
                self.fits_block(argument, param, bindings, what)
                call.args[at] = argument
                continue
            self.unify(param.type, argument.type, bindings)
            call.args[at] = self.coerce(
                argument, self.substitute(param.type, bindings), f"argument '{param.name}' of '{what}'"
            )
            if self.must_be_constant(param, call.args[at]):
                raise self.diagnostics.failure(
                    f"argument '{param.name}' of '{what}' must be known at compile time",
                    argument.pos,
                    argument.end,
                )

    def fits_block(self, argument: ast.Expr, param: ast.Param, bindings: Bindings, what: str) -> None:
        """Check that a parser or control has the parameters that its type in the architecture asks for."""
        have, want = argument.type, param.type
        assert isinstance(have, t.Block) and isinstance(want, t.Block)
        label = f"argument '{param.name}' of '{what}'"
        if type(have.decl) is not type(want.decl):
            word = "parser" if isinstance(want.decl, ast.ParserDecl) else "control"
            raise self.diagnostics.failure(
                f"{label}: '{have.decl.name}' is not a {word}", argument.pos, argument.end
            )
        if len(have.decl.params) != len(want.decl.params):
            raise self.diagnostics.failure(
                f"{label}: '{have.decl.name}' has {len(have.decl.params)} parameter(s), "
                f"but {want.decl.name} needs {len(want.decl.params)}",
                argument.pos,
                argument.end,
            )
        inner = dict(zip(self.type_vars(want.decl.type_params), want.args, strict=False))
        for own, model in zip(have.decl.params, want.decl.params, strict=True):
            wanted = self.substitute(model.type, inner)
            self.unify(wanted, own.type, bindings)
            wanted = self.substitute(wanted, bindings)
            if own.type != wanted or (own.direction or "") != (model.direction or ""):
                shape = f"{model.direction} {wanted}".strip()
                raise self.diagnostics.failure(
                    f"{label}: parameter '{own.name}' of '{own_name(have)}' must be '{shape}'",
                    own.pos,
                    own.end,
                )


def own_name(kind: t.Block) -> str:
    """Return the name of a parser or control."""
    return kind.decl.name


def _is_extern(kind: t.Type) -> bool:
    return isinstance(kind, t.Extern)
