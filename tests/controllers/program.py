"""load_balancer.p4's control plane, described by hand: P4Info and BMv2 JSON for a switch that is a model.

The tests of the controller's logic thus need no compiler; those marked `net` use the compiled program.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from finsy.proto import p4i
from google.protobuf import text_format

_FLOW = [("protocol", 8), ("src_addr", 32), ("src_port", 16), ("dst_addr", 32), ("dst_port", 16)]
_END = [("protocol", 8), ("address", 32), ("port", 16)]
ACTIONS: dict[str, list[tuple[str, int]]] = {
    "NoAction": [],
    "drop": [],
    "arp_reply": [("mac", 48)],
    "echo_reply": [],
    "speak_as": [("address", 32), ("port", 16)],
    "send_to": [("address", 32), ("port", 16)],
    "pin_to_backend": [("service", 32), ("backend", 32)],
    "pin_to_location": [("address", 32), ("port", 16)],
    "stay_as": [("address", 32), ("port", 16)],
    "stay_at": [("address", 32), ("port", 16)],
    "serve": [("service", 32)],
    "serve_guarded": [("service", 32)],
    "direct": [("backend", 32)],
    "choose": [("backend", 32)],
    "hold_for": [("id", 32)],
    "keep": [("reason", 8)],
    "forward": [("port", 9), ("src_mac", 48), ("dst_mac", 48)],
}
# name: keys, actions (the last one is the default), size
TABLES: dict[str, tuple[list[tuple[str, int]], list[str], int]] = {
    "arp": ([("address", 32)], ["arp_reply", "drop"], 1024),
    "echo": ([("address", 32)], ["echo_reply", "NoAction"], 1024),
    "connection_source": (_FLOW, ["speak_as", "stay_as", "NoAction"], 131072),
    "endpoint_source": (_END, ["speak_as", "NoAction"], 16384),
    "connection": (_FLOW, ["pin_to_backend", "pin_to_location", "stay_at", "NoAction"], 131072),
    "destination": (_END, ["serve", "serve_guarded", "send_to", "direct", "NoAction"], 16384),
    "maglev": ([("service", 32), ("slot", 32)], ["choose", "NoAction"], 65536),
    "backend": ([("backend", 32)], ["send_to", "drop"], 1024),
    "hold": (_END, ["hold_for", "NoAction"], 16384),
    "hold_source": (_END, ["hold_for", "NoAction"], 16384),
    "holding": ([("id", 32)], ["keep", "NoAction"], 1024),
    "holding_source": ([("id", 32)], ["keep", "NoAction"], 1024),
    "route": ([("address", 32)], ["forward", "drop"], 1024),
}
EVENT = [("event", 8), *_FLOW, ("service", 32), ("backend", 32), ("tcp_flags", 8)]
_PACKET_IN = [("port", 16), ("reason", 8), ("id", 32)]
_PACKET_OUT = [("port", 16), ("operation", 8), ("id", 32)]


def full(name: str) -> str:
    """Return a name as P4Info has it."""
    return name if name == "NoAction" else f"Ingress.{name}"


def _preamble(message: Any, kind: int, number: int, name: str, alias: str | None = None) -> None:
    message.preamble.id = kind << 24 | number
    message.preamble.name, message.preamble.alias = name, alias or name.split(".")[-1]


def p4info() -> p4i.P4Info:
    """Return the P4Info."""
    info = p4i.P4Info(pkg_info=p4i.PkgInfo(arch="v1model"))
    ids = {name: 0x01 << 24 | number for number, name in enumerate(ACTIONS, 1)}
    for number, (name, params) in enumerate(ACTIONS.items(), 1):
        action = info.actions.add()
        _preamble(action, 0x01, number, full(name))
        for at, (param, width) in enumerate(params, 1):
            action.params.add(id=at, name=param, bitwidth=width)
    for number, (name, (keys, actions, size)) in enumerate(TABLES.items(), 1):
        table = info.tables.add(size=size)
        _preamble(table, 0x02, number, full(name))
        kind = p4i.MatchField.LPM if name == "route" else p4i.MatchField.EXACT
        for at, (key, width) in enumerate(keys, 1):
            table.match_fields.add(id=at, name=key, bitwidth=width, match_type=kind)
        for action_name in actions:
            table.action_refs.add(id=ids[action_name])
        if name == "connection":
            direct = info.direct_counters.add(direct_table_id=table.preamble.id)
            _preamble(direct, 0x13, 1, "Ingress.connection_counter")
            direct.spec.unit = p4i.CounterSpec.BOTH
            table.direct_resource_ids.append(direct.preamble.id)
    for number, (name, size) in enumerate((("service_counter", 64), ("backend_counter", 1024)), 1):
        counter = info.counters.add(size=size)
        _preamble(counter, 0x12, number, full(name))
        counter.spec.unit = p4i.CounterSpec.BOTH
    digest = info.digests.add()
    _preamble(digest, 0x17, 1, "connection_event_t")
    digest.type_spec.struct.name = "connection_event_t"
    for name, width in EVENT:
        member = info.type_info.structs["connection_event_t"].members.add(name=name)
        member.type_spec.bitstring.bit.bitwidth = width
    for number, (name, fields) in enumerate((("packet_in", _PACKET_IN), ("packet_out", _PACKET_OUT)), 1):
        header = info.controller_packet_metadata.add()
        _preamble(header, 0x04, number, name)
        for at, (field, width) in enumerate(fields, 1):
            header.metadata.add(id=at, name=field, bitwidth=width)
    return info


def bmv2_json() -> dict[str, Any]:
    """Return as much of the BMv2 JSON as a P4Runtime service reads."""
    ids = {name: number for number, name in enumerate(ACTIONS)}
    return {
        "program": "load_balancer.p4",
        "actions": [
            {
                "name": full(name),
                "id": ids[name],
                "runtime_data": [{"name": param, "bitwidth": width} for param, width in params],
            }
            for name, params in ACTIONS.items()
        ],
        "pipelines": [
            {
                "name": "ingress",
                "tables": [
                    {
                        "name": full(name),
                        "max_size": size,
                        "key": [
                            {"match_type": "lpm" if name == "route" else "exact", "name": k} for k, _ in keys
                        ],
                        "action_ids": [ids[action] for action in actions],
                        "default_entry": {"action_id": ids[actions[-1]], "action_data": []},
                    }
                    for name, (keys, actions, size) in TABLES.items()
                ],
            }
        ],
        "counter_arrays": [
            {"name": "Ingress.connection_counter", "is_direct": True, "size": 131072},
            {"name": "Ingress.service_counter", "size": 64},
            {"name": "Ingress.backend_counter", "size": 1024},
        ],
        "register_arrays": [],
        "learn_lists": [{"name": "connection_event_t", "id": 1}],
    }


def write_program(folder: Path) -> tuple[Path, Path]:
    """Write P4Info and JSON into a folder; return their paths."""
    info, program = folder / "load_balancer.p4info.txtpb", folder / "load_balancer.json"
    info.write_text(text_format.MessageToString(p4info()))
    program.write_text(json.dumps(bmv2_json()))
    return info, program
