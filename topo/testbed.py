"""A testbed: the network, its controller, the programs in it, and the migrations between its hosts.

    with Testbed(LoadBalancerNetwork(hosts=4)) as net:
        net.run("echo", host="h2", argv=[…], service="10.0.0.100:7000")
        report = net.migrate("echo", to="h3")

This is where the parts are joined: `topo.plan` says what to build, `NetworkAPI` builds it, the controller drives the
switches, `migration` moves programs. At the end of the `with` block everything is gone, whatever happened in it.

Programs, hosts and switches outlive this process if it is killed: `Testbed.recover()` is a testbed that takes them
over, ends or undoes the migrations that were under way (`recovered` says how), and goes on.
"""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from controllers.config import load_switches
from controllers.controller import Controller, ControllerConfig
from controllers.errors import ControllerError
from controllers.loadbalancer import BalancerOptions
from controllers.migrations import WORKERS, OnEvent
from controllers.model import show
from migration.custody import Custody
from migration.deadline import Timeouts
from migration.diag import Diag
from migration.errors import KeeperLost, MigrationError
from migration.groups import Party, members
from migration.inet import Address, State, closing_connections, is_outward
from migration.migrator import Migrator
from migration.model import App, Host
from migration.neighbours import Surroundings
from migration.process import ProcessRuntime
from migration.recovery import Recovered
from migration.report import Report
from migration.slowness import scaled
from migration.steering import Endpoint, IpProtocol
from migration.tracing import TraceFolder
from migration.transaction import no_fault
from migration.transfer.modes import PAUSE_BUDGET, Wish, parse_wish
from topo import management, modules
from topo.compile import Target
from topo.containers.leftovers import remove_containers
from topo.description import PodName, Survivors
from topo.errors import BadApp, BadNetwork, CannotRecover, TestbedError
from topo.kinds import HostKind, parse_kind
from topo.launching import Launcher, Order, engine_of
from topo.left import Left, find_left
from topo.mover import Measure, TestbedMover
from topo.network_api import NetworkAPI
from topo.places import Places
from topo.plan import LoadBalancerNetwork, plan
from topo.processes import ProcessName
from topo.report_file import write_report
from topo.run_logs import CHECKPOINTS, KEPT_REPORTS, REPORT, TRACES
from topo.runs import JOURNALS, Run, clean_up
from topo.services import parse_service
from topo.state import KEEPER_SOCKET, RunningApp, RunState
from topo.supervisor import Supervisor
from topo.transfers import DEFAULT_MODE, DEFAULT_TRANSFER, parse_rate
from topo.waiting import wait_until
from topo.wiring import describe, disable_ipv6, root_links, switched, write_switches

__all__ = ["LoadBalancerNetwork", "Testbed"]

KEPT_TRACES = 1000  # of a run whose traces nobody asked for: some 10 kB each, in memory
SETTLED_S = 1.0  # in which a program without a service is expected to listen, if it does
LISTEN_TIMEOUT = 10.0  # seconds that a service's program may take until it listens
BMV2_SETTLE = 0.05  # seconds by which BMv2 may report a connection later than a packet that came after it


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
        workers: int = WORKERS,
        traces: Path | None = None,
        pcap: Path | None = None,
        mode: str = DEFAULT_MODE,
        transfer: str = DEFAULT_TRANSFER,
        pause_budget: float = PAUSE_BUDGET,
        management_rate: str | None = None,
        timeouts: Timeouts | None = None,
        hosts: HostKind | str = HostKind.PROCESS,
        switch_container: str | None = None,
    ) -> None:
        """Describe the testbed; `with` starts it.

        `hold=False` lets packets be lost during a migration (for comparison). `http_port` 0 takes a free port, None
        gives no HTTP API. `fault` is called before and after every step of a migration, and may raise (for tests).
        `workers` is how many migrations run at once. Their causal traces stay in the folder `traces`, if it is given,
        and captures of both ends of each are written to the folder `pcap`. Memory moves in `mode` (stop, lazy, pre,
        auto) by `transfer` (network, shared) where a migration does not say; `auto` stops a program for up to
        `pause_budget` seconds before it risks it (lazy). `management_rate` limits the links that it takes ("1gbit").
        `timeouts` says how long each step may take before the migration is rolled back.
        `hosts` says what they are, and what programs with an image run in: "process" and "runc" are namespaces (runc
        starts the containers, the demos use images with the latter), "docker" and "podman" are pods of that engine.
        `switch_container` names the engine whose containers the switches' processes run in, None the machine.
        """
        self.network = network or LoadBalancerNetwork()
        self.hold = hold
        self.http_port = http_port
        self.workers = workers
        self.kind = parse_kind(hosts)
        self.switch_container = switch_container
        self.traces = traces
        self._management_rate = parse_rate(management_rate) if management_rate else None
        self.timeouts = timeouts or Timeouts()
        self._fault = fault
        self._stack = ExitStack()
        self._lock = threading.Lock()
        self._apps: dict[str, RunningApp] = {}
        self._mover = TestbedMover(
            self._about_to_move,
            self._place,
            lambda name: str(self.mininet[name].defaultIntf().name),
            self._save,
            pcap,
            wish=_wish(mode, transfer, pause_budget),
        )
        self._left: Left | None = None
        self.recovered: list[Recovered] = []
        """What became of the migrations that the run's former process had not ended."""

    @classmethod
    def recover(cls, folder: Path | None = None, **options: Any) -> Testbed:
        """Return a testbed that takes over a dead run: the one in `folder`, or the latest; raises CannotRecover.

        `options` are those of a new testbed, without the network.
        """
        left = find_left(folder)
        state = left.state
        known = {"hold": state.hold, "hosts": state.kind, "switch_container": state.switch_container}
        bed = cls(state.network, **{**known, **options})
        bed._left = left
        return bed

    @property
    def is_recovered(self) -> bool:
        """Say whether this testbed goes on with what another process had built."""
        return self._left is not None

    # ---- life

    def __enter__(self) -> Testbed:
        if os.geteuid() != 0:
            raise TestbedError("networks need root: type sudo .venv/bin/python …")
        with ExitStack() as stack:
            self._stack = stack
            try:
                self._start(stack)
            except BaseException:
                if self._left is not None:  # what could not be taken over now may be later
                    self._leave(stack)
                raise
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def _start(self, stack: ExitStack) -> None:
        left = self._left
        modules.prepare(modules.Use.BRIDGE, modules.Use.MIGRATION)
        if left is None:
            clean_up()
        self.plan = plan(self.network)
        run = self._run = stack.enter_context(Run.take_over(left.folder) if left else Run())
        # What nobody knew of any more: half made when Ctrl-C came, or when a migration failed.
        stack.callback(remove_containers, run.folder)
        if left is None:
            run.record_links(root_links(self.plan))
        stack.enter_context(_logging_to(run.folder / "controller.log"))
        self._network_api = stack.enter_context(NetworkAPI(self.network.target, log_dir=run.folder))
        self._network_api.switch_container = self.switch_container
        describe(self._network_api, self.plan, self.kind)
        self._runtime = stack.enter_context(ProcessRuntime(custody=self._keep(run), run=run.name))
        self._network_api.startNetwork()
        self._places = self._find_places()
        self._launcher = Launcher(
            self._runtime,
            run,
            self._places,
            lambda name: self.mininet[name],
            dict(left.state.groups) if left else {},
        )
        for running in self._apps.values():  # of a run that is taken over
            if running.app.engine is not None:
                running.app.host = self._places.hosts[running.app.host.name]
        self._supervisor = stack.enter_context(Supervisor(self.mininet.switches, self._save))
        if left is None:
            self._join_hosts()
        self._save()
        self.controller = self._make_controller(run)
        steering = self.controller.steering
        steering.timeout = min(steering.timeout, self.timeouts.default)
        try:
            self.controller.start()
        except ControllerError as ex:
            raise TestbedError(str(ex)) from ex
        stack.callback(self.controller.stop)
        stack.callback(self._write_report)
        self._mover.migrator = self._migrator = Migrator(
            self.controller.steering,
            self._runtime,
            images=run.images / CHECKPOINTS,
            journals=run.folder / JOURNALS,
            traces=TraceFolder(self.traces) if self.traces else TraceFolder(run.folder / TRACES, KEPT_TRACES),
            no_hold=not self.hold,
            surroundings=Surroundings(self._programs, self._addresses, has_hairpins=True),
            fault=self._fault or no_fault,
            timeouts=self.timeouts,
            settled=self._settled,
        )
        if left is not None:
            self._settle(left)
        # What is there by now stays: a full collection in the middle of a freeze would look at all of it (50 ms).
        gc.freeze()
        stack.callback(gc.unfreeze)

    def _keep(self, run: Run) -> Custody:
        """Start what the network's hosts and programs live in, or take it over."""
        socket = run.folder / KEEPER_SOCKET
        if self._left is not None:
            state = self._left.state
            try:
                custody = Custody.adopt(socket)
            except KeeperLost as ex:
                raise CannotRecover(f"run {run.name} cannot be recovered: {ex}") from ex
            holders = {name: process.pid for name, process in state.holders.items()}
            self._network_api.survivors = Survivors(holders, state.switches, True, state.pods)
            self._apps = dict(state.apps)
            return custody
        custody = Custody(listen=socket)
        try:
            hosts = [host.name for host in self.plan.hosts]
            names = [] if self.kind.engine else hosts
            names = [*names, *map(management.interface, hosts)]
            holders = {name: custody.hold(name) for name in names}
        except MigrationError as ex:
            custody.close()
            raise TestbedError(f"hosts cannot be made: {ex}") from ex
        self._network_api.survivors = Survivors(holders)
        return custody

    def _find_places(self) -> Places:
        """Return where programs run; in pods, the keeper holds a place for plain ones, too."""
        assert self._network_api.survivors is not None
        known = self._network_api.survivors.holders
        hosts: dict[str, Host] = {}
        processes: dict[str, Host] = {}
        for planned in self.plan.hosts:
            node, own = self.mininet[planned.name], (planned.address, management.address(planned.number))
            # A run that is taken over may be an older version's, whose hosts have it themselves.
            place = known.get(management.interface(planned.name), 0)
            if self.kind.engine is None:
                hosts[planned.name] = Host(planned.name, node.pid, *own, management_pid=place)
                continue
            hosts[planned.name] = Host(planned.name, node.pid, *own, sandbox=node.pod, management_pid=place)
            holder = known.get(planned.name) or self.custody.hold(planned.name, net=node.pid)
            processes[planned.name] = Host(planned.name, holder, *own, management_pid=place)
        if processes and not self.is_recovered:
            holders = {**known, **{name: host.pid for name, host in processes.items()}}
            pods = {h.name: PodName(str(h.sandbox), ProcessName.of(h.pid)) for h in hosts.values()}
            self._network_api.survivors = Survivors(holders, pods=pods)
        return Places(hosts, processes)

    def _join_hosts(self) -> None:
        """Build the network that migrations travel over; a run that is taken over has it."""
        pids = {name: host.management_place for name, host in self.hosts.items()}
        numbers = {host.name: host.number for host in self.plan.hosts}
        bridge = self._runtime.custody.hold(management.NAMESPACE)
        management.build(bridge, pids, numbers, self._management_rate)
        for host in self.hosts.values():
            disable_ipv6(host.pid)

    def _settle(self, left: Left) -> None:
        """Bring what the run's former process had begun to an end, and end programs that it had not listed yet."""
        self.recovered = self._migrator.recover()
        listed = {running.app.pid for running in self._apps.values()}
        listed |= {app.pid for app in self._launcher.groups.values()}
        for pid in self._runtime.custody.children("program", "restored"):
            if pid not in listed:
                self._runtime.custody.kill(pid, signal.SIGKILL)
        served = {service["name"] for service in self.services()}
        for running in self._apps.values():
            # A switch that died as well has forgotten everything.
            if running.service and running.service not in served and self._launcher.is_running(running.app):
                self._serve(running, running.service, parse_service(running.service), 1)
        self._save()

    def _settled(self, app: App) -> None:
        """Write down where a program is."""
        for member in members(app):
            running = self._apps.get(member.name)
            known = running.app if running is not None else self._launcher.groups.get(member.name)
            if known is not None:
                known.host, known.pid = member.host, member.pid
                if (engine := engine_of(member)) is not None:
                    known.engine = engine
        self._note_ports_of(app)
        self._save()

    def _note_ports_of(self, app: App) -> None:
        """Remember where the programs accept that move as one or several."""
        names = {member.name for member in members(app)}
        for running in list(self._apps.values()):
            if running.app.name in names or running.group in names:
                self._note_ports(running)

    def _save(self) -> None:
        """Write down what a successor needs to know."""
        survivors = self._network_api.survivors
        assert survivors is not None
        with self._lock:
            switches = {s.name: ProcessName.of(s.process.pid) for s in self.mininet.switches if s.process}
            holders = {name: ProcessName.of(pid) for name, pid in survivors.holders.items()}
            apps, groups = dict(self._apps), dict(self._groups)
            kind, container = self.kind, self.switch_container
            state = RunState(
                self.network, self.hold, holders, switches, apps, groups, kind, container, survivors.pods
            )
            state.save(self._run.folder)

    def _write_report(self) -> None:
        """Leave the last migrations' report among the run's logs."""
        with suppress(OSError):
            path, reports = self._run.folder / REPORT, self.migrations()[-KEPT_REPORTS:]
            write_report(path, Target(self.network.target).value, reports)

    def _leave(self, stack: ExitStack) -> None:
        """Let go of a run that could not be taken over, without ending anything of it."""
        stack.pop_all()
        if hasattr(self, "_supervisor"):
            self._supervisor.close()
        if hasattr(self, "controller"):
            self.controller.stop()
        if hasattr(self, "_runtime"):
            self._runtime.custody.let_go()
        if hasattr(self, "_run"):
            self._run.leave()

    def _make_controller(self, run: Run) -> Controller:
        config = ControllerConfig(
            switches=load_switches(write_switches(run.folder, self.plan, self._network_api)),
            http_port=self.http_port,
            balancer=BalancerOptions(
                settle=BMV2_SETTLE if Target(self.network.target) is Target.BMV2 else 0.0
            ),
            holding=self.hold,
            workers=self.workers,
            traces=self.traces or run.folder / TRACES,
        )
        hosts = {h.name: switched(h, self.hosts[h.name]) for h in self.plan.hosts}
        try:
            return Controller(config, hosts, self._mover, self._apps_view)
        except ControllerError as ex:
            raise TestbedError(str(ex)) from ex

    # ---- what the user does

    @property
    def mininet(self) -> Any:
        """Mininet's own object."""
        return self._network_api.net

    @property
    def hosts(self) -> Mapping[str, Host]:
        """The hosts by name, as migrations know them."""
        return self._places.hosts

    @property
    def uses_images(self) -> bool:
        """Say whether the demos start their servers from images."""
        return self.kind.uses_images

    @property
    def measure(self) -> Measure | None:
        """What is asked after each migration for the report's `client`."""
        return self._mover.measure

    @measure.setter
    def measure(self, measure: Measure | None) -> None:
        self._mover.measure = measure

    @property
    def url(self) -> str | None:
        """Where the HTTP API answers."""
        return self.controller.url

    @property
    def custody(self) -> Custody:
        """What owns the programs, and everything else that outlives this process."""
        return self._runtime.custody

    @property
    def folder(self) -> Path:
        """Where logs, journals and the switch configuration are while the testbed runs."""
        return self._run.folder

    @property
    def scratch(self) -> Path:
        """A folder in memory, gone with the testbed, to be a program's working directory.

        CRIU makes a directory in that for a moment, and removes it, once for each thread and once more, while the
        program stands still. On a disk's file system that may take 0.4 ms each time, here it takes 0.1.
        """
        return self._run.scratch

    @property
    def runtime(self) -> ProcessRuntime:
        """What starts and moves the programs."""
        return self._runtime

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
        group: str | None = None,
        volumes: Sequence[str | Path] = (),
        image: str | Path | None = None,
    ) -> RunningApp:
        """Start a program that can be moved; returns when it listens, if it answers for a service.

        `service` is "VIP:PORT" (or "VIP:PORT/udp"); the program's own port is the same unless `port` says otherwise.
        Programs of one `group` share a process tree, and move as one. `volumes` are directories of which the program
        gets a copy of its own, which moves with it. With an `image` it is a container, and `argv` comes after the
        image's entrypoint. runc starts it from a name of `make images` or a folder that is a root file system, and
        `volumes` are directories inside; on hosts that are pods the engine does, from a name of `make images` or an
        image that it has, and `volumes` are what the engine takes. Raises BadApp, BadNetwork.
        """
        self._check_free(name, "app")
        self._host(host)
        if group is not None and group not in self._groups:
            self._check_free(group, "group")
        vip = parse_service(service) if service else None
        if vip and any(vip.address == h.address for h in self.plan.hosts):
            raise BadApp(f"{vip.address} is a host's address: a service needs one of its own")
        app, argv = self._launcher.start(Order(name, host, argv, env, cwd, volumes, image, group))
        running = RunningApp(app, tuple(argv), service, (port or vip.port) if vip else None)
        return self._register(running, weight)

    def _check_address(self, running: RunningApp) -> None:
        """See that a program asks for no address that another one still has, which would get all that is sent there.

        The host's kernel refuses TCP ports of that kind. Only where there are some it takes a moment to see what the
        program does, if it does not listen by then.
        """
        app = running.app
        left = self.controller.left_at(app.host.address)
        if running.service and running.backend_port:
            left.pop(self._location(running), None)  # clients reach it by its service
        if not left:
            return

        def asked() -> list[Endpoint]:
            self._note_ports(running)
            own = [Endpoint(IpProtocol(kind), app.host.address, port) for kind, port in running.ports]
            return [endpoint for endpoint in own if endpoint in left]

        wait_until(lambda: bool(asked() or running.ports) or not self._launcher.is_running(app), SETTLED_S)
        if taken := asked():
            raise BadApp(f"{app.name} cannot be started on {app.host.name}: {self._owner(taken[0], left)}")
        if not self._launcher.is_running(app) and "in use" in (said := self._launcher.last_line(app)):
            owners = "; ".join(self._owner(endpoint, left) for endpoint in sorted(left, key=str))
            raise BadApp(f"{app.name} ended at once: {said} ({owners})")

    def _owner(self, identity: Endpoint, left: Mapping[Endpoint, Endpoint]) -> str:
        """Say who has an address, though it has moved away."""
        there = left[identity]
        names = [
            running.app.name
            for running in self._apps.values()
            if running.app.host.address == there.address and (there.protocol, there.port) in running.ports
        ]
        return f"{show(identity)} still is the address of {names[0] if names else 'the program'} at {show(there)}"

    def _register(self, running: RunningApp, weight: int) -> RunningApp:
        """Put a program that has been started into its service, and among the testbed's own; else end it again."""
        service = running.service
        try:
            if service:
                self._wait_for_listener(running, parse_service(service).protocol)
            self._check_address(running)
            if service:
                self._serve(running, service, parse_service(service), weight)
        except BaseException:
            self._launcher.end(running.app)
            self._end_empty_group(running.group)
            raise
        self._note_ports(running)
        self._apps[running.app.name] = running
        self._save()
        return running

    def stop(self, name: str) -> None:
        """End a program, and take it out of its service."""
        running = self._app(name)
        del self._apps[name]
        self._note_ports(running)
        try:
            if running.service and running.backend_port:
                location = self._location(running)
                self.controller.withdraw(location, lambda: _peers(running.app.host, location))
        except ControllerError as ex:
            raise BadApp(str(ex)) from ex
        finally:
            self._launcher.end(running.app)
            self._end_empty_group(running.group)
            self._save()
        self._retire(running)

    def _note_ports(self, running: RunningApp) -> None:
        """Remember where a program accepts: when it has ended, nothing else says that."""
        sockets = self._launcher.sockets(running.app)
        outward = [s for s in sockets if s.is_receiver and is_outward(s, running.app.host.address)]
        running.ports |= {(s.protocol, s.local_port) for s in outward}

    def _retire(self, running: RunningApp) -> None:
        """Free every address of a program that has ended, but those that another one on its host has as well."""
        own = running.app.host.address
        with Diag(running.app.host.pid) as diag:
            used = {(s.protocol, s.local_port) for s in diag.inet() if s.is_receiver}
            free = running.ports - used
            closing = closing_connections(diag.tcp_closing(), {port for _, port in free}, own)
        try:
            self.controller.retire({Endpoint(IpProtocol(kind), own, port) for kind, port in free}, closing)
        except ControllerError as ex:
            raise BadApp(str(ex)) from ex

    def migrate(
        self,
        app: str | Sequence[str],
        to: str,
        on_event: OnEvent | None = None,
        *,
        mode: str | None = None,
        transfer: str | None = None,
        pause_budget: float | str | None = None,
    ) -> Report:
        """Carry a program, or several of one host together, to another host; returns the report, whatever the outcome.

        `mode` and `transfer` say when and where its memory moves, `pause_budget` for how many seconds mode auto may
        stop it rather than risk it; the testbed's own apply where they are not given.
        `on_event` hears of every step, in the migration's thread. Ctrl-C cancels the migration, waits until it has
        turned back (or has come through, if it was too late), and is raised then. Raises BadApp for an app or a host
        that is not there.
        """
        migration = self.queue_migration(
            app, to, on_event, mode=mode, transfer=transfer, pause_budget=pause_budget
        )
        try:
            return self.wait_for_migration(migration)
        except KeyboardInterrupt:
            self.cancel_migration(migration)
            self.wait_for_migration(migration)
            raise

    def queue_migration(
        self,
        app: str | Sequence[str],
        to: str,
        on_event: OnEvent | None = None,
        *,
        mode: str | None = None,
        transfer: str | None = None,
        pause_budget: float | str | None = None,
    ) -> str:
        """Ask for a migration and return its id at once; raises as `migrate` does.

        `on_event` hears of the end, too: {"phase": "over", …}.
        """
        app = app if isinstance(app, str) else ",".join(app)
        self._place(self._movable(app), to)
        try:
            queue = self.controller.migrations
            return queue.submit(app, to, on_event, mode=mode, transfer=transfer, pause_budget=pause_budget).id
        except ControllerError as ex:
            raise BadApp(str(ex)) from ex

    def wait_for_migration(self, id: str, timeout: float | None = None) -> Report:
        """Return a migration's report when it is over; raises TestbedError if it is not in time."""
        migration = self.controller.migrations.wait(id, timeout)
        if migration.report is None:
            raise TestbedError(f"migration {id} of {migration.app} is not over after {timeout:g} s")
        return migration.report

    def cancel_migration(self, id: str) -> str | None:
        """Take a migration back, if it is not too late; returns why it cannot be, or None."""
        try:
            self.controller.migrations.cancel(id)
        except ControllerError as ex:
            return str(ex)
        return None

    def output(self, name: str) -> str:
        """Return what a program has printed."""
        return self._launcher.output(self._app(name).app)

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
        reports = [migration.report for migration in self.controller.migrations.list()]
        return [report.to_json() for report in reports if report is not None]

    # ---- inside

    def _serve(self, running: RunningApp, service: str, vip: Endpoint, weight: int) -> None:
        """Put a program that listens into the service's pool."""
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
            if not self._launcher.is_running(app):
                raise BadApp(f"{app.name} ended at once: {self._launcher.last_line(app)}")
            return any(
                s.is_receiver and s.protocol == protocol and s.local_port == port
                for s in self._launcher.sockets(app)
            )

        if not wait_until(listens, LISTEN_TIMEOUT):
            raise BadApp(
                f"{app.name} does not listen on {protocol.name} port {port} after {scaled(LISTEN_TIMEOUT):.0f} s: "
                f"{self._launcher.last_line(app)}"
            )

    def _location(self, running: RunningApp) -> Endpoint:
        assert running.service is not None and running.backend_port is not None
        protocol = parse_service(running.service).protocol
        return Endpoint(protocol, running.app.host.address, running.backend_port)

    def _apps_view(self) -> dict[str, dict[str, Any]]:
        def view(app: App, service: str | None, group: str | None, command: str) -> dict[str, Any]:
            state = "running" if self._launcher.is_running(app) else "ended"
            known = {"host": app.host.name, "pid": app.pid, "state": state}
            return {**known, "service": service, "group": group, "command": command}

        apps = dict(self._apps)
        views = {name: view(r.app, r.service, r.group, " ".join(r.argv)) for name, r in apps.items()}
        for name, group in list(self._groups.items()):
            members = ", ".join(r.app.name for r in apps.values() if r.group == name)
            views[name] = view(group, None, None, f"the group of {members}")
        return views

    def _programs(self) -> list[App]:
        """List the programs, for a migration that must name one."""
        alone = [running.app for running in list(self._apps.values()) if running.group is None]
        return alone + list(self._groups.values())

    def _addresses(self) -> set[Address]:
        """List the addresses that the network leads to."""
        addresses: set[Address] = {host.address for host in self.plan.hosts}
        addresses.update(IPv4Address(service["address"]) for service in self.controller.services())
        return addresses

    def _check_free(self, name: str, kind: str) -> None:
        """See that a name is neither a program's nor a group's."""
        if "," in name:
            raise BadApp(f"{name!r} cannot be a name: a comma stands between programs that move together")
        if name in self._apps:
            raise BadApp(f"there is an app {name} already, on {self._apps[name].app.host.name}")
        if name in self._groups:
            raise BadApp(f"{name} is the name of a group: choose another one for the {kind}")

    @property
    def _groups(self) -> dict[str, App]:
        return self._launcher.groups

    def _end_empty_group(self, name: str | None) -> None:
        """End a group that has no program any more."""
        self._launcher.end_group(name, [r.group for r in self._apps.values() if r.group is not None])

    def _place(self, app: App, host: str) -> Host:
        """Return where on a host a program would be; raises BadNetwork, BadApp."""
        self._host(host)
        return self._places.for_app(app, host)

    def _movable(self, name: str) -> App:
        """Return what a migration is asked for: a program, a group, or several of them ("redis,app")."""
        if "," in name:
            return Party([self._movable(one) for one in name.split(",")])
        return self._groups[name] if name in self._groups else self._app(name).app

    def _about_to_move(self, name: str) -> App:
        """Return what a migration is asked for, whose addresses it may leave behind."""
        app = self._movable(name)
        self._note_ports_of(app)
        return app

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


def _wish(mode: str, transfer: str, pause_budget: float) -> Wish:
    """Read how a testbed's memory moves; raises TestbedError."""
    try:
        return parse_wish(mode, transfer, pause_budget)
    except ValueError as ex:
        raise TestbedError(str(ex)) from ex


@contextmanager
def _logging_to(path: Path) -> Iterator[None]:
    """Write what the parts log to a file; without a handler Python would print it in the middle of the CLI."""
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    loggers = [logging.getLogger(name) for name in ("controllers", "migration", "topo", "dataplane", "finsy")]
    for logger in loggers:
        logger.addHandler(handler)
    try:
        yield
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


def _peers(host: Host, location: Endpoint) -> set[Endpoint]:
    """Return whom a program has connections with that it has accepted; UDP knows no connection."""
    with Diag(host.pid) as diag:
        return {
            Endpoint(IpProtocol.TCP, s.remote, s.remote_port)
            for s in diag.tcp_connections()
            if s.local_port == location.port
            and s.state != State.TIME_WAIT
            and isinstance(s.remote, IPv4Address)
        }
