"""Header types and instances."""

from __future__ import annotations

from typing import Any

from .. import ast, ir
from .. import types as t
from ..errors import Diagnostics
from .expressions import Json

SCALARS_TYPE = "scalars_0"


class HeaderWriter:
    """Fills in header_types, headers, header_stacks and header_unions."""

    def __init__(self, program: ir.Program, output: Json, diagnostics: Diagnostics) -> None:
        self.program = program
        self.output = output
        self.diagnostics = diagnostics
        self.types: dict[str, Json] = {}
        self.union_types: set[str] = set()

    def write(self) -> None:
        """Write everything."""
        self.scalars()
        standard = self.program.standard_metadata
        assert standard is not None
        self.header_type(standard)
        self.aliases(standard)
        self.instance("scalars", SCALARS_TYPE, metadata=True)
        self.instance("standard_metadata", standard.control_name(), metadata=True)
        for made in self.program.headers:
            if made.kind == "metadata":
                self.varbit(made)
            elif made.kind == "stack":
                assert isinstance(made.type, t.Stack)
                self.stack(made.name, made.type)
            else:
                assert isinstance(made.type, t.StructLike)
                if made.kind == "header":
                    self.header_type(made.type)
                    self.instance(made.name, made.type.control_name())
                else:
                    self.union(made.name, made.type)

    def scalars(self) -> None:
        fields: list[list[Any]] = []
        width = 0
        for name, kind in self.program.scalars:
            bits = t.width_of(kind) or 0
            fields.append([name, bits, isinstance(kind, t.Bits) and kind.signed])
            width += bits
        if width % 8:
            fields.append(["_padding_0", 8 - width % 8, False])
        self.add_type(SCALARS_TYPE, fields)

    def add_type(self, name: str, fields: list[list[Any]], max_length: int = 0) -> None:
        made: Json = {"name": name, "id": len(self.types), "fields": fields}
        if max_length:
            made["max_length"] = max_length
        self.types[name] = made
        self.output["header_types"].append(made)

    def header_type(self, kind: t.StructLike) -> None:
        """Write the type of a header, or of a group of metadata."""
        name = kind.control_name()
        if name in self.types:
            return
        fields: list[list[Any]] = []
        width = 0
        has_varbit = False
        for field, field_type in kind.fields.items():
            base = t.underlying(field_type)
            if isinstance(base, t.VarBits):
                fields.append([field, "*"])
                width += base.width
                has_varbit = True
                continue
            bits = t.width_of(base) or 0
            fields.append([field, bits, isinstance(base, t.Bits) and base.signed])
            width += bits
        if width % 8 and kind.kind == "header":
            self.diagnostics.error(
                f"header '{kind.name}' has {width} bits; BMv2 needs a multiple of 8",
                kind.decl.pos,
                kind.decl.end,
            )
        elif width % 8:
            fields.append(["_padding", 8 - width % 8, False])
        self.add_type(name, fields, (width + 7) // 8 if has_varbit else 0)

    def aliases(self, kind: t.StructLike) -> None:
        """Write what BMv2 calls fields of standard_metadata."""
        for field in kind.decl.fields:
            alias = field.annotation("alias")
            if alias and alias.args and isinstance(alias.args[0], ast.String):
                self.output["field_aliases"].append([alias.args[0].value, [kind.control_name(), field.name]])

    def instance(self, name: str, kind: str, metadata: bool = False) -> int:
        """Write an instance and return its number."""
        number = len(self.output["headers"])
        self.output["headers"].append(
            {"name": name, "id": number, "header_type": kind, "metadata": metadata, "pi_omit": True}
        )
        return number

    def varbit(self, made: ir.HeaderInstance) -> None:
        """Write a varbit variable: a group of metadata with one field."""
        assert isinstance(made.type, t.VarBits)
        name = f"$varbit{made.type.width}"
        if name not in self.types:
            self.add_type(name, [["field", "*"]], (made.type.width + 7) // 8)
        self.instance(made.name, name, metadata=True)

    def stack(self, name: str, kind: t.Stack) -> None:
        element = kind.element
        assert isinstance(element, t.StructLike)
        elements = [f"{name}[{i}]" for i in range(kind.size)]
        made: Json
        if element.kind == "header":
            self.header_type(element)
            stacks = self.output["header_stacks"]
            ids = [self.instance(e, element.control_name()) for e in elements]
            made = {"name": name, "id": len(stacks), "header_type": element.control_name(), "size": kind.size}
            stacks.append({**made, "header_ids": ids})
        else:
            stacks = self.output["header_union_stacks"]
            ids = [self.union(e, element) for e in elements]
            made = {"name": name, "id": len(stacks), "union_type": element.control_name(), "size": kind.size}
            stacks.append({**made, "header_union_ids": ids})

    def union(self, name: str, kind: t.StructLike) -> int:
        """Write a union and return its number."""
        self.union_type(kind)
        ids = []
        for member, member_type in kind.fields.items():
            assert isinstance(member_type, t.StructLike)
            ids.append(self.instance(f"{name}.{member}", member_type.control_name()))
        number = len(self.output["header_unions"])
        self.output["header_unions"].append(
            {
                "name": name,
                "id": number,
                "union_type": kind.control_name(),
                "header_ids": ids,
                "pi_omit": True,
            }
        )
        return number

    def union_type(self, kind: t.StructLike) -> None:
        if kind.name in self.union_types:
            return
        self.union_types.add(kind.name)
        members = []
        for member, member_type in kind.fields.items():
            assert isinstance(member_type, t.StructLike)
            self.header_type(member_type)
            members.append([member, member_type.control_name()])
        number = len(self.output["header_union_types"])
        self.output["header_union_types"].append(
            {"name": kind.control_name(), "id": number, "headers": members}
        )
