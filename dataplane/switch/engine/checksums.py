"""Checksums: incremental updates of what was in the packet, full computation of what is new.

An update takes the difference between the bytes that came in (`p->raw`) and the values that go out, and adds it to the
checksum in the packet (RFC 1624), so that nothing but headers is read, GSO and CHECKSUM_PARTIAL packets stay right, and
a corrupt packet stays detectably corrupt. Metadata and constants in a field list count as unchanged. Fields in front
of the checksummed header's own fields are the pseudo header (BPF_F_PSEUDO_HDR): with CHECKSUM_PARTIAL the kernel has
only those in the field. A condition that tests the checksum itself against zero means RFC 768's "no checksum"
(BPF_F_MARK_MANGLED_0).

A checksum without payload of a header that the pipeline itself added is computed in full. With payload such a header
is refused, as is verification of a checksum with payload.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dataplane.switch.engine.bmv2 import Checksum, Field, Header, Json, Program, hexstr, refuse
from dataplane.switch.engine.expressions import Translator, constant, valid_bit
from dataplane.switch.engine.names import identifier, is_wide
from dataplane.switch.engine.wire import load_field


@dataclass(frozen=True, slots=True)
class Term:
    """An element of the field list: where its last bit lies modulo 16, and its header unless it cannot change."""

    shift: int
    code: str
    width: int
    header: Header | None
    field: Field | None


class ChecksumWriter:
    """Writes the code of one checksum; `number` makes its functions' names unique."""

    def __init__(self, program: Program, checksum: Checksum, number: int) -> None:
        self.program = program
        self.checksum = checksum
        self.number = number
        self.position = checksum.position
        self.t = Translator(program, checksum.position)
        self.header, self.field = self.t.find(checksum.header, checksum.field)
        if checksum.calculation.algorithm != "csum16":
            refuse(self.position, f"checksum algorithm {checksum.calculation.algorithm} is not supported")
        if self.header.metadata or self.field.width != 16 or self.field.offset % 16:
            refuse(
                self.position,
                f"checksum target {checksum.header}.{checksum.field} is no aligned 16 bit header field",
            )
        self.terms = list(self._terms())
        self._refuse_changing()

    def _terms(self) -> Iterator[Term]:
        bit = 0
        for node in self.checksum.calculation.inputs:
            for width, code, header, field in self._elements(node):
                bit += width
                yield Term(-bit % 16, code, width, header, field)

    def _elements(self, node: Json) -> Iterator[tuple[int, str, Header | None, Field | None]]:
        if node["type"] == "hexstr":
            yield int(node["bitwidth"]), constant(hexstr(node["value"])).code, None, None
        elif node["type"] == "field":
            header, field = self.t.find(node["value"][0], node["value"][1])
            yield (
                field.width,
                self.t.field(header.name, field.name).code,
                None if header.metadata else header,
                field,
            )
        elif node["type"] == "header":
            header = self.program.header(node["value"], self.position)
            for field in header.fields:
                yield field.width, self.t.field(header.name, field.name).code, header, field
        else:
            refuse(self.position, f"{node['type']} in a checksum's field list is not supported")

    @property
    def covered(self) -> list[Header]:
        """Return the packet headers in the field list."""
        return list({term.header.name: term.header for term in self.terms if term.header}.values())

    def _refuse_changing(self) -> None:
        """Refuse what an incremental update cannot follow: headers that come or go under the checksum."""
        changing = changing_headers(self.program)
        for header in self.covered:
            if header.name not in changing or (
                header is self.header and not self.checksum.calculation.payload
            ):
                continue
            if self.checksum.update and (self.checksum.calculation.payload or len(self.covered) > 1):
                refuse(
                    self.position,
                    f"a checksum over header {header.name}, which an action adds or removes, is not supported",
                )
        if self.checksum.verify and self.checksum.calculation.payload:
            refuse(self.position, "verify_checksum_with_payload is not supported")

    def condition(self) -> str:
        """Return the condition under which the checksum is kept."""
        valid = f"is_valid(p, {valid_bit(self.header)})"
        if self.checksum.condition is None:
            return valid
        return f"{valid} && {self.t.truth(self.checksum.condition)}"

    def _optional(self) -> bool:
        """Tell whether the condition tests the checksum against zero."""
        return self.checksum.condition is not None and _mentions(
            self.checksum.condition, [self.checksum.header, self.checksum.field]
        )

    def _sum(self, terms: list[Term], old: bool) -> str:
        """Return the sum of the terms as 16 bit words, not folded."""
        parts = []
        for term in terms:
            code = term.code
            if term.header and term.field and is_wide(term.width):
                name = identifier(term.header.name)
                base = f"p->raw.{name} + {term.field.offset // 8}" if old else code
                if term.shift:
                    refuse(
                        self.position, f"{term.field.name} is not 16 bit aligned in the checksum's field list"
                    )
                parts.append(f"sum_bytes({base}, {term.width // 8})")
                continue
            if old and term.header and term.field:
                code = load_field(term.header, term.field, f"p->raw.{identifier(term.header.name)}")
            if term.width > 32:
                parts.append(f"sum_words((u64)({code}), {term.shift})")
            else:
                parts.append(f"((u64)({code}) << {term.shift})" if term.shift else f"(u64)({code})")
        return " + ".join(parts) or "0"

    def prepare_function(self) -> str:
        """Return what happens before headers are packed: is it to be kept, and its value where it is new."""
        name, field = identifier(self.header.name), identifier(self.field.name)
        target = f"p->{name}.{field}"
        lines = [
            f"/* {self.position} */",
            f"static __always_inline void checksum{self.number}_prepare(struct packet *p)",
            "{",
            f"\tif (!({self.condition()}))",
            "\t\treturn;",
            f"\tif (p->where.extracted & {valid_bit(self.header)}) {{",
            f"\t\t{target} = {load_field(self.header, self.field, f'p->raw.{name}')};",
            f"\t\tp->checksums |= {1 << self.number};",
            "\t} else {",
        ]
        if self.checksum.calculation.payload:
            lines.append("\t\treturn;  /* a header that was not in the packet has no payload under it */")
        else:
            lines.append(f"\t\t{target} = (u16)~fold({self._sum(self.terms, old=False)});")
        return "\n".join([*lines, "\t}", "}"])

    def verify_function(self) -> str:
        """Return the check of what came in."""
        target = f"p->{identifier(self.header.name)}.{identifier(self.field.name)}"
        error = "\t\tp->standard_metadata.checksum_error = 1;"
        if not self.program.has_field("standard_metadata", "checksum_error"):
            refuse(self.position, "verify_checksum needs standard_metadata.checksum_error")
        return "\n".join(
            [
                f"/* {self.position} */",
                f"static __always_inline void checksum{self.number}_verify(struct packet *p)",
                "{",
                f"\tif (({self.condition()}) && {target} != (u16)~fold({self._sum(self.terms, old=False)}))",
                error,
                "}",
            ]
        )

    def update_function(self) -> str:
        """Return the update of the checksum in the packet."""
        changing = [term for term in self.terms if term.header]
        own = _own_tail(changing, self.header)
        pseudo = changing[: len(changing) - len(own)]
        offset = f"p->where.at[{self.header.index}] + {self.field.offset // 8}"
        lines = [
            f"/* {self.position} */",
            f"static __always_inline void checksum{self.number}_update(struct __sk_buff *skb, struct packet *p)",
            "{",
            f"\tif (!(p->checksums & {1 << self.number}))",
            "\t\treturn;",
        ]
        if not self.checksum.calculation.payload:
            lines += self._replace(changing, "bpf_l3_csum_replace", offset, "0")
        else:
            zero = "BPF_F_MARK_MANGLED_0" if self._optional() else "0"
            lines += self._replace(pseudo, "bpf_l4_csum_replace", offset, f"BPF_F_PSEUDO_HDR | {zero}")
            lines += self._replace(own, "bpf_l4_csum_replace", offset, zero)
        return "\n".join([*lines, "}"])

    def _replace(self, terms: list[Term], helper: str, offset: str, flags: str) -> list[str]:
        if not terms:
            return []
        changed = " | ".join(dict.fromkeys(valid_bit(term.header) for term in terms if term.header))
        return [
            f"\tif (p->changed & ({changed})) {{",
            f"\t\tu16 before = fold({self._sum(terms, old=True)});",
            f"\t\tu16 after = fold({self._sum(terms, old=False)});",
            "\t\tif (before != after)",
            f"\t\t\t{helper}(skb, {offset}, 0, difference(before, after), {flags});",
            "\t}",
        ]

    @property
    def compensates(self) -> str:
        """Return the header whose change this checksum balances, so that skb->csum stays as it is."""
        return self.header.name


def _own_tail(terms: list[Term], header: Header) -> list[Term]:
    """Return the longest tail of the list that is the header itself, field after field."""
    tail: list[Term] = []
    for term in reversed(terms):
        ascending = not tail or (tail[0].field and term.field and term.field.offset < tail[0].field.offset)
        if term.header is not header or not ascending:
            break
        tail.insert(0, term)
    return tail


def _mentions(node: object, field: list[str]) -> bool:
    if isinstance(node, dict):
        if node.get("type") == "field" and node.get("value") == field:
            return True
        return any(_mentions(value, field) for value in node.values())
    return False


def changing_headers(program: Program) -> set[str]:
    """Return the headers whose validity an action changes."""
    return {
        node["parameters"][0]["value"]
        for action in program.actions.values()
        for node in action.primitives
        if node["op"] in ("add_header", "remove_header", "assign_header", "copy_header")
    }
