"""The load balancer: services, their pools, and the connections that no change of a pool may break.

A pool changes in four steps, so that a connection whose opening is still being reported stays where it was sent:
  1. the service is guarded: packets that open connections wait here;
  2. a barrier: everything that the switch had reported is here, and pinned;
  3. the Maglev slots that differ are written;
  4. the service is served again, and the openings that waited are sent on.

Connections to a backend's own address need an exception, because the backend answers as its service: their openings
come here (REASON_DIRECT), are pinned, and sent on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address

from controllers import model as models
from controllers import relocation, rows
from controllers.config import SwitchConfig
from controllers.errors import Conflict, ControllerError, InvalidRequest, NotFound
from controllers.frames import flow_of
from controllers.holdqueue import KeptPacket
from controllers.maglev import MAX_WEIGHT
from controllers.model import Backend, BackendState, Model, Service, show
from controllers.pins import IdleLimits, Pins
from controllers.receiver import Receiver
from controllers.rows import Change, Key, Op, Row
from controllers.switchlink import DIGEST_TIMEOUT_NS, OP_RESUME, OnReady, Packets, SwitchLink
from controllers.switchqueues import SwitchQueues
from controllers.tables import SwitchTables
from migration.steering import ClosingConnection, Endpoint, HeldStats, Move, MovedConnection, MovedListener

LOG = logging.getLogger(__name__)

Publish = Callable[[str, Mapping[str, object]], None]


@dataclass(frozen=True, slots=True)
class BalancerOptions:
    """What can be tuned; times in seconds."""

    hold_budget: int = 64 * 1024 * 1024
    idle: IdleLimits = field(default_factory=IdleLimits)
    poll: float = 10.0
    settle: float = 0.0
    """How much longer than its list timeout a digest may take behind a barrier (BMv2: another thread)."""
    vip_mac: int = 0x02_70_34_00_00_01
    """What VIPs answer ARP requests with (locally administered)."""


@dataclass
class HeldTotal:
    """What all holds together kept."""

    packets: int = 0
    bytes: int = 0
    dropped: int = 0

    def add(self, stats: HeldStats) -> None:
        """Count one hold."""
        self.packets += stats.packets
        self.bytes += stats.bytes
        self.dropped += stats.dropped


class LoadBalancer:
    """The load balancer's switch; all coroutines belong to the controller's loop."""

    def __init__(
        self, config: SwitchConfig, on_ready: OnReady, options: BalancerOptions, publish: Publish
    ) -> None:
        self.options = options
        self.receiver = Receiver(options.hold_budget)
        self.link = SwitchLink(config, on_ready, self.receiver)
        self.tables = SwitchTables(self.link, config.name)
        self.pins = Pins(self.link, self.tables, options.idle, self._locate)
        self.queues = SwitchQueues(self.link, options.hold_budget)
        self.receiver.on_events = self.pins.on_digest
        self.model = Model()
        self.held_total = HeldTotal()
        self.pool_changes = 0
        self._changing = asyncio.Lock()
        self._publish = publish

    @property
    def table(self) -> Mapping[Key, Row]:
        """Return the rows that are in the switch."""
        return self.tables.rows

    def _locate(self, backend: int) -> Endpoint | None:
        known = self.model.backends.get(backend)
        return known.location if known is not None else None

    async def write(
        self, upserts: Iterable[Row] = (), deletes: Iterable[Key] = (), unconfirmed: Iterable[Row] = ()
    ) -> None:
        """Change rows as a whole, and watch the pins among them; see that what was written soon is there."""
        upserts, deletes = list(upserts), list(deletes)
        await self.tables.apply(upserts, deletes, unconfirmed)
        for row in upserts:
            if row.table == "connection":
                self.pins.track(row)
        for key in deletes:
            if key[0] == "connection":
                self.pins.forget(key)

    async def write_soon(self, upserts: Iterable[Row], behind: Packets) -> list[Row]:
        """Add or change rows, and send packets behind them, all at once as far as the switch can.

        Return the rows that nothing has confirmed yet: the next `write` is to do that.
        """
        if self.queues.offered:  # it is one of ours, then
            return await self.tables.apply_soon(upserts, behind)
        await self.tables.apply(upserts)
        await self.link.packets_out(behind)
        return []

    def adopt(self, names: Mapping[Endpoint, str]) -> None:
        """Read services, backends and pins out of the switch's rows."""
        self.model = models.adopt(self.table, names)
        self.pins.adopt(self.table)
        self.tables.on_change([Change(Op.INSERT, row) for row in self.table.values()])

    async def end_guards(self) -> None:
        """Serve what a controller that is gone has left guarded."""
        guarded = [row for row in self.table.values() if row.action == "serve_guarded"]
        await self.write([replace(row, action="serve") for row in guarded])

    # ---- work that goes on all the time

    async def answer_direct_openings(self) -> None:
        """Pin connections to backends' own addresses, and let them open."""
        while True:
            await self.receiver.direct_came.wait()
            await self.link.ready.wait()
            openings = self.receiver.take_direct()
            try:
                await self.write([row for id, packet in openings for row in self._direct_rows(id, packet)])
                await self._resend([packet for _, packet in openings])
            except ControllerError as ex:
                LOG.warning(
                    "%d connections to backends' own addresses were not opened: %s", len(openings), ex
                )

    def _direct_rows(self, id: int, packet: KeptPacket) -> list[Row]:
        flow = flow_of(packet.frame)
        if flow is None:
            return []
        source, address = flow
        client = relocation.identity_of(self.table, source, address)
        backend = self.model.backends.get(id)
        location = backend.location if backend is not None else address
        return [
            rows.speak_as(rows.connection_source_key(location, client), address),
            rows.pin_to_location(client, address, location),
        ]

    async def age_forever(self) -> None:
        """Remove pins of connections that have ended, and backends that have no connection left."""
        while True:
            await asyncio.sleep(self.options.poll)
            try:
                await self.link.ready.wait()
                await self.pins.age()
                async with self._changing:
                    await self._reclaim()
            except ControllerError as ex:
                LOG.warning("connections could not be aged: %s", ex)

    # ---- services

    async def add_service(self, name: str, endpoint: Endpoint) -> Service:
        """Let a VIP answer: nobody serves it yet."""
        async with self._changing:
            service = self.model.new_service(name, endpoint)
            vip = [rows.arp_reply(endpoint.address, self.options.vip_mac), rows.echo_reply(endpoint.address)]
            missing = [row for row in vip if row.key not in self.table]
            await self.write([*missing, rows.serve(endpoint, service.id)])
            self.model.services[service.id] = service
        self._publish("service_added", {"service": name, "address": show(endpoint)})
        return service

    async def remove_service(self, name: str) -> None:
        """Take a service away that has no backends any more."""
        async with self._changing:
            service = self.model.service(name)
            if self.model.pool(service.id):
                raise Conflict(f"service {name!r} still has backends")
            deletes = [rows.destination_key(service.endpoint)]
            if not any(
                s.endpoint.address == service.endpoint.address and s != service
                for s in self.model.services.values()
            ):
                address = service.endpoint.address
                deletes += [rows.arp_reply(address, 0).key, rows.echo_reply(address).key]
            await self.write((), deletes)
            del self.model.services[service.id]
        self._publish("service_removed", {"service": name})

    # ---- pools

    async def add_backend(
        self, name: str, location: Endpoint, weight: int = 1, route: Row | None = None
    ) -> Backend:
        """Put a backend into a service's pool."""
        async with self._changing:
            service = self.model.service(name)
            _check(service, location, weight)
            if (there := relocation.moved_to(self.table, location)) is not None:
                raise Conflict(f"{show(location)} is the address of a program that is at {show(there)} now")
            backend = self.model.new_backend(service, location, weight)
            extra = [row for row in models.backend_rows(service, backend) if self.table.get(row.key) != row]
            if route is not None:
                extra.append(route)
            fresh = [row.key for row in extra if row.key not in self.table]
            await self.write(extra)
            try:
                await self._change_pool(service, backend)
            except ControllerError:
                await self.write((), fresh)
                raise
        self._publish("backend_added", {"service": name, "backend": show(location), "weight": weight})
        return backend

    async def remove_backend(self, name: str, location: Endpoint, drain: bool = False) -> None:
        """Take a backend out of its pool; its connections stay until they end."""
        async with self._changing:
            service = self.model.service(name)
            backend = self._listed(service, location)
            state = BackendState.DRAINING if drain else BackendState.REMOVED
            await self._change_pool(service, replace(backend, state=state))
            await self._reclaim()
        self._publish(f"backend_{state.value}", {"service": name, "backend": show(location)})

    async def set_weight(self, name: str, location: Endpoint, weight: int) -> None:
        """Change a backend's share of new connections."""
        async with self._changing:
            service = self.model.service(name)
            _check(service, location, weight)
            await self._change_pool(service, replace(self._listed(service, location), weight=weight))

    async def move_backend(self, name: str, old: Endpoint, new: Endpoint, route: Row | None = None) -> None:
        """Follow a backend that somebody else has moved: its connections go to the new location at once."""
        async with self._changing:
            service = self.model.service(name)
            _check(service, new, 1)
            backend = self._listed(service, old)
            if (other := self.model.backend_at(new)) is not None:
                raise Conflict(
                    f"{show(new)} is already a backend of service {self.model.services[other.service].name!r}"
                )
            plan = relocation.plan(self.table, self.model.backends.values(), self._move_of(backend, new))
            routes = [route] if route is not None else []
            await self.write([*routes, *plan.prepare.values(), *plan.switch.values()], plan.switch_deletes)
            self.relocated(backend.id, new)
            await self.write((), plan.finish_deletes)
        self._publish("backend_moved", {"service": name, "old": show(old), "new": show(new)})

    def _move_of(self, backend: Backend, new: Endpoint) -> Move:
        """Return the move of a backend with the connections to its own address."""
        old = backend.location
        exceptions = [
            MovedConnection(old, new, rows.second_endpoint(key))
            for key in self.table
            if key[0] == "connection_source" and rows.first_endpoint(key) == old
        ]
        return Move("", "", "", [MovedListener(old, new)], exceptions)

    async def forget(self, location: Endpoint) -> None:
        """Remove what migrations have left for a program that has ended and was no backend."""
        if self.model.backend_at(location) is not None:
            raise Conflict(f"{show(location)} is a backend: remove it from its service")
        await self.retire({location})

    async def withdraw(self, location: Endpoint, living: Callable[[], Collection[Endpoint]]) -> None:
        """Let nobody connect any more to a program that is about to end, if it is a backend.

        `living` is asked, once new connections go elsewhere, for the peers of those that it has. The pins of others are
        left from connections that are over, and whoever uses their ports again is to reach a program that stays.
        """
        async with self._changing:
            if (backend := await self._withdraw(location)) is None:
                return
            await self.settle()
            peers = await asyncio.get_running_loop().run_in_executor(None, living)
            pins = relocation.pins_to(self.table, {backend.id}, {location})
            await self.pins.remove([key for key in pins if rows.first_endpoint(key) not in peers])

    async def _withdraw(self, location: Endpoint) -> Backend | None:
        backend = self.model.backend_at(location)
        if backend is not None and backend.state is not BackendState.REMOVED:
            service = self.model.services[backend.service]
            await self._change_pool(service, replace(backend, state=BackendState.REMOVED))
            self._publish("backend_removed", {"service": service.name, "backend": show(location)})
        return backend

    def left_at(self, address: IPv4Address) -> dict[Endpoint, Endpoint]:
        """Return which endpoints of an address programs have that live elsewhere, and where that is."""
        identities = [
            rows.first_endpoint(key)
            for key, row in self.table.items()
            if key[0] == "destination" and key[1][1] == int(address) and row.action == "send_to"
        ]
        found = {
            identity: there
            for identity in identities
            if (there := relocation.moved_to(self.table, identity)) is not None
        }
        moved = [b for b in self.model.backends.values() if b.home.address == address != b.location.address]
        return {b.home: b.location for b in moved} | found

    async def retire(
        self, locations: Collection[Endpoint], closing: Iterable[ClosingConnection] = ()
    ) -> None:
        """Remove everything that leads to the locations of a program that has ended, or speaks for them.

        Its identities, as a backend or as one that has moved, are free again, and its peers are strangers. What its
        kernel is still closing has rows of its own.
        """
        async with self._changing:
            found = [await self._withdraw(location) for location in locations]
            backends = [backend for backend in found if backend is not None]
            if backends:
                await self.settle()  # what was reported of them is pinned, and goes with the rest
            await self.write(relocation.staying_rows(self.table, closing))
            ids = {backend.id for backend in backends}
            await self.pins.remove(relocation.pins_to(self.table, ids, locations))
            keys = [key for backend in backends for key in models.backend_keys(self.table, backend)]
            await self.write((), [*keys, *relocation.keys_of(self.table, locations)])
            for backend in backends:
                del self.model.backends[backend.id]
                self._publish("backend_gone", {"backend": show(backend.location)})

    def relocated(self, backend: int, location: Endpoint) -> None:
        """Note where a backend lives now."""
        known = self.model.backends.get(backend)
        if known is not None:
            self.model.backends[backend] = replace(known, location=location)

    def _listed(self, service: Service, location: Endpoint) -> Backend:
        backend = self.model.backend_at(location)
        if backend is None or backend.service != service.id or backend.state is BackendState.REMOVED:
            raise NotFound(f"{show(location)} is not a backend of service {service.name!r}")
        return backend

    async def _change_pool(self, service: Service, changed: Backend) -> None:
        """Write the slots of a pool in which one backend is new or different, without breaking a connection."""
        pool = {b.id: b for b in self.model.pool(service.id)} | {changed.id: changed}
        wanted = rows.by_key(models.pool_rows(service, pool.values()))
        present = [k for k, row in self.table.items() if row.table == "maglev" and row.match[0] == service.id]
        stale = [key for key in present if key not in wanted]
        if stale or any(self.table.get(key) != row for key, row in wanted.items()):
            if present:
                await self._guarded(service, wanted.values(), stale)
            else:
                await self.write(wanted.values())
            self.pool_changes += 1
        current = self.model.backends.get(changed.id)
        # A migration may have moved the backend meanwhile.
        location = current.location if current is not None else changed.location
        self.model.backends[changed.id] = replace(changed, location=location)

    async def _guarded(self, service: Service, upserts: Iterable[Row], deletes: Iterable[Key]) -> None:
        """Change slots while openings wait."""
        await self.write([rows.serve(service.endpoint, service.id, guarded=True)])
        try:
            await self.settle()
            await self.write(upserts, deletes)
        finally:
            await self.write([rows.serve(service.endpoint, service.id)])
            await self.link.barrier()
            kept = self.receiver.guarded.pop(service.id, None)
            await self._resend(kept.take_all() if kept is not None else [])

    async def settle(self) -> None:
        """Return when every opening that the switch had let pass so far is pinned."""
        await self.link.barrier()
        await asyncio.sleep(DIGEST_TIMEOUT_NS / 1e9 + self.options.settle)
        await self.link.barrier()
        await self.pins.flush()

    async def _resend(self, packets: Iterable[KeptPacket]) -> None:
        await self.link.packets_out(
            Packets(OP_RESUME, 0, [(packet.port, packet.frame) for packet in packets])
        )

    async def _reclaim(self) -> None:
        """Forget backends that left their pool and have no connection any more."""
        for backend in list(self.model.backends.values()):
            if backend.state is BackendState.ACTIVE or self.pins.of_backend(backend.id):
                continue
            await self.write((), models.backend_keys(self.table, backend))
            del self.model.backends[backend.id]
            self._publish("backend_gone", {"backend": show(backend.location)})


def _check(service: Service, location: Endpoint, weight: int) -> None:
    if location.protocol != service.endpoint.protocol:
        raise InvalidRequest(
            f"service {service.name!r} is {service.endpoint.protocol.name}, not {location.protocol.name}"
        )
    if location.port not in range(1, 65536):
        raise InvalidRequest(f"port {location.port} is not a number from 1 to 65535")
    if weight not in range(1, MAX_WEIGHT + 1):
        raise InvalidRequest(f"weight {weight} is not a number from 1 to {MAX_WEIGHT}")
