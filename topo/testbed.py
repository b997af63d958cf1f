"""A testbed: the network, its controller, the programs in it, and the migrations between its hosts.

    with Testbed(LoadBalancerNetwork(hosts=4)) as net:
        net.run("echo", host="h2", argv=[…], service="10.0.0.100:7000")
        report = net.migrate("echo", to="h3")

This is where the parts are joined: `topo.plan` says what to build, `NetworkAPI` builds it, the controller drives the
switches, `migration` moves programs. At the end of the `with` block everything is gone, whatever happened in it.
"""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from controllers.config import load_switches
from controllers.controller import Controller, ControllerConfig
from controllers.errors import ControllerError
from controllers.hosts import Host as SwitchedHost
from controllers.loadbalancer import BalancerOptions
from controllers.migrations import OnEvent
from migration.errors import MigrationError
from migration.inet import InetSocket
from migration.migrator import Migrator
from migration.model import App, Host
from migration.process import ProcessRuntime
from migration.report import Report
from migration.steering import Endpoint, IpProtocol
from topo import paths
from topo.compile import Target
from topo.errors import BadApp, BadNetwork, TestbedError
from topo.network_api import NetworkAPI
from topo.plan import HostPlan, LoadBalancerNetwork, NetworkPlan, SwitchPlan, plan
from topo.runs import Run, clean_up
from topo.waiting import wait_until

__all__ = ["LoadBalancerNetwork", "Testbed"]

LISTEN_TIMEOUT = 10.0  # seconds that a service's program may take until it listens
BMV2_SETTLE = 0.05  # seconds by which BMv2 may report a connection later than a packet that came after it
Measure = Callable[[float, float], dict[str, Any] | None]


@dataclass
class RunningApp:
    """A program that can be moved, and the service that it answers for."""

    app: App
    argv: tuple[str, ...]
    service: str | None = None
    backend_port: int | None = None

    def __str__(self) -> str:
        served = f", serves {self.service}" if self.service else ""
        return f"{self.app.name} runs on {self.app.host.name} (process {self.app.pid}{served})"


class Testbed:
    """A running network; a context manager."""

    __test__ = False  # pytest: not a test class, in spite of its name

    def __init__(
        self,
        network: LoadBalancerNetwork | None = None,
        *,
        hold: bool = True,
        http_port: int | None = 0,
        fault: Callable[..., None] | None = None,
    ) -> None:
        """Describe the testbed; `with` starts it.

        `hold=False` lets packets be lost during a migration (for comparison). `http_port` 0 takes a free port, None
        gives no HTTP API. `fault` is called before and after every step of a migration, and may raise (for tests).
        """
        self.network = network or LoadBalancerNetwork()
        self.hold = hold
        self.http_port = http_port
        self.measure: Measure | None = None
        """Called after each migration with its start and end (CLOCK_MONOTONIC): the report's `client`."""
        self._fault = fault
        self._stack = ExitStack()
        self._lock = threading.Lock()
        self._apps: dict[str, RunningApp] = {}
        self._reports: dict[str, Report] = {}

    # ---- life

    def __enter__(self) -> Testbed:
        if os.geteuid() != 0:
            raise TestbedError("networks need root: type sudo .venv/bin/python …")
        with ExitStack() as stack:
            self._stack = stack
            self._start(stack)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack) -> None:
        clean_up()
        self.plan = plan(self.network)
        run = self._run = stack.enter_context(Run())
        run.record_links(_root_links(self.plan))
        stack.enter_context(_logging_to(run.folder / "controller.log"))
        self._network_api = stack.enter_context(self._describe(run))
        self._runtime = stack.enter_context(ProcessRuntime())
        self._network_api.startNetwork()
        self.hosts = {h.name: Host(h.name, self.mininet[h.name].pid, h.address) for h in self.plan.hosts}
        self.controller = self._make_controller(run)
        try:
            self.controller.start()
        except ControllerError as ex:
            raise TestbedError(str(ex)) from ex
        stack.callback(self.controller.stop)
        self._migrator = Migrator(
            self.controller.steering,
            self._runtime,
            images=run.images / "images",
            journals=run.folder / "journals",
            no_hold=not self.hold,
            **({"fault": self._fault} if self._fault else {}),
        )

    def _describe(self, run: Run) -> NetworkAPI:
        """Say to NetworkAPI what the plan says."""
        api = NetworkAPI(self.network.target, log_dir=run.folder)
        api.load_programs = False  # the controller pushes them
        for switch in self.plan.switches:
            api.addP4RuntimeSwitch(
                switch.name, device_id=switch.device_id, grpc_port=switch.grpc_port, log_enabled=True
            )
            api.setP4Source(switch.name, paths.P4SRC / f"{switch.program}.p4")
        for host in self.plan.hosts:
            api.addHost(host.name, ip=str(host.interface), mac=host.mac, defaultRoute=f"via {host.gateway}")
            api.addLink(host.name, host.switch, port2=host.port, addr2=host.gateway_mac)
        for trunk in self.plan.trunks:
            api.addLink(
                trunk.left,
                trunk.right,
                trunk.left_port,
                trunk.right_port,
                addr1=trunk.mac(trunk.left),
                addr2=trunk.mac(trunk.right),
            )
        return api

    def _make_controller(self, run: Run) -> Controller:
        config = ControllerConfig(
            switches=load_switches(write_switches(run.folder, self.plan, self._network_api)),
            http_port=self.http_port,
            balancer=BalancerOptions(
                settle=BMV2_SETTLE if Target(self.network.target) is Target.BMV2 else 0.0
            ),
            holding=self.hold,
        )
        hosts = {h.name: _switched(h, self.hosts[h.name]) for h in self.plan.hosts}
        try:
            return Controller(config, hosts, self._move, self._apps_view)
        except ControllerError as ex:
            raise TestbedError(str(ex)) from ex

    # ---- what the user does

    @property
    def mininet(self) -> Any:
        """Mininet's own object."""
        return self._network_api.net

    @property
    def url(self) -> str | None:
        """Where the HTTP API answers."""
        return self.controller.url

    @property
    def folder(self) -> Path:
        """Where logs, journals and the switch configuration are while the testbed runs."""
        return self._run.folder

    def host(self, name: str) -> Any:
        """Return a host's Mininet node."""
        self._host(name)
        return self.mininet[name]

    def run(
        self,
        name: str,
        host: str,
        argv: Sequence[str],
        service: str | None = None,
        *,
        port: int | None = None,
        weight: int = 1,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> RunningApp:
        """Start a program that can be moved; returns when it listens, if it answers for a service.

        `service` is "VIP:PORT" (or "VIP:PORT/udp"); the program's own port is the same unless `port` says otherwise.
        Raises BadApp, BadNetwork.
        """
        if name in self._apps:
            raise BadApp(f"there is an app {name} already, on {self._apps[name].app.host.name}")
        where = self._host(host)
        vip = parse_service(service) if service else None
        if vip and any(vip.address == h.address for h in self.plan.hosts):
            raise BadApp(f"{vip.address} is a host's address: a service needs one of its own")
        log = self.folder / f"{name}.out"
        try:
            app = self._runtime.launch(name, where, argv, log, env=env, cwd=cwd or Path.cwd())
        except MigrationError as ex:
            raise BadApp(str(ex)) from ex
        running = RunningApp(app, tuple(argv), service, (port or vip.port) if vip else None)
        try:
            if vip and service:
                self._serve(running, service, vip, weight)
        except BaseException:
            self._runtime.terminate(app)
            raise
        self._apps[name] = running
        return running

    def stop(self, name: str) -> None:
        """End a program, and take it out of its service."""
        running = self._app(name)
        del self._apps[name]
        listening = self._runtime.sockets(running.app)
        try:
            if running.service and running.backend_port:
                self.controller.remove_backend(running.service, self._location(running), drain=False)
            else:
                for socket in listening:
                    if socket.is_receiver:
                        self.controller.forget(_at(running.app.host, socket))
        except ControllerError as ex:
            raise BadApp(str(ex)) from ex
        finally:
            self._runtime.terminate(running.app)

    def migrate(self, app: str, to: str, on_event: OnEvent | None = None) -> Report:
        """Carry a program to another host; returns the report, whatever the outcome.

        Raises BadApp for an app or a host that is not there.
        """
        self._app(app)
        self._host(to)
        try:
            migration = self.controller.migrations.submit(app, to)
            self.controller.migrations.wait(migration.id)
        except ControllerError as ex:
            raise BadApp(str(ex)) from ex
        if migration.id not in self._reports:  # it was cancelled over HTTP, or ran into a bug
            reason = (migration.report or {}).get("reason") or migration.state
            raise TestbedError(f"migration {migration.id} of {app} did not take place: {reason}")
        return self._reports[migration.id]

    def output(self, name: str) -> str:
        """Return what a program has printed."""
        return self._app(name).app.log.read_text(errors="replace")

    # ---- what there is

    def apps(self) -> list[dict[str, Any]]:
        """List the programs."""
        return [{"name": name, **view} for name, view in self._apps_view().items()]

    def services(self) -> list[dict[str, Any]]:
        """List the services."""
        return self._ask(self.controller.services)

    def backends(self) -> list[dict[str, Any]]:
        """List the services' backends."""
        return self._ask(self.controller.backends)

    def connections(self) -> list[dict[str, Any]]:
        """List the connections that the load balancer has pinned."""
        return self._ask(self.controller.connections)

    def migrations(self) -> list[dict[str, Any]]:
        """List the reports of all migrations so far."""
        return [report.to_json() for report in self._reports.values()]

    # ---- inside

    def _move(self, app: str, destination: str, on_event: OnEvent, *, migration_id: str) -> Mapping[str, Any]:
        """Be the controller's mover: it calls this in the migration's own thread."""
        running = self._app(app)
        started = time.monotonic()
        report = self._migrator.migrate(
            running.app, self._host(destination), lambda event: on_event(event.to_json()), migration_id
        )
        if self.measure is not None:
            report.client = self.measure(started, time.monotonic())
        self._reports[migration_id] = report
        return report.to_json()

    def _serve(self, running: RunningApp, service: str, vip: Endpoint, weight: int) -> None:
        """Wait until the program listens, and put it into the service's pool."""
        self._wait_for_listener(running, vip.protocol)
        location = self._location(running)
        try:
            if not any(known["name"] == service for known in self.controller.services()):
                self.controller.add_service(service, vip)
            self.controller.add_backend(service, location, weight)
        except ControllerError as ex:
            raise BadApp(f"{running.app.name}: {ex}") from ex

    def _wait_for_listener(self, running: RunningApp, protocol: IpProtocol) -> None:
        app, port = running.app, running.backend_port

        def listens() -> bool:
            if not self._runtime.is_running(app):
                raise BadApp(f"{app.name} ended at once: {_last_line(app.log)}")
            return any(
                s.is_receiver and s.protocol == protocol and s.local_port == port
                for s in self._runtime.sockets(app)
            )

        if not wait_until(listens, LISTEN_TIMEOUT):
            raise BadApp(
                f"{app.name} does not listen on {protocol.name} port {port} after {LISTEN_TIMEOUT:g} s: "
                f"{_last_line(app.log)}"
            )

    def _location(self, running: RunningApp) -> Endpoint:
        assert running.service is not None and running.backend_port is not None
        protocol = parse_service(running.service).protocol
        return Endpoint(protocol, running.app.host.address, running.backend_port)

    def _apps_view(self) -> dict[str, dict[str, Any]]:
        return {
            name: {
                "host": running.app.host.name,
                "pid": running.app.pid,
                "state": "running" if self._runtime.is_running(running.app) else "ended",
                "service": running.service,
                "command": " ".join(running.argv),
            }
            for name, running in list(self._apps.items())
        }

    def _app(self, name: str) -> RunningApp:
        if name not in self._apps:
            raise BadApp(f"there is no app {name} (there are: {', '.join(self._apps) or 'none'})")
        return self._apps[name]

    def _host(self, name: str) -> Host:
        if name not in self.hosts:
            raise BadNetwork(f"there is no host {name} (there are: {', '.join(self.hosts)})")
        return self.hosts[name]

    def _ask(self, view: Callable[[], list[dict[str, Any]]]) -> list[dict[str, Any]]:
        try:
            return view()
        except ControllerError as ex:
            raise TestbedError(str(ex)) from ex


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Write what the parts log to a file; without a handler Python would print it in the middle of the CLI."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("controllers", "migration", "finsy")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


def parse_service(text: str) -> Endpoint:
    """Parse "VIP:PORT" or "VIP:PORT/udp"; raises BadApp."""
    address, _, rest = text.partition(":")
    number, _, protocol = rest.partition("/")
    try:
        kind = IpProtocol[(protocol or "tcp").upper()]
        vip, port = IPv4Address(address), int(number)
    except (KeyError, ValueError) as ex:
        raise BadApp(f"service {text!r} is not VIP:PORT such as 10.0.0.100:7000 (or …/udp)") from ex
    if not 1 <= port <= 65535:
        raise BadApp(f"service {text!r}: {port} is not a port from 1 to 65535")
    return Endpoint(kind, vip, port)


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


def _switched(planned: HostPlan, host: Host) -> SwitchedHost:
    return SwitchedHost(host.name, host.pid, host.address, planned.mac, planned.switch, planned.port)


def _root_links(network: NetworkPlan) -> list[str]:
    """List the links that the network has in the root namespace."""
    ends = [f"{h.switch}-eth{h.port}" for h in network.hosts]
    for trunk in network.trunks:
        ends += [f"{trunk.left}-eth{trunk.left_port}", f"{trunk.right}-eth{trunk.right_port}"]
    return ends + [f"p4cpu{switch.device_id}" for switch in network.switches]  # the embedded switch's own


def _at(host: Host, socket: InetSocket) -> Endpoint:
    """Return where a socket of a host is found from outside."""
    return Endpoint(IpProtocol(socket.protocol), host.address, socket.local_port)


def _last_line(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1] if lines else "it said nothing"
