"""Ingress and egress: the control flow graph, tables and conditionals."""

from __future__ import annotations

from typing import Any

from .. import ir
from .. import types as t
from ..errors import Diagnostics
from .expressions import Json, hexstr, plain, stored
from .steps import StepWriter

DEFAULT_SIZE = 1024  # p4c's, for tables that do not say


class PipelineWriter:
    """Links the flow and writes it."""

    def __init__(
        self,
        program: ir.Program,
        steps: StepWriter,
        diagnostics: Diagnostics,
        action_ids: dict[ir.Action, int],
    ) -> None:
        self.program = program
        self.steps = steps
        self.diagnostics = diagnostics
        self.action_ids = action_ids
        self.node_count = 0
        self.table_count = 0
        self.conditional_count = 0
        self.profile_count = 0

    def write(self, pipeline: ir.Pipeline, number: int) -> Json:
        """Write one pipeline."""
        self.tables: dict[ir.Table, Json] = {}
        self.conditionals: list[Json] = []
        self.node_count += 2  # p4c counts the entry and the exit
        self.number(pipeline.body)
        result: Json = {
            "name": pipeline.name,
            "id": number,
            "source_info": self.steps.source_info((pipeline.decl.pos, pipeline.decl.end)),
            "init_table": None,
            "tables": [],
            "action_profiles": [],
            "conditionals": [],
        }
        self.profiles = result["action_profiles"]
        self.order: list[ir.Node] = []
        result["init_table"] = self.link(pipeline.body, None, {None: None})
        result["tables"] = [
            self.tables[n.table] for n in self.flow_order(pipeline.body) if isinstance(n, ir.Apply)
        ]
        result["tables"] = list({id(made): made for made in result["tables"]}.values())
        for at, made in enumerate(result["tables"]):
            made["id"] = self.table_count + at
        self.table_count += len(result["tables"])
        self.conditionals.sort(key=lambda made: int(made["name"].removeprefix("node_")))
        for at, made in enumerate(self.conditionals):
            made["id"] = self.conditional_count + at
        self.conditional_count += len(self.conditionals)
        result["conditionals"] = self.conditionals
        declared = [extern.name for extern in self.program.externs]
        self.profiles.sort(key=lambda made: declared.index(made["name"]))
        for made in self.profiles:
            made["id"] = self.profile_count
            self.profile_count += 1
        return result

    def number(self, nodes: list[ir.Node]) -> None:
        """Name the conditionals in the order of the program, counted together with tables as p4c does."""
        for node in self.flow_order(nodes):
            if isinstance(node, ir.Branch):
                node.name = f"node_{self.node_count}"
            self.node_count += 1

    def flow_order(self, nodes: list[ir.Node]) -> list[ir.Node]:
        """Return tables and conditionals in the order of the program."""
        result: list[ir.Node] = []
        for node in nodes:
            if isinstance(node, ir.Apply):
                result.append(node)
                parts = [node.hit, node.miss, *(body for _, body in node.cases or []), node.otherwise]
                seen: list[list[ir.Node]] = []
                for part in parts:
                    if part and not any(part is other for other in seen):
                        seen.append(part)
                        result.extend(self.flow_order(part))
            elif isinstance(node, ir.Branch):
                result.append(node)
                result.extend(self.flow_order(node.yes))
                result.extend(self.flow_order(node.no))
            elif isinstance(node, ir.Labelled):
                result.extend(self.flow_order(node.body))
        return result

    def link(
        self, nodes: list[ir.Node], following: str | None, labels: dict[object, str | None]
    ) -> str | None:
        """Connect nodes from the last to the first; returns the name of the first."""
        for node in reversed(nodes):
            if isinstance(node, ir.Leave):
                following = labels[node.label]
            elif isinstance(node, ir.Labelled):
                following = self.link(node.body, following, {**labels, node.label: following})
            elif isinstance(node, ir.Branch):
                yes = self.link(node.yes, following, labels)
                no = self.link(node.no, following, labels)
                self.conditional(node, yes, no)
                following = node.name
            elif isinstance(node, ir.Apply):
                following = self.apply(node, following, labels)
            else:
                raise TypeError(type(node).__name__)
        return following

    def conditional(self, node: ir.Branch, yes: str | None, no: str | None) -> None:
        self.conditionals.append(
            {
                "name": node.name,
                "id": 0,
                "source_info": self.steps.source_info(node.span),
                "expression": plain(node.cond),
                "true_next": yes,
                "false_next": no,
            }
        )

    def apply(self, node: ir.Apply, following: str | None, labels: dict[object, str | None]) -> str:
        table = node.table
        base: str | None = following
        targets: dict[str, str | None] = {}
        if any(step.op == "exit" for use in table.actions for step in use.action.steps if table.decl is None):
            following = base = labels[None]
        if node.hit is not None or node.miss is not None:
            base = None
            targets["__HIT__"] = self.link(node.hit or [], following, labels)
            targets["__MISS__"] = self.link(node.miss or [], following, labels)
        else:
            other = self.link(node.otherwise, following, labels) if node.otherwise is not None else following
            ways = [(actions, self.link(body, following, labels)) for actions, body in node.cases or []]
            for use in table.actions:
                chosen = [way for actions, way in ways if use.action in actions]
                targets[use.action.name] = chosen[0] if chosen else other
        present = self.tables.get(table)
        if present is None:
            self.tables[table] = self.table(table, base, targets)
        elif (present["base_default_next"], present["next_tables"]) != (base, targets):
            self.diagnostics.error(
                f"table '{table.name}' is applied in several places with different continuations; "
                "BMv2 has one continuation for each table",
                *(node.span or (None, None)),
            )
        return table.name

    # ---- tables

    def table(self, table: ir.Table, base: str | None, targets: dict[str, str | None]) -> Json:
        size = len(table.entries) if table.entries is not None and table.entries_const else table.size
        result: Json = {"name": table.name, "id": 0}
        if table.span is not None:
            result["source_info"] = self.steps.source_info(table.span)
        result["key"] = [self.key(key) for key in table.keys if key.kind != "selector"]
        result["match_type"] = self.match_type(table)
        simple = self.implementation(table, result)
        result["max_size"] = size or DEFAULT_SIZE
        result["with_counters"] = table.counter is not None
        result["support_timeout"] = table.support_timeout
        result["direct_meters"] = table.meter.name if table.meter is not None else None
        result["action_ids"] = [self.action_ids[use.action] for use in table.actions]
        result["actions"] = [use.action.name for use in table.actions]
        result["base_default_next"] = base
        result["next_tables"] = targets
        self.default_entry(table, result, simple)
        if table.entries is not None:
            result["entries"] = [self.entry(entry, table) for entry in table.entries]
        return result

    def key(self, key: ir.Key) -> Json:
        return {
            "match_type": "ternary" if key.kind == "optional" else key.kind,
            "name": key.name,
            "target": stored(key.value)["value"],
            "mask": None,
        }

    def match_type(self, table: ir.Table) -> str:
        """Return the strongest match type of the keys, in BMv2's order."""
        kinds = [key.kind for key in table.keys]
        if kinds.count("lpm") > 1:
            assert table.decl is not None
            self.diagnostics.error(
                f"table '{table.name}' has more than one lpm key, which BMv2 cannot match",
                table.decl.pos,
                table.decl.end,
            )
        if "range" in kinds:
            return "range"
        if "ternary" in kinds or "optional" in kinds:
            return "ternary"
        return "lpm" if "lpm" in kinds else "exact"

    def implementation(self, table: ir.Table, result: Json) -> bool:
        """Write the action profile that a table uses; True if it uses none."""
        extern = table.implementation
        if extern is None:
            result["type"] = "simple"
            return True
        selector = extern.type.decl.name == "action_selector"
        result["type"] = "indirect_ws" if selector else "indirect"
        result["action_profile"] = extern.name
        inputs = [stored(key.value) for key in table.keys if key.kind == "selector"]
        present = next((p for p in self.profiles if p["name"] == extern.name), None)
        if present is not None:
            if selector and present["selector"]["input"] != inputs:
                assert table.decl is not None
                self.diagnostics.error(
                    f"the tables that share '{extern.name}' must have the same selector keys",
                    table.decl.pos,
                    table.decl.end,
                )
            return False
        made: Json = {
            "name": extern.name,
            "id": 0,
            "source_info": self.steps.source_info((extern.decl.pos, extern.decl.end)),
            "max_size": extern.args["size"],
        }
        if selector:
            made["selector"] = {"algo": extern.args["algorithm"], "input": inputs}
        self.profiles.append(made)
        return False

    def default_entry(self, table: ir.Table, result: Json, simple: bool) -> None:
        if table.default is None:
            return
        if not simple:
            if table.decl is not None and table.decl.default_action is not None:
                self.diagnostics.warn(
                    "unsupported",
                    f"BMv2 takes no default_action for table '{table.name}' (it has an action profile)",
                    table.decl.pos,
                    table.decl.end,
                )
            return
        result["default_entry"] = {
            "action_id": self.action_ids[table.default],
            "action_const": table.default_const,
            "action_data": [hexstr(value) for value in table.default_args],
            "action_entry_const": table.default_const,
        }

    def entry(self, entry: ir.Entry, table: ir.Table) -> Json:
        keys = [
            self.entry_key(k, e, entry.span)
            for k, e in zip(table.keys, entry.keys, strict=True)
            if k.kind != "selector"
        ]
        return {
            "source_info": self.steps.source_info(entry.span),
            "match_key": keys,
            "action_entry": {
                "action_id": self.action_ids[entry.action],
                "action_data": [hexstr(value) for value in entry.args],
            },
            "priority": entry.priority,
        }

    def entry_key(self, key: ir.Key, entry: ir.EntryKey, span: ir.Span) -> Json:
        width = t.width_of(key.value.type) or 1
        full = (1 << width) - 1
        value, extra = entry.value, entry.extra

        def text(number: int) -> str:
            return hexstr(number & full, width)

        if key.kind == "exact":
            assert value is not None
            return {"match_type": "exact", "key": text(value)}
        if key.kind == "range":
            low, high = (0, full) if value is None else (value, value if extra is None else extra)
            return {"match_type": "range", "start": text(low), "end": text(high)}
        mask = 0 if value is None else full if extra is None else extra & full
        shown: dict[str, Any] = {
            "match_type": "ternary",
            "key": text((value or 0) & mask),
            "mask": text(mask),
        }
        if key.kind == "lpm":
            length = mask.bit_count()
            if mask != full ^ (full >> length):
                self.diagnostics.error(f"{hexstr(mask)} is not a prefix mask", *span)
            return {"match_type": "lpm", "key": shown["key"], "prefix_length": length}
        return shown
