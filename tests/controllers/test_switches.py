"""Several switches, runtime files, and who is in charge."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import finsy
import pytest

from controllers.config import LbNode
from controllers.controller import Controller
from controllers.errors import ConfigError, NotPrimary
from tests.controllers.conftest import controller_config, eventually, tcp
from tests.controllers.model_switch import SYN, ModelSwitch, frame, served
from tests.controllers.test_controller import client, flat

RUNTIME: dict[str, Any] = {
    "target": "bmv2",
    "table_entries": [
        {
            "table": "Ingress.route",
            "default_action": True,
            "action_name": "Ingress.drop",
            "action_params": {},
        },
        {
            "table": "Ingress.route",
            "match": {"address": ["10.0.9.0", 24]},
            "action_name": "Ingress.forward",
            "action_params": {"port": 9, "src_mac": "08:00:00:00:09:fe", "dst_mac": "08:00:00:00:09:09"},
        },
        {
            "table": "arp",
            "match": {"address": "10.0.9.254"},
            "action_name": "arp_reply",
            "action_params": {"mac": "08:00:00:00:09:fe"},
        },
    ],
}


def runtime(folder: Path, data: object) -> Path:
    """Write a runtime file."""
    path = folder / "s1-runtime.json"
    path.write_text(json.dumps(data))
    return path


def with_runtime(program: tuple[Path, Path], address: str, path: Path, **more: Any) -> Any:
    """Return a controller's configuration whose switch has a runtime file."""
    config = controller_config(program, address)
    return replace(config, switches=[replace(config.switches[0], runtime_file=path, **more)])


def test_a_runtime_file_is_written(program: tuple[Path, Path], switch: ModelSwitch, tmp_path: Path) -> None:
    """Entries by full name or alias, addresses as people write them; lb_nodes become backends."""
    nodes = (LbNode(IPv4Address("10.0.9.9"), 0x080000000909, 9),)
    controller = Controller(with_runtime(program, switch.address, runtime(tmp_path, RUNTIME), lb_nodes=nodes))
    controller.start(10)
    try:
        switch.inject(frame(6, client(1), flat("10.0.0.100"), SYN))
        assert switch.taken() == [(9, client(1), flat("10.0.9.9"))]
        assert len(switch.running.tables["Ingress.arp"]) == 2
        assert switch.running.defaults["Ingress.route"] is not None
    finally:
        controller.stop()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table": "nat"}, "nat"),
        ({"action_name": "fly"}, "fly"),
        ({"match": {"adress": 1}}, "adress"),
        ({"action_params": {"port": 9}}, "src_mac"),
        ({"action_params": {"port": 512, "src_mac": 1, "dst_mac": 1}}, "512"),
    ],
)
def test_a_runtime_file_that_does_not_fit(
    program: tuple[Path, Path], switch: ModelSwitch, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    """Start says what does not fit, and where."""
    path = runtime(tmp_path, {"table_entries": [{**RUNTIME["table_entries"][1], **change}]})
    with pytest.raises(ConfigError, match=message) as caught:
        Controller(with_runtime(program, switch.address, path)).start(10)
    assert str(path) in str(caught.value)


def test_several_switches(program: tuple[Path, Path], switch: ModelSwitch) -> None:
    """Each gets its own rows, only the master balances, and each comes back by itself."""
    config = controller_config(program, switch.address)
    with served(device_id=2) as second:
        other = replace(config.switches[0], id=2, name="s2", addr=second.address, master=False)
        controller = Controller(replace(config, switches=[config.switches[0], other]))
        controller.start(10)
        try:
            controller.add_backend("echo", tcp("10.0.2.2"))
            assert [s["state"] for s in controller.switches()] == ["ready", "ready"]
            assert len(second.running.tables["Ingress.route"]) == 5
            assert not second.running.tables["Ingress.maglev"]
        finally:
            controller.stop()


def test_one_master_is_needed(program: tuple[Path, Path]) -> None:
    """Of two switches one must be it."""
    config = controller_config(program, "127.0.0.1:1")
    one = replace(config.switches[0], master=False)
    with pytest.raises(ConfigError, match="exactly one switch must be the master"):
        Controller(replace(config, switches=[one, replace(one, id=2, name="s2", addr="127.0.0.1:2")]))


def test_another_controller_takes_over_and_goes(controller: Controller, switch: ModelSwitch) -> None:
    """As a backup it says so; in charge again it restores what it remembers."""
    controller.add_backend("echo", tcp("10.0.2.2"))

    async def take_over() -> None:
        async with finsy.Switch("s1", switch.address, finsy.SwitchOptions(initial_election_id=99)) as rival:
            await rival.delete_many([finsy.P4TableEntry()])
            await rival.delete([finsy.P4DigestEntry("connection_event_t")])
            for _ in range(400):
                if controller.balancer.link.state == "backup":
                    break
                await asyncio.sleep(0.01)
            with pytest.raises(NotPrimary, match="another controller is in charge of switch s1"):
                await asyncio.to_thread(controller.add_backend, "echo", tcp("10.0.3.3"))

    controller.call(take_over())
    eventually(lambda: controller.balancer.link.state == "ready", "being in charge again")
    switch.inject(frame(6, client(1), flat("10.0.0.100"), SYN))
    assert switch.taken() == [(2, client(1), flat("10.0.2.2"))]
    eventually(lambda: len(controller.connections()) == 1, "pinning: the digest is enabled again")


def test_a_program_that_the_switch_refuses(
    program: tuple[Path, Path], switch: ModelSwitch, tmp_path: Path
) -> None:
    """Start does not wait for a pipeline that will never be there: it repeats the switch's reason."""
    broken = tmp_path / "broken.json"
    broken.write_text("no JSON")
    with pytest.raises(ConfigError, match=r"switch s1 refuses .*broken\.json: INVALID_ARGUMENT"):
        Controller(controller_config((program[0], broken), switch.address)).start(10)
