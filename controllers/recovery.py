"""Taking back a move that another controller began and did not live to finish.

Until a move is finished, the rows of the old location are still there: they say who the endpoints are. Whatever was
written for the new location is taken away, and what leads there leads back. Doing it again, or for a move that never
began, changes nothing. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from controllers import rows
from controllers.model import Backend
from controllers.relocation import Table, identity_of
from controllers.rows import Key, Row
from migration.steering import Endpoint, Move, MovedConnection, MovedListener


@dataclass
class Undo:
    """What to write, what to delete, and where which backend lives again."""

    upserts: list[Row] = field(default_factory=list)
    deletes: list[Key] = field(default_factory=list)
    backends: dict[int, Endpoint] = field(default_factory=dict)


def undo(table: Table, backends: Iterable[Backend], move: Move) -> Undo:
    """Say how to go back to the state before a move, whichever of its steps were done."""
    by_location = {backend.location: backend for backend in backends}
    made = Undo()
    for listener in move.listeners:
        if listener.old != listener.new:
            _undo_listener(table, by_location, listener, made)
    for connection in move.connections:
        if connection.old != connection.new:
            _undo_connection(table, connection, made)
    return made


def table_after(table: Table, undo: Undo) -> dict[Key, Row]:
    """Return what a table would be after an undo."""
    after = {key: row for key, row in table.items() if key not in undo.deletes}
    return after | {row.key: row for row in undo.upserts}


def _undo_listener(
    table: Table, by_location: dict[Endpoint, Backend], listener: MovedListener, made: Undo
) -> None:
    old, new = listener.old, listener.new
    identity = identity_of(table, old)
    if not _speaks_as(table, rows.endpoint_source_key(new), identity) and identity != new:
        return  # it was not even prepared
    made.deletes.append(rows.endpoint_source_key(new))
    backend = by_location.get(new) or by_location.get(old)
    called = table.get(rows.destination_key(new))
    if called is not None and called.action == "direct" and (backend is None or new != backend.home):
        made.deletes.append(rows.destination_key(new))
    if backend is not None:
        made.upserts.append(rows.backend_at(backend.id, old))
        made.backends[backend.id] = old
        return
    if identity != old:
        made.upserts.append(rows.send_identity_to(identity, old))
    elif _leads_to(table, rows.destination_key(old), "send_to", new):
        made.deletes.append(rows.destination_key(old))


def _undo_connection(table: Table, connection: MovedConnection, made: Undo) -> None:
    old, new, peer = connection.old, connection.new, connection.peer
    identity = identity_of(table, old, peer)
    if _speaks_as(table, rows.connection_source_key(new, peer), identity):
        made.deletes.append(rows.connection_source_key(new, peer))
    key = rows.connection_key(peer, identity)
    came_home = key not in table and identity == new and rows.connection_source_key(old, peer) in table
    if not came_home and not _leads_to(table, key, "pin_to_location", new):
        return
    if identity == old and rows.connection_source_key(old, peer) not in table:
        made.deletes.append(key)
    else:
        made.upserts.append(rows.pin_to_location(peer, identity, old))


def _speaks_as(table: Table, key: Key, identity: Endpoint) -> bool:
    row = table.get(key)
    return row is not None and rows.target(row, int(identity.protocol)) == identity


def _leads_to(table: Table, key: Key, action: str, location: Endpoint) -> bool:
    row = table.get(key)
    return row is not None and row.action == action and rows.target(row, int(location.protocol)) == location
