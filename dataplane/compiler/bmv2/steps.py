"""Steps to primitives."""

from __future__ import annotations

from typing import Any

from .. import ir
from .. import types as t
from ..source import Sources
from .expressions import Json, header, plain, stored, wrapped

# The parameters of these are taken as data, however they are typed.
TO_STORE = (
    "modify_field_rng_uniform",
    "register_read",
    "modify_field_with_hash_based_offset",
    "execute_meter",
)


class StepWriter:
    """Writes primitives with their source positions."""

    def __init__(self, sources: Sources) -> None:
        self.sources = sources

    def source_info(self, span: ir.Span) -> Json:
        """Write a position as p4c does: columns count from 0."""
        place = self.sources.locate(span[0])
        return {
            "filename": place.file,
            "line": place.line,
            "column": place.column - 1,
            "source_fragment": self.sources.fragment(*span),
        }

    def primitive(self, step: ir.Step) -> Json:
        """Write one primitive of an action."""
        return {
            "op": step.op,
            "parameters": self.parameters(step),
            "source_info": self.source_info(step.span),
        }

    def parameters(self, step: ir.Step) -> list[Any]:
        """Write a primitive's parameters."""
        if step.op in ("assign", "assign_VL"):
            return self.assignment(step)
        if step.op in ("assert", "assume"):
            value = step.params[0]
            assert isinstance(value, ir.Expr)
            return [wrapped(value, as_data=True)]
        result = []
        for at, param in enumerate(step.params):
            if at == 0 and step.op in TO_STORE and isinstance(param, ir.Expr):
                result.append(stored(param))
            else:
                result.append(self.parameter(param))
        return result

    @staticmethod
    def assignment(step: ir.Step) -> list[Any]:
        target, value = step.params
        assert isinstance(target, ir.Expr) and isinstance(value, ir.Expr)
        left = stored(target)
        if left["type"] in ("expression", "stack_field"):
            left = {"type": "expression", "value": left}
        return [left, wrapped(value, as_data=True)]

    @staticmethod
    def parameter(param: ir.Value | ir.Ref) -> Json:
        if isinstance(param, ir.Ref):
            if param.kind == "parameters_vector":
                assert isinstance(param.value, tuple)
                return {"type": param.kind, "value": [wrapped(value, as_data=True) for value in param.value]}
            return {"type": param.kind, "value": param.value}
        if isinstance(param, ir.Expr):
            return wrapped(param)
        if isinstance(param, (ir.HeaderRef, ir.UnionRef)):
            result = header(param)
            return {"type": "expression", "value": result} if result["type"] == "expression" else result
        if isinstance(param, ir.StackRef):
            element = param.type.element
            union = isinstance(element, t.StructLike) and element.kind == "header_union"
            return {"type": "header_union_stack" if union else "header_stack", "value": param.name}
        if isinstance(param, ir.Struct) and param.header:
            return {"type": "header", "value": param.header}
        raise TypeError(type(param).__name__)

    # ---- parsers

    def parser_op(self, step: ir.Step) -> Json:
        """Write one operation of a parser state."""
        if step.op in ("extract", "extract_VL"):
            target = step.params[0]
            assert isinstance(target, ir.HeaderRef)
            params: list[Any] = [self.extracted(target)]
            if step.op == "extract_VL":
                length = step.params[1]
                assert isinstance(length, ir.Expr)
                params.append({"type": "expression", "value": plain(length)})
            return {"op": step.op, "parameters": params}
        if step.op == "assign":
            target, value = step.params
            assert isinstance(target, ir.Expr) and isinstance(value, ir.Expr)
            return {"op": "set", "parameters": [stored(target), wrapped(value, as_data=True)]}
        if step.op in ("verify", "advance"):
            return {"op": step.op, "parameters": [plain(p) for p in step.params if isinstance(p, ir.Expr)]}
        inner = self.primitive(step)
        return {"op": "primitive", "parameters": [inner]}

    @staticmethod
    def extracted(target: ir.HeaderRef) -> Json:
        if target.which == "next":
            stack, _, member = target.name.partition(".")
            if member:
                return {"type": "union_stack", "value": [stack, member]}
            return {"type": "stack", "value": target.name}
        return {"type": "regular", "value": target.name}
