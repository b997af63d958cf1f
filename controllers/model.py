"""Services and backends, and the rows that say so to the switch.

A service is an identity (a VIP's endpoint) that a pool of backends serves. A backend has a home (the address under
which it was registered, which direct clients may use) and a location (where it lives now). The model can be read
back from the rows of a switch, so a controller that starts anew goes on where the last one stopped. Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Any

from controllers import maglev, rows
from controllers.errors import Conflict, NotFound
from controllers.rows import Key, Row
from migration.steering import Endpoint

MAX_SERVICES = 64
MAX_BACKENDS = 1024
"""As in load_balancer.p4; id 0 means none."""


class BackendState(str, Enum):
    """What a backend is to its pool."""

    ACTIVE = "active"
    DRAINING = "draining"  # no new connections, still listed
    REMOVED = "removed"  # no new connections, not listed; there until its last connection has ended


@dataclass(frozen=True, slots=True)
class Backend:
    """One member of one pool."""

    id: int
    service: int
    home: Endpoint
    location: Endpoint
    weight: int = 1
    state: BackendState = BackendState.ACTIVE


@dataclass(frozen=True, slots=True)
class Service:
    """A pool's identity."""

    id: int
    name: str
    endpoint: Endpoint


@dataclass
class Model:
    """Everything that is known of services and backends."""

    services: dict[int, Service] = field(default_factory=dict)
    backends: dict[int, Backend] = field(default_factory=dict)

    def service(self, name: str) -> Service:
        """Return the service of a name."""
        for service in self.services.values():
            if service.name == name:
                return service
        raise NotFound(f"there is no service {name!r}")

    def service_at(self, endpoint: Endpoint) -> Service | None:
        """Return the service that answers at an endpoint."""
        return next((s for s in self.services.values() if s.endpoint == endpoint), None)

    def backend_at(self, location: Endpoint) -> Backend | None:
        """Return the backend that lives at a location."""
        return next((b for b in self.backends.values() if b.location == location), None)

    def pool(self, service: int) -> list[Backend]:
        """Return a service's backends, oldest first."""
        return [b for b in self.backends.values() if b.service == service]

    def new_service(self, name: str, endpoint: Endpoint) -> Service:
        """Return a service under the next free id; it is not yet part of the model."""
        if any(service.name == name for service in self.services.values()):
            raise Conflict(f"service {name!r} exists already")
        if (other := self.service_at(endpoint)) is not None:
            raise Conflict(f"{show(endpoint)} is already the address of service {other.name!r}")
        return Service(_free_id(self.services, MAX_SERVICES, "services"), name, endpoint)

    def new_backend(self, service: Service, location: Endpoint, weight: int) -> Backend:
        """Return a backend under the next free id, or the one that is leaving that location; not yet in the model."""
        known = self.backend_at(location)
        if known is None:
            id = _free_id(self.backends, MAX_BACKENDS, "backends")
            return Backend(id, service.id, location, location, weight)
        if known.service == service.id and known.state is not BackendState.ACTIVE:
            return replace(known, weight=weight, state=BackendState.ACTIVE)
        raise Conflict(
            f"{show(location)} is already a backend of service {self.services[known.service].name!r}"
        )


def show(endpoint: Endpoint) -> str:
    """Return an endpoint as people write it."""
    return f"{endpoint.address}:{endpoint.port}/{endpoint.protocol.name.lower()}"


def _free_id(taken: Mapping[int, Any], limit: int, what: str) -> int:
    for id in range(1, limit):
        if id not in taken:
            return id
    raise Conflict(f"the switch has no room for more than {limit - 1} {what}")


def pool_rows(service: Service, backends: Iterable[Backend]) -> list[Row]:
    """Return a service's Maglev slots."""
    weights = {b.id: b.weight for b in backends if b.state is BackendState.ACTIVE}
    return [rows.maglev_slot(service.id, slot, backend) for slot, backend in enumerate(maglev.build(weights))]


def backend_rows(service: Service, backend: Backend) -> list[Row]:
    """Return what makes a backend reachable: as its service, and under its own addresses."""
    own = dict.fromkeys((backend.home, backend.location))
    return [
        rows.backend_at(backend.id, backend.location),
        rows.speak_as(rows.endpoint_source_key(backend.location), service.endpoint),
        *(rows.direct(address, backend.id) for address in own),
    ]


def backend_keys(table: Mapping[Key, Row], backend: Backend) -> list[Key]:
    """Return the keys of what `backend_rows` has put there, and migrations have added."""
    keys: list[Key] = [("backend", (backend.id,), 0), rows.endpoint_source_key(backend.location)]
    keys += [k for k, row in table.items() if row.table == "destination" and is_direct_to(row, backend.id)]
    return keys


def is_direct_to(row: Row, backend: int) -> bool:
    """Say whether a destination row reports openings to a backend's own address."""
    return row.action == "direct" and row.params == (backend,)


def adopt(table: Mapping[Key, Row], names: Mapping[Endpoint, str]) -> Model:
    """Read the model back from rows; weights are estimated from the slots, unknown services named by address."""
    model = Model()
    for key, row in table.items():
        if row.table == "destination" and row.action in ("serve", "serve_guarded"):
            endpoint = rows.first_endpoint(key)
            name = names.get(endpoint, f"{endpoint.address}:{endpoint.port}")
            model.services[row.params[0]] = Service(row.params[0], name, endpoint)
    slots = Counter((row.match[0], row.params[0]) for row in table.values() if row.table == "maglev")
    for row in table.values():
        if row.table == "backend" and (backend := _adopt_backend(model, table, row, slots)) is not None:
            model.backends[backend.id] = backend
    return model


def _adopt_backend(model: Model, table: Mapping[Key, Row], row: Row, slots: Counter[Any]) -> Backend | None:
    """Find out whose backend a row is: its location speaks as its service."""
    id = row.match[0]
    assert isinstance(id, int)
    for service in model.services.values():
        location = rows.target(row, service.endpoint.protocol)
        source = table.get(rows.endpoint_source_key(location))
        if source is None or rows.target(source, service.endpoint.protocol) != service.endpoint:
            continue
        own = [
            rows.first_endpoint(k)
            for k, r in table.items()
            if r.table == "destination" and is_direct_to(r, id)
        ]
        home = next((address for address in own if address != location), location)
        fewest = min((n for (owner, _), n in slots.items() if owner == service.id), default=1)
        count = slots[(service.id, id)]
        state = BackendState.ACTIVE if count else BackendState.DRAINING
        return Backend(id, service.id, home, location, max(1, round(count / fewest)), state)
    return None
