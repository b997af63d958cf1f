"""The controller: what keeps the switches, the load balancer and the HTTP API.

    controller = Controller(ControllerConfig(switches, services=[ServiceConfig("echo", endpoint)]), hosts, mover)
    controller.start()                     # returns when every switch is set up
    controller.add_backend("echo", Endpoint(IpProtocol.TCP, IPv4Address("10.0.2.2"), 7000))
    engine = …(steering=controller.steering)
    controller.stop()

It runs on a loop in a thread of its own (`loop`). The methods are for other threads; each runs a coroutine there and
raises ControllerError. What the switches must
hold is remembered here and restored after they were lost; at the first connection what they hold is adopted, so a
controller that is started again goes on where the last one ended.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeout
from dataclasses import dataclass, field
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any, TypeVar

import finsy

from controllers import rows, views
from controllers.closing import ClosingConnections
from controllers.config import SwitchConfig, load_runtime
from controllers.drain import Drainer
from controllers.errors import ConfigError, ControllerError, SwitchNotReady
from controllers.events import EventBus
from controllers.hosts import Hosts
from controllers.http.server import HttpServer
from controllers.loadbalancer import BalancerOptions, LoadBalancer
from controllers.loop import background_loop
from controllers.metrics import MigrationMetrics
from controllers.migrations import WORKERS, MigrationService, Mover
from controllers.nodes import Nodes
from controllers.rows import Row
from controllers.steering import Drains, SwitchSteering
from controllers.switchlink import SwitchLink
from controllers.tables import SwitchTables
from migration.slowness import scaled
from migration.steering import ClosingConnection, Endpoint

LOG = logging.getLogger(__name__)
_T = TypeVar("_T")

Apps = Callable[[], Mapping[str, Mapping[str, Any]]]
_CALL_S = scaled(30.0)
_START_S = scaled(30.0)


@dataclass(frozen=True, slots=True)
class ServiceConfig:
    """A service that exists from the start."""

    name: str
    endpoint: Endpoint


@dataclass(frozen=True, slots=True)
class ControllerConfig:
    """Everything a controller needs to know; `http_port` None means no API, 0 any free port.

    `workers` is how many migrations run at once, `traces` the folder of their causal traces.
    """

    switches: Sequence[SwitchConfig]
    services: Sequence[ServiceConfig] = ()
    default_service: str | None = None
    http_host: str = "127.0.0.1"
    http_port: int | None = 5000
    balancer: BalancerOptions = field(default_factory=BalancerOptions)
    holding: bool = True
    workers: int = WORKERS
    traces: Path | None = None


class Controller:
    """See the module's text."""

    def __init__(
        self,
        config: ControllerConfig,
        hosts: Hosts | None = None,
        mover: Mover | None = None,
        apps: Apps | None = None,
        drainer: Drains | None = None,
    ) -> None:
        self.config = config
        self.hosts: Hosts = hosts if hosts is not None else {}
        self.apps: Apps = apps if apps is not None else dict
        self.loop = background_loop()
        self.events = EventBus(self.loop)
        self.balancer = LoadBalancer(_master(config), self._on_ready, config.balancer, self.events.publish)
        self.nodes = Nodes(self.balancer, config.default_service)
        self.steering = SwitchSteering(
            self.balancer, self.hosts, self.loop, drainer or Drainer(), config.holding
        )
        self.migration_metrics = MigrationMetrics()
        self.migrations = MigrationService(
            mover,
            self.events.publish,
            self.apps,
            lambda: self.hosts,
            workers=config.workers,
            traces=config.traces,
            on_end=self.migration_metrics.count,
        )
        self.links: dict[str, SwitchLink] = {}
        self.tables: dict[str, SwitchTables] = {}
        self.http: HttpServer | None = None
        self._static: dict[str, list[Row]] = {}
        self._running: Future[None] | None = None
        self._started = threading.Event()
        self._fatal: ControllerError | None = None
        self._ended: asyncio.Event | None = None
        for switch in config.switches:
            self._add_switch(switch)

    def _add_switch(self, config: SwitchConfig) -> None:
        if config is self.balancer.link.config:
            self.links[config.name], self.tables[config.name] = self.balancer.link, self.balancer.tables
            return
        link = SwitchLink(config, self._on_ready)
        self.links[config.name], self.tables[config.name] = link, SwitchTables(link, config.name)

    # ---- life

    def start(self, timeout: float = _START_S) -> None:
        """Begin, and return when every switch is set up and the API answers; raises ControllerError."""
        self._running = asyncio.run_coroutine_threadsafe(self._run(), self.loop)
        if not self._started.wait(timeout) and self._fatal is None:
            waiting = [f"{name} at {link.config.addr} ({link.state})" for name, link in self.links.items()]
            self._fatal = SwitchNotReady(f"not ready within {timeout:g} s: {', '.join(waiting)}")
        if self._fatal is not None:
            fatal = self._fatal
            self.stop()
            raise fatal

    def stop(self) -> None:
        """End everything; the switches keep what they have. Migrations are turned back, or waited for."""
        self.migrations.close()
        if self._running is not None:
            self.loop.call_soon_threadsafe(self._end)
            with contextlib.suppress(FutureTimeout):
                self._running.result(10)
            self._running = None
        self.steering.close()

    def _end(self) -> None:
        if self._ended is not None:
            self._ended.set()

    async def _run(self) -> None:
        try:
            await self._main()
        except ControllerError as ex:
            LOG.error("the controller ends: %s", ex)
            self._fatal = ex
        except (Exception, asyncio.CancelledError) as ex:  # finsy's failures may cancel what waits for them
            LOG.exception("the controller ends")
            self._fatal = ControllerError(f"the controller ended: {type(ex).__name__} {ex}".strip())
        finally:
            self._started.set()

    async def _main(self) -> None:
        self._ended = asyncio.Event()
        if self.config.http_port is not None:
            self.http = HttpServer(self, self.config.http_host, self.config.http_port)
        work: list[Coroutine[Any, Any, None]] = [link.run() for link in self.links.values()]
        work += [self.balancer.pins.write_forever(), self.balancer.answer_direct_openings()]
        closing = ClosingConnections(self.balancer.pins, self.hosts)
        work += [
            closing.watch_forever(),
            self.steering.left_ports.follow_forever(),
            self.steering.hairpins.follow_forever(),
            self.balancer.age_forever(),
            self._begin(),
        ]
        tasks = [asyncio.ensure_future(coroutine) for coroutine in work]
        begin = tasks[-1]
        ended = asyncio.ensure_future(self._ended.wait())
        try:
            pending = {*tasks, ended}
            while not ended.done():
                done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
                for task in done - {ended}:
                    task.result()
                    if task is begin:
                        self._started.set()
        finally:
            self.events.close()
            if self.http is not None:
                await self.http.stop()
            for task in (*tasks, ended):
                task.cancel()
            await asyncio.gather(*tasks, ended, return_exceptions=True)

    async def _begin(self) -> None:
        """Wait for the switches, make what the configuration asks for, open the API."""
        for link in self.links.values():
            await link.ready.wait()
        await self.balancer.end_guards()
        for service in self.config.services:
            if self.balancer.model.service_at(service.endpoint) is None:
                await self.balancer.add_service(service.name, service.endpoint)
        for node in self.balancer.link.config.lb_nodes:
            owner = self.nodes.service()
            location = Endpoint(owner.endpoint.protocol, node.address, owner.endpoint.port)
            if self.balancer.model.backend_at(location) is None:
                await self.nodes.insert(node)
        if self.http is not None:
            await self.http.start()

    async def _on_ready(self, link: SwitchLink, present: list[Row]) -> None:
        """Restore a switch's rows, or adopt them when it is met for the first time."""
        tables = self.tables[link.name]
        if link is self.balancer.link:
            await self.balancer.queues.on_ready()  # before the rows that send packets there
        first = link.name not in self._static
        if first:
            static, defaults = self._static_rows(link)
            self._static[link.name] = static
            tables.rows |= rows.by_key(present) | rows.by_key(static)
            if link is self.balancer.link:
                self.balancer.adopt({service.endpoint: service.name for service in self.config.services})
        else:
            defaults = self._static_rows(link)[1]
        await link.set_defaults(defaults)
        written = await tables.reconcile(present)
        LOG.info("switch %s: %d rows present, %d changed", link.name, len(present), written)
        self.events.publish(
            "switch_ready", {"switch": link.name, "present": len(present), "changed": written}
        )

    def _static_rows(self, link: SwitchLink) -> tuple[list[Row], list[finsy.P4TableEntry]]:
        """Return the rows of a switch's configuration, and its default actions."""
        path = link.config.runtime_file
        entries = load_runtime(path) if path is not None else []
        try:
            static = [link.codec.encode_named(entry) for entry in entries if not entry.is_default_action]
        except (ValueError, KeyError) as ex:
            raise ConfigError(f"{path}: {ex}") from ex
        return [*static, *link.config.rows], [entry for entry in entries if entry.is_default_action]

    # ---- what other threads call

    def call(self, work: Coroutine[Any, Any, _T], timeout: float = _CALL_S) -> _T:
        """Run a coroutine on the loop and return its result."""
        if self._running is None or self._running.done():
            work.close()
            raise SwitchNotReady("the controller is not running")
        future = asyncio.run_coroutine_threadsafe(work, self.loop)
        try:
            return future.result(timeout)
        except FutureTimeout as ex:
            future.cancel()
            raise SwitchNotReady(f"the controller did not get an answer within {timeout:g} s") from ex

    @property
    def url(self) -> str | None:
        """Return where the API answers."""
        return self.http.url if self.http is not None else None

    def add_service(self, name: str, endpoint: Endpoint) -> None:
        """Let a VIP answer."""
        self.call(self.balancer.add_service(name, endpoint))

    def remove_service(self, name: str) -> None:
        """Take a service away that has no backends."""
        self.call(self.balancer.remove_service(name))

    def add_backend(self, service: str, location: Endpoint, weight: int = 1) -> None:
        """Put a backend into a service's pool."""
        self.call(self.balancer.add_backend(service, location, weight))

    def remove_backend(self, service: str, location: Endpoint, drain: bool = False) -> None:
        """Take a backend out of its pool; its connections stay until they end."""
        self.call(self.balancer.remove_backend(service, location, drain))

    def set_weight(self, service: str, location: Endpoint, weight: int) -> None:
        """Change a backend's share of new connections."""
        self.call(self.balancer.set_weight(service, location, weight))

    def move_backend(self, service: str, old: Endpoint, new: Endpoint) -> None:
        """Follow a backend that somebody else has moved."""
        self.call(self.balancer.move_backend(service, old, new))

    def left_at(self, address: IPv4Address) -> dict[Endpoint, Endpoint]:
        """Return which endpoints of an address programs have that live elsewhere, and where that is."""
        return self.call(_now(lambda: self.balancer.left_at(address)))

    def withdraw(self, location: Endpoint, living: Callable[[], Collection[Endpoint]]) -> None:
        """Let nobody connect any more to a program that is about to end, if it is a backend."""
        self.call(self.balancer.withdraw(location, living))

    def retire(self, locations: Collection[Endpoint], closing: Iterable[ClosingConnection] = ()) -> None:
        """Remove everything that leads to a program that has ended, but what its kernel is still closing."""

        async def retire() -> None:
            await self.balancer.retire(locations, closing)
            await self.steering.left_ports.free()

        self.call(retire())

    def forget(self, location: Endpoint) -> None:
        """Free the identity of a program that has ended, was no backend, and may have been moved."""
        self.call(self.balancer.forget(location))

    def add_rows(self, switch: str, upserts: Sequence[Row]) -> None:
        """Write further rows (routes of new hosts) to a switch; they are restored with the others."""
        self.call(self.tables[switch].apply(upserts))

    def services(self) -> list[dict[str, Any]]:
        """Return the services, as the API shows them."""
        return self.call(_now(lambda: views.services(self.balancer)))

    def backends(self) -> list[dict[str, Any]]:
        """Return the backends, as the API shows them."""
        return self.call(_now(self.nodes.view))

    def connections(self) -> list[dict[str, Any]]:
        """Return the pinned connections, as the API shows them."""
        return self.call(_now(lambda: views.connections(self.balancer)))

    def switches(self) -> list[dict[str, Any]]:
        """Return the switches, as the API shows them."""
        return self.call(_now(lambda: views.switches(self.links, self.tables)))


async def _now(view: Callable[[], _T]) -> _T:
    return view()


def _master(config: ControllerConfig) -> SwitchConfig:
    """Return the switch that runs the load balancer."""
    masters = [switch for switch in config.switches if switch.master]
    if not masters and len(config.switches) == 1:
        masters = list(config.switches)
    if len(masters) != 1:
        raise ConfigError("exactly one switch must be the master: it runs the load balancer")
    return masters[0]
