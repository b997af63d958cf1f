"""Controls: instances, actions, tables, and the blocks that are inlined into them."""

from __future__ import annotations

from pathlib import Path

from .. import ast, ir
from .. import types as t
from ..errors import Abort
from ..folding import EnumValue
from .body import ActionBody, Body, ControlBody
from .env import ActionClosure, BlockInstance, Env
from .statements import StatementLowering
from .values import lower_type


def local_name(decl: ast.Decl) -> str:
    """Return the control-plane name of a declaration within its block."""
    return t.annotated_name(decl) or decl.name


def qualified(prefix: str, decl: ast.Decl) -> str:
    """Return a control-plane name: a @name that starts with a dot is global."""
    name = local_name(decl)
    if name.startswith("."):
        return name[1:]
    return f"{prefix}.{name}" if prefix else name


class ControlLowering(StatementLowering):
    """Lowers controls."""

    # ---- instances

    def enter(self, decl: ast.ControlDecl | ast.ParserDecl, env: Env, prefix: str) -> None:
        """Bring a block's local declarations into its environment."""
        for local in decl.locals:
            try:
                self.declare(local, env, prefix)
            except Abort:
                continue

    def declare(self, decl: ast.Decl, env: Env, prefix: str) -> None:
        if isinstance(decl, ast.Action):
            env.bind(decl, ActionClosure(decl, env, qualified(prefix, decl)))
        elif isinstance(decl, ast.Table):
            env.bind(decl, self.table(decl, env, qualified(prefix, decl)))
        elif isinstance(decl, ast.Instance):
            self.instance(decl, env, qualified(prefix, decl))
        elif isinstance(decl, ast.ValueSet):
            size = decl.size.const
            made = ir.ValueSet(qualified(prefix, decl), decl.type, size, decl)
            self.program.value_sets.append(made)
            env.bind(decl, made)
        elif isinstance(decl, ast.Variable):
            env.bind(decl, self.variable(decl.name, decl.type))

    def instance(self, decl: ast.Instance, env: Env, name: str) -> None:
        if isinstance(decl.type, t.Extern):
            env.bind(decl, self.extern_instance(decl, decl.type, env, name))
        elif isinstance(decl.type, t.Block) and not isinstance(decl.type.decl, ast.PackageDecl):
            env.bind(decl, self.block_instance(decl.type.decl, decl.args, env, name))

    def extern_instance(self, decl: ast.Instance, kind: t.Extern, env: Env, name: str) -> ir.Extern:
        constructors = [
            m for m in kind.decl.methods if m.name == kind.decl.name and len(m.params) == len(decl.args)
        ]
        params = constructors[0].params if constructors else []
        args: dict[str, object] = {}
        for param, argument in zip(params, decl.args, strict=True):
            const = argument.const
            if const is None:
                value = self.value(argument, env, ActionBody(self.diagnostics, self.variable))
                if not isinstance(value, ir.Const):
                    raise self.diagnostics.failure(
                        f"argument '{param.name}' must be known at compile time", argument.pos, argument.end
                    )
                const = value.value
            args[param.name] = const.name if isinstance(const, EnumValue) else const
        made = ir.Extern(name, kind, decl, args)
        if kind.decl.name == "register":
            width = t.width_of(kind.args[0])
            if not isinstance(lower_type(kind.args[0]), t.Bits) or not width:
                raise self.diagnostics.failure(
                    f"registers of {kind.args[0]} are not supported; only bit<> and int<> are",
                    decl.pos,
                    decl.end,
                )
        if kind.decl.name == "Checksum16":
            raise self.refusal("extern 'Checksum16' (use update_checksum and verify_checksum)", decl)
        self.program.externs.append(made)
        return made

    def block_instance(
        self, decl: ast.ControlDecl | ast.ParserDecl, args: list[ast.Expr], env: Env, name: str
    ) -> BlockInstance:
        inner = Env()
        for param, argument in zip(decl.constructor_params, args, strict=True):
            if isinstance(argument, ast.Name) and (found := env.get(argument.ref)) is not None:
                inner.bind(param, found)
            else:
                inner.bind(param, self.value(argument, env, ActionBody(self.diagnostics, self.variable)))
        return BlockInstance(decl, inner, name)

    def inline_block(self, instance: BlockInstance, call: ast.Call, env: Env, body: Body) -> None:
        """Inline a control that is applied within another; its declarations are made once."""
        decl = instance.decl
        if not isinstance(decl, ast.ControlDecl) or not isinstance(body, ControlBody):
            raise self.refusal(f"applying '{decl.name}' here", call)
        if instance in self.applied:
            raise self.diagnostics.failure(
                f"'{instance.name}' is applied twice, which is not supported; declare a second instance",
                call.pos,
                call.end,
            )
        self.applied.append(instance)
        inner = Env(instance.env)
        self.bind_arguments(decl.params, call, env, inner, body)
        self.prefixes.append(instance.name)
        self.enter(decl, inner, instance.name)
        self.initialise(decl, inner, body)
        assert decl.body is not None
        self.framed(decl.body.items, inner, body, None)
        self.prefixes.pop()

    applied: list[BlockInstance]

    def initialise(self, decl: ast.ControlDecl | ast.ParserDecl, env: Env, body: Body) -> None:
        """Give the block's variables their first values."""
        for local in decl.locals:
            if isinstance(local, ast.Variable) and local.init is not None:
                target = env.get(local)
                assert isinstance(target, (ir.Expr, ir.Struct, ir.HeaderRef, ir.UnionRef, ir.StackRef))
                value = self.value(local.init, env, body)
                self.assign(target, value, (local.pos, local.init.end), body, local)

    # ---- actions

    def action(self, closure: ActionClosure, call: ast.Call | None, env: Env) -> ir.Action:
        """Make an action as a table has it: directed parameters are bound, the others are its data."""
        made = ir.Action(closure.name, closure.decl)
        body = ActionBody(self.diagnostics, self.variable)
        inner = Env(closure.env)
        directed = [p for p in closure.decl.params if p.direction]
        if call is not None and directed:
            self.bind_arguments(directed, call, env, inner, body)
        for param in closure.decl.params:
            if not param.direction:
                kind = lower_type(param.type)
                if not isinstance(kind, t.Bits) and kind is not t.BOOL:
                    raise self.refusal(f"action data of type {param.type}", param)
                value: ir.Expr = ir.Data(kind if isinstance(kind, t.Bits) else t.Bits(1), len(made.params))
                if kind is t.BOOL:
                    value = ir.Op(t.BOOL, "!=", value, ir.Const(t.Bits(1), 0))
                made.params.append(ir.Param(local_name(param), kind, param))
                inner.bind(param, value)
        self.framed(closure.decl.body.items, inner, body, None)
        made.steps = body.steps
        self.program.actions.append(made)
        return made

    def closure_of(self, name: ast.Name, env: Env) -> ActionClosure:
        found = env.get(name.ref)
        if isinstance(found, ActionClosure):
            return found
        decl = name.ref
        assert isinstance(decl, ast.Action)
        return ActionClosure(decl, Env(), qualified("", decl))

    def call_action(self, call: ast.Call, env: Env, body: Body) -> None:
        """In a control, an action that is called becomes a hidden table's, as p4c does; elsewhere it is inlined."""
        assert isinstance(call.func, ast.Name)
        closure = self.closure_of(call.func, env)
        if not isinstance(body, ControlBody):
            self.inline_action(closure, call, env, body)
            return
        if body.dead:
            return
        body.flush()
        self.called.setdefault(closure.name, closure.decl)
        made = ir.Action(closure.name, closure.decl)
        steps = ActionBody(self.diagnostics, self.variable)
        self.inline_action(closure, call, env, steps)
        made.steps = steps.steps
        self.program.actions.append(made)
        name = self.names.new(f"tbl_{closure.decl.name}")
        table = ir.Table(
            name,
            None,
            (call.pos, call.end),
            actions=[ir.ActionUse(made, [])],
            default=made,
            default_const=True,
        )
        self.program.tables.append(table)
        body.nodes.append(ir.Apply(name, table))
        body.dead = any(step.op == "exit" for step in made.steps)

    called: dict[str, ast.Action]

    def hide(self, steps: list[ir.Step]) -> ir.Table:
        """Make a table without keys whose action does the steps."""
        place = self.diagnostics.sources.locate(steps[0].span[0])
        stem = "".join(c for c in Path(place.file).stem if c.isalnum() or c == "_")
        action = ir.Action(self.names.new(f"{stem}{place.line}"), None, [], steps)
        self.program.actions.append(action)
        name = self.names.new(f"tbl_{action.name}")
        table = ir.Table(
            name, None, steps[0].span, actions=[ir.ActionUse(action, [])], default=action, default_const=True
        )
        self.program.tables.append(table)
        return table

    # ---- tables

    def table(self, decl: ast.Table, env: Env, name: str) -> ir.Table:
        """Make a table."""
        made = ir.Table(name, decl, (decl.pos, decl.end))
        self.key_steps[made] = []
        for element in decl.keys:
            made.keys.append(self.key(element, env, made))
        for ref in decl.actions:
            call = ref.call if isinstance(ref.call, ast.Call) else None
            action_name = call.func if call is not None else ref.call
            assert isinstance(action_name, ast.Name)
            made.actions.append(
                ir.ActionUse(self.action(self.closure_of(action_name, env), call, env), ref.annotations)
            )
        self.default_action(decl, made)
        self.properties(decl, made, env)
        if decl.entries is not None:
            made.entries_const = decl.entries_are_const
            made.entries = [self.entry(entry, made, at) for at, entry in enumerate(decl.entries, 1)]
        self.program.tables.append(made)
        return made

    key_steps: dict[ir.Table, list[tuple[ir.Field, ast.KeyElement, Env]]]

    def key(self, element: ast.KeyElement, env: Env, table: ir.Table) -> ir.Key:
        kind = element.match_kind.name
        name_annotation = next((a for a in element.annotations if a.name == "name"), None)
        if name_annotation is not None and name_annotation.args:
            name = (
                str(name_annotation.args[0].value) if isinstance(name_annotation.args[0], ast.String) else ""
            )
        else:
            name = self.key_name(element.expr)
        body = ActionBody(self.diagnostics, self.variable)
        value = self.value(element.expr, env, body)
        if isinstance(value, ir.Valid) and value.header.index is None:
            value = ir.Field(t.Bits(1), value.header.name, "$valid$")
        if not isinstance(value, ir.Field) or body.steps:
            # Computed right before the table is applied.
            copy = self.variable("key", lower_type(element.expr.type))
            assert isinstance(copy, ir.Field)
            self.key_steps[table].append((copy, element, env))
            value = copy
        return ir.Key(value, kind, name, element.expr.type, element)

    def key_name(self, expr: ast.Expr) -> str:
        """Return the name that p4c derives from a key's expression (P4_16 section 18.3.3)."""
        if isinstance(expr, ast.Name):
            return expr.name
        if isinstance(expr, ast.Member):
            return f"{self.key_name(expr.expr)}.{expr.name}"
        if isinstance(expr, ast.Index):
            return f"{self.key_name(expr.expr)}[{expr.index.const}]"
        if isinstance(expr, ast.Slice):
            return f"{self.key_name(expr.expr)}[{expr.high.const}:{expr.low.const}]"
        if isinstance(expr, ast.Call) and isinstance(expr.func, ast.Member) and expr.func.name == "isValid":
            return f"{self.key_name(expr.func.expr)}.$valid$"
        if isinstance(expr, ast.Binary) and expr.op == "&" and expr.right.const is not None:
            return f"{self.key_name(expr.left)} & {hex(expr.right.const)}"
        if isinstance(expr, ast.Cast) and expr.target is None:
            return self.key_name(expr.expr)
        raise self.diagnostics.failure(
            'this key has no simple name; give it one with @name("…")', expr.pos, expr.end
        )

    def default_action(self, decl: ast.Table, made: ir.Table) -> None:
        ref = decl.default_action
        if ref is None:
            for use in made.actions:
                if use.action.name == "NoAction":
                    made.default = use.action
                    return
            no_action = self.no_action(decl)
            annotation = ast.Annotation(decl.pos, decl.end, "defaultonly")
            action = self.action(ActionClosure(no_action, Env(), "NoAction"), None, Env())
            made.actions.append(ir.ActionUse(action, [annotation]))
            made.default = action
            return
        assert isinstance(ref.call, ast.Call) and isinstance(ref.call.func, ast.Name)
        made.default, made.default_args = self.chosen(made, ref.call)
        made.default_const = decl.default_is_const

    def no_action(self, decl: ast.Table) -> ast.Action:
        found = self.global_no_action
        if found is None:
            raise self.diagnostics.failure(
                f"table '{decl.name}' has no default_action, and NoAction is not declared (#include <core.p4>)",
                decl.pos,
            )
        return found

    global_no_action: ast.Action | None

    def chosen(self, table: ir.Table, call: ast.Call) -> tuple[ir.Action, list[int]]:
        """Return which of the table's actions is called, and the values of its data."""
        assert isinstance(call.func, ast.Name)
        decl = call.func.ref
        action = next(use.action for use in table.actions if use.action.decl is decl)
        pairs = zip(decl.params, call.args, strict=True)
        return action, [int(argument.const) for param, argument in pairs if not param.direction]

    def entry(self, entry: ast.Entry, table: ir.Table, at: int) -> ir.Entry:
        assert isinstance(entry.action.call, ast.Call)
        action, args = self.chosen(table, entry.action.call)
        keys: list[ir.EntryKey] = []
        everything = len(entry.keys) == 1 and isinstance(entry.keys[0], ast.Default) and len(table.keys) > 1
        for number, key in enumerate(table.keys):
            written = entry.keys[0] if everything else entry.keys[number]
            keys.append(self.entry_key(written, key))
        priority = at
        annotation = next((a for a in entry.annotations if a.name == "priority"), None)
        if entry.priority is not None:
            priority = int(entry.priority.const)
        elif annotation is not None and annotation.args and isinstance(annotation.args[0], ast.Number):
            priority = annotation.args[0].value
        return ir.Entry(keys, action, args, priority, (entry.pos, entry.end))

    def entry_key(self, written: ast.Expr, key: ir.Key) -> ir.EntryKey:
        if isinstance(written, ast.Default):
            return ir.EntryKey(None)
        if isinstance(written, ast.Mask):
            return ir.EntryKey(written.value.const, written.mask.const)
        if isinstance(written, ast.Range):
            return ir.EntryKey(written.low.const, written.high.const)
        value = self.constant(written)
        assert isinstance(value, ir.Const)
        return ir.EntryKey(int(value.value))

    def properties(self, decl: ast.Table, made: ir.Table, env: Env) -> None:
        for name, prop in decl.properties.items():
            if name == "size":
                made.size = prop.value.const
            elif name == "support_timeout":
                made.support_timeout = bool(prop.value.const)
            elif name in ("counters", "meters", "implementation"):
                self.attach(name, prop, decl, made, env)

    def attach(self, name: str, prop: ast.Property, decl: ast.Table, made: ir.Table, env: Env) -> None:
        """Connect a table with its direct counter, direct meter or action profile."""
        if isinstance(prop.value, ast.Call) and isinstance(prop.value.type, t.Extern):
            # counters = direct_counter(CounterType.packets): an instance without a name of its own
            prefix = made.name.rpartition(".")[0]
            own = next((a for a in prop.annotations if a.name == "name"), None)
            own_name = own.args[0].value if own and own.args and isinstance(own.args[0], ast.String) else None
            label = (
                own_name
                or {"counters": "counter", "meters": "meter", "implementation": "action_profile"}[name]
            )
            full = f"{prefix}.{label}" if own_name is None else label
            func = prop.value.func
            type_expr = func.target if isinstance(func, ast.TypeRef) else ast.TypeName(func.pos, func.end, "")
            node = ast.Instance(prop.pos, prop.end, label, type_expr, prop.value.args, prop.value.names)
            node.type = prop.value.type
            instance = self.extern_instance(node, prop.value.type, env, self.names.new(full))
        else:
            found = env.get(prop.value.ref) if isinstance(prop.value, ast.Name) else None
            if not isinstance(found, ir.Extern):
                raise self.refusal(f"this value of '{name}'", prop.value)
            instance = found
        if name == "implementation":
            made.implementation = instance
            return
        if instance.table is not None:
            other = instance.table.name
            raise self.diagnostics.failure(
                f"'{instance.name}' belongs to table '{other}' already and cannot be attached to '{made.name}'",
                prop.pos,
                prop.end,
            )
        instance.table = made
        if name == "counters":
            made.counter = instance
        else:
            made.meter = instance

    def table_of(self, call: ast.Expr, env: Env, body: Body) -> ir.Table:
        """Return the table of `t.apply()`, with its keys computed."""
        assert isinstance(call, ast.Call) and isinstance(call.func, ast.Member)
        name = call.func.expr
        found = env.get(name.ref) if isinstance(name, ast.Name) else None
        if not isinstance(found, ir.Table):
            raise self.refusal("this table", call)
        for copy, element, table_env in self.key_steps.get(found, []):
            value = self.value(element.expr, table_env, body)
            self.assign(copy, value, (element.pos, element.end), body, element)
        return found
