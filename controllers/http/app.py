"""The routes of the HTTP API. Handlers run on the controller's loop and talk to its parts directly.

Every refusal is {"error": "one sentence"}, with 400 (malformed), 404 (unknown), 409 (exists, or not now) or 502 (a
switch is not there, or refused).
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Annotated, Any

from fastapi import FastAPI, Header, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.exceptions import HTTPException

from controllers import metrics, views
from controllers.config import MAX_PORT, LbNode, parse_int, parse_ipv4, parse_mac
from controllers.errors import ControllerError
from controllers.http import schemas
from controllers.maglev import MAX_WEIGHT
from migration.steering import Endpoint, IpProtocol

if TYPE_CHECKING:
    from controllers.controller import Controller

_KEEPALIVE_S = 15.0
_ERRORS: dict[int | str, dict[str, Any]] = {
    400: {"model": schemas.Error, "description": "malformed"},
    404: {"model": schemas.Error, "description": "unknown"},
    409: {"model": schemas.Error, "description": "it exists, or cannot be done now"},
    502: {"model": schemas.Error, "description": "a switch is not there, or refused"},
}


def make_app(controller: Controller) -> FastAPI:
    """Return the API of a controller."""
    app = FastAPI(title="p4ferry", version="1", responses=_ERRORS, docs_url=None, redoc_url=None)
    app.add_exception_handler(ControllerError, _refused)
    app.add_exception_handler(RequestValidationError, _malformed)
    app.add_exception_handler(HTTPException, _no_route)
    _add_nodes(app, controller)
    _add_resources(app, controller)
    _add_migrations(app, controller)
    _add_streams(app, controller)
    return app


def _error(status: int, text: str) -> JSONResponse:
    return JSONResponse({"error": text}, status_code=status)


async def _refused(_: Request, ex: Exception) -> JSONResponse:
    assert isinstance(ex, ControllerError)
    return _error(ex.status, str(ex))


async def _malformed(_: Request, ex: Exception) -> JSONResponse:
    """Say what is wrong with a body in one sentence."""
    assert isinstance(ex, RequestValidationError)
    first = ex.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:2])
    if first["type"] == "json_invalid":
        return _error(400, f"the body is not JSON: {first.get('ctx', {}).get('error', first['msg'])}")
    if not where:
        return _error(400, "the body is not a JSON object (send it with Content-Type: application/json)")
    if first["type"] == "missing":
        return _error(400, f"{where} is missing")
    return _error(400, f"{where}: {first['msg']}")


async def _no_route(request: Request, ex: Exception) -> JSONResponse:
    assert isinstance(ex, HTTPException)
    return _error(ex.status_code, f"{request.method} {request.url.path}: {ex.detail}")


def _node(ipv4: str, what: str, dmac: str, eport: object, weight: object = 1) -> LbNode:
    return LbNode(
        parse_ipv4(ipv4, what),
        parse_mac(dmac, "dmac"),
        parse_int(eport, 1, MAX_PORT, "eport"),
        parse_int(weight, 1, MAX_WEIGHT, "weight"),
    )


def _l4_port(value: object) -> int | None:
    return None if value is None else parse_int(value, 1, 65535, "port")


def _add_nodes(app: FastAPI, controller: Controller) -> None:
    nodes = controller.nodes

    @app.post("/insert_node")
    async def insert_node(body: schemas.InsertNode) -> schemas.Success:
        node = _node(body.ipv4, "ipv4", body.dmac, body.eport, body.weight)
        await nodes.insert(node, body.service, _l4_port(body.port))
        return schemas.Success()

    @app.post("/update_node")
    async def update_node(body: schemas.UpdateNode) -> schemas.Success:
        old = parse_ipv4(body.old_ipv4, "old_ipv4")
        node = _node(body.new_ipv4, "new_ipv4", body.dmac, body.eport)
        await nodes.update(old, node, body.service, _l4_port(body.port))
        return schemas.Success()

    @app.post("/delete_node")
    async def delete_node(body: schemas.DeleteNode) -> schemas.Success:
        await nodes.delete(parse_ipv4(body.ipv4, "ipv4"), body.drain, body.service)
        return schemas.Success()

    @app.get("/nodes")
    async def list_nodes() -> list[dict[str, Any]]:
        return nodes.view()


def _add_resources(app: FastAPI, controller: Controller) -> None:
    balancer = controller.balancer

    @app.get("/services")
    async def list_services() -> list[dict[str, Any]]:
        return views.services(balancer)

    @app.post("/services", status_code=201)
    async def add_service(body: schemas.NewService) -> schemas.Success:
        port = parse_int(body.port, 1, 65535, "port")
        protocol = IpProtocol[body.protocol.upper()]
        await balancer.add_service(body.name, Endpoint(protocol, parse_ipv4(body.address), port))
        return schemas.Success()

    @app.delete("/services/{name}")
    async def remove_service(name: str) -> schemas.Success:
        await balancer.remove_service(name)
        return schemas.Success()

    @app.get("/apps")
    async def list_apps() -> list[dict[str, Any]]:
        return [{"name": name, **app} for name, app in controller.apps().items()]

    @app.get("/connections")
    async def list_connections(limit: Annotated[int, Query(ge=1, le=200_000)] = 1000) -> dict[str, Any]:
        return {"total": len(balancer.pins), "connections": views.connections(balancer, limit)}

    @app.get("/switches")
    async def list_switches() -> list[dict[str, Any]]:
        return views.switches(controller.links, controller.tables)


def _add_migrations(app: FastAPI, controller: Controller) -> None:
    migrations = controller.migrations

    @app.get("/migrations")
    async def list_migrations() -> list[dict[str, Any]]:
        return [migration.view() for migration in migrations.list()]

    @app.post("/migrations", status_code=202)
    async def add_migration(body: schemas.NewMigration) -> dict[str, Any]:
        return migrations.submit(
            body.name,
            body.destination,
            mode=body.mode,
            transfer=body.transfer,
            pause_budget=body.pause_budget,
        ).view()

    @app.get("/migrations/{id}")
    async def get_migration(id: str) -> dict[str, Any]:
        return migrations.get(id).view()

    @app.delete("/migrations/{id}")
    async def cancel_migration(id: str) -> dict[str, Any]:
        return migrations.cancel(id).view()

    @app.get("/migrations/{id}/trace", response_class=PlainTextResponse)
    async def get_trace(id: str) -> PlainTextResponse:
        return PlainTextResponse(migrations.trace(id))


def _add_streams(app: FastAPI, controller: Controller) -> None:
    @app.get("/events", response_class=StreamingResponse)
    async def follow_events(last_event_id: Annotated[int | None, Header()] = None) -> StreamingResponse:
        return StreamingResponse(_events(controller, last_event_id), media_type="text/event-stream")

    @app.get("/metrics", response_class=PlainTextResponse)
    async def show_metrics() -> PlainTextResponse:
        return PlainTextResponse(
            metrics.render(await views.metrics(controller)), media_type=metrics.CONTENT_TYPE
        )


async def _events(controller: Controller, after: int | None) -> AsyncIterator[str]:
    """Write events as the HTML standard's section 9.2 wants them, with a comment now and then to keep the line up."""
    stream = controller.events.follow(after)
    coming: asyncio.Future[Any] | None = None
    yield ": events of p4ferry\n\n"
    try:
        while True:
            coming = coming or asyncio.ensure_future(anext(stream))
            done, _ = await asyncio.wait({coming}, timeout=_KEEPALIVE_S)
            if not done:
                yield ": still here\n\n"
                continue
            try:
                event = coming.result()
            except StopAsyncIteration:
                return
            coming = None
            data = {"time": event.time, **event.data}
            yield f"id: {event.id}\nevent: {event.type}\ndata: {json.dumps(data, default=str)}\n\n"
    finally:
        if coming is not None:
            coming.cancel()
