"""Types to P4Info's p4types messages."""

from __future__ import annotations

from typing import Any

from finsy.proto import p4i, p4t

from . import ast
from . import types as t


def translation(kind: t.Type) -> tuple[str, int | None] | None:
    """Return what @p4runtime_translation says of a type: the URI, and the width (None: a string)."""
    if not isinstance(kind, t.NewType):
        return None
    annotation = kind.decl.annotation("p4runtime_translation")
    if annotation is None or len(annotation.args) != 2 or not isinstance(annotation.args[0], ast.String):
        return None
    target = annotation.args[1]
    if isinstance(target, ast.Number):
        return annotation.args[0].value, target.value
    if isinstance(target, ast.TypeRef) and isinstance(target.target, ast.BaseType):
        width = target.target.width
        return annotation.args[0].value, width.value if isinstance(width, ast.Number) else None
    return annotation.args[0].value, None


def type_width(kind: t.Type) -> int:
    """Return the width that the control plane sees; 0 for strings."""
    translated = translation(kind)
    if translated is not None:
        return translated[1] or 0
    if isinstance(kind, t.NewType):
        return type_width(kind.base)
    if kind is t.ERROR:
        return 0
    return t.width_of(kind) or 0


class TypeWriter:
    """Writes types, and describes those with a name in type_info."""

    def __init__(self, info: p4i.P4Info) -> None:
        self.info = info

    def name_type(self, target: Any, kind: t.Type) -> None:
        """Give a field or parameter the name of its type, if that is a `type` of the program."""
        if isinstance(kind, (t.NewType, t.SerEnum)):
            self.spec(kind)
        if isinstance(kind, t.NewType):
            target.type_name.name = str(kind)

    def spec(self, kind: t.Type) -> p4t.P4DataTypeSpec:
        """Return the description of a type."""
        result = p4t.P4DataTypeSpec()
        if isinstance(kind, t.Bits):
            result.bitstring.CopyFrom(bitstring(kind))
        elif isinstance(kind, t.VarBits):
            result.bitstring.varbit.max_bitwidth = kind.width
        elif kind is t.BOOL:
            result.bool.SetInParent()
        elif kind is t.ERROR:
            result.error.SetInParent()
        elif isinstance(kind, t.Tuple):
            result.tuple.members.extend(self.spec(element) for element in kind.elements)
            result.tuple.SetInParent()
        elif isinstance(kind, t.StructLike):
            self.struct(kind, result)
        elif isinstance(kind, t.Stack):
            self.stack(kind, result)
        elif isinstance(kind, t.Enum):
            result.enum.name = kind.name
            made = self.info.type_info.enums[kind.name]
            if not made.members:
                for member in kind.members:
                    made.members.add().name = member
        elif isinstance(kind, t.SerEnum):
            self.serializable_enum(kind, result)
        elif isinstance(kind, t.NewType):
            self.new_type(kind, result)
        return result

    def struct(self, kind: t.StructLike, result: p4t.P4DataTypeSpec) -> None:
        name = kind.control_name()
        if kind.kind == "struct":
            result.struct.name = name
            if name not in self.info.type_info.structs:
                made = self.info.type_info.structs[name]
                for field, field_type in kind.fields.items():
                    member = made.members.add()
                    member.name = field
                    member.type_spec.CopyFrom(self.spec(field_type))
        elif kind.kind == "header":
            result.header.name = name
            if name not in self.info.type_info.headers:
                header = self.info.type_info.headers[name]
                for field, field_type in kind.fields.items():
                    base = t.underlying(field_type)
                    field_member = header.members.add()
                    field_member.name = field
                    field_member.type_spec.CopyFrom(self.spec(base).bitstring)
        else:
            result.header_union.name = name
            if name not in self.info.type_info.header_unions:
                union = self.info.type_info.header_unions[name]
                for field, field_type in kind.fields.items():
                    union_member = union.members.add()
                    union_member.name = field
                    union_member.header.name = self.spec(field_type).header.name

    def stack(self, kind: t.Stack, result: p4t.P4DataTypeSpec) -> None:
        element = self.spec(kind.element)
        if element.HasField("header"):
            result.header_stack.header.CopyFrom(element.header)
            result.header_stack.size = kind.size
        else:
            result.header_union_stack.header_union.CopyFrom(element.header_union)
            result.header_union_stack.size = kind.size

    def serializable_enum(self, kind: t.SerEnum, result: p4t.P4DataTypeSpec) -> None:
        result.serializable_enum.name = kind.name
        if kind.name in self.info.type_info.serializable_enums:
            return
        made = self.info.type_info.serializable_enums[kind.name]
        assert isinstance(kind.underlying, t.Bits)
        made.underlying_type.bitwidth = kind.underlying.width
        for member, value in kind.members.items():
            shown = made.members.add()
            shown.name = member
            shown.value = (value & ((1 << kind.underlying.width) - 1)).to_bytes(
                (kind.underlying.width + 7) // 8, "big"
            )

    def new_type(self, kind: t.NewType, result: p4t.P4DataTypeSpec) -> None:
        result.new_type.name = kind.name
        if kind.name in self.info.type_info.new_types:
            return
        made = self.info.type_info.new_types[kind.name]
        translated = translation(kind)
        if translated is None:
            made.original_type.CopyFrom(self.spec(kind.base))
            return
        made.translated_type.uri = translated[0]
        if translated[1] is None:
            made.translated_type.sdn_string.SetInParent()
        else:
            made.translated_type.sdn_bitwidth = translated[1]


def bitstring(kind: t.Bits) -> p4t.P4BitstringLikeTypeSpec:
    """Describe bit<> or int<>."""
    result = p4t.P4BitstringLikeTypeSpec()
    if kind.signed:
        result.int.bitwidth = kind.width
    else:
        result.bit.bitwidth = kind.width
    return result
