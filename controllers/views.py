"""What the API, the CLI and the metrics show of the controller's state. Pure readers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

from controllers import rows
from controllers.metrics import Metric, counter, gauge
from controllers.model import BackendState, show
from controllers.rows import Row
from controllers.switchlink import SwitchLink
from controllers.tables import SwitchTables

if TYPE_CHECKING:
    from controllers.controller import Controller
    from controllers.loadbalancer import LoadBalancer


def services(balancer: LoadBalancer) -> list[dict[str, Any]]:
    """Return every service with its pool's sizes."""
    model = balancer.model
    return [
        {
            "name": service.name,
            "address": str(service.endpoint.address),
            "port": service.endpoint.port,
            "protocol": service.endpoint.protocol.name.lower(),
            "backends": sum(b.state is BackendState.ACTIVE for b in model.pool(service.id)),
            "draining": sum(b.state is BackendState.DRAINING for b in model.pool(service.id)),
            "connections": sum(balancer.pins.of_backend(b.id) for b in model.pool(service.id)),
        }
        for service in model.services.values()
    ]


def connections(balancer: LoadBalancer, limit: int | None = None) -> list[dict[str, Any]]:
    """Return pinned connections: who talks to whom, and where that lives."""
    pinned = (row for row in balancer.table.values() if row.table == "connection")
    return [_connection(balancer, row) for row in islice(pinned, limit)]


def _connection(balancer: LoadBalancer, row: Row) -> dict[str, Any]:
    source, destination = rows.first_endpoint(row.key), rows.second_endpoint(row.key)
    service = backend = None
    if row.action == "pin_to_backend":
        service = balancer.model.services.get(row.params[0])
        backend = balancer.model.backends.get(row.params[1])
        location = backend.location if backend is not None else None
    else:
        location = rows.target(row, int(source.protocol))
    return {
        "protocol": source.protocol.name.lower(),
        "source": f"{source.address}:{source.port}",
        "destination": f"{destination.address}:{destination.port}",
        "service": service.name if service is not None else None,
        "location": f"{location.address}:{location.port}" if location is not None else None,
    }


def switches(links: Mapping[str, SwitchLink], tables: Mapping[str, SwitchTables]) -> list[dict[str, Any]]:
    """Return every switch and how it is."""
    return [
        {
            "id": link.config.id,
            "name": name,
            "addr": link.config.addr,
            "master": link.config.master,
            "state": link.state,
            "connects": link.connects,
            "rows": len(tables[name].rows),
        }
        for name, link in links.items()
    ]


async def metrics(controller: Controller) -> list[Metric]:
    """Return the controller's numbers; those that the switch counts are read from it, if it is there."""
    balancer = controller.balancer
    held = balancer.held_total
    queued, running = controller.migrations.counts()
    families = [
        gauge("switch_up", "1 if a switch is set up.", *_up(controller)),
        gauge("connections", "Pinned connections.", ({}, len(balancer.pins))),
        counter("connections_pinned_total", "Pins written.", ({}, balancer.pins.opened)),
        counter("connections_unpinned_total", "Pins that a switch refused.", ({}, balancer.pins.refused)),
        gauge("backends", "Backends by service and state.", *_pools(balancer)),
        counter("pool_changes_total", "Changes of a pool.", ({}, balancer.pool_changes)),
        counter("held_packets_total", "Packets held.", ({}, held.packets)),
        counter("held_bytes_total", "Bytes held.", ({}, held.bytes)),
        counter("held_dropped_total", "Packets beyond a hold's budget.", ({}, held.dropped)),
        gauge("migrations_queued", "Migrations that wait for their turn.", ({}, queued)),
        gauge("migrations_running", "Migrations under way.", ({}, running)),
        *controller.migration_metrics.registry.collect(),
    ]
    if balancer.link.ready.is_set():
        families += await _counted(balancer)
    return families


def _up(controller: Controller) -> Iterator[tuple[dict[str, str], float]]:
    for name, link in controller.links.items():
        yield {"switch": name}, float(link.ready.is_set())


def _pools(balancer: LoadBalancer) -> Iterator[tuple[dict[str, str], float]]:
    for service in balancer.model.services.values():
        states = [b.state for b in balancer.model.pool(service.id)]
        for state in BackendState:
            yield {"service": service.name, "state": state.value}, states.count(state)


async def _counted(balancer: LoadBalancer) -> list[Metric]:
    by_service = await balancer.link.read_counters("service_counter")
    by_backend = await balancer.link.read_counters("backend_counter")
    services = {id: {"service": s.name} for id, s in balancer.model.services.items()}
    backends = {id: {"backend": show(b.home)} for id, b in balancer.model.backends.items()}
    families = []
    for what, names, cells in (("service", services, by_service), ("backend", backends, by_backend)):
        for index, unit in enumerate(("packets", "bytes")):
            samples = [(labels, cells.get(id, (0, 0))[index]) for id, labels in names.items()]
            families.append(counter(f"{what}_{unit}_total", f"Forwarded {unit} by {what}.", *samples))
    return families
