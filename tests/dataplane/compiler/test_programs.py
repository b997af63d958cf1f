"""The project's own programs: the facts that switch and controller rely on."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataplane.compiler import Compiled, compile_program

from .skeleton import primitives, state, table

P4SRC = Path(__file__).parents[3] / "p4src"


@pytest.fixture(scope="module")
def balancer() -> Compiled:
    """Return the compiled load balancer."""
    return compile_program(P4SRC / "load_balancer.p4")


@pytest.mark.parametrize(
    ("name", "keys", "actions", "size"),
    [
        ("arp", ["address"], ["arp_reply", "drop"], 1024),
        ("echo", ["address"], ["echo_reply", "NoAction"], 1024),
        ("connection_source", ["protocol", "src_addr", "src_port", "dst_addr", "dst_port"],
         ["speak_as", "stay_as", "NoAction"], 131072),
        ("endpoint_source", ["protocol", "address", "port"], ["speak_as", "NoAction"], 16384),
        ("connection", ["protocol", "src_addr", "src_port", "dst_addr", "dst_port"],
         ["pin_to_backend", "pin_to_location", "stay_at", "NoAction"], 131072),
        ("destination", ["protocol", "address", "port"],
         ["serve", "serve_guarded", "send_to", "direct", "NoAction"], 16384),
        ("maglev", ["service", "slot"], ["choose", "NoAction"], 65536),
        ("backend", ["backend"], ["send_to", "drop"], 1024),
        ("hold", ["protocol", "address", "port"], ["hold_for", "NoAction"], 16384),
        ("hold_source", ["protocol", "address", "port"], ["hold_for", "NoAction"], 16384),
        ("holding", ["id"], ["keep", "NoAction"], 1024),
        ("holding_source", ["id"], ["keep", "NoAction"], 1024),
        ("route", ["address"], ["forward", "drop"], 1024),
    ],
)  # fmt: skip
def test_tables(balancer: Compiled, name: str, keys: list[str], actions: list[str], size: int) -> None:
    """Tables have their keys, actions and sizes, in JSON and P4Info alike."""
    made = table(balancer.bmv2_json, f"Ingress.{name}")
    full = [a if a == "NoAction" else f"Ingress.{a}" for a in actions]
    assert [k["name"] for k in made["key"]] == keys
    assert (made["actions"], made["max_size"]) == (full, size)
    info = next(t for t in balancer.p4info.tables if t.preamble.name == f"Ingress.{name}")
    assert [f.name for f in info.match_fields] == keys
    names = {a.preamble.id: a.preamble.name for a in balancer.p4info.actions}
    assert ([names[r.id] for r in info.action_refs], info.size) == (full, size)


def test_header_widths(balancer: Compiled) -> None:
    """Headers are as long as the protocols say."""
    lengths = {h["name"]: sum(f[1] for f in h["fields"]) // 8 for h in balancer.bmv2_json["header_types"]}
    expected = {
        "ethernet_h": 14,
        "arp_h": 28,
        "ipv4_h": 20,
        "icmp_h": 4,
        "tcp_h": 20,
        "udp_h": 8,
        "packet_in_h": 7,
    }
    assert {name: lengths[name] for name in expected} == expected


def test_packet_io(balancer: Compiled) -> None:
    """The controller's headers."""
    headers = {h.preamble.name: h for h in balancer.p4info.controller_packet_metadata}
    assert [(m.name, m.bitwidth) for m in headers["packet_in"].metadata] == [
        ("port", 16),
        ("reason", 8),
        ("id", 32),
    ]
    assert [(m.name, m.bitwidth) for m in headers["packet_out"].metadata] == [
        ("port", 16),
        ("operation", 8),
        ("id", 32),
    ]


def test_parser(balancer: Compiled) -> None:
    """The CPU port, then Ethernet, then IPv4 without options and fragments."""
    first = state(balancer.bmv2_json, "start")
    assert [(t["value"], t["next_state"]) for t in first["transitions"]] == [
        ("0x00ff", "parse_packet_out"),
        (None, "parse_ethernet"),
    ]
    values = [t["value"] for t in state(balancer.bmv2_json, "parse_ipv4")["transitions"]]
    assert values == ["0x05000006", "0x05000011", "0x05000001", None]


def test_digest(balancer: Compiled) -> None:
    """One learn list, as long as its struct."""
    (learn,) = balancer.bmv2_json["learn_lists"]
    assert (learn["name"], len(learn["elements"])) == ("connection_event_t", 9)
    members = balancer.p4info.type_info.structs["connection_event_t"].members
    assert [m.name for m in members] == [
        "event", "protocol", "src_addr", "src_port", "dst_addr", "dst_port", "service", "backend", "tcp_flags",
    ]  # fmt: skip


def test_checksums(balancer: Compiled) -> None:
    """IPv4's own, and TCP's, UDP's and ICMP's over the payload."""
    document = balancer.bmv2_json
    calculations = {c["name"]: c for c in document["calculations"]}
    found = [
        (c["target"][0], c["update"], calculations[c["calculation"]]["input"][-1]["type"])
        for c in document["checksums"]
    ]
    assert found == [
        ("ipv4", True, "field"),
        ("tcp", True, "payload"),
        ("udp", True, "payload"),
        ("icmp", True, "payload"),
    ]
    assert {"type": "hexstr", "value": "0x00", "bitwidth": 8} in calculations["calc_1"][
        "input"
    ] + calculations["calc_2"]["input"]


def test_maglev_hash(balancer: Compiled) -> None:
    """The slot is a CRC-32 over the connection, modulo the number of slots."""
    primitive = next(
        p
        for action in balancer.bmv2_json["actions"]
        for p in action["primitives"]
        if p["op"] == "modify_field_with_hash_based_offset"
    )
    assert primitive["parameters"][3]["value"] == "0x000003fd"
    calculation = next(
        c for c in balancer.bmv2_json["calculations"] if c["name"] == primitive["parameters"][2]["value"]
    )
    assert (calculation["algo"], len(calculation["input"])) == ("crc32", 5)


def test_counters(balancer: Compiled) -> None:
    """Counters per service and backend, and one per pinned connection."""
    counters = [(c["name"], c["is_direct"], c.get("size")) for c in balancer.bmv2_json["counter_arrays"]]
    assert counters == [
        ("Ingress.service_counter", False, 64),
        ("Ingress.backend_counter", False, 1024),
        ("Ingress.connection_counter", True, None),
    ]


def test_every_reference_exists(balancer: Compiled) -> None:
    """Whatever the flow names is a table or conditional of its pipeline."""
    for document in (balancer.bmv2_json, compile_program(P4SRC / "forward.p4").bmv2_json):
        for pipeline in document["pipelines"]:
            names = (
                {t["name"] for t in pipeline["tables"]}
                | {c["name"] for c in pipeline["conditionals"]}
                | {None}
            )
            assert pipeline["init_table"] in names
            for made in pipeline["tables"]:
                assert set(made["next_tables"].values()) | {made["base_default_next"]} <= names
            for made in pipeline["conditionals"]:
                assert {made["true_next"], made["false_next"]} <= names
        ids = [a["id"] for a in document["actions"]]
        assert ids == list(range(len(ids)))


def test_forward() -> None:
    """The forwarding program: ARP, echo, longest prefix."""
    document = compile_program(P4SRC / "forward.p4").bmv2_json
    assert table(document, "Ingress.route")["match_type"] == "lpm"
    assert table(document, "Ingress.route")["with_counters"] is True
    assert document["deparsers"][0]["order"] == ["ethernet", "arp", "ipv4", "icmp"]
    assert primitives(document, "Ingress.drop")[0]["op"] == "mark_to_drop"
    assert [c["target"][0] for c in document["checksums"]] == ["ipv4", "icmp"]


def test_compiling_twice_gives_the_same(balancer: Compiled) -> None:
    """The output depends on the program alone."""
    again = compile_program(P4SRC / "load_balancer.p4")
    assert again.bmv2_json == balancer.bmv2_json
    assert again.p4info == balancer.p4info
