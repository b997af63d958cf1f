"""Expressions to values of the `ir`.

An expression may have effects (a function's body, table.apply().hit): those are emitted to a `Body` before the value
is used, with the short-circuit rules of &&, || and ?: kept.
"""

from __future__ import annotations

from .. import ast, ir
from .. import types as t
from ..errors import Abort, Diagnostics
from ..folding import EnumValue, fold_binary, wrap
from .body import Body, Build
from .env import Env, Names

BIT32 = t.Bits(32)


def lower_type(kind: t.Type) -> t.Type:
    """Return how a value is stored: enums are 32-bit numbers, new types what they are made of."""
    kind = t.underlying(kind)
    return BIT32 if isinstance(kind, t.Enum) else kind


class ValueLowering:
    """Lowers expressions."""

    def __init__(self, program: ir.Program, diagnostics: Diagnostics, names: Names) -> None:
        self.program = program
        self.diagnostics = diagnostics
        self.names = names

    # ---- provided by the layers above

    def call(self, expr: ast.Call, env: Env, body: Body) -> ir.Value:
        """Lower a call."""
        raise NotImplementedError

    def apply_result(self, expr: ast.Member, env: Env, body: Body) -> ir.Value:
        """Lower table.apply().hit where a value is needed."""
        raise NotImplementedError

    # ---- storage

    def refusal(self, what: str, node: ast.Node) -> Abort:
        """Report something that is not supported; to be raised."""
        return self.diagnostics.failure(f"{what} is not supported", node.pos, node.end)

    def variable(self, name: str, kind: t.Type) -> ir.Value:
        """Make storage for a variable."""
        base = lower_type(kind)
        if isinstance(base, t.StructLike) and base.kind == "struct":
            return ir.Struct(base, {f: self.variable(f"{name}.{f}", k) for f, k in base.fields.items()})
        if isinstance(base, t.Tuple):
            return ir.Struct(
                base, {str(i): self.variable(f"{name}.{i}", k) for i, k in enumerate(base.elements)}
            )
        unique = self.names.numbered(name)
        if isinstance(base, t.VarBits):
            self.program.headers.append(ir.HeaderInstance(unique, base, "metadata"))
            return ir.Field(base, unique, "field")
        if isinstance(base, t.StructLike):
            kind_name = "header" if base.kind == "header" else "union"
            self.program.headers.append(ir.HeaderInstance(unique, base, kind_name))
            return ir.HeaderRef(unique, base) if base.kind == "header" else ir.UnionRef(unique, base)
        if isinstance(base, t.Stack):
            self.program.headers.append(ir.HeaderInstance(unique, base, "stack"))
            return ir.StackRef(unique, base)
        self.program.scalars.append((unique, base))
        return ir.Field(base, "scalars", unique)

    # ---- values

    def expr(self, expr: ast.Expr, env: Env, body: Body) -> ir.Expr:
        """Lower an expression that is a single number or truth value."""
        value = self.value(expr, env, body)
        if isinstance(value, ir.Expr):
            return value
        raise self.refusal(f"a value of type {expr.type} here", expr)

    def value(self, expr: ast.Expr, env: Env, body: Body) -> ir.Value:
        """Lower an expression."""
        if expr.const is not None:
            return self.constant(expr)
        method = getattr(self, f"lower_{type(expr).__name__.lower()}")
        value: ir.Value = method(expr, env, body)
        return value

    def constant(self, expr: ast.Expr) -> ir.Expr:
        const = expr.const
        if isinstance(const, EnumValue):
            if const.type is t.ERROR:
                return ir.Const(t.ERROR, self.program.errors.index(const.name))
            assert isinstance(const.type, t.Enum)
            return ir.Const(BIT32, const.type.members.index(const.name))
        if isinstance(const, str):
            return ir.Text(t.STRING, const)
        return ir.Const(lower_type(expr.type), const)

    def lower_default(self, expr: ast.Default, env: Env, body: Body) -> ir.Value:
        return ir.DontCare()

    def lower_name(self, expr: ast.Name, env: Env, body: Body) -> ir.Value:
        found = env.get(expr.ref)
        if found is None and isinstance(expr.ref, ast.Const):
            return self.value(expr.ref.value, env, body)
        if isinstance(
            found, (ir.Expr, ir.HeaderRef, ir.UnionRef, ir.StackRef, ir.Struct, ir.PacketRef, ir.DontCare)
        ):
            return found
        raise self.refusal(f"'{expr.name}' as a value", expr)

    def lower_unary(self, expr: ast.Unary, env: Env, body: Body) -> ir.Value:
        operand = self.expr(expr.expr, env, body)
        kind = lower_type(expr.type)
        if expr.op == "+":
            return operand
        if expr.op == "!":
            return ir.Op(kind, "not", None, operand)
        if expr.op == "-":
            return clamp(ir.Op(kind, "-", ir.Const(kind, 0), operand))
        return clamp(ir.Op(kind, "~", None, operand))

    def lower_binary(self, expr: ast.Binary, env: Env, body: Body) -> ir.Value:
        if expr.op in ("&&", "||"):
            return self.logical(expr, env, body)
        left_value, right_value = self.value(expr.left, env, body), self.value(expr.right, env, body)
        if expr.op in ("==", "!=") and not (
            isinstance(left_value, ir.Expr) and isinstance(right_value, ir.Expr)
        ):
            return self.compare(expr, left_value, right_value)
        if not isinstance(left_value, ir.Expr) or not isinstance(right_value, ir.Expr):
            raise self.refusal(f"'{expr.op}' on {expr.left.type}", expr)
        return self.binary(expr, left_value, right_value)

    def binary(self, expr: ast.Binary, left: ir.Expr, right: ir.Expr) -> ir.Expr:
        kind, operator = lower_type(expr.type), expr.op
        if isinstance(left, ir.Const) and isinstance(right, ir.Const):
            # Constants meet here when a call with constant arguments has been inlined.
            operands = lower_type(expr.left.type)
            folded = fold_binary(
                operator, left.value, right.value, kind if kind is not t.BOOL else operands, right.type
            )
            if folded is not None:
                return ir.Const(kind, folded)
        if operator in ("/", "%"):
            raise self.refusal(
                f"'{operator}' on values that are only known when the packet comes (BMv2 has no division)",
                expr,
            )
        if operator == "++":
            return self.concatenate(kind, left, right)
        if operator in ("|+|", "|-|"):
            assert isinstance(kind, t.Bits)
            cast = "sat_cast" if kind.signed else "usat_cast"
            plain = ir.Op(kind, operator[1], left, right)
            return ir.Op(kind, cast, plain, ir.Const(t.INT, kind.width))
        if operator == "-" and isinstance(right, ir.Const):
            # As p4c's strength reduction has it; the clamp makes both the same.
            assert isinstance(kind, t.Bits)
            if not kind.signed:
                right = ir.Const(kind, (-right.value) & ((1 << kind.width) - 1))
                operator = "+"
        result = ir.Op(kind, operator, left, right)
        return result if operator in ("&", "|", "^") or kind is t.BOOL else clamp(result)

    @staticmethod
    def concatenate(kind: t.Type, left: ir.Expr, right: ir.Expr) -> ir.Expr:
        width = t.width_of(right.type) or 0
        shifted = clamp(ir.Op(kind, "<<", clamp_to(left, kind), ir.Const(t.INT, width)))
        low = ir.Op(kind, "&", clamp_to(right, kind), ir.Const(kind, (1 << width) - 1))
        return ir.Op(kind, "|", shifted, low)

    def logical(self, expr: ast.Binary, env: Env, body: Body) -> ir.Expr:
        left = self.expr(expr.left, env, body)
        operator = "and" if expr.op == "&&" else "or"
        if not has_effects(expr.right):
            right = self.expr(expr.right, env, body)
            if isinstance(left, ir.Const):
                return right if bool(left.value) == (operator == "and") else left
            if isinstance(right, ir.Const):
                return left if bool(right.value) == (operator == "and") else right
            return ir.Op(t.BOOL, operator, left, right)
        # The right side runs only if the left one does not decide.
        result = self.variable("tmp", t.BOOL)
        assert isinstance(result, ir.Field)
        span = (expr.pos, expr.end)
        body.step(ir.Step("assign", (result, left), span))
        cond: ir.Expr = result if operator == "and" else ir.Op(t.BOOL, "not", None, result)

        def evaluate(inner: Body) -> None:
            inner.step(ir.Step("assign", (result, self.expr(expr.right, env, inner)), span))

        body.branch(cond, evaluate, None, (expr.left.pos, expr.left.end))
        return result

    def lower_ternary(self, expr: ast.Ternary, env: Env, body: Body) -> ir.Value:
        cond = self.expr(expr.cond, env, body)
        if isinstance(cond, ir.Const):
            return self.value(expr.yes if cond.value else expr.no, env, body)
        if has_effects(expr.yes) or has_effects(expr.no):
            return self.chosen_value(expr, cond, env, body)
        yes, no = self.value(expr.yes, env, body), self.value(expr.no, env, body)
        if not isinstance(yes, ir.Expr) or not isinstance(no, ir.Expr):
            raise self.refusal(f"'?:' on {expr.type}", expr)
        return ir.Mux(lower_type(expr.type), cond, yes, no)

    def chosen_value(self, expr: ast.Ternary, cond: ir.Expr, env: Env, body: Body) -> ir.Value:
        """Lower ?: with calls in it: only the chosen side may happen."""
        result = self.variable("tmp", lower_type(expr.type))
        if not isinstance(result, ir.Field):
            raise self.refusal(f"a call within '?:' on {expr.type}", expr)

        def side(chosen: ast.Expr) -> Build:
            def build(inner: Body) -> None:
                inner.step(
                    ir.Step("assign", (result, self.expr(chosen, env, inner)), (chosen.pos, chosen.end))
                )

            return build

        body.branch(cond, side(expr.yes), side(expr.no), (expr.cond.pos, expr.cond.end))
        return result

    def lower_cast(self, expr: ast.Cast, env: Env, body: Body) -> ir.Value:
        operand = self.value(expr.expr, env, body)
        if not isinstance(operand, ir.Expr):
            return operand
        have, want = operand.type, lower_type(expr.type)
        if have == want:
            return operand
        if want is t.BOOL:
            return ir.Op(t.BOOL, "!=", operand, ir.Const(have, 0))
        if have is t.BOOL:
            return ir.Mux(want, operand, ir.Const(want, 1), ir.Const(want, 0))
        return clamp_to(operand, want)

    def lower_slice(self, expr: ast.Slice, env: Env, body: Body) -> ir.Value:
        value = self.expr(expr.expr, env, body)
        kind = t.Bits(expr.high.const - expr.low.const + 1)
        if expr.low.const:
            value = ir.Op(value.type, ">>", value, ir.Const(t.INT, expr.low.const))
            return ir.Op(kind, "&", value, ir.Const(kind, (1 << kind.width) - 1))
        return clamp_to(value, kind) if value.type != kind else value

    def lower_index(self, expr: ast.Index, env: Env, body: Body) -> ir.Value:
        base = self.value(expr.expr, env, body)
        if isinstance(base, ir.Struct):
            return base.fields[str(expr.index.const)]
        assert isinstance(base, ir.StackRef)
        element = base.type.element
        assert isinstance(element, t.StructLike)
        if expr.index.const is not None:
            name = f"{base.name}[{expr.index.const}]"
            return ir.HeaderRef(name, element) if element.kind == "header" else ir.UnionRef(name, element)
        if element.kind != "header":
            raise self.refusal("an index into a stack of unions that is not known at compile time", expr)
        return ir.HeaderRef(base.name, element, self.expr(expr.index, env, body))

    def lower_listexpr(self, expr: ast.ListExpr, env: Env, body: Body) -> ir.Value:
        values = [self.value(item, env, body) for item in expr.items]
        names = (
            list(expr.type.fields)
            if isinstance(expr.type, t.StructLike)
            else [str(i) for i in range(len(values))]
        )
        return ir.Struct(expr.type, dict(zip(names, values, strict=True)))

    def lower_structexpr(self, expr: ast.StructExpr, env: Env, body: Body) -> ir.Value:
        values = [self.value(item, env, body) for item in expr.items]
        return ir.Struct(expr.type, dict(zip(expr.names, values, strict=True)))

    def lower_call(self, expr: ast.Call, env: Env, body: Body) -> ir.Value:
        return self.call(expr, env, body)

    # ---- members

    def lower_member(self, expr: ast.Member, env: Env, body: Body) -> ir.Value:
        if isinstance(expr.expr.type, t.ApplyResult):
            return self.apply_result(expr, env, body)
        base = self.value(expr.expr, env, body)
        if isinstance(base, ir.Struct):
            return base.fields[expr.name]
        if isinstance(base, ir.HeaderRef):
            return self.header_field(base, expr)
        if isinstance(base, ir.UnionRef):
            member = base.type.fields[expr.name]
            assert isinstance(member, t.StructLike)
            return ir.HeaderRef(f"{base.name}.{expr.name}", member, None, base.which)
        if isinstance(base, ir.StackRef):
            return self.stack_member(base, expr)
        raise self.refusal(f"member '{expr.name}' of {expr.expr.type}", expr)

    def header_field(self, base: ir.HeaderRef, expr: ast.Member) -> ir.Expr:
        kind = lower_type(base.type.fields[expr.name])
        if base.which == "next":
            raise self.diagnostics.failure(
                "a field of 'next' cannot be read or written before it is extracted", expr.pos, expr.end
            )
        if base.which == "last":
            return ir.LastField(kind, base.name, expr.name)
        if base.index is not None:
            return ir.ElementField(
                kind, base.name, base.index, expr.name, list(base.type.fields).index(expr.name)
            )
        return ir.Field(kind, base.name, expr.name)

    def stack_member(self, base: ir.StackRef, expr: ast.Member) -> ir.Value:
        element = base.type.element
        assert isinstance(element, t.StructLike)
        if expr.name in ("next", "last"):
            if element.kind == "header":
                return ir.HeaderRef(base.name, element, None, expr.name)
            return ir.UnionRef(base.name, element, expr.name)
        if expr.name == "lastIndex":
            return ir.LastIndex(BIT32, base.name)
        return ir.Const(BIT32, base.type.size)

    # ---- comparison of what has parts

    def compare(self, expr: ast.Binary, left: ir.Value, right: ir.Value) -> ir.Expr:
        equal = self.equal(left, right, expr)
        return equal if expr.op == "==" else ir.Op(t.BOOL, "not", None, equal)

    def equal(self, left: ir.Value, right: ir.Value, node: ast.Expr) -> ir.Expr:
        """P4_16 section 8.17: headers are equal if both are invalid, or both valid with equal fields."""
        if isinstance(left, ir.Expr) and isinstance(right, ir.Expr):
            return ir.Op(t.BOOL, "==", left, right)
        if isinstance(left, ir.Struct) and isinstance(right, ir.Struct):
            pairs = zip(left.fields.values(), right.fields.values(), strict=True)
            return conjunction([self.equal(one, other, node) for one, other in pairs])
        if isinstance(left, ir.HeaderRef) and isinstance(right, ir.HeaderRef):
            fields = [
                ir.Op(
                    t.BOOL,
                    "==",
                    ir.Field(lower_type(k), left.name, n),
                    ir.Field(lower_type(k), right.name, n),
                )
                for n, k in left.type.fields.items()
                if left.index is None and right.index is None and not isinstance(k, t.VarBits)
            ]
            if len(fields) != len(left.type.fields):
                raise self.refusal("this comparison of headers", node)
            one, other = ir.Valid(t.BOOL, left), ir.Valid(t.BOOL, right)
            neither = ir.Op(t.BOOL, "and", ir.Op(t.BOOL, "not", None, one), ir.Op(t.BOOL, "not", None, other))
            both = conjunction([one, other, *fields])
            return ir.Op(t.BOOL, "or", neither, both)
        raise self.refusal("this comparison", node)


def conjunction(parts: list[ir.Expr]) -> ir.Expr:
    """Return the AND of all."""
    if not parts:
        return ir.Const(t.BOOL, True)
    result = parts[0]
    for part in parts[1:]:
        result = ir.Op(t.BOOL, "and", result, part)
    return result


def clamp(value: ir.Op) -> ir.Expr:
    """Bring a result into its type's range: BMv2 computes without bounds."""
    return _mask(value, value.type)


def clamp_to(value: ir.Expr, kind: t.Type) -> ir.Expr:
    """Cast a number to a width."""
    if isinstance(value, ir.Const):
        return ir.Const(kind, wrap(value.value, kind))
    return _mask(value, kind)


def _mask(value: ir.Expr, kind: t.Type) -> ir.Expr:
    if not isinstance(kind, t.Bits):
        return value
    if kind.signed:
        return ir.Op(kind, "two_comp_mod", value, ir.Const(t.INT, kind.width))
    return ir.Op(kind, "&", value, ir.Const(kind, (1 << kind.width) - 1))


def has_effects(expr: ast.Expr) -> bool:
    """Say whether evaluating an expression does something (a call of anything but isValid and lookahead)."""
    if isinstance(expr, ast.Call):
        name = expr.func.name if isinstance(expr.func, ast.Member) else ""
        return name not in ("isValid", "lookahead", "length") or any(map(has_effects, expr.args))
    if isinstance(expr, (ast.Unary, ast.Cast, ast.Slice, ast.Member)):
        return has_effects(expr.expr)
    if isinstance(expr, ast.Binary):
        return has_effects(expr.left) or has_effects(expr.right)
    if isinstance(expr, ast.Ternary):
        return any(map(has_effects, (expr.cond, expr.yes, expr.no)))
    if isinstance(expr, (ast.ListExpr, ast.StructExpr)):
        return any(map(has_effects, expr.items))
    if isinstance(expr, ast.Index):
        return has_effects(expr.expr) or has_effects(expr.index)
    return False
