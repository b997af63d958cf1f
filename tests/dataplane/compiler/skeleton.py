"""A v1model program around the few lines that a test is about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dataplane.compiler import Compiled, compile_program

HEADERS = """
header ethernet_t { bit<48> dst; bit<48> src; bit<16> type; }
header ipv4_t {
    bit<4> version; bit<4> ihl; bit<8> tos; bit<16> len; bit<16> id; bit<3> flags; bit<13> frag;
    bit<8> ttl; bit<8> protocol; bit<16> checksum; bit<32> src; bit<32> dst;
}
"""
FIELDS = "ethernet_t ethernet; ipv4_t ipv4;"
METADATA = "bit<8> a; bit<8> b; bit<16> wide; bit<32> big; bool flag; int<8> s;"
PARSER = """
    state start {
        packet.extract(hdr.ethernet);
        transition select(hdr.ethernet.type) { 0x0800: ipv4; default: accept; }
    }
    state ipv4 { packet.extract(hdr.ipv4); transition accept; }
"""


def source(
    *,
    top: str = "",
    fields: str = FIELDS,
    metadata: str = METADATA,
    parser: str = PARSER,
    local: str = "",
    apply: str = "",
    egress: str = "apply { }",
    verify: str = "",
    compute: str = "",
    deparser: str = "packet.emit(hdr.ethernet); packet.emit(hdr.ipv4);",
) -> str:
    """Return a whole program; `local` and `apply` are the ingress control's."""
    return f"""#include <core.p4>
#include <v1model.p4>
{HEADERS}
{top}
struct headers_t {{ {fields} }}
struct meta_t {{ {metadata} }}
parser P(packet_in packet, out headers_t hdr, inout meta_t meta, inout standard_metadata_t std) {{
{parser}
}}
control V(inout headers_t hdr, inout meta_t meta) {{ apply {{ {verify} }} }}
control C(inout headers_t hdr, inout meta_t meta, inout standard_metadata_t std) {{
{local}
apply {{
{apply}
}}
}}
control E(inout headers_t hdr, inout meta_t meta, inout standard_metadata_t std) {{ {egress} }}
control U(inout headers_t hdr, inout meta_t meta) {{ apply {{ {compute} }} }}
control D(packet_out packet, in headers_t hdr) {{ apply {{ {deparser} }} }}
V1Switch(P(), V(), C(), E(), U(), D()) main;
"""


class Workbench:
    """Compiles program texts in a folder of their own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def compile_text(self, text: str) -> Compiled:
        """Compile a whole program."""
        path = self.folder / "prog.p4"
        path.write_text(text)
        return compile_program(path)

    def compile(self, **parts: str) -> Compiled:
        """Compile a program made of parts."""
        return self.compile_text(source(**parts))

    def json(self, **parts: str) -> dict[str, Any]:
        """Compile a program made of parts to BMv2 JSON."""
        return self.compile(**parts).bmv2_json


def primitives(document: dict[str, Any], action: str) -> list[dict[str, Any]]:
    """Return the primitives of the first action of that name, without their positions."""
    found = next(a for a in document["actions"] if a["name"] == action)
    return [{"op": p["op"], "parameters": p["parameters"]} for p in found["primitives"]]


def hidden_steps(document: dict[str, Any]) -> list[dict[str, Any]]:
    """Return all primitives of the actions that the compiler made, in order."""
    return [
        {"op": p["op"], "parameters": p["parameters"]}
        for action in document["actions"]
        if action["name"].startswith("prog")
        for p in action["primitives"]
    ]


def table(document: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a table."""
    found: dict[str, Any] = next(t for p in document["pipelines"] for t in p["tables"] if t["name"] == name)
    return found


def state(document: dict[str, Any], name: str) -> dict[str, Any]:
    """Return a parser state."""
    found: dict[str, Any] = next(s for s in document["parsers"][0]["parse_states"] if s["name"] == name)
    return found
