"""Expressions: operators, members, slices, casts."""

from __future__ import annotations

from .. import ast
from .. import types as t
from ..folding import EnumValue, FoldingError, fold_binary, fold_cast, fold_slice, fold_unary, wrap
from .scope import Scope
from .types import TypeChecker

BUILT_IN_METHODS = {
    "header": ("isValid", "setValid", "setInvalid", "minSizeInBits", "minSizeInBytes"),
    "header_union": ("isValid",),
    "stack": ("push_front", "pop_front"),
}


class ExpressionChecker(TypeChecker):
    """Finds the type, and if possible the value, of expressions."""

    def expr(self, expr: ast.Expr, scope: Scope, want: t.Type | None = None) -> ast.Expr:
        """Check an expression, and convert it to `want` if that is given; returns what to use in its place."""
        method = getattr(self, f"check_{type(expr).__name__.lower()}")
        checked: ast.Expr = method(expr, scope)
        return checked if want is None else self.coerce(checked, want)

    # ---- literals and names

    def check_number(self, expr: ast.Number, scope: Scope) -> ast.Expr:
        if expr.width is None:
            expr.type, expr.const = t.INT, expr.value
            return expr
        kind = t.Bits(expr.width, expr.signed)
        expr.type, expr.const = kind, wrap(expr.value, kind)
        if expr.const != expr.value:
            self.diagnostics.warn(
                "overflow", f"{expr.value} does not fit {kind}; it becomes {expr.const}", expr.pos, expr.end
            )
        return expr

    def check_bool(self, expr: ast.Bool, scope: Scope) -> ast.Expr:
        expr.type, expr.const = t.BOOL, expr.value
        return expr

    def check_string(self, expr: ast.String, scope: Scope) -> ast.Expr:
        expr.type, expr.const = t.STRING, expr.value
        return expr

    def check_default(self, expr: ast.Default, scope: Scope) -> ast.Expr:
        expr.type = t.ANY
        return expr

    def check_typeref(self, expr: ast.TypeRef, scope: Scope) -> ast.Expr:
        expr.type = t.TypeOf(self.resolve(expr.target, scope))
        return expr

    def check_name(self, expr: ast.Name, scope: Scope) -> ast.Expr:
        decl = (scope.top() if expr.absolute else scope).find(expr.name)
        if decl is None:
            raise self.diagnostics.failure(
                f"'{expr.name}' is not declared{scope.suggestion(expr.name)}", expr.pos, expr.end
            )
        expr.ref = decl
        expr.type = self.type_of(decl, expr)
        if isinstance(decl, ast.Const):
            expr.const = decl.value.const
        return expr

    def type_of(self, decl: ast.Decl | list[ast.Function], expr: ast.Name) -> t.Type:
        """Return the type that a name has because of its declaration."""
        if isinstance(decl, list):
            return t.Callable(expr.name, tuple(decl))
        if isinstance(decl, (ast.Param, ast.Const, ast.Variable, ast.Instance)):
            return decl.type
        if isinstance(decl, ast.ValueSet):
            return t.Set(decl.type)
        if isinstance(decl, ast.Action):
            return t.ActionType(decl)
        if isinstance(decl, ast.Table):
            return t.TableType(decl)
        if isinstance(decl, ast.State):
            return t.STATE
        if decl in self.types:
            return t.TypeOf(self.types[decl])
        raise self.diagnostics.failure(f"'{expr.name}' cannot be used in an expression", expr.pos, expr.end)

    # ---- operators

    def check_unary(self, expr: ast.Unary, scope: Scope) -> ast.Expr:
        expr.expr = self.plain(self.expr(expr.expr, scope))
        kind = expr.expr.type
        fits = (
            kind is t.BOOL
            if expr.op == "!"
            else isinstance(kind, t.Bits) or (kind is t.INT and expr.op != "~")
        )
        if not fits:
            raise self.diagnostics.failure(f"'{expr.op}' cannot be applied to {kind}", expr.pos, expr.end)
        expr.type = kind
        if expr.expr.const is not None:
            expr.const = fold_unary(expr.op, expr.expr.const, kind)
        return expr

    def plain(self, expr: ast.Expr) -> ast.Expr:
        """Replace a serializable enum's value by the number it stands for, which arithmetic is done with."""
        return self.cast(expr, expr.type.underlying) if isinstance(expr.type, t.SerEnum) else expr

    def check_binary(self, expr: ast.Binary, scope: Scope) -> ast.Expr:
        left, right = self.expr(expr.left, scope), self.expr(expr.right, scope)
        if expr.op in ("==", "!="):
            left, right = self.same(expr, left, right)
            self.comparable(expr, left.type)
            expr.type, folded = t.BOOL, left.type
        elif expr.op in ("&&", "||"):
            what = f"an operand of '{expr.op}'"
            left, right = self.coerce(left, t.BOOL, what), self.coerce(right, t.BOOL, what)
            expr.type = folded = t.BOOL
        else:
            left, right = self.plain(left), self.plain(right)
            if expr.op in ("<<", ">>"):
                folded = self.shift(expr, left, right)
            elif expr.op == "++":
                folded = self.concatenation(expr, left, right)
            else:
                left, right = self.same(expr, left, right)
                self.numeric(expr, left.type)
                folded = left.type
            expr.type = t.BOOL if expr.op in ("<", "<=", ">", ">=") else folded
        expr.left, expr.right = left, right
        self.fold(expr, folded)
        return expr

    def fold(self, expr: ast.Binary, kind: t.Type) -> None:
        left, right = expr.left.const, expr.right.const
        if expr.op in ("/", "%") and right == 0:
            raise self.diagnostics.failure("division by zero", expr.pos, expr.end)
        if left is None or right is None:
            return
        try:
            expr.const = fold_binary(expr.op, left, right, kind, expr.right.type)
        except FoldingError as ex:
            self.diagnostics.error(str(ex), expr.pos, expr.end)

    def same(
        self, expr: ast.Binary | ast.Ternary, left: ast.Expr, right: ast.Expr
    ) -> tuple[ast.Expr, ast.Expr]:
        """Bring two operands to one type."""
        one, other = left.type, right.type
        if one == other or t.UNKNOWN in (one, other):
            return left, right
        if one is t.INT and isinstance(other, t.Bits):
            return self.sized(left, other), right
        if other is t.INT and isinstance(one, t.Bits):
            return left, self.sized(right, one)
        if isinstance(one, t.SerEnum) and (one.underlying == other or other is t.INT):
            return self.same(expr, self.plain(left), right)
        if isinstance(other, t.SerEnum) and (other.underlying == one or one is t.INT):
            return self.same(expr, left, self.plain(right))
        if isinstance(right, (ast.ListExpr, ast.StructExpr)):
            return left, self.coerce(right, one)
        if isinstance(left, (ast.ListExpr, ast.StructExpr)):
            return self.coerce(left, other), right
        operator = f"'{expr.op}'" if isinstance(expr, ast.Binary) else "'?:'"
        hint = "; cast one of them" if isinstance(one, t.Bits) and isinstance(other, t.Bits) else ""
        raise self.diagnostics.failure(
            f"the operands of {operator} have types {one} and {other}{hint}", expr.pos, expr.end
        )

    def numeric(self, expr: ast.Binary, kind: t.Type) -> None:
        allowed = isinstance(kind, t.Bits) or (kind is t.INT and expr.op not in ("|+|", "|-|"))
        if not allowed and kind is not t.UNKNOWN:
            raise self.diagnostics.failure(f"'{expr.op}' cannot be applied to {kind}", expr.pos, expr.end)
        if expr.op in ("/", "%") and isinstance(kind, t.Bits) and kind.signed:
            raise self.diagnostics.failure(f"'{expr.op}' is not defined for {kind}", expr.pos, expr.end)

    def comparable(self, expr: ast.Binary, kind: t.Type) -> None:
        if isinstance(kind, (t.Extern, t.Block, t.ActionType, t.TableType, t.Callable, t.TypeOf, t.Set)):
            raise self.diagnostics.failure(f"'{expr.op}' cannot compare {kind}", expr.pos, expr.end)

    def shift(self, expr: ast.Binary, left: ast.Expr, right: ast.Expr) -> t.Type:
        kind, amount = left.type, right.type
        if not isinstance(kind, t.Bits) and kind is not t.INT:
            raise self.diagnostics.failure(f"'{expr.op}' cannot be applied to {kind}", expr.pos, expr.end)
        if amount is not t.INT and (not isinstance(amount, t.Bits) or amount.signed):
            raise self.diagnostics.failure(f"the amount of a shift cannot be {amount}", right.pos, right.end)
        if isinstance(right.const, int) and right.const < 0:
            raise self.diagnostics.failure("shift by a negative amount", right.pos, right.end)
        if kind is t.INT and right.const is None:
            raise self.diagnostics.failure(
                "an `int` can only be shifted by an amount known at compile time", expr.pos, expr.end
            )
        return kind

    def concatenation(self, expr: ast.Binary, left: ast.Expr, right: ast.Expr) -> t.Type:
        for side in (left, right):
            if not isinstance(side.type, t.Bits):
                extra = " (give the number a width, as in 8w1)" if side.type is t.INT else ""
                raise self.diagnostics.failure(
                    f"'++' cannot be applied to {side.type}{extra}", side.pos, side.end
                )
        assert isinstance(left.type, t.Bits) and isinstance(right.type, t.Bits)
        return t.Bits(left.type.width + right.type.width, left.type.signed)

    def check_ternary(self, expr: ast.Ternary, scope: Scope) -> ast.Expr:
        expr.cond = self.coerce(self.expr(expr.cond, scope), t.BOOL, "the condition")
        expr.yes, expr.no = self.same(expr, self.expr(expr.yes, scope), self.expr(expr.no, scope))
        expr.type = expr.yes.type
        if isinstance(expr.cond.const, bool):
            expr.const = expr.yes.const if expr.cond.const else expr.no.const
        elif expr.type is t.INT:
            raise self.diagnostics.failure(
                "the width of this value is unknown; give one of the numbers a width", expr.pos, expr.end
            )
        return expr

    # ---- casts and parts

    def check_cast(self, expr: ast.Cast, scope: Scope) -> ast.Expr:
        assert expr.target is not None
        kind = self.resolve(expr.target, scope)
        expr.expr = self.expr(expr.expr, scope)
        if isinstance(expr.expr, (ast.ListExpr, ast.StructExpr)):
            return self.coerce(expr.expr, kind)
        if not self.castable(expr.expr.type, kind):
            raise self.diagnostics.failure(f"{expr.expr.type} cannot be cast to {kind}", expr.pos, expr.end)
        expr.type = kind
        if expr.expr.const is not None:
            expr.const = fold_cast(expr.expr.const, kind)
        return expr

    def castable(self, have: t.Type, want: t.Type) -> bool:
        """Say whether P4_16 section 8.10.1 allows a cast."""
        if have == want or have is t.UNKNOWN:
            return True
        if isinstance(want, (t.NewType, t.SerEnum)) or isinstance(have, (t.NewType, t.SerEnum)):
            one = (
                have.base
                if isinstance(have, t.NewType)
                else have.underlying
                if isinstance(have, t.SerEnum)
                else have
            )
            other = (
                want.base
                if isinstance(want, t.NewType)
                else want.underlying
                if isinstance(want, t.SerEnum)
                else want
            )
            return self.castable(one, other)
        if isinstance(want, t.Bits):
            if have is t.BOOL:
                return want == t.Bits(1)
            return have is t.INT or (
                isinstance(have, t.Bits) and (have.signed == want.signed or have.width == want.width)
            )
        if want is t.BOOL:
            return have == t.Bits(1) or have is t.INT
        if want is t.INT:
            return have is t.INT
        return False

    def check_slice(self, expr: ast.Slice, scope: Scope) -> ast.Expr:
        expr.expr = self.plain(self.expr(expr.expr, scope))
        high = self.constant_int(expr.high, scope, "a bound of a slice")
        low = self.constant_int(expr.low, scope, "a bound of a slice")
        kind = expr.expr.type
        if not isinstance(kind, t.Bits) and kind is not t.INT:
            raise self.diagnostics.failure(f"{kind} has no slices", expr.pos, expr.end)
        if low < 0 or high < low:
            raise self.diagnostics.failure(
                f"[{high}:{low}] is not a slice: the higher bit comes first", expr.pos, expr.end
            )
        if isinstance(kind, t.Bits) and high >= kind.width:
            raise self.diagnostics.failure(f"bit {high} is outside of {kind}", expr.high.pos, expr.high.end)
        expr.high.const, expr.low.const = high, low
        expr.type = t.Bits(high - low + 1)
        if isinstance(expr.expr.const, int):
            expr.const = fold_slice(expr.expr.const, high, low)
        return expr

    def check_index(self, expr: ast.Index, scope: Scope) -> ast.Expr:
        expr.expr = self.expr(expr.expr, scope)
        expr.index = self.plain(self.expr(expr.index, scope))
        kind = expr.expr.type
        index = expr.index
        if not isinstance(index.type, t.Bits) and index.type is not t.INT:
            raise self.diagnostics.failure(f"an index cannot be {index.type}", index.pos, index.end)
        if isinstance(kind, t.Stack):
            size, element = kind.size, kind.element
        elif isinstance(kind, t.Tuple) and isinstance(index.const, int):
            size = len(kind.elements)
            element = kind.elements[index.const] if 0 <= index.const < size else t.UNKNOWN
        else:
            raise self.diagnostics.failure(f"{kind} cannot be indexed", expr.pos, expr.end)
        if isinstance(index.const, int) and not 0 <= index.const < size:
            raise self.diagnostics.failure(f"index {index.const} is outside of {kind}", index.pos, index.end)
        expr.type = element
        return expr

    # ---- lists

    def check_listexpr(self, expr: ast.ListExpr, scope: Scope) -> ast.Expr:
        expr.items = [self.expr(item, scope) for item in expr.items]
        expr.type = t.Tuple(tuple(item.type for item in expr.items))
        return expr

    def check_structexpr(self, expr: ast.StructExpr, scope: Scope) -> ast.Expr:
        expr.items = [self.expr(item, scope) for item in expr.items]
        expr.type = t.FieldList(tuple(expr.names), tuple(item.type for item in expr.items))
        return expr

    def check_mask(self, expr: ast.Mask, scope: Scope) -> ast.Expr:
        value, mask = self.plain(self.expr(expr.value, scope)), self.plain(self.expr(expr.mask, scope))
        if value.type != mask.type:
            value, mask = self.pair(expr, value, mask, "&&&")
        expr.value, expr.mask = value, mask
        expr.type = t.Set(value.type)
        return expr

    def check_range(self, expr: ast.Range, scope: Scope) -> ast.Expr:
        low, high = self.plain(self.expr(expr.low, scope)), self.plain(self.expr(expr.high, scope))
        if low.type != high.type:
            low, high = self.pair(expr, low, high, "..")
        expr.low, expr.high = low, high
        expr.type = t.Set(low.type)
        return expr

    def pair(
        self, expr: ast.Expr, left: ast.Expr, right: ast.Expr, operator: str
    ) -> tuple[ast.Expr, ast.Expr]:
        if left.type is t.INT and isinstance(right.type, t.Bits):
            return self.sized(left, right.type), right
        if right.type is t.INT and isinstance(left.type, t.Bits):
            return left, self.sized(right, left.type)
        raise self.diagnostics.failure(
            f"the two sides of '{operator}' have types {left.type} and {right.type}", expr.pos, expr.end
        )

    # ---- members

    def check_member(self, expr: ast.Member, scope: Scope) -> ast.Expr:
        expr.expr = self.expr(expr.expr, scope)
        kind = expr.expr.type
        if kind is t.UNKNOWN:
            return expr
        found = self.member_type(expr, kind)
        if found is None:
            raise self.diagnostics.failure(f"{kind} has no member '{expr.name}'", expr.name_pos, expr.end)
        expr.type = found
        return expr

    def member_type(self, expr: ast.Member, kind: t.Type) -> t.Type | None:
        name = expr.name
        if isinstance(kind, t.TypeOf):
            return self.type_member(expr, kind.type)
        if isinstance(kind, t.StructLike):
            if name in kind.fields:
                return kind.fields[name]
            if name in BUILT_IN_METHODS.get(kind.kind, ()):
                return t.Callable(name, (), kind)
        elif isinstance(kind, t.Stack):
            return self.stack_member(name, kind)
        elif isinstance(kind, t.ApplyResult):
            return {"hit": t.BOOL, "miss": t.BOOL, "action_run": t.ActionRun(kind.decl)}.get(name)
        elif isinstance(kind, (t.TableType, t.Block)) and name == "apply":
            return t.Callable(name, (), kind)
        elif isinstance(kind, t.Extern):
            methods = tuple(m for m in kind.decl.methods if m.name == name and name != kind.decl.name)
            return t.Callable(name, methods, kind) if methods else None
        return None

    def stack_member(self, name: str, kind: t.Stack) -> t.Type | None:
        if name in ("next", "last"):
            return kind.element
        if name in ("lastIndex", "size"):
            return t.Bits(32)
        return t.Callable(name, (), kind) if name in BUILT_IN_METHODS["stack"] else None

    def type_member(self, expr: ast.Member, kind: t.Type) -> t.Type | None:
        """Check Enum.member, error.member and Type.minSizeInBits."""
        if isinstance(kind, t.Enum) and expr.name in kind.members:
            expr.const = EnumValue(kind, expr.name)
            return kind
        if isinstance(kind, t.SerEnum) and expr.name in kind.members:
            expr.const = kind.members[expr.name]
            return kind
        if kind is t.ERROR and expr.name in self.errors:
            expr.const = EnumValue(t.ERROR, expr.name)
            return t.ERROR
        if isinstance(kind, t.Block) and expr.name == "apply":
            return t.Callable(expr.name, (), kind)
        return None

    errors: list[str]
