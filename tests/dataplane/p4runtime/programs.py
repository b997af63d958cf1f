"""A program with one of everything, described once: its P4Info and its BMv2 JSON."""

from __future__ import annotations

import json
from typing import Any

from finsy.proto import p4i

TERNARY_ID, EXACT_ID, LPM_ID, CONST_ID, KEYLESS_ID, FIXED_ID = (0x02000000 + i for i in range(1, 7))
SEND_ID, DROP_ID, NO_ACTION_ID, MARK_ID = (0x01000000 + i for i in range(1, 5))
COUNTER_ID, BYTES_ID, DIRECT_ID, REGISTER_ID, DIGEST_ID = (
    0x12000001,
    0x12000002,
    0x13000001,
    0x16000001,
    0x17000001,
)
PACKET_IN_ID, PACKET_OUT_ID = 0x04000001, 0x04000002

_ACTIONS: dict[str, tuple[int, list[tuple[str, int]]]] = {
    "Ingress.send": (SEND_ID, [("port", 9), ("mac", 48)]),
    "Ingress.drop": (DROP_ID, []),
    "NoAction": (NO_ACTION_ID, []),
    "Ingress.mark": (MARK_ID, [("tag", 4)]),
}
_SEND, _DROP, _NONE, _MARK = _ACTIONS
# name, id, keys, actions, default action
_TABLES: list[tuple[str, int, list[tuple[str, int, str]], list[str], str]] = [
    (
        "Ingress.exact",
        EXACT_ID,
        [("port", 9, "exact"), ("address", 32, "exact")],
        [_SEND, _DROP, _NONE],
        _NONE,
    ),
    ("Ingress.lpm", LPM_ID, [("address", 32, "lpm")], [_SEND, _DROP], _DROP),
    (
        "Ingress.acl",
        TERNARY_ID,
        [("proto", 8, "exact"), ("source", 32, "ternary"), ("port", 16, "range"), ("tag", 4, "optional")],
        [_SEND, _DROP, _NONE],
        _NONE,
    ),
    ("Ingress.constant", CONST_ID, [("proto", 8, "exact")], [_MARK, _NONE], _NONE),
    ("Ingress.keyless", KEYLESS_ID, [], [_MARK, _NONE], _NONE),
    ("Ingress.fixed", FIXED_ID, [("proto", 8, "exact")], [_DROP, _NONE], _NONE),
]
_KINDS = {"exact": 2, "lpm": 3, "ternary": 4, "range": 5, "optional": 6}
_DIGEST_FIELDS = [("address", 32), ("port", 9)]


def p4info() -> p4i.P4Info:
    """Return the P4Info."""
    info = p4i.P4Info(pkg_info=p4i.PkgInfo(arch="v1model"))
    for name, (action_id, params) in _ACTIONS.items():
        action = info.actions.add()
        action.preamble.id, action.preamble.name, action.preamble.alias = action_id, name, name.split(".")[-1]
        for number, (param, width) in enumerate(params, 1):
            action.params.add(id=number, name=param, bitwidth=width)
    for name, table_id, keys, actions, _ in _TABLES:
        table = info.tables.add(size=4 if table_id == LPM_ID else 131072)
        table.preamble.id, table.preamble.name, table.preamble.alias = table_id, name, name.split(".")[-1]
        for number, (key, width, kind) in enumerate(keys, 1):
            table.match_fields.add(id=number, name=key, bitwidth=width, match_type=_KINDS[kind])
        for action_name in actions:
            table.action_refs.add(id=_ACTIONS[action_name][0])
        if table_id == CONST_ID:
            table.is_const_table = True
        if table_id == FIXED_ID:
            table.const_default_action_id = NO_ACTION_ID
            table.action_refs[1].scope = p4i.ActionRef.DEFAULT_ONLY
        if table_id == KEYLESS_ID:
            table.action_refs[1].scope = p4i.ActionRef.TABLE_ONLY
        if table_id == EXACT_ID:
            table.direct_resource_ids.append(DIRECT_ID)
    _add_arrays(info)
    _add_messages(info)
    return info


def _add_arrays(info: p4i.P4Info) -> None:
    direct = info.direct_counters.add(direct_table_id=EXACT_ID)
    direct.preamble.id, direct.preamble.name, direct.preamble.alias = DIRECT_ID, "Ingress.hits", "hits"
    direct.spec.unit = p4i.CounterSpec.BOTH
    for counter_id, name, unit in ((COUNTER_ID, "flows", p4i.CounterSpec.BOTH), (BYTES_ID, "octets", 1)):
        counter = info.counters.add(size=8)
        counter.preamble.id, counter.preamble.name, counter.preamble.alias = (
            counter_id,
            f"Ingress.{name}",
            name,
        )
        counter.spec.unit = unit
    register = info.registers.add(size=4)
    register.preamble.id, register.preamble.name, register.preamble.alias = (
        REGISTER_ID,
        "Ingress.last",
        "last",
    )
    register.type_spec.bitstring.bit.bitwidth = 12


def _add_messages(info: p4i.P4Info) -> None:
    digest = info.digests.add()
    digest.preamble.id, digest.preamble.name, digest.preamble.alias = DIGEST_ID, "seen_t", "seen_t"
    digest.type_spec.struct.name = "seen_t"
    for name, width in _DIGEST_FIELDS:
        member = info.type_info.structs["seen_t"].members.add(name=name)
        member.type_spec.bitstring.bit.bitwidth = width
    for header_id, name in ((PACKET_IN_ID, "packet_in"), (PACKET_OUT_ID, "packet_out")):
        header = info.controller_packet_metadata.add()
        header.preamble.id, header.preamble.name, header.preamble.alias = header_id, name, name
        for number, (field, width) in enumerate((("port", 9), ("reason", 3), ("id", 12)), 1):
            header.metadata.add(id=number, name=field, bitwidth=width)


def bmv2_json() -> dict[str, Any]:
    """Return the BMv2 JSON, with what the service reads of it."""
    numbers = {name: number for number, name in enumerate(_ACTIONS)}
    return {
        "program": "everything.p4",
        "actions": [
            {
                "name": name,
                "id": numbers[name],
                "runtime_data": [{"name": param, "bitwidth": width} for param, width in params],
            }
            for name, (_, params) in _ACTIONS.items()
        ],
        "pipelines": [
            {
                "name": "ingress",
                "tables": [
                    {
                        "name": name,
                        "max_size": 4 if table_id == LPM_ID else 131072,
                        "key": [{"match_type": kind, "name": key} for key, _, kind in keys],
                        "action_ids": [numbers[action] for action in actions],
                        "default_entry": {"action_id": numbers[default], "action_data": []},
                    }
                    for name, table_id, keys, actions, default in _TABLES
                ],
            }
        ],
        "counter_arrays": [
            {"name": "Ingress.hits", "is_direct": True, "size": 131072},
            {"name": "Ingress.flows", "size": 8},
            {"name": "Ingress.octets", "size": 8},
        ],
        "register_arrays": [{"name": "Ingress.last", "size": 4, "bitwidth": 12}],
        "learn_lists": [{"name": "seen_t", "id": 1}],
    }


def device_config() -> bytes:
    """Return the BMv2 JSON as a client sends it."""
    return json.dumps(bmv2_json()).encode()
