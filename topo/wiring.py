"""What a plan means to the others: to NetworkAPI, to the controller, and to whoever cleans up after a crash."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from controllers.hosts import Host as SwitchedHost
from migration.model import Host
from migration.namespaces import in_netns
from topo import paths
from topo.kinds import HostKind
from topo.network_api import NetworkAPI
from topo.plan import HostPlan, NetworkPlan, SwitchPlan


def describe(api: NetworkAPI, network: NetworkPlan, kind: HostKind) -> None:
    """Say to NetworkAPI what the plan says."""
    api.load_programs = False  # the controller pushes them
    for switch in network.switches:
        api.addP4RuntimeSwitch(
            switch.name, device_id=switch.device_id, grpc_port=switch.grpc_port, log_enabled=True
        )
        api.setP4Source(switch.name, paths.P4SRC / f"{switch.program}.p4")
    for host in network.hosts:
        own = {"ip": str(host.interface), "mac": host.mac, "defaultRoute": f"via {host.gateway}"}
        if kind.engine is None:
            api.addHost(host.name, **own)
        else:
            api.addPod(host.name, kind.engine, **own)
        api.addLink(host.name, host.switch, port2=host.port, addr2=host.gateway_mac)
    for trunk in network.trunks:
        api.addLink(
            trunk.left,
            trunk.right,
            trunk.left_port,
            trunk.right_port,
            addr1=trunk.mac(trunk.left),
            addr2=trunk.mac(trunk.right),
        )


def disable_ipv6(pid: int) -> None:
    """Take the link-local addresses from the interfaces in a host, but for the loopback interface.

    The network carries IPv4 only, and a program that binds to each address of its host would have one that the next
    host has not.
    """

    def disable() -> None:
        # Of the thread's own network namespace, whichever /proc this is.
        for path in Path("/proc/sys/net/ipv6/conf").glob("*-eth*/disable_ipv6"):
            path.write_text("1\n")

    in_netns(pid, disable)


def write_switches(folder: Path, network: NetworkPlan, api: NetworkAPI) -> Path:
    """Write switches.json and the runtime files that it names; returns its path."""
    switches = [_switch_entry(folder, switch, api) for switch in network.switches]
    path = folder / "switches.json"
    path.write_text(json.dumps(switches, indent=2))
    return path


def _switch_entry(folder: Path, switch: SwitchPlan, api: NetworkAPI) -> dict[str, Any]:
    program = api.program(switch.name)
    runtime = folder / f"{switch.name}-runtime.json"
    runtime.write_text(
        json.dumps(
            {
                "target": "bmv2",
                "p4info": str(program.p4info),
                "bmv2_json": str(program.bmv2_json),
                "table_entries": switch.entries,
            },
            indent=2,
        )
    )
    return {
        "id": switch.device_id,
        "name": switch.name,
        "addr": f"127.0.0.1:{switch.grpc_port}",
        "p4info_file_path": str(program.p4info),
        "bmv2_file_path": str(program.bmv2_json),
        "runtime_file": str(runtime),
        "master": switch.name == "s1",
        "lb_nodes": [],
    }


def switched(planned: HostPlan, host: Host) -> SwitchedHost:
    return SwitchedHost(host.name, host.pid, host.address, planned.mac, planned.switch, planned.port)


def root_links(network: NetworkPlan) -> list[str]:
    """List the links that the network has in the root namespace."""
    ends = [f"{h.switch}-eth{h.port}" for h in network.hosts]
    for trunk in network.trunks:
        ends += [f"{trunk.left}-eth{trunk.left_port}", f"{trunk.right}-eth{trunk.right_port}"]
    return ends + [f"p4cpu{switch.device_id}" for switch in network.switches]  # the embedded switch's own
