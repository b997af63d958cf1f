"""A whole C program from a BMv2 JSON, in the order in which a packet meets its parts."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from dataplane.switch.engine.actions import action_function, data_struct, digest_structs
from dataplane.switch.engine.bmv2 import Array, Header, Program, Table
from dataplane.switch.engine.checksums import ChecksumWriter
from dataplane.switch.engine.controls import ControlWriter, TableWriter
from dataplane.switch.engine.deparser import deparser_source, emitted, reshapes
from dataplane.switch.engine.expressions import valid_bit
from dataplane.switch.engine.holdable import DATAGRAM_OVERHEAD, LONGEST, QUEUES, Holdable, find_holdable
from dataplane.switch.engine.names import Names, global_identifier, identifier
from dataplane.switch.engine.parser import FRONT_BYTES, parser_source, parser_states
from dataplane.switch.engine.reader import parse_program
from dataplane.switch.engine.wire import struct, struct_name
from dataplane.switch.pipeline import PipelineRejected

PACKET_OUT_MARK = 0x70346F75
"""skb->mark of a frame that this process sends as packet-out."""


@dataclass(frozen=True, slots=True)
class Options:
    """What the generated program has built in."""

    cpu_port: int = 255
    drop_port: int = 511
    event_bytes: int = 1 << 24


class Source:
    """The generated program, and the C names of its maps."""

    def __init__(self, program: Program, options: Options) -> None:
        self.program = program
        self.options = options
        names = Names()
        used = self._used_actions()
        self.actions = {
            action.id: names.unique(action.name) for action in program.actions.values() if action.id in used
        }
        self.tables = {table.name: names.unique(table.name) for table in program.tables}
        self.arrays = {name: global_identifier(name) for name in (*program.counters, *program.registers)}
        self._writers = {
            table.name: TableWriter(program, table, self.tables[table.name], self.actions)
            for table in program.tables
        }

    def _used_actions(self) -> set[int]:
        used: set[int] = set()
        for table in self.program.tables:
            used |= {action.id for action in table.actions}
            if table.default:
                used.add(table.default.action.id)
        return used

    def writer(self, table: Table) -> TableWriter:
        return self._writers[table.name]

    @cached_property
    def text(self) -> str:
        """Return the C source."""
        program, writers = self.program, self._writers.values()
        head = [
            f"/* Generated from {program.source}. One function per parser state, action and table. */",
            self._definitions(),
            '#include "p4ferry.h"',
            self._structs(),
            self._maps(),
            parser_states(program),
            '#include "runtime.h"',
        ]
        body = [
            "/* ---- parser */",
            parser_source(program, self.options.cpu_port),
            "/* ---- actions */",
            *(
                action_function(program, action, self.actions[action.id])
                for action in program.actions.values()
                if action.id in self.actions
            ),
            "/* ---- tables */",
            *(writer.function() for writer in writers),
            "/* ---- controls */",
            ControlWriter(program, program.ingress, self._writers).function(),
            ControlWriter(program, program.egress, self._writers).function(),
            "/* ---- checksums and deparser */",
            *self._verifications(),
            deparser_source(program, self._checksums),
        ]
        parts = [*head, *body, self._main("".join(body))]
        return "\n\n".join(part for part in parts if part) + "\n"

    @cached_property
    def holdable(self) -> Holdable | None:
        """Return how packet-ins of this program can wait in the kernel, None if they cannot."""
        return find_holdable(self.program, self.options.cpu_port)

    @cached_property
    def _checksums(self) -> list[ChecksumWriter]:
        return [
            ChecksumWriter(self.program, item, number) for number, item in enumerate(self.program.checksums)
        ]

    def _verifications(self) -> list[str]:
        return [writer.verify_function() for writer in self._checksums if writer.checksum.verify]

    def _definitions(self) -> str:
        algorithms = {calculation.algorithm for calculation in self.program.calculations.values()}
        lines = [
            f"#define CPU_PORT {self.options.cpu_port}",
            f"#define DROP_PORT {self.options.drop_port}",
            f"#define PACKET_OUT_MARK {PACKET_OUT_MARK:#x}",
            f"#define P4_EVENT_BYTES {self.options.event_bytes}",
            f"#define P4_FRONT_BYTES {FRONT_BYTES}",
            f"#define P4_HOLD_QUEUES {QUEUES}",
            f"#define P4_HOLD_BYTES {LONGEST}",
            f"#define P4_DATAGRAM_OVERHEAD {DATAGRAM_OVERHEAD}",
            f"#define ERROR_PACKET_TOO_SHORT {self.program.errors.get('PacketTooShort', 1)}",
        ]
        if "crc32" in algorithms:
            lines += ["#define P4_CRC32", _crc_table("crc32_table", "unsigned int", 0xEDB88320)]
        if "crc16" in algorithms:
            lines += ["#define P4_CRC16", _crc_table("crc16_table", "unsigned short", 0xA001)]
        if reshapes(self.program):
            lines.append("#define P4_MOVES_PAYLOAD")
        if self.holdable is not None:
            lines += self.holdable.definitions()
        return "\n".join(lines)

    def _structs(self) -> str:
        headers = self.program.packet_headers
        bits = [f"#define {valid_bit(header)} {1 << header.index:#x}ULL" for header in headers]
        deparsed = sum(1 << header.index for header in emitted(self.program))
        bits.append(f"#define DEPARSED {deparsed:#x}ULL")
        fields = [struct(header) for header in self.program.headers.values()]
        wire = [f"\tu8 {identifier(h.name)}[{max(h.size, 1)}] __attribute__((aligned(8)));" for h in headers]
        return "\n\n".join(
            [
                "\n".join(bits),
                *fields,
                "\n".join(
                    [
                        "/* headers as bytes */",
                        "struct wire {",
                        *(wire or ["\tu64 none;"]),
                        "};",
                    ]
                ),
                "\n".join(
                    [
                        "/* which headers were in the packet, and where; which are to leave */",
                        "struct whereabouts {",
                        "\tu64 extracted;",
                        "\tu64 emitted;",
                        f"\tu16 at[{self.places}];",
                        "};",
                    ]
                ),
                self._packet_struct(),
                "enum { EVENT_PACKET_IN, EVENT_DIGEST };",
                *digest_structs(self.program),
                *(
                    data_struct(action, self.actions[action.id])
                    for action in self.program.actions.values()
                    if action.id in self.actions and action.params
                ),
            ]
        )

    @property
    def places(self) -> int:
        """Return the length of `where.at`, padded to 64 bits."""
        return max(4, (len(self.program.packet_headers) + 3) // 4 * 4)

    def _packet_struct(self) -> str:
        def member(header: Header) -> str:
            return f"\tstruct {struct_name(header)} {identifier(header.name)} __attribute__((aligned(8)));"

        size = max((self._writers[t.name].layout.size for t in self.program.tables if t.keys), default=8)
        return "\n".join(
            [
                "/* a packet on its way; everything up to `raw` is zero at the start */",
                "struct packet {",
                "\tu64 valid;",
                "\tu64 changed;",
                "\tu32 offset;  /* of what is not parsed yet */",
                "\tu32 length;",
                "\tu32 front_length;",
                "\tu32 error;",
                "\tu32 checksums;  /* one bit for each that is to be updated */",
                "\tu32 exited;",
                "\tu32 gap;  /* bytes were skipped */",
                "\tu32 tag_bytes;  /* VLAN tags that the kernel had taken out */",
                "\tstruct whereabouts where;",
                *(member(header) for header in self.program.headers.values()),
                "\tstruct wire raw;  /* as they came in */",
                "\tstruct wire out;  /* as they leave */",
                f"\tu8 front[{FRONT_BYTES}] __attribute__((aligned(8)));  /* the packet-out header */",
                "\tu64 resume;  /* what a hold queue lets pass at once; see runtime.h */",
                f"\tu64 key[{(size + 7) // 8}];",
                "};",
            ]
        )

    def _maps(self) -> str:
        parts = [writer.declarations() for writer in self._writers.values()]
        parts += [self._array("COUNTERS", array) for array in self.program.counters.values()]
        parts += [self._array("REGISTERS", array) for array in self.program.registers.values()]
        if reshapes(self.program):
            parts.append(
                "struct moved {\n\tu8 bytes[16384];\n};\n\nstruct {\n\t__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);\n"
                "\t__type(key, u32);\n\t__type(value, struct moved);\n\t__uint(max_entries, 1);\n"
                '} p4_moved SEC(".maps");'
            )
        return "\n\n".join(parts)

    def _array(self, kind: str, array: Array) -> str:
        return f"{kind}({self.arrays[array.name]}, {array.size});  /* {array.position} */"

    def _clear(self) -> list[str]:
        """Return statements that zero the packet struct, in pieces that clang makes stores of."""
        return [
            "#pragma clang loop unroll(full)",
            "for (u32 i = 0; i + 8 <= offsetof(struct packet, raw); i += 8)",
            "\t*(u64 *)((void *)p + i) = 0;",
        ]

    def _standard(self, name: str, value: str) -> list[str]:
        """Return an assignment to a standard metadata field, if the program has it."""
        if not self.program.has_field("standard_metadata", name):
            return []
        return [f"p->standard_metadata.{name} = {value};"]

    def _main(self, rest: str) -> str:
        """Return the program itself; `rest` tells what of the standard metadata is used at all."""

        def timestamp(name: str) -> list[str]:
            used = f"standard_metadata.{name}" in rest
            return self._standard(name, "bpf_ktime_get_ns() / 1000") if used else []

        body = [
            "struct packet *p = bpf_map_lookup_elem(&p4_scratch, &(u32){ 0 });",
            "",
            "if (!p)",
            "\treturn TC_ACT_SHOT;",
            *self._clear(),
            "if (!arrive(skb, p))",
            "\treturn TC_ACT_OK;",
            *self._standard("packet_length", "p->length + p->front_length"),
            *timestamp("ingress_global_timestamp"),
            "",
            "parse(skb, p);",
            *self._standard("parser_error", "p->error"),
            *(f"checksum{w.number}_verify(p);" for w in self._checksums if w.checksum.verify),
            "control_ingress(skb, p);",
            "if (p->standard_metadata.egress_spec == DROP_PORT)",
            "\treturn TC_ACT_SHOT;",
            "",
            "p->standard_metadata.egress_port = p->standard_metadata.egress_spec;",
            "p->standard_metadata.egress_spec = 0;",
            "p->exited = 0;",
            *timestamp("egress_global_timestamp"),
            "control_egress(skb, p);",
            "if (p->standard_metadata.egress_spec == DROP_PORT)",
            "\treturn TC_ACT_SHOT;",
            "",
            "deparse(skb, p);",
            "if (p->standard_metadata.egress_port == CPU_PORT)",
            "\treturn to_controller(skb, p);",
        ]
        if reshapes(self.program):
            body += ["if (!reshape(skb, p)) {", "\tlost(LOST_RESHAPE);", "\treturn TC_ACT_SHOT;", "}"]
        body.append("return send_to(skb, p->standard_metadata.egress_port);")
        lines = ['SEC("tc")', "int p4ferry(struct __sk_buff *skb)", "{"]
        lines += [line if line.startswith("#") or not line else f"\t{line}" for line in body]
        return "\n".join([*lines, "}", "", 'char LICENSE[] SEC("license") = "Apache-2.0";'])


def generate(bmv2_json: bytes, options: Options) -> Source:
    """Return the generated program of a BMv2 JSON; raises PipelineRejected."""
    source = Source(parse_program(bmv2_json), options)
    try:
        source.text  # noqa: B018 (generated now, so that what is wrong shows here)
    except (KeyError, IndexError, TypeError, AttributeError) as ex:
        raise PipelineRejected(f"the BMv2 JSON is malformed: {ex!r} is missing or of the wrong type") from ex
    return source


def _crc_table(name: str, type_: str, polynomial: int) -> str:
    """Return the table of a reflected CRC."""
    values = []
    for byte in range(256):
        remainder = byte
        for _ in range(8):
            remainder = (remainder >> 1) ^ (polynomial if remainder & 1 else 0)
        values.append(f"{remainder:#x}")
    rows = [", ".join(values[start : start + 8]) for start in range(0, 256, 8)]
    return f"static const {type_} {name}[256] = {{\n\t" + ",\n\t".join(rows) + "\n};"
