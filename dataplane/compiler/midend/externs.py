"""Calls of built-in methods and of v1model's externs to BMv2's primitives."""

from __future__ import annotations

from dataclasses import dataclass

from .. import ast, ir
from .. import types as t
from ..folding import EnumValue
from .body import Body
from .env import Env
from .values import BIT32, ValueLowering, lower_type

HASHES = ("crc32", "crc32_custom", "crc16", "crc16_custom", "random", "identity", "csum16", "xor16")


@dataclass(slots=True)
class Frame:
    """A body that is being inlined: what its returns leave, and where their value goes."""

    label: object
    result: ir.Value | None


class ExternLowering(ValueLowering):
    """Lowers calls that are not inlined."""

    frames: list[Frame]
    inlining: list[ast.Function]
    block_kind: str  # parser, ingress, egress, deparser, checksum

    def statements(self, items: list[ast.Stmt | ast.Decl], env: Env, body: Body) -> None:
        raise NotImplementedError

    def assign(self, left: ir.Value, right: ir.Value, span: ir.Span, body: Body, node: ast.Node) -> None:
        raise NotImplementedError

    def call_function(self, function: ast.Function, call: ast.Call, env: Env, body: Body) -> ir.Value:
        raise NotImplementedError

    def framed(self, items: list[ast.Stmt | ast.Decl], env: Env, body: Body, result: ir.Value | None) -> None:
        """Lower an inlined body, whose returns end only itself."""
        frame = Frame(object(), result)
        self.frames.append(frame)
        body.labelled(frame.label, lambda inner: self.statements(items, Env(env), inner))
        self.frames.pop()

    def call(self, expr: ast.Call, env: Env, body: Body) -> ir.Value:
        """Lower a call that may have a result."""
        kind = expr.func.type
        if not isinstance(kind, t.Callable):
            raise self.refusal("this call", expr)
        if kind.owner is None:
            function = kind.overloads[0]
            if function.body is not None:
                return self.call_function(function, expr, env, body)
            return self.extern_function(function, expr, env, body)
        assert isinstance(expr.func, ast.Member)
        if isinstance(kind.owner, t.Extern):
            return self.extern_method(expr, expr.func, kind.owner, env, body)
        return self.built_in(expr, expr.func, env, body)

    # ---- methods of headers and stacks

    def built_in(self, expr: ast.Call, func: ast.Member, env: Env, body: Body) -> ir.Value:
        target = self.value(func.expr, env, body)
        span = (expr.pos, expr.end)
        if func.name == "isValid":
            return self.is_valid(target, expr)
        if isinstance(target, ir.HeaderRef) and target.which:
            raise self.refusal(f"'{func.name}' of '{target.which}'", expr)
        operation = {
            "setValid": "add_header",
            "setInvalid": "remove_header",
            "push_front": "push",
            "pop_front": "pop",
        }
        params: tuple[ir.Value, ...] = (target,)
        if func.name in ("push_front", "pop_front"):
            params = (target, ir.Const(t.INT, expr.args[0].const))
        body.step(ir.Step(operation[func.name], params, span))
        return ir.DontCare()

    def is_valid(self, target: ir.Value, expr: ast.Call) -> ir.Expr:
        if isinstance(target, ir.HeaderRef):
            if target.which:
                raise self.refusal(f"'isValid' of '{target.which}'", expr)
            return ir.Valid(t.BOOL, target)
        assert isinstance(target, ir.UnionRef)
        members = [
            ir.Valid(t.BOOL, ir.HeaderRef(f"{target.name}.{name}", kind))
            for name, kind in target.type.fields.items()
            if isinstance(kind, t.StructLike)
        ]
        result: ir.Expr = members[0]
        for member in members[1:]:
            result = ir.Op(t.BOOL, "or", result, member)
        return result

    # ---- methods of extern instances

    def extern_method(
        self, expr: ast.Call, func: ast.Member, owner: t.Extern, env: Env, body: Body
    ) -> ir.Value:
        name = owner.decl.name
        if name == "packet_in":
            return self.packet_in(expr, func, env, body)
        if name == "packet_out":
            return self.packet_out(expr, func, env, body)
        if not isinstance(func.expr, ast.Name):
            raise self.refusal("this call", expr)
        instance = env.get(func.expr.ref)
        if not isinstance(instance, ir.Extern):
            raise self.refusal(f"'{func.expr.name}.{func.name}' here", expr)
        return self.instance_method(expr, func.name, name, instance, env, body)

    def instance_method(
        self, expr: ast.Call, method: str, extern: str, instance: ir.Extern, env: Env, body: Body
    ) -> ir.Value:
        span = (expr.pos, expr.end)
        if extern == "direct_counter":
            # It counts by itself whenever its table is applied; what is left is to check that it has one.
            self.needs_table(instance, expr, "counters")
            return ir.DontCare()
        args = [self.value(argument, env, body) for argument in expr.args]
        if extern == "counter":
            body.step(ir.Step("count", (ir.Ref("counter_array", instance.name), args[0]), span))
        elif extern == "meter":
            target, copy_out = self.out_field(args[1])
            body.step(ir.Step("execute_meter", (ir.Ref("meter_array", instance.name), args[0], target), span))
            copy_out(body, span)
        elif extern == "direct_meter":
            self.needs_table(instance, expr, "meters")
            assert isinstance(args[0], ir.Expr)
            if instance.result is None:
                target, _ = self.out_field(args[0])
                instance.result = target
            self.assign(args[0], instance.result, span, body, expr)
        elif extern == "register" and method == "read":
            target, copy_out = self.out_field(args[0])
            body.step(
                ir.Step("register_read", (target, ir.Ref("register_array", instance.name), args[1]), span)
            )
            copy_out(body, span)
        elif extern == "register":
            body.step(
                ir.Step("register_write", (ir.Ref("register_array", instance.name), args[0], args[1]), span)
            )
        else:
            raise self.refusal(f"extern '{extern}'", expr)
        return ir.DontCare()

    def out_field(self, target: ir.Value):  # type: ignore[no-untyped-def]
        """Return a field for a primitive to write, and what brings it to where it belongs."""
        if isinstance(target, ir.Field):
            return target, lambda body, span: None
        kind = target.type if isinstance(target, ir.Expr) else BIT32
        field = self.variable("result", kind)

        def copy_out(body: Body, span: ir.Span) -> None:
            if isinstance(target, ir.Expr):
                body.step(ir.Step("assign", (target, field), span))

        return field, copy_out

    def needs_table(self, instance: ir.Extern, expr: ast.Call, prop: str) -> None:
        if instance.table is None:
            self.direct_uses.append((instance, expr, prop))

    direct_uses: list[tuple[ir.Extern, ast.Call, str]]

    def packet_in(self, expr: ast.Call, func: ast.Member, env: Env, body: Body) -> ir.Value:
        raise self.refusal(f"'{func.name}' here", expr)

    def packet_out(self, expr: ast.Call, func: ast.Member, env: Env, body: Body) -> ir.Value:
        raise self.refusal(f"'{func.name}' here", expr)

    # ---- extern functions

    def extern_function(self, function: ast.Function, expr: ast.Call, env: Env, body: Body) -> ir.Value:
        method = getattr(self, f"extern_{function.name}", None)
        if method is None:
            raise self.refusal(f"extern function '{function.name}'", expr)
        if self.block_kind == "checksum" or (
            self.block_kind == "parser"
            and function.name not in ("verify", "assert", "assume", "log_msg", "static_assert")
        ):
            raise self.diagnostics.failure(f"'{function.name}' cannot be called here", expr.pos, expr.end)
        if body.kind == "deparser" and function.name not in ("assert", "assume", "log_msg"):
            raise self.diagnostics.failure(
                f"'{function.name}' cannot be called in a deparser", expr.pos, expr.end
            )
        result: ir.Value = method(expr, env, body)
        return result

    def extern_static_assert(self, expr: ast.Call, env: Env, body: Body) -> ir.Value:
        check = expr.args[0]
        if check.const is not True:
            text = expr.args[1].const if len(expr.args) > 1 else "static_assert failed"
            raise self.diagnostics.failure(str(text), expr.pos, expr.end)
        return ir.Const(t.BOOL, True)

    def extern_verify(self, expr: ast.Call, env: Env, body: Body) -> ir.Value:
        if body.kind != "parser":
            raise self.diagnostics.failure("'verify' can only be called in a parser", expr.pos, expr.end)
        args = tuple(self.value(a, env, body) for a in expr.args)
        body.step(ir.Step("verify", args, (expr.pos, expr.end)))
        return ir.DontCare()

    def extern_mark_to_drop(self, expr: ast.Call, env: Env, body: Body) -> ir.Value:
        metadata = self.value(expr.args[0], env, body)
        body.step(ir.Step("mark_to_drop", (metadata,), (expr.pos, expr.end)))
        return ir.DontCare()

    def extern_truncate(self, expr: ast.Call, env: Env, body: Body) -> ir.Value:
        return self.simple(expr, "truncate", env, body)

    def extern_assert(self, expr: ast.Call, env: Env, body: Body) -> ir.Value:
        return self.simple(expr, "assert", env, body)

    def extern_assume(self, expr: ast.Call, env: Env, body: Body) -> ir.Value:
        return self.simple(expr, "assume", env, body)

    def simple(self, expr: ast.Call, operation: str, env: Env, body: Body) -> ir.Value:
        args = tuple(self.value(argument, env, body) for argument in expr.args)
        body.step(ir.Step(operation, args, (expr.pos, expr.end)))
        return ir.DontCare()

    def extern_random(self, expr: ast.Call, env: Env, body: Body) -> ir.Value:
        args = [self.value(argument, env, body) for argument in expr.args]
        target, copy_out = self.out_field(args[0])
        span = (expr.pos, expr.end)
        body.step(ir.Step("modify_field_rng_uniform", (target, args[1], args[2]), span))
        copy_out(body, span)
        return ir.DontCare()

    def extern_hash(self, expr: ast.Call, env: Env, body: Body) -> ir.Value:
        algorithm = self.algorithm(expr.args[1])
        target, copy_out = self.out_field(self.value(expr.args[0], env, body))
        base, limit = self.value(expr.args[2], env, body), self.value(expr.args[4], env, body)
        data = self.elements(self.value(expr.args[3], env, body), expr.args[3])
        span = (expr.pos, expr.end)
        inputs = [self.simple_value(value, span, body) for value in data]
        calculation = ir.Calculation(self.names.new("calc"), algorithm, inputs, False, None)
        self.program.calculations.append(calculation)
        step = ir.Step(
            "modify_field_with_hash_based_offset",
            (target, base, ir.Ref("calculation", calculation.name), limit),
            span,
        )
        body.step(step)
        copy_out(body, span)
        return ir.DontCare()

    def algorithm(self, expr: ast.Expr) -> str:
        if not isinstance(expr.const, EnumValue) or expr.const.name not in HASHES:
            raise self.diagnostics.failure(
                "the hash algorithm must be known at compile time", expr.pos, expr.end
            )
        return expr.const.name

    def simple_value(self, value: ir.Expr, span: ir.Span, body: Body) -> ir.Expr:
        """Return a value as a field or number: what BMv2 takes in lists."""
        if isinstance(value, (ir.Const, ir.Field)):
            return value
        copy = self.variable("tmp", value.type)
        assert isinstance(copy, ir.Field)
        body.step(ir.Step("assign", (copy, value), span))
        return copy

    def elements(self, value: ir.Value, node: ast.Node) -> list[ir.Expr]:
        """Return all numbers that a value is made of, in order."""
        if isinstance(value, ir.Expr):
            return [value]
        if isinstance(value, ir.Struct):
            return [e for part in value.fields.values() for e in self.elements(part, node)]
        if isinstance(value, ir.HeaderRef) and value.index is None and not value.which:
            return [ir.Field(lower_type(kind), value.name, name) for name, kind in value.type.fields.items()]
        raise self.refusal("this in a list of values", node)

    def extern_digest(self, expr: ast.Call, env: Env, body: Body) -> ir.Value:
        """Keep the digest's values, because BMv2 reads them when ingress is over, and they may have changed by then."""
        if self.block_kind != "ingress":
            raise self.diagnostics.failure("'digest' can only be called in ingress", expr.pos, expr.end)
        receiver = self.value(expr.args[0], env, body)
        data = expr.args[1]
        name = data.type.control_name() if isinstance(data.type, t.StructLike) else "digest"
        span = (expr.pos, expr.end)
        number, storage = self.learn_list(name, data)
        values = self.elements(self.value(data, env, body), data)
        for target, value in zip(storage.elements, values, strict=True):
            body.step(ir.Step("assign", (target, value), span))
        body.step(ir.Step("generate_digest", (receiver, ir.Const(t.INT, number)), span))
        return ir.DontCare()

    def learn_list(self, name: str, data: ast.Expr) -> tuple[int, ir.FieldListDecl]:
        for number, (present, (_, kind)) in enumerate(
            zip(self.program.learn_lists, self.program.digests, strict=True), 1
        ):
            if kind == data.type:
                return number, present
        if any(present == name for present, _ in self.program.digests):
            raise self.diagnostics.failure(
                f"two digests would have the name '{name}'; make each of a struct type of its own",
                data.pos,
                data.end,
            )
        storage = self.elements(self.variable(name, data.type), data)
        made = ir.FieldListDecl(name, storage, (data.pos, data.end))
        self.program.learn_lists.append(made)
        self.program.digests.append((name, data.type))
        return len(self.program.learn_lists), made

    # ---- copies of the packet

    def extern_clone(self, expr: ast.Call, env: Env, body: Body) -> ir.Value:
        return self.clone(expr, None, env, body)

    def extern_clone_preserving_field_list(self, expr: ast.Call, env: Env, body: Body) -> ir.Value:
        return self.clone(expr, expr.args[2], env, body)

    def clone(self, expr: ast.Call, index: ast.Expr | None, env: Env, body: Body) -> ir.Value:
        const = expr.args[0].const
        if not isinstance(const, EnumValue):
            raise self.diagnostics.failure(
                "the clone type must be known at compile time", expr.args[0].pos, expr.args[0].end
            )
        wanted, operation = {
            "I2E": ("ingress", "clone_ingress_pkt_to_egress"),
            "E2E": ("egress", "clone_egress_pkt_to_egress"),
        }[const.name]
        if self.block_kind != wanted:
            raise self.diagnostics.failure(
                f"CloneType.{const.name} can only be used in {wanted}", expr.pos, expr.end
            )
        session = self.value(expr.args[1], env, body)
        number = self.field_list(index, expr)
        body.step(ir.Step(operation, (session, ir.Const(t.INT, number)), (expr.pos, expr.end)))
        return ir.DontCare()

    def field_list(self, index: ast.Expr | None, expr: ast.Call) -> int:
        """Return the number of a field list: of the metadata fields tagged @field_list(index), or an empty one."""
        wanted = f"field_list{index.const}" if index is not None else "fl"
        for number, present in enumerate(self.program.field_lists, 1):
            if index is not None and present.name == wanted:
                return number
        if index is not None:
            self.diagnostics.warn(
                "invalid",
                f"no field of the user metadata is tagged @field_list({index.const})",
                expr.pos,
                expr.end,
            )
        self.program.field_lists.append(ir.FieldListDecl(self.names.new(wanted), [], None))
        return len(self.program.field_lists)

    def extern_resubmit_preserving_field_list(self, expr: ast.Call, env: Env, body: Body) -> ir.Value:
        return self.again(expr, "resubmit", "ingress", body)

    def extern_recirculate_preserving_field_list(self, expr: ast.Call, env: Env, body: Body) -> ir.Value:
        return self.again(expr, "recirculate", "egress", body)

    def again(self, expr: ast.Call, operation: str, where: str, body: Body) -> ir.Value:
        if self.block_kind != where:
            raise self.diagnostics.failure(
                f"'{operation}_preserving_field_list' can only be called in {where}", expr.pos, expr.end
            )
        number = self.field_list(expr.args[0], expr)
        body.step(ir.Step(operation, (ir.Const(t.INT, number),), (expr.pos, expr.end)))
        return ir.DontCare()

    def extern_log_msg(self, expr: ast.Call, env: Env, body: Body) -> ir.Value:
        values: list[ir.Expr] = []
        if len(expr.args) == 2:
            values = self.elements(self.value(expr.args[1], env, body), expr.args[1])
        text = self.value(expr.args[0], env, body)
        body.step(
            ir.Step("log_msg", (text, ir.Ref("parameters_vector", tuple(values))), (expr.pos, expr.end))
        )
        return ir.DontCare()
