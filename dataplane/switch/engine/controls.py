"""Tables and controls: one C function per table, and one per control that walks its graph with gotos."""

from __future__ import annotations

from collections.abc import Mapping

from dataplane.switch.engine.actions import data_name
from dataplane.switch.engine.bmv2 import Action, Call, Conditional, Control, Key, Program, Table, refuse
from dataplane.switch.engine.expressions import Expr, Kind, Translator, valid_bit
from dataplane.switch.engine.layout import MAX_MASKS, expanded_size, key_layout, row_actions, row_layout
from dataplane.switch.engine.names import Names, container, declare, identifier, is_wide


class TableWriter:
    """Writes the maps and the apply function of one table; `name` is its C name, also that of its map."""

    def __init__(self, program: Program, table: Table, name: str, actions: Mapping[int, str]) -> None:
        self.program = program
        self.table = table
        self.name = name
        self.actions = actions
        self.layout = key_layout(table)
        self.rows = row_layout(table)
        names = Names()
        self.components = [names.unique(key.name.removeprefix("hdr.")) for key in table.keys]

    @property
    def fixed_default(self) -> bool:
        """Tell whether the default action is known when the code is generated."""
        return self.table.default_const

    def declarations(self) -> str:
        """Return the structs and maps."""
        parts = [f"/* table {self.table.name}, {self.table.position} */"]
        if self.table.keys or not self.fixed_default:
            parts.append(self._row_struct())
        if self.table.keys:
            parts += [self._key_struct(), self._map()]
            if self.table.kind == "ternary":
                parts.append(self._masks())
            if self.table.with_counters:
                parts.append(f"COUNTERS({self.name}_counters, {self.table.size});")
            if self.table.with_timeout:
                parts.append(f"TIMES({self.name}_hits, {self.table.size});")
        if not self.fixed_default:
            parts.append(f"SINGLE({self.name}_default, struct {self.name}_row);")
        return "\n".join(parts)

    def _row_struct(self) -> str:
        actions = [action for action in row_actions(self.table) if action.params]
        lines = [f"struct {self.name}_row {{", "\tu32 action;", "\tu32 cell;"]
        if self.rows.with_priority:
            lines += ["\tu32 priority;", "\tu32 zero;"]
        if actions:
            lines.append("\tunion {")
            for action in actions:
                lines.append(f"\t\tstruct {data_name(self.actions[action.id])} {self.actions[action.id]};")
            lines.append("\t};")
        return "\n".join([*lines, "} __attribute__((aligned(8)));", self._assert("row", self.rows.size)])

    def _assert(self, what: str, size: int) -> str:
        return f'_Static_assert(sizeof(struct {self.name}_{what}) == {size}, "as the loader sees it");'

    def _key_struct(self) -> str:
        """Return the struct of the map's key, with all padding named."""
        members: list[tuple[int, int, str]] = []
        for key, slot, component in zip(self.table.keys, self.layout.slots, self.components, strict=True):
            members.append((slot.offset, slot.size, declare(component, key.width)))
        if self.layout.kind == "lpm":
            members.append((0, 4, "u32 prefix_length"))
        if self.layout.kind == "ternary":
            members += [(0, 4, "u32 mask_number"), (4, 4, "u32 zero")]
        lines, end, pads = [], 0, 0
        for offset, size, code in sorted(members):
            if offset > end:
                lines.append(f"\tu8 padding{pads}[{offset - end}];")
                pads += 1
            lines.append(f"\t{code};")
            end = offset + size
        if self.layout.size > end:
            lines.append(f"\tu8 padding{pads}[{self.layout.size - end}];")
        struct = "\n".join([f"struct {self.name}_key {{", *lines, "} __attribute__((aligned(8)));"])
        return (
            struct.replace("aligned(8)", f"packed, aligned({self._alignment()})")
            + "\n"
            + self._assert("key", self.layout.size)
        )

    def _alignment(self) -> int:
        return next(power for power in (8, 4, 2, 1) if self.layout.size % power == 0)

    def _map(self) -> str:
        kind = {"exact": "EXACT", "lpm": "LPM", "ternary": "EXACT"}[self.table.kind]
        size = self.table.size
        if self.table.kind == "ternary":
            # A range takes several rows; the declared size is kept by the control plane.
            size = expanded_size(self.table)
        return f"{kind}({self.name}, struct {self.name}_key, struct {self.name}_row, {size});"

    def _masks(self) -> str:
        return "\n".join(
            [
                f"struct {self.name}_masks {{",
                "\tu32 count;",
                "\tu32 zero;",
                "\tstruct {",
                "\t\tu32 number;",
                "\t\tu32 priority;  /* of the best row under this mask */",
                f"\t\tu64 mask[{self.layout.words}];",
                f"\t}} masks[{MAX_MASKS}];  /* best priority first */",
                "};",
                f"SINGLE({self.name}_masks, struct {self.name}_masks);",
            ]
        )

    def function(self) -> str:
        """Return the apply function: it runs the action and returns its id, with HIT set on a hit."""
        body: list[str] = []
        if not self.table.keys and self.fixed_default:
            body += self._run_fixed()
        else:
            body += self._lookup() if self.table.keys else [f"struct {self.name}_row *row = NULL;"]
            body += ["u32 hit = 0;", "", "if (row) {", "\thit = HIT;"]
            if self.table.keys and self.table.with_counters:
                body.append(f"\tcount(p, bpf_map_lookup_elem(&{self.name}_counters, &row->cell));")
            if self.table.keys and self.table.with_timeout:
                body.append(f"\thit_now(bpf_map_lookup_elem(&{self.name}_hits, &row->cell));")
            body += ["} else {", *(f"\t{line}" for line in self._miss()), "}", *self._dispatch()]
        head = f"/* table {self.table.name}, {self.table.position} */"
        signature = f"static __always_inline u32 {self.name}_apply(struct __sk_buff *skb, struct packet *p)"
        return "\n".join([head, signature, "{", *(f"\t{line}" for line in body), "}"])

    def _lookup(self) -> list[str]:
        lines = [f"struct {self.name}_key *key = (void *)&p->key;"]
        lines.append("__builtin_memset(key, 0, sizeof(*key));")
        if self.layout.kind == "lpm":
            assert self.layout.lpm is not None
            bits = self.layout.front_bits + self.table.keys[self.layout.lpm].width
            lines.append(f"key->prefix_length = {bits};")
        for index, key in enumerate(self.table.keys):
            lines += self._component(index, key)
        if self.table.kind == "ternary":
            return [*lines, *self._search()]
        return [*lines, f"struct {self.name}_row *row = bpf_map_lookup_elem(&{self.name}, key);"]

    def _component(self, index: int, key: Key) -> list[str]:
        target = f"key->{self.components[index]}"
        expr = self._key_value(key)
        if expr.kind is Kind.WIDE:
            if key.mask is not None:
                refuse(
                    self.table.position,
                    f"a fixed mask on key {key.name} of more than 64 bits is not supported",
                )
            return [f"__builtin_memcpy({target}, {expr.code}, {container(key.width)});"]
        code = expr.code if key.mask is None else f"({expr.code} & {key.mask:#x}ULL)"
        if index == self.layout.lpm:
            size = container(key.width)
            shift = size * 8 - key.width
            shifted = f"(u{size * 8})({code}) << {shift}" if shift else code
            code = f"to_network{size * 8}({shifted})" if size > 1 else shifted
        return [f"{target} = {code};"]

    def _key_value(self, key: Key) -> Expr:
        translator = Translator(self.program, self.table.position)
        if key.field == "$valid$":
            header = self.program.header(key.header, self.table.position)
            return Expr(f"is_valid(p, {valid_bit(header)})", Kind.BITS, 1)
        expr = translator.field(key.header, key.field)
        if expr.kind is Kind.SIGNED:
            return Expr(f"({expr.code} & {(1 << key.width) - 1:#x}ULL)", Kind.BITS, key.width)
        return expr

    def _search(self) -> list[str]:
        """Return the search over the masks, best priority first, until no better row can come."""
        words = self.layout.words
        apply = [
            f"\t\t\t*(u64 *)((void *)key + {8 + 8 * word}) = full[{word}] & masks->masks[i].mask[{word}];"
            for word in range(words)
        ]
        return [
            f"u64 full[{words}];",
            f"__builtin_memcpy(full, (void *)key + 8, {8 * words});",
            f"struct {self.name}_row *row = NULL;",
            f"const struct {self.name}_masks *masks = bpf_map_lookup_elem(&{self.name}_masks, &(u32){{0}});",
            "if (masks) {",
            "\t#pragma clang loop unroll(disable)",
            # 64 bits, so that verifiers before 5.16 know the counter even where it is spilled
            f"\tfor (u64 i = 0; i < {MAX_MASKS}; i++) {{",
            "\t\tif (i >= masks->count || (row && row->priority >= masks->masks[i].priority))",
            "\t\t\tbreak;",
            "\t\tkey->mask_number = masks->masks[i].number;",
            *(line[1:] for line in apply),
            f"\t\tstruct {self.name}_row *found = bpf_map_lookup_elem(&{self.name}, key);",
            "\t\tif (found && (!row || found->priority > row->priority))",
            "\t\t\trow = found;",
            "\t}",
            "}",
        ]

    def _miss(self) -> list[str]:
        if not self.fixed_default:
            return [
                f"row = bpf_map_lookup_elem(&{self.name}_default, &(u32){{0}});",
                "if (!row)",
                "\treturn NO_ACTION;",
            ]
        return self._run_fixed()

    def _run_fixed(self) -> list[str]:
        call = self.table.default
        if call is None:
            return ["return NO_ACTION;"]
        return [*self.call(call), f"return {call.action.id};"]

    def call(self, call: Call) -> list[str]:
        """Return the call of an action with constant data."""
        name = self.actions[call.action.id]
        if not call.action.params:
            return [f"{name}(skb, p);"]
        values = []
        for param, value in zip(call.action.params, call.data, strict=True):
            code = f"{value:#x}{'ULL' if value >> 31 else ''}"
            if is_wide(param.width):
                code = "{" + ", ".join(f"{b:#x}" for b in value.to_bytes(container(param.width), "big")) + "}"
            values.append(f".{identifier(param.name)} = {code}")
        return [
            f"const struct {data_name(name)} data = {{ {', '.join(values)} }};",
            f"{name}(skb, p, &data);",
        ]

    def _dispatch(self) -> list[str]:
        lines = ["switch (row->action) {"]
        for action in row_actions(self.table):
            name = self.actions[action.id]
            data = f", &row->{name}" if action.params else ""
            lines += [f"case {action.id}:", f"\t{name}(skb, p{data});", "\tbreak;"]
        return [*lines, "}", "return row->action | hit;"]


class ControlWriter:
    """Writes the function of one control."""

    def __init__(self, program: Program, control: Control, writers: Mapping[str, TableWriter]) -> None:
        self.program = program
        self.control = control
        self.writers = writers
        names = Names()
        self.labels = {name: names.unique(f"at_{name}") for name in (*control.tables, *control.conditionals)}

    def function(self) -> str:
        """Return the control as a function."""
        control = self.control
        lines = [
            f"static __always_inline void control_{identifier(control.name)}"
            "(struct __sk_buff *skb, struct packet *p)",
            "{",
        ]
        body: list[str] = []
        order = self._order()
        if order:
            body += ["u32 done;", "", f"goto {self.labels[order[0]]};"]
        for name in order:
            body.append(f"{self.labels[name]}:")
            if name in control.tables:
                body += [f"\t{line}" for line in self._table(control.tables[name])]
            else:
                body += [f"\t{line}" for line in self._conditional(control.conditionals[name])]
        for line in body:
            lines.append(line if line.startswith("at_") or not line else f"\t{line.removeprefix(chr(9))}")
        return "\n".join([*lines, "}"])

    def _order(self) -> list[str]:
        """Order the reachable nodes so that every goto goes forward."""
        order: list[str] = []
        seen: set[str] = set()

        def visit(name: str | None) -> None:
            if name is None or name in seen:
                return
            seen.add(name)
            for following in self._successors(name):
                visit(following)
            order.append(name)

        visit(self.control.init)
        return order[::-1]

    def _successors(self, name: str) -> list[str | None]:
        if name in self.control.conditionals:
            node = self.control.conditionals[name]
            return [node.true_next, node.false_next]
        table = self.control.tables[name]
        return [*table.next_by_action.values(), table.base_default_next]

    def _goto(self, name: str | None) -> str:
        return "return;" if name is None else f"goto {self.labels[name]};"

    def _conditional(self, node: Conditional) -> list[str]:
        condition = Translator(self.program, node.position).truth(node.expression)
        return [
            f"if ({condition})  /* {node.position} */",
            f"\t{self._goto(node.true_next)}",
            self._goto(node.false_next),
        ]

    def _table(self, table: Table) -> list[str]:
        writer = self.writers[table.name]
        lines = [f"done = {writer.name}_apply(skb, p);"]
        if any(_exits(action) for action in row_actions(table)):
            lines += ["if (p->exited)", "\treturn;"]
        following = dict(table.next_by_action)
        if "__HIT__" in following or "__MISS__" in following:
            hit, miss = following.get("__HIT__"), following.get("__MISS__", table.base_default_next)
            if hit == miss:
                return [*lines, self._goto(hit)]
            return [*lines, "if (done & HIT)", f"\t{self._goto(hit)}", self._goto(miss)]
        targets = {following.get(action.name, table.base_default_next) for action in row_actions(table)}
        if len(targets) == 1 and (table.default or targets == {table.base_default_next}):
            return [*lines, self._goto(next(iter(targets)))]
        lines.append("switch (done & ~HIT) {")
        for action in row_actions(table):
            target = following.get(action.name, table.base_default_next)
            lines += [f"case {action.id}:", f"\t{self._goto(target)}"]
        return [*lines, "}", self._goto(table.base_default_next)]


def _exits(action: Action) -> bool:
    return any(node["op"] == "exit" for node in action.primitives)
