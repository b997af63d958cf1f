"""Types as written to types, and which type fits where."""

from __future__ import annotations

from .. import ast
from .. import types as t
from ..errors import Abort, Diagnostics
from ..folding import fold_cast, wrap
from .scope import Scope

SIMPLE = {
    "bool": t.BOOL,
    "error": t.ERROR,
    "void": t.VOID,
    "string": t.STRING,
    "match_kind": t.MATCH_KIND,
}
MAX_WIDTH = 1 << 16
Bindings = dict[t.TypeVar, t.Type]


class TypeChecker:
    """Resolves types and converts expressions to them."""

    def __init__(self, diagnostics: Diagnostics) -> None:
        self.diagnostics = diagnostics
        self.types: dict[ast.Decl, t.Type] = {}

    def expr(self, expr: ast.Expr, scope: Scope, want: t.Type | None = None) -> ast.Expr:
        """Check an expression (in expressions.py)."""
        raise NotImplementedError

    # ---- types as written

    def resolve(self, expr: ast.TypeExpr, scope: Scope) -> t.Type:
        """Return the type that is written."""
        if isinstance(expr, ast.BaseType):
            return self.resolve_base(expr, scope)
        if isinstance(expr, ast.TypeName):
            return self.resolve_name(expr, scope)
        if isinstance(expr, ast.StackType):
            return self.resolve_stack(expr, scope)
        if isinstance(expr, ast.TupleType):
            elements = tuple(self.resolve(e, scope) for e in expr.elements)
            if expr.is_list:
                raise self.diagnostics.failure("the type 'list' is not supported", expr.pos, expr.end)
            return t.Tuple(elements)
        if isinstance(expr, ast.DontCareType):
            return t.ANY
        raise TypeError(type(expr).__name__)

    def resolve_base(self, expr: ast.BaseType, scope: Scope) -> t.Type:
        if expr.name in SIMPLE:
            return SIMPLE[expr.name]
        if expr.width is None:
            return t.INT
        width = self.constant_int(expr.width, scope, "a width")
        if width < 0 or (width == 0 and expr.name == "int"):
            raise self.diagnostics.failure(
                f"{width} is no width for {expr.name}<…>", expr.width.pos, expr.width.end
            )
        if width > MAX_WIDTH:
            raise self.diagnostics.failure(
                f"a width of {width} bits is too large", expr.width.pos, expr.width.end
            )
        return t.VarBits(width) if expr.name == "varbit" else t.Bits(width, expr.name == "int")

    def constant_int(self, expr: ast.Expr, scope: Scope, what: str) -> int:
        """Return the value of an integer that must be known now."""
        checked = self.expr(expr, scope)
        if isinstance(checked.const, int) and not isinstance(checked.const, bool):
            return checked.const
        raise self.diagnostics.failure(
            f"{what} must be a number that is known at compile time", expr.pos, expr.end
        )

    def resolve_name(self, expr: ast.TypeName, scope: Scope) -> t.Type:
        decl = (scope.top() if expr.absolute else scope).find(expr.name)
        if decl is None:
            raise self.diagnostics.failure(
                f"unknown type '{expr.name}'{scope.suggestion(expr.name)}", expr.pos, expr.end
            )
        found = self.types.get(decl) if isinstance(decl, ast.Decl) else None
        if found is None:
            raise self.diagnostics.failure(f"'{expr.name}' is not a type", expr.pos, expr.end)
        if isinstance(found, (t.Extern, t.Block)):
            return self.specialize(found, expr, scope)
        if expr.args is not None:
            raise self.diagnostics.failure(f"type '{expr.name}' takes no type arguments", expr.pos, expr.end)
        return found

    def specialize(self, kind: t.Extern | t.Block, expr: ast.TypeName, scope: Scope) -> t.Type:
        params = kind.decl.type_params
        if expr.args is None:
            return kind
        if len(expr.args) != len(params):
            raise self.diagnostics.failure(
                f"'{expr.name}' takes {len(params)} type argument(s), {len(expr.args)} given",
                expr.pos,
                expr.end,
            )
        args = tuple(self.resolve(a, scope) for a in expr.args)
        return t.Extern(kind.decl, args) if isinstance(kind, t.Extern) else t.Block(kind.decl, args)

    def resolve_stack(self, expr: ast.StackType, scope: Scope) -> t.Type:
        element = self.resolve(expr.element, scope)
        if not isinstance(element, t.StructLike) or element.kind == "struct":
            raise self.diagnostics.failure(
                f"only headers and header unions make stacks, not {element}",
                expr.element.pos,
                expr.element.end,
            )
        size = self.constant_int(expr.size, scope, "the size of a header stack")
        if size <= 0:
            raise self.diagnostics.failure(
                "a header stack needs at least one element", expr.size.pos, expr.size.end
            )
        return t.Stack(element, size)

    # ---- generics

    def substitute(self, kind: t.Type, bindings: Bindings) -> t.Type:
        """Replace type parameters by what they stand for."""
        if not bindings:
            return kind
        if isinstance(kind, t.TypeVar):
            return bindings.get(kind, kind)
        if isinstance(kind, t.Tuple):
            return t.Tuple(tuple(self.substitute(e, bindings) for e in kind.elements))
        if isinstance(kind, t.Extern):
            return t.Extern(kind.decl, tuple(self.substitute(e, bindings) for e in kind.args))
        if isinstance(kind, t.Block):
            return t.Block(kind.decl, tuple(self.substitute(e, bindings) for e in kind.args))
        return kind

    def unify(self, param: t.Type, argument: t.Type, bindings: Bindings) -> None:
        """Find out what type parameters stand for; mismatches are left to the conversion that follows."""
        if isinstance(param, t.TypeVar):
            bound = bindings.get(param)
            if bound in (None, t.INT, t.ANY) and argument is not t.UNKNOWN:
                bindings[param] = argument
        elif isinstance(param, t.Tuple) and isinstance(argument, t.Tuple):
            for one, other in zip(param.elements, argument.elements, strict=False):
                self.unify(one, other, bindings)
        elif isinstance(param, (t.Extern, t.Block)) and isinstance(argument, (t.Extern, t.Block)):
            for one, other in zip(param.args, argument.args, strict=False):
                self.unify(one, other, bindings)

    def type_vars(self, params: list[ast.TypeParam]) -> list[t.TypeVar]:
        """Return the type variables of type parameters."""
        return [t.TypeVar(p.name, p) for p in params]

    # ---- conversion

    def coerce(self, expr: ast.Expr, want: t.Type, what: str = "the value") -> ast.Expr:
        """Convert implicitly (P4_16 section 8.10.2), or report that the types differ."""
        have = expr.type
        if have == want or t.UNKNOWN in (have, want) or want is t.ANY or have is t.ANY:
            return expr
        if have is t.INT and isinstance(want, t.Bits):
            return self.sized(expr, want)
        if isinstance(have, t.SerEnum) and have.underlying == want:
            return self.cast(expr, want)
        if isinstance(expr, ast.ListExpr):
            converted = self.coerce_list(expr, want, what)
            if converted is not None:
                return converted
        if isinstance(expr, ast.StructExpr) and isinstance(want, t.StructLike):
            return self.coerce_fields(expr, want)
        if isinstance(expr, ast.Ternary) and have is t.INT and isinstance(want, t.Bits):
            return self.sized(expr, want)
        raise self.mismatch(expr, want, what)

    def mismatch(self, expr: ast.Expr, want: t.Type, what: str) -> Abort:
        """Report a type that does not fit; to be raised."""
        hint = ""
        if isinstance(expr.type, t.Bits) and isinstance(want, t.Bits):
            hint = f"; write a cast, ({want})…, if that is meant"
        elif isinstance(expr.type, t.NewType) and expr.type.base == want:
            hint = f"; '{expr.type}' is a distinct type, write a cast"
        return self.diagnostics.failure(
            f"{what} has type {expr.type}, but {want} is needed{hint}", expr.pos, expr.end
        )

    def sized(self, expr: ast.Expr, want: t.Bits) -> ast.Expr:
        """Give an `int` a width."""
        value = expr.const
        if isinstance(value, int):
            # Positive numbers may use the sign bit's place, as p4c has it.
            low = -(1 << max(want.width - 1, 0)) if want.signed or value < 0 else 0
            if not low <= value < (1 << want.width) or (want.signed and value >= 1 << (want.width - 1)):
                self.diagnostics.warn(
                    "overflow",
                    f"{value} does not fit {want}; it becomes {wrap(value, want)}",
                    expr.pos,
                    expr.end,
                )
        return self.cast(expr, want)

    def cast(self, expr: ast.Expr, want: t.Type) -> ast.Cast:
        """Put in a cast that was not written."""
        result = ast.Cast(expr.pos, expr.end, None, expr)
        result.type = want
        if expr.const is not None:
            result.const = fold_cast(expr.const, want)
        return result

    def coerce_list(self, expr: ast.ListExpr, want: t.Type, what: str) -> ast.Expr | None:
        """Convert `{ a, b }` to a tuple, struct or header, element by element."""
        if isinstance(want, t.Tuple):
            elements = list(want.elements)
        elif isinstance(want, t.StructLike) and want.kind != "header_union":
            elements = list(want.fields.values())
        else:
            return None
        if len(elements) != len(expr.items):
            raise self.diagnostics.failure(
                f"{what} has {len(expr.items)} element(s), but {want} needs {len(elements)}",
                expr.pos,
                expr.end,
            )
        expr.items = [
            self.coerce(item, element, f"element {number}")
            for number, (item, element) in enumerate(zip(expr.items, elements, strict=True), 1)
        ]
        expr.type = want
        return expr

    def coerce_fields(self, expr: ast.StructExpr, want: t.StructLike) -> ast.Expr:
        """Convert `{ x = a }` to a struct or header."""
        for name in expr.names:
            if name not in want.fields:
                raise self.diagnostics.failure(f"{want} has no field '{name}'", expr.pos, expr.end)
        missing = [name for name in want.fields if name not in expr.names]
        if missing or len(set(expr.names)) != len(expr.names):
            reason = f"field '{missing[0]}' is missing" if missing else "a field is given twice"
            raise self.diagnostics.failure(f"{want}: {reason}", expr.pos, expr.end)
        given = dict(zip(expr.names, expr.items, strict=True))
        expr.names = list(want.fields)
        expr.items = [self.coerce(given[n], kind, f"field '{n}'") for n, kind in want.fields.items()]
        expr.type = want
        return expr
