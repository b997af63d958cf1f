"""The whole JSON document."""

from __future__ import annotations

from typing import Any

from .. import ir
from .. import types as t
from ..errors import Diagnostics
from .expressions import Json, constant, hexstr, plain, stored
from .headers import HeaderWriter
from .pipelines import PipelineWriter
from .steps import StepWriter

SECTIONS = (
    "header_types", "headers", "header_stacks", "header_union_types", "header_unions", "header_union_stacks",
    "field_lists", "errors", "enums", "parsers", "parse_vsets", "deparsers", "meter_arrays", "counter_arrays",
    "register_arrays", "calculations", "learn_lists", "actions", "pipelines", "checksums", "force_arith",
    "extern_instances", "field_aliases",
)  # fmt: skip
VERSION = [2, 23]


class ProgramWriter:
    """Writes a program section by section."""

    def __init__(self, program: ir.Program, diagnostics: Diagnostics) -> None:
        self.program = program
        self.diagnostics = diagnostics
        self.steps = StepWriter(diagnostics.sources)
        self.output: Json = {section: [] for section in SECTIONS}
        self.action_ids: dict[ir.Action, int] = {}

    def write(self, file_name: str) -> Json:
        """Write everything."""
        program, output = self.program, self.output
        output["program"] = file_name
        output["__meta__"] = {"version": VERSION, "compiler": "p4ferry-p4c"}
        output["errors"] = [[name, number] for number, name in enumerate(program.errors)]
        output["enums"] = [
            {"name": enum.name, "entries": [[m, i] for i, m in enumerate(enum.members)]}
            for enum in program.enums
        ]
        HeaderWriter(program, output, self.diagnostics).write()
        self.lists()
        self.parser()
        self.actions()
        pipelines = PipelineWriter(program, self.steps, self.diagnostics, self.action_ids)
        output["pipelines"] = [pipelines.write(p, n) for n, p in enumerate(program.pipelines)]
        self.deparser()
        self.externs()
        self.calculations()
        return output

    # ---- lists and calculations

    def lists(self) -> None:
        """Write learn and field lists; their numbers start at 1, because 0 means none."""
        for section, lists in (
            ("learn_lists", self.program.learn_lists),
            ("field_lists", self.program.field_lists),
        ):
            for number, made in enumerate(lists, 1):
                item: Json = {"id": number, "name": made.name}
                if made.span is not None:
                    item["source_info"] = self.steps.source_info(made.span)
                item["elements"] = [stored(element) for element in made.elements]
                self.output[section].append(item)

    def calculations(self) -> None:
        for number, made in enumerate(self.program.calculations):
            item: Json = {"name": made.name, "id": number}
            if made.span is not None:
                item["source_info"] = self.steps.source_info(made.span)
            item["algo"] = made.algorithm
            item["input"] = [self.calculation_input(value) for value in made.inputs]
            if made.with_payload:
                item["input"].append({"type": "payload", "value": None})
            self.output["calculations"].append(item)
        for number, checksum in enumerate(self.program.checksums):
            self.output["checksums"].append(
                {
                    "name": checksum.name,
                    "id": number,
                    "source_info": self.steps.source_info(checksum.span),
                    "target": stored(checksum.target)["value"],
                    "type": "generic",
                    "calculation": checksum.calculation.name,
                    "verify": not checksum.update,
                    "update": checksum.update,
                    "if_cond": plain(checksum.condition),
                }
            )

    @staticmethod
    def calculation_input(value: ir.Expr) -> Json:
        if isinstance(value, ir.Const):
            if value.type is t.BOOL:
                return {"type": "hexstr", "value": hexstr(int(value.value), 1), "bitwidth": 1}
            return constant(value, with_width=True)
        return stored(value)

    # ---- parser and deparser

    def parser(self) -> None:
        states = [self.state(state, number) for number, state in enumerate(self.program.states)]
        self.output["parsers"].append(
            {"name": "parser", "id": 0, "init_state": "start", "parse_states": states}
        )
        for number, made in enumerate(self.program.value_sets):
            self.output["parse_vsets"].append(
                {
                    "name": made.name,
                    "id": number,
                    "compressed_bitwidth": t.width_of(made.type),
                    "max_size": made.size,
                }
            )

    def state(self, state: ir.State, number: int) -> Json:
        widths = [t.width_of(key.type) or 1 for key in state.keys]
        return {
            "name": state.name,
            "id": number,
            "parser_ops": [self.steps.parser_op(step) for step in state.steps],
            "transitions": [self.transition(case, widths) for case in state.cases],
            "transition_key": [stored(key) for key in state.keys],
        }

    @staticmethod
    def transition(case: ir.Case, widths: list[int]) -> Json:
        """Write a way out of a state: keys are padded to bytes and put one behind the other."""
        if case.value_set is not None:
            return {
                "type": "parse_vset",
                "value": case.value_set,
                "mask": None,
                "next_state": case.next_state,
            }
        if all(key.value is None for key in case.keys):
            return {"type": "default", "value": None, "mask": None, "next_state": case.next_state}
        value = mask = total = 0
        exact = True
        for key, width in zip(case.keys, widths, strict=True):
            size = (width + 7) // 8 * 8
            full = (1 << width) - 1
            own = 0 if key.value is None else full if key.extra is None else key.extra & full
            exact = exact and own == full
            value = value << size | ((key.value or 0) & own)
            mask = mask << size | own
            total += size
        return {
            "type": "hexstr",
            "value": hexstr(value, total),
            "mask": None if exact else hexstr(mask, total),
            "next_state": case.next_state,
        }

    def deparser(self) -> None:
        decl = self.program.deparser
        if decl is None:
            return
        self.output["deparsers"].append(
            {
                "name": "deparser",
                "id": 0,
                "source_info": self.steps.source_info((decl.pos, decl.end)),
                "order": self.program.deparser_order,
                "primitives": [self.steps.primitive(step) for step in self.program.deparser_steps],
            }
        )

    # ---- actions and externs

    def actions(self) -> None:
        for number, action in enumerate(self.program.actions):
            self.action_ids[action] = number
            self.output["actions"].append(
                {
                    "name": action.name,
                    "id": number,
                    "runtime_data": [{"name": p.name, "bitwidth": t.width_of(p.type)} for p in action.params],
                    "primitives": [self.steps.primitive(step) for step in action.steps],
                }
            )

    def externs(self) -> None:
        writers = {
            "counter": self.counter,
            "direct_counter": self.counter,
            "meter": self.meter,
            "direct_meter": self.meter,
            "register": self.register,
        }
        for extern in self.program.externs:
            writer = writers.get(extern.type.decl.name)
            if writer is not None:
                writer(extern)

    def described(self, section: str, extern: ir.Extern) -> Json:
        """Begin the description of an array."""
        return {
            "name": extern.name,
            "id": len(self.output[section]),
            "source_info": self.steps.source_info((extern.decl.pos, extern.decl.end)),
        }

    def counter(self, extern: ir.Extern) -> None:
        made = self.described("counter_arrays", extern)
        if extern.type.decl.name == "direct_counter":
            if extern.table is None:
                return
            made.update({"is_direct": True, "binding": extern.table.name})
        else:
            made.update({"size": extern.args["size"], "is_direct": False})
        self.output["counter_arrays"].append(made)

    def meter(self, extern: ir.Extern) -> None:
        made = self.described("meter_arrays", extern)
        direct = extern.type.decl.name == "direct_meter"
        if direct and extern.table is None:
            return
        made["is_direct"] = direct
        made["rate_count"] = 2
        made["type"] = extern.args["type"]
        if extern.table is not None:
            made["size"] = extern.table.size or 1024
            made["binding"] = extern.table.name
            result: Any = stored(extern.result)["value"] if extern.result is not None else None
            made["result_target"] = result
        else:
            made["size"] = extern.args["size"]
        self.output["meter_arrays"].append(made)

    def register(self, extern: ir.Extern) -> None:
        made = self.described("register_arrays", extern)
        made["size"] = extern.args["size"]
        made["bitwidth"] = t.width_of(extern.type.args[0])
        self.output["register_arrays"].append(made)


def to_json(program: ir.Program, diagnostics: Diagnostics, file_name: str) -> Json:
    """Write a program as BMv2 JSON."""
    return ProgramWriter(program, diagnostics).write(file_name)
