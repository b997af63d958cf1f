"""Connections that survive changes of the pool: p4ferry's load balancer, and one that selects by hash modulo N.

Both arms: 1,000 connections are live over three backends; then backends are added, drained and removed, one at a time,
and after each change every connection must still be answered. The control arm is baseline/modulo.p4 on the same switch.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import finsy

from bench.statistics import machine
from migration.steering import Endpoint
from topo import paths
from topo.measure import TCP_ECHO
from topo.network_api import NetworkAPI
from topo.plan import HostPlan, LoadBalancerNetwork, plan
from topo.testbed import Testbed, parse_service
from topo.waiting import wait_until

VIP, PORT = "10.0.0.100", 7000
SERVICE = f"{VIP}:{PORT}"
HOSTS = 6  # h1 is the client
SERVER = ["/usr/bin/python3", str(TCP_ECHO), "server"]
MODULO = Path(__file__).with_name("baseline") / "modulo.p4"


def main(arguments: Sequence[str]) -> dict[str, object]:
    """Measure, print, and return the result."""
    parser = argparse.ArgumentParser(prog="bench affinity")
    parser.add_argument("--connections", type=int, default=1000)
    options = parser.parse_args(arguments)
    result: dict[str, object] = {
        "connections": options.connections,
        "p4ferry_alive": ours(options.connections),
        "modulo_alive": modulo(options.connections),
        "machine": machine(),
    }
    print(json.dumps(result, indent=2))
    return result


class Connections:
    """The live connections: a process in the client's host."""

    def __init__(self, pid: int, count: int) -> None:
        # fmt: off
        command = ["nsenter", "--target", str(pid), "--net", "--", sys.executable, "-m", "bench.connections",
                   VIP, str(PORT), str(count)]
        # fmt: on
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=paths.CHECKOUT
        )
        self.alive = self._number()

    def ask(self) -> int:
        """Do one round; returns how many connections are alive."""
        assert self._process.stdin is not None
        self._process.stdin.write("round\n")
        self._process.stdin.flush()
        return self._number()

    def _number(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def close(self) -> None:
        """Close them all."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait(10)


def changes(connections: Connections, steps: Sequence[tuple[str, Callable[[], None]]]) -> dict[str, int]:
    """Do the changes one after another; returns how many connections are alive after each."""
    seen = {"before": connections.ask()}
    for name, change in steps:
        change()
        seen[name] = connections.ask()
    connections.close()
    return seen


def ours(count: int) -> dict[str, int]:
    """Run p4ferry's arm."""
    with Testbed(LoadBalancerNetwork(hosts=HOSTS)) as bed:
        for number in range(2, 5):
            bed.run(f"echo{number}", f"h{number}", SERVER, service=SERVICE)
        for number in range(5, HOSTS + 1):
            bed.run(f"echo{number}", f"h{number}", SERVER)
            wait_until(lambda n=number: "listening" in bed.output(f"echo{n}"), 5.0)  # type: ignore[misc]
        vip = parse_service(SERVICE)

        def at(number: int) -> Endpoint:
            return Endpoint(vip.protocol, bed.hosts[f"h{number}"].address, PORT)

        control = bed.controller
        return changes(
            Connections(bed.host("h1").pid, count),
            [
                ("h5 added", lambda: control.add_backend(SERVICE, at(5))),
                ("h2 drained", lambda: control.remove_backend(SERVICE, at(2), drain=True)),
                ("h3 removed", lambda: control.remove_backend(SERVICE, at(3))),
                ("h6 added", lambda: control.add_backend(SERVICE, at(6))),
            ],
        )


def modulo(count: int) -> dict[str, int]:
    """Run the control arm."""
    with modulo_network() as (api, hosts):
        loop = asyncio.new_event_loop()
        try:

            def use(*numbers: int) -> None:
                loop.run_until_complete(write_modulo(api, hosts, numbers))

            use(2, 3, 4)
            return changes(
                Connections(api.net["h1"].pid, count),  # type: ignore[index]
                [
                    ("h5 added", lambda: use(2, 3, 4, 5)),
                    ("h2 drained", lambda: use(3, 4, 5)),
                    ("h3 removed", lambda: use(4, 5)),
                    ("h6 added", lambda: use(4, 5, 6)),
                ],
            )
        finally:
            loop.close()


@contextmanager
def modulo_network() -> Iterator[tuple[NetworkAPI, tuple[HostPlan, ...]]]:
    """Build the same network with the control arm's program, an echo server on every host but the first."""
    hosts = plan(LoadBalancerNetwork(hosts=HOSTS)).hosts
    with tempfile.TemporaryDirectory() as folder, NetworkAPI(log_dir=folder) as api:
        source = Path(folder) / "modulo.p4"
        source.write_text(MODULO.read_text())
        (Path(folder) / "headers.p4").write_text((paths.P4SRC / "headers.p4").read_text())
        api.addP4RuntimeSwitch("s1")
        api.setP4Source("s1", source)
        api.load_programs = False
        for host in hosts:
            api.addHost(host.name, ip=str(host.interface), mac=host.mac, defaultRoute=f"via {host.gateway}")
            api.addLink(host.name, "s1", port2=host.port)
        api.startNetwork()
        net = api.net
        assert net is not None
        servers = [
            subprocess.Popen(
                ["nsenter", "--target", str(net[h.name].pid), "--net", "--", *SERVER],
                stdout=subprocess.DEVNULL,
            )
            for h in hosts[1:]
        ]
        try:
            yield api, hosts
        finally:
            for server in servers:
                server.kill()
                server.wait()


async def write_modulo(api: NetworkAPI, hosts: Sequence[HostPlan], backends: Sequence[int]) -> None:
    """Push the program if it is not there, and make the tables spread over `backends`."""
    program = api.program("s1")
    address = {h.number: h.address for h in hosts}
    options = finsy.SwitchOptions(p4info=program.p4info, p4blob=program.bmv2_json)
    async with finsy.Switch("s1", "127.0.0.1:9559", options) as switch:
        await switch.delete_all()
        rows = [_row("vip", {"address": VIP}, "spread", backends=len(backends))]
        rows += [
            _row("backend", {"backend": i}, "send_to", address=str(address[n]))
            for i, n in enumerate(backends)
        ]
        for host in hosts:
            params = {"port": host.port, "src_mac": host.gateway_mac, "dst_mac": host.mac}
            rows.append(_row("arp", {"address": str(host.gateway)}, "arp_reply", mac=host.gateway_mac))
            rows.append(_row("route", {"address": f"{host.interface.network}"}, "forward", **params))
            if host.number > 1:
                rows.append(_row("source", {"address": str(host.address)}, "speak_as", address=VIP))
        await switch.insert(rows)


def _row(table: str, match: dict[str, object], action: str, **params: object) -> finsy.P4TableEntry:
    return finsy.P4TableEntry(
        table,
        match=finsy.P4TableMatch(match),
        action=finsy.P4TableAction(action, **params),  # type: ignore[arg-type]
    )
