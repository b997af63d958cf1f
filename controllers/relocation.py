"""Which rows make a migration's endpoints live elsewhere, and carry on being who they are.

A move speaks of locations. This module finds out the identity of every endpoint from the rows that are there, and
says which rows to add before the freeze (what leaves the new location carries the identity), which to change when
the program runs there (what is for the identity goes to the new location), and which to delete at the end.

Three kinds of endpoints:
  - behind a VIP: its connections are pinned to the backend, so the one row of the backend moves them all;
  - addressed directly: its identity, the address under which it first lived, is sent on to its location;
  - an endpoint of one connection (a client's, or one that a VIP's backend accepted under its own address): a pin
    towards it, and an exception for what it sends, by peer.

What the program has closed, and its kernel has not, does not move: the same two rows of its own keep it where it is
while the endpoint that has accepted it goes.
Pure.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from controllers import rows
from controllers.errors import Conflict
from controllers.model import Backend, show
from controllers.rows import Key, Row
from migration.steering import ClosingConnection, Endpoint, Move, MovedConnection, MovedListener

Table = Mapping[Key, Row]


@dataclass
class Plan:
    """The rows of one move. `before` holds what every touched key had, for the way back."""

    prepare: dict[Key, Row] = field(default_factory=dict)
    switch: dict[Key, Row] = field(default_factory=dict)
    switch_deletes: set[Key] = field(default_factory=set)
    finish_deletes: set[Key] = field(default_factory=set)
    backends: dict[int, tuple[Endpoint, Endpoint]] = field(default_factory=dict)
    locations: set[Endpoint] = field(default_factory=set)

    def touched(self) -> set[Key]:
        """Return every key that prepare and switch_over write."""
        return {*self.prepare, *self.switch, *self.switch_deletes}


def identity_of(table: Table, location: Endpoint, peer: Endpoint | None = None) -> Endpoint:
    """Return who an endpoint is to a peer, or to everybody."""
    keys = [rows.endpoint_source_key(location)]
    if peer is not None:
        keys.insert(0, rows.connection_source_key(location, peer))
    for key in keys:
        if (row := table.get(key)) is not None:
            return rows.target(row, int(location.protocol))
    return location


def plan(table: Table, backends: Iterable[Backend], move: Move) -> Plan:
    """Say which rows a move needs, given those that are there; raises Conflict when a new location is taken."""
    by_location = {backend.location: backend for backend in backends}
    made = Plan()
    speaks: dict[Endpoint, Endpoint] = {}
    for listener in move.listeners:
        made.locations |= {listener.old, listener.new}
        if listener.old != listener.new:
            speaks[listener.new] = _plan_listener(table, by_location, listener, made)
    for connection in move.connections:
        made.locations |= {connection.old, connection.new}
        if connection.old != connection.new:
            _plan_connection(table, by_location, speaks, connection, made)
    for row in staying_rows(table, move.closing):
        _put(made.prepare, row)
    made.finish_deletes -= {*made.prepare, *made.switch}
    made.switch_deletes -= {*made.prepare, *made.switch}
    return made


def staying_rows(table: Table, closing: Iterable[ClosingConnection]) -> list[Row]:
    """Return the rows by which closed connections live on where they are, whatever becomes of their endpoints."""
    made: list[Row] = []
    for one in closing:
        identity = identity_of(table, one.location, one.peer)
        made.append(rows.stay_as(one.location, one.peer, identity))
        made.append(rows.stay_at(one.peer, identity, one.location))
    return made


def moved_to(table: Table, identity: Endpoint) -> Endpoint | None:
    """Return where a program lives whose address this is, if it has moved away and is no backend."""
    row = table.get(rows.destination_key(identity))
    return rows.target(row, int(identity.protocol)) if row is not None and row.action == "send_to" else None


def _answer_at(table: Table, new: Endpoint, backend: int, made: Plan) -> None:
    """Let those who call an endpoint by its new address get an answer from there (LoadBalancer's direct openings).

    Not if it is the first address of another one that has moved: that one is called by it.
    """
    if moved_to(table, new) is None:
        _put(made.switch, rows.direct(new, backend))


def pins_to(table: Table, backends: Collection[int], locations: Collection[Endpoint]) -> list[Key]:
    """Return the pins of connections with some backends, or with what lives at some locations."""
    pins = [row for row in table.values() if row.table == "connection"]
    led = [row.key for row in pins if row.action == "pin_to_backend" and row.params[1] in backends]
    sent = [row for row in pins if row.action == "pin_to_location"]
    return led + [
        row.key for row in sent if rows.target(row, int(rows.first_endpoint(row.key).protocol)) in locations
    ]


def keys_of(table: Table, locations: Collection[Endpoint]) -> list[Key]:
    """Return what says who lives at some locations, and sends identities there, for those who are no backends."""
    keys: list[Key] = []
    for location in locations:
        identity = identity_of(table, location)
        keys.append(rows.endpoint_source_key(location))
        mine = (rows.direct(location, 0), rows.send_identity_to(identity, location))
        named = (rows.destination_key(identity), rows.destination_key(location))
        keys += [key for key in named if table.get(key) in mine]
    speaking = (row.key for row in table.values() if row.action == "speak_as")
    exceptions = (key for key in speaking if key[0] == "connection_source")
    return keys + [key for key in exceptions if rows.first_endpoint(key) in locations]


def _plan_listener(
    table: Table, by_location: Mapping[Endpoint, Backend], listener: MovedListener, made: Plan
) -> Endpoint:
    """Move an endpoint that accepts connections; return the identity that its new location will have."""
    old, new = listener.old, listener.new
    identity = identity_of(table, old)
    source = table.get(rows.endpoint_source_key(new))
    if (source is not None and rows.target(source, int(new.protocol)) != identity) or (
        new in by_location and by_location[new].location != old
    ):
        raise Conflict(f"{show(new)} is already in use by another program")
    backend = by_location.get(old)
    if identity != new or backend is not None:
        _put(made.prepare, rows.speak_as(rows.endpoint_source_key(new), identity))
    made.finish_deletes.add(rows.endpoint_source_key(old))
    if backend is not None:
        made.backends[backend.id] = (old, new)
        _put(made.switch, rows.backend_at(backend.id, new))
        _answer_at(table, new, backend.id, made)
        if old != backend.home and moved_to(table, old) is None:
            made.finish_deletes.add(rows.destination_key(old))
        return identity
    if identity == new:
        made.switch_deletes.add(rows.destination_key(identity))
    else:
        _put(made.switch, rows.send_identity_to(identity, new))
        _answer_at(table, new, 0, made)
    if old != identity and moved_to(table, old) is None:
        made.finish_deletes.add(rows.destination_key(old))
    return identity


def _plan_connection(
    table: Table,
    by_location: Mapping[Endpoint, Backend],
    speaks: Mapping[Endpoint, Endpoint],
    connection: MovedConnection,
    made: Plan,
) -> None:
    """Move one end of an established connection."""
    old, new, peer = connection.old, connection.new, connection.peer
    identity = identity_of(table, old, peer)
    covered = speaks.get(new) or identity_of(table, new)
    if covered != identity:
        _put(made.prepare, rows.speak_as(rows.connection_source_key(new, peer), identity))
    made.finish_deletes.add(rows.connection_source_key(old, peer))
    pin = table.get(rows.connection_key(peer, identity))
    serving = table.get(rows.destination_key(identity))
    if serving is not None and serving.action.startswith("serve"):
        _plan_served(by_location, connection, identity, serving.params[0], pin, made)
        return
    if (
        pin is None
        and covered == identity
        and new in speaks
        and made.switch.get(rows.destination_key(identity))
    ):
        return  # the listener's own row brings its packets
    if covered == identity == new:
        made.switch_deletes.add(rows.connection_key(peer, identity))
    else:
        _put(made.switch, rows.pin_to_location(peer, identity, new))


def _plan_served(
    by_location: Mapping[Endpoint, Backend],
    connection: MovedConnection,
    identity: Endpoint,
    service: int,
    pin: Row | None,
    made: Plan,
) -> None:
    """Move a connection that a service's backend has accepted: with its backend, or without."""
    backend = by_location.get(connection.old)
    if backend is not None and backend.id in made.backends:
        if pin is None:
            _put(made.prepare, rows.pin_to_backend(connection.peer, identity, service, backend.id))
        return
    # The backend stays (its listener is another program's, or closed): only this connection goes.
    there = by_location.get(connection.new)
    if there is not None and there.service == service:
        _put(made.switch, rows.pin_to_backend(connection.peer, identity, service, there.id))
    else:
        _put(made.switch, rows.pin_to_location(connection.peer, identity, connection.new))


def _put(into: dict[Key, Row], row: Row) -> None:
    into[row.key] = row
