"""`ir` to P4Info, the description that P4Runtime clients read (p4runtime specification, chapter 6).

Importing this module imports protobuf, which takes longer than compiling; only who wants P4Info does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from finsy.proto import p4i, p4t

from . import ast, ir
from . import types as t
from .errors import Diagnostics
from .p4ids import Prefix, Symbols
from .p4types import TypeWriter, type_width

# Annotations that have a place of their own in P4Info.
OWN_PLACE = frozenset(["name", "id", "hidden", "brief", "description"])
EXTERN_PREFIXES = {
    "counter": Prefix.COUNTER,
    "direct_counter": Prefix.DIRECT_COUNTER,
    "meter": Prefix.METER,
    "direct_meter": Prefix.DIRECT_METER,
    "register": Prefix.REGISTER,
    "action_profile": Prefix.ACTION_PROFILE,
    "action_selector": Prefix.ACTION_PROFILE,
}
MATCH_TYPES = {
    "exact": p4i.MatchField.EXACT,
    "lpm": p4i.MatchField.LPM,
    "ternary": p4i.MatchField.TERNARY,
    "range": p4i.MatchField.RANGE,
    "optional": p4i.MatchField.OPTIONAL,
}
UNITS = {
    "packets": p4i.CounterSpec.PACKETS,
    "bytes": p4i.CounterSpec.BYTES,
    "packets_and_bytes": p4i.CounterSpec.BOTH,
}


class P4InfoWriter:
    """Writes the P4Info of a program."""

    def __init__(self, program: ir.Program, diagnostics: Diagnostics) -> None:
        self.program = program
        self.diagnostics = diagnostics
        self.symbols = Symbols()
        self.info = p4i.P4Info()
        self.types = TypeWriter(self.info)
        self.tables = [table for table in program.tables if table.decl is not None and not hidden(table.decl)]
        self.actions = self.visible_actions()
        self.externs = [
            extern
            for extern in program.externs
            if extern.type.decl.name in EXTERN_PREFIXES
            and not hidden(extern.decl)
            and not self.is_loose(extern)
        ]

    @staticmethod
    def is_loose(extern: ir.Extern) -> bool:
        """Say whether a direct resource belongs to no table."""
        return extern.type.decl.name.startswith("direct_") and extern.table is None

    def visible_actions(self) -> list[ir.Action]:
        """Return every declared action once: NoAction first, the others in the order of the program."""
        found: dict[str, ir.Action] = {}
        for action in self.program.actions:
            if action.decl is not None and not hidden(action.decl):
                found.setdefault(action.name, action)
        return sorted(found.values(), key=lambda a: (a.name != "NoAction", a.decl.pos if a.decl else 0))

    def write(self) -> p4i.P4Info:
        """Write everything."""
        self.package()
        self.collect()
        self.symbols.assign()
        for table in sorted(self.tables, key=self.table_order):
            self.table(table)
        for action in self.actions:
            self.action(action)
        for extern in self.externs:
            self.extern(extern)
        for header in self.program.controller_headers:
            self.controller_header(header)
        for value_set in self.program.value_sets:
            self.value_set(value_set)
        for name, kind in self.program.digests:
            self.digest(name, kind)
        self.info.type_info.SetInParent()
        return self.info

    def table_order(self, table: ir.Table) -> tuple[int, int]:
        """Order tables as the program does, ingress first."""
        pipeline = next(
            (
                n
                for n, p in enumerate(self.program.pipelines)
                if table.name.startswith(block_name(p.decl) + ".")
            ),
            9,
        )
        return pipeline, self.program.tables.index(table)

    # ---- symbols

    def collect(self) -> None:
        for table in self.tables:
            assert table.decl is not None
            self.symbol(Prefix.TABLE, table.name, table.decl)
        for action in self.actions:
            assert action.decl is not None
            self.symbol(Prefix.ACTION, action.name, action.decl)
        for extern in self.externs:
            self.symbol(EXTERN_PREFIXES[extern.type.decl.name], extern.name, extern.decl)
        for header in self.program.controller_headers:
            self.symbol(Prefix.CONTROLLER_HEADER, header.control_name(), header.decl)
        for value_set in self.program.value_sets:
            self.symbol(Prefix.VALUE_SET, value_set.name, value_set.decl)
        for name, _ in self.program.digests:
            self.symbols.add(Prefix.DIGEST, name)

    def symbol(self, prefix: Prefix, name: str, decl: ast.Decl) -> None:
        given = given_id(decl.annotations)
        if given is not None and given >> 24 and given >> 24 != prefix:
            self.diagnostics.error(
                f"@id({hex(given)}) of '{name}' has the wrong prefix; a {prefix.name.lower()} has {hex(prefix)}",
                decl.pos,
                decl.end,
            )
            given = None
        if not self.symbols.add(prefix, name, given):
            self.diagnostics.error(f"@id({given}) of '{name}' is taken", decl.pos, decl.end)
            self.symbols.add(prefix, name)

    def preamble(self, target: Any, prefix: Prefix, name: str, annotations: Sequence[ast.Annotation]) -> None:
        preamble = target.preamble
        preamble.id = self.symbols.id(prefix, name)
        preamble.name = name
        preamble.alias = self.symbols.alias(name)
        self.annotate(preamble, annotations)

    def annotate(
        self, target: Any, annotations: Iterable[ast.Annotation], without: frozenset[str] = OWN_PLACE
    ) -> None:
        for annotation in annotations:
            if annotation.name in ("brief", "description") and hasattr(target, "doc") and annotation.args:
                text = annotation.args[0]
                if isinstance(text, ast.String):
                    setattr(target.doc, annotation.name, text.value)
            if annotation.name in without:
                continue
            target.annotations.append(annotation_text(annotation))

    # ---- package

    def package(self) -> None:
        package = self.info.pkg_info
        package.arch = "v1model"
        if self.program.main is None:
            return
        for annotation in self.program.main.annotations:
            if annotation.name != "pkginfo":
                continue
            for argument in annotation.args:
                if isinstance(argument, ast.StructExpr) and isinstance(argument.items[0], ast.String):
                    key = argument.names[0]
                    if key in ("name", "version", "organization", "contact", "url", "arch"):
                        setattr(package, key, argument.items[0].value)
                    else:
                        self.diagnostics.warn(
                            "unknown", f"@pkginfo has no field '{key}'", argument.pos, argument.end
                        )
        self.annotate(package, self.program.main.annotations, OWN_PLACE | {"pkginfo"})

    # ---- tables and actions

    def table(self, table: ir.Table) -> None:
        assert table.decl is not None
        made = self.info.tables.add()
        self.preamble(made, Prefix.TABLE, table.name, table.decl.annotations)
        keys = [key for key in table.keys if key.kind != "selector"]
        for number, key in zip(
            field_ids([k.element.annotations for k in table.keys]), table.keys, strict=True
        ):
            if key in keys:
                self.match_field(made, key, number)
        for use in table.actions:
            ref = made.action_refs.add()
            ref.id = self.symbols.id(Prefix.ACTION, use.action.name)
            self.annotate(ref, use.annotations)
            names = [annotation.name for annotation in use.annotations]
            if "defaultonly" in names:
                ref.scope = p4i.ActionRef.DEFAULT_ONLY
            elif "tableonly" in names:
                ref.scope = p4i.ActionRef.TABLE_ONLY
        if table.default_const and table.default is not None:
            made.const_default_action_id = self.symbols.id(Prefix.ACTION, table.default.name)
        if table.implementation is not None and table.implementation in self.externs:
            made.implementation_id = self.symbols.id(Prefix.ACTION_PROFILE, table.implementation.name)
        for extern, prefix in ((table.counter, Prefix.DIRECT_COUNTER), (table.meter, Prefix.DIRECT_METER)):
            if extern is not None and extern in self.externs:
                made.direct_resource_ids.append(self.symbols.id(prefix, extern.name))
        made.size = (len(table.entries) if table.entries_const and table.entries else table.size) or 1024
        if table.support_timeout:
            made.idle_timeout_behavior = p4i.Table.NOTIFY_CONTROL
        made.is_const_table = table.entries is not None and table.entries_const

    def match_field(self, made: p4i.Table, key: ir.Key, number: int) -> None:
        field = made.match_fields.add()
        field.id = number
        field.name = key.name
        self.annotate(field, key.element.annotations)
        field.bitwidth = type_width(key.type)
        if key.kind in MATCH_TYPES:
            field.match_type = MATCH_TYPES[key.kind]
        else:
            field.other_match_type = key.kind
        self.types.name_type(field, key.type)

    def action(self, action: ir.Action) -> None:
        assert action.decl is not None
        made = self.info.actions.add()
        self.preamble(made, Prefix.ACTION, action.name, action.decl.annotations)
        # What has a direction is bound by the program; the control plane gives the rest.
        params = [param for param in action.decl.params if not param.direction]
        for number, param in zip(field_ids([p.annotations for p in params]), params, strict=True):
            shown = made.params.add()
            shown.id = number
            shown.name = t.annotated_name(param) or param.name
            self.annotate(shown, param.annotations)
            shown.bitwidth = type_width(param.type)
            self.types.name_type(shown, param.type)

    # ---- externs

    def extern(self, extern: ir.Extern) -> None:
        writers: dict[str, Callable[[ir.Extern], None]] = {
            "counter": self.counter,
            "direct_counter": self.direct_counter,
            "meter": self.meter,
            "direct_meter": self.direct_meter,
            "register": self.register,
            "action_profile": self.action_profile,
            "action_selector": self.action_profile,
        }
        writers[extern.type.decl.name](extern)

    def counter(self, extern: ir.Extern) -> None:
        made = self.info.counters.add()
        self.preamble(made, Prefix.COUNTER, extern.name, extern.decl.annotations)
        made.spec.unit = UNITS[str(extern.args["type"])]
        made.size = int(str(extern.args["size"]))
        self.index_type(made, extern, 0)

    def direct_counter(self, extern: ir.Extern) -> None:
        assert extern.table is not None
        made = self.info.direct_counters.add()
        self.preamble(made, Prefix.DIRECT_COUNTER, extern.name, extern.decl.annotations)
        made.spec.unit = UNITS[str(extern.args["type"])]
        made.direct_table_id = self.symbols.id(Prefix.TABLE, extern.table.name)

    def meter(self, extern: ir.Extern) -> None:
        made = self.info.meters.add()
        self.preamble(made, Prefix.METER, extern.name, extern.decl.annotations)
        made.spec.unit = p4i.MeterSpec.PACKETS if extern.args["type"] == "packets" else p4i.MeterSpec.BYTES
        made.size = int(str(extern.args["size"]))
        self.index_type(made, extern, 0)

    def direct_meter(self, extern: ir.Extern) -> None:
        assert extern.table is not None
        made = self.info.direct_meters.add()
        self.preamble(made, Prefix.DIRECT_METER, extern.name, extern.decl.annotations)
        made.spec.unit = p4i.MeterSpec.PACKETS if extern.args["type"] == "packets" else p4i.MeterSpec.BYTES
        made.direct_table_id = self.symbols.id(Prefix.TABLE, extern.table.name)

    def register(self, extern: ir.Extern) -> None:
        made = self.info.registers.add()
        self.preamble(made, Prefix.REGISTER, extern.name, extern.decl.annotations)
        made.type_spec.CopyFrom(self.types.spec(extern.type.args[0]))
        made.size = int(str(extern.args["size"]))
        self.index_type(made, extern, 1)

    def index_type(self, made: Any, extern: ir.Extern, at: int) -> None:
        if len(extern.type.args) > at and isinstance(extern.type.args[at], t.NewType):
            self.types.spec(extern.type.args[at])
            made.index_type_name.name = str(extern.type.args[at])

    def action_profile(self, extern: ir.Extern) -> None:
        made = self.info.action_profiles.add()
        self.preamble(
            made,
            Prefix.ACTION_PROFILE,
            extern.name,
            [a for a in extern.decl.annotations if a.name != "max_group_size"],
        )
        for table in self.tables:
            if table.implementation is extern:
                made.table_ids.append(self.symbols.id(Prefix.TABLE, table.name))
        made.with_selector = extern.type.decl.name == "action_selector"
        made.size = int(str(extern.args["size"]))
        limit = extern.decl.annotation("max_group_size")
        if limit is not None and limit.args and isinstance(limit.args[0], ast.Number):
            made.max_group_size = limit.args[0].value

    # ---- headers, value sets, digests

    def controller_header(self, header: t.StructLike) -> None:
        annotation = header.decl.annotation("controller_header")
        assert annotation is not None
        if not annotation.args or not isinstance(annotation.args[0], ast.String):
            self.diagnostics.error(
                '@controller_header needs a name, as in ("packet_in")', annotation.pos, annotation.end
            )
            return
        made = self.info.controller_packet_metadata.add()
        made.preamble.id = self.symbols.id(Prefix.CONTROLLER_HEADER, header.control_name())
        made.preamble.name = made.preamble.alias = annotation.args[0].value
        self.annotate(made.preamble, header.decl.annotations)
        fields = header.decl.fields
        for number, field in zip(field_ids([f.annotations for f in fields]), fields, strict=True):
            if hidden(field):
                continue
            shown = made.metadata.add()
            shown.id = number
            shown.name = t.annotated_name(field) or field.name
            self.annotate(shown, field.annotations)
            shown.bitwidth = type_width(header.fields[field.name])
            self.types.name_type(shown, header.fields[field.name])

    def value_set(self, value_set: ir.ValueSet) -> None:
        made = self.info.value_sets.add()
        self.preamble(made, Prefix.VALUE_SET, value_set.name, value_set.decl.annotations)
        made.size = value_set.size
        kind = value_set.type
        if isinstance(kind, t.StructLike):
            fields = kind.decl.fields
            for number, field in zip(field_ids([f.annotations for f in fields]), fields, strict=True):
                match = made.match.add()
                match.id, match.name, match.bitwidth = number, field.name, type_width(kind.fields[field.name])
                match.match_type = p4i.MatchField.EXACT
                annotation = field.annotation("match")
                if annotation is not None and annotation.args and isinstance(annotation.args[0], ast.Name):
                    match.match_type = MATCH_TYPES.get(annotation.args[0].name, p4i.MatchField.EXACT)
                self.annotate(match, field.annotations, OWN_PLACE | {"match"})
            return
        match = made.match.add()
        match.id, match.bitwidth, match.match_type = 1, type_width(kind), p4i.MatchField.EXACT

    def digest(self, name: str, kind: t.Type) -> None:
        made = self.info.digests.add()
        self.preamble(made, Prefix.DIGEST, name, [])
        made.type_spec.CopyFrom(self.types.spec(kind))


def hidden(decl: ast.Decl) -> bool:
    """Say whether a declaration is @hidden."""
    return decl.annotation("hidden") is not None


def block_name(decl: ast.Decl) -> str:
    """Return the control-plane name of a control."""
    return t.annotated_name(decl) or decl.name


def given_id(annotations: Sequence[ast.Annotation]) -> int | None:
    """Return what @id says."""
    for annotation in annotations:
        if annotation.name == "id" and annotation.args and isinstance(annotation.args[0], ast.Number):
            return annotation.args[0].value
    return None


def field_ids(annotations: Sequence[Sequence[ast.Annotation]]) -> list[int]:
    """Number fields from 1, around those that @id has taken (as p4c does)."""
    given = [given_id(own) for own in annotations]
    taken = {number for number in given if number is not None}
    result = []
    following = 1
    for number in given:
        if number is not None:
            result.append(number)
            following += 1
            continue
        while following in taken:
            following += 1
        taken.add(following)
        result.append(following)
    return result


def annotation_text(annotation: ast.Annotation) -> str:
    """Write an annotation as P4Info has it."""
    if annotation.body is None:
        return f"@{annotation.name}"
    body = annotation.body
    text = "".join(f"{part} " if part == "," else part for part in body)
    return f"@{annotation.name}[{text}]" if annotation.structured else f"@{annotation.name}({text})"


def to_p4info(program: ir.Program, diagnostics: Diagnostics) -> p4i.P4Info:
    """Write a program's P4Info; raises CompileError for annotations that contradict each other."""
    before = diagnostics.error_count
    info = P4InfoWriter(program, diagnostics).write()
    if diagnostics.error_count > before:
        diagnostics.check()
    return info


__all__ = ["annotation_text", "field_ids", "p4t", "to_p4info"]
