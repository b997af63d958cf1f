"""The HTTP API: the original's bodies, resources, refusals that change nothing."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from controllers import cli
from controllers.controller import Controller
from controllers.errors import ConfigError
from controllers.migrations import OnEvent
from tests.controllers.conftest import controller_config, eventually
from tests.controllers.model_switch import SYN, ModelSwitch, frame
from tests.controllers.test_controller import client, flat
from tests.controllers.test_steering import HOSTS, AtOnce

H2 = {"ipv4": "10.0.2.2", "dmac": "08:00:00:00:02:02", "eport": "2"}
H3 = {"ipv4": "10.0.3.3", "dmac": "08:00:00:00:03:03", "eport": "3"}
TO_H3 = {"old_ipv4": "10.0.2.2", "new_ipv4": "10.0.3.3", "dmac": "08:00:00:00:03:03", "eport": "3"}


class Mover:
    """Moves nothing, but takes as long as the test wants."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.moved: list[tuple[str, str]] = []

    def __call__(
        self, app: str, destination: str, on_event: OnEvent, *, migration_id: str
    ) -> Mapping[str, Any]:
        on_event({"step": "hold", "phase": "started"})
        assert self.go.wait(10)
        self.moved.append((app, destination))
        if app == "cursed":
            raise OSError("no such luck")
        outcome = "rolled_back" if app == "shy" else "completed"
        steps = [{"name": "hold", "ms": 0.9}]
        return {
            "id": migration_id,
            "app": app,
            "destination": destination,
            "outcome": outcome,
            "reason": None,
            "steps": steps,
        }


@pytest.fixture
def mover() -> Mover:
    """Make a mover."""
    return Mover()


@pytest.fixture
def controller(program: tuple[Path, Path], switch: ModelSwitch, mover: Mover) -> Iterator[Controller]:
    """Run a controller with apps."""
    apps = {name: {"host": "h2", "pid": 1} for name in ("echo", "redis", "shy", "cursed")}
    running = Controller(controller_config(program, switch.address), HOSTS, mover, lambda: apps, AtOnce())
    running.start(10)
    yield running
    mover.go.set()
    running.stop()


@pytest.fixture
def api(controller: Controller) -> Iterator[httpx.Client]:
    """Talk to it."""
    assert controller.url is not None
    with httpx.Client(base_url=controller.url, trust_env=False) as http:
        yield http


def test_the_originals_requests(api: httpx.Client, switch: ModelSwitch) -> None:
    """Insert, update, delete: {"status": "success"}, and the switch does it."""
    for path, body in (("/insert_node", H2), ("/update_node", TO_H3)):
        answer = api.post(path, json=body)
        assert (answer.status_code, answer.json()) == (200, {"status": "success"})
    (node,) = api.get("/nodes").json()
    assert (node["ipv4"], node["dmac"], node["eport"], node["state"]) == ("10.0.3.3", H3["dmac"], 3, "active")
    switch.inject(frame(6, client(1), flat("10.0.0.100"), SYN))
    assert switch.taken() == [(3, client(1), flat("10.0.3.3"))]
    eventually(lambda: api.get("/connections").json()["total"] == 1, "pinning")
    assert api.get("/connections").json()["connections"][0]["location"] == "10.0.3.3:7000"
    assert api.post("/delete_node", json={"ipv4": "10.0.3.3", "drain": True}).json() == {"status": "success"}
    assert api.get("/nodes").json()[0]["state"] == "draining"
    assert api.post("/delete_node", json={"ipv4": "10.0.3.3"}).json() == {"status": "success"}
    assert api.get("/nodes").json() == []


def test_a_node_behind_another_next_hop_gets_a_route(api: httpx.Client, switch: ModelSwitch) -> None:
    """Where the network's routes lead elsewhere, eport and dmac make one."""
    api.post("/insert_node", json={**H2, "eport": 4, "dmac": "08:00:00:00:09:09", "weight": "2"})
    switch.inject(frame(6, client(1), flat("10.0.0.100"), SYN))
    assert switch.taken()[0][0] == 4
    assert api.get("/nodes").json()[0]["eport"] == 4


@pytest.mark.parametrize(
    ("path", "body", "status", "message"),
    [
        ("/insert_node", "{", 400, "the body is not JSON"),
        ("/insert_node", "[]", 400, "JSON object"),
        ("/insert_node", {}, 400, "ipv4 is missing"),
        ("/insert_node", {**H3, "ipv4": 7}, 400, "ipv4: Input should be a valid string"),
        ("/insert_node", {**H3, "ipv4": "10.0.3"}, 400, "ipv4 '10.0.3' is not an IPv4 address"),
        ("/insert_node", {**H3, "ipv4": "224.0.0.1"}, 400, "is not the address of one host"),
        ("/insert_node", {**H3, "dmac": "x"}, 400, "dmac 'x' is not six pairs"),
        ("/insert_node", {**H3, "eport": "512"}, 400, "eport 512 is not a number from 1 to 511"),
        ("/insert_node", {**H3, "eport": "0"}, 400, "eport 0 is not a number"),
        ("/insert_node", {**H3, "eport": "two"}, 400, "eport 'two' is not a number"),
        ("/insert_node", {**H3, "weight": 0}, 400, "weight 0 is not a number from 1 to 100"),
        ("/insert_node", {**H3, "port": 65536}, 400, "port 65536 is not a number"),
        ("/insert_node", {**H3, "service": "web"}, 404, "there is no service 'web'"),
        ("/insert_node", H2, 409, "10.0.2.2:7000/tcp is already a backend"),
        ("/update_node", {}, 400, "old_ipv4 is missing"),
        ("/update_node", {**TO_H3, "old_ipv4": "10.0.9.9"}, 404, "10.0.9.9 is not a node of service 'echo'"),
        ("/update_node", {**TO_H3, "new_ipv4": "10.0.2.2"}, 409, "10.0.2.2 is already a node"),
        ("/delete_node", {"ipv4": "10.0.9.9"}, 404, "10.0.9.9 is not a node"),
        ("/delete_node", {"ipv4": "10.0.2.2", "drain": "maybe"}, 400, "drain: "),
        (
            "/services",
            {"name": "echo", "address": "10.0.0.101", "port": 1},
            409,
            "service 'echo' exists already",
        ),
        (
            "/services",
            {"name": "x", "address": "10.0.0.100", "port": 7000},
            409,
            "the address of service 'echo'",
        ),
        (
            "/services",
            {"name": "x", "address": "10.0.0.100", "port": 1, "protocol": "sctp"},
            400,
            "protocol: ",
        ),
        (
            "/migrations",
            {"app": "none", "destination": "h3"},
            404,
            "there is no app 'none' (there are: cursed, echo",
        ),
        ("/migrations", {"app": "echo", "destination": "h9"}, 400, "there is no host 'h9'"),
        ("/nowhere", {}, 404, "POST /nowhere: Not Found"),
        ("/nodes", {}, 405, "POST /nodes: Method Not Allowed"),
    ],
)
def test_refusals(
    api: httpx.Client, controller: Controller, path: str, body: object, status: int, message: str
) -> None:
    """One sentence, the right status, and nothing has changed."""
    api.post("/insert_node", json=H2)
    before = dict(controller.balancer.table)
    content = body if isinstance(body, str) else json.dumps(body)
    answer = api.post(path, content=content, headers={"Content-Type": "application/json"})
    assert answer.status_code == status
    assert list(answer.json()) == ["error"]
    assert message in answer.json()["error"]
    assert dict(controller.balancer.table) == before


def test_a_lost_switch_is_502(api: httpx.Client, controller: Controller, switch: ModelSwitch) -> None:
    """The sentence names it."""
    controller.loop.call_soon_threadsafe(controller.balancer.link._lost)
    eventually(lambda: controller.balancer.link.state == "connecting", "losing the switch")
    answer = api.post("/insert_node", json=H2)
    assert answer.status_code == 502
    assert "switch s1 at 127.0.0.1" in answer.json()["error"]
    assert api.get("/nodes").json() == []


def test_services(api: httpx.Client) -> None:
    """They can be added and, when empty, removed."""
    assert (
        api.post(
            "/services", json={"name": "dns", "address": "10.0.0.101", "port": 53, "protocol": "udp"}
        ).status_code
        == 201
    )
    assert {s["name"]: s["protocol"] for s in api.get("/services").json()} == {"echo": "tcp", "dns": "udp"}
    assert api.post("/insert_node", json=H2).status_code == 404  # two services, none is the default one
    assert api.post("/insert_node", json={**H2, "service": "dns"}).status_code == 200
    assert api.delete("/services/dns").status_code == 409
    assert api.post("/delete_node", json={"ipv4": "10.0.2.2", "service": "dns"}).status_code == 200
    assert api.delete("/services/dns").status_code == 200


def test_resources(api: httpx.Client) -> None:
    """What there is can be read."""
    assert api.get("/switches").json()[0]["state"] == "ready"
    assert api.get("/apps").json()[0] == {"name": "echo", "host": "h2", "pid": 1}
    paths = api.get("/openapi.json").json()["paths"]
    assert {"/insert_node", "/update_node", "/delete_node", "/migrations/{id}", "/events", "/metrics"} <= set(
        paths
    )
    lines = api.get("/metrics").text.splitlines()
    assert 'p4ferry_switch_up{switch="s1"} 1' in lines
    assert 'p4ferry_backends{service="echo",state="active"} 0' in lines
    assert api.get("/metrics").headers["content-type"].startswith("text/plain; version=0.0.4")


def test_migrations_wait_for_each_other(api: httpx.Client, mover: Mover) -> None:
    """One at a time for an app; a queued one can be cancelled, a running one cannot."""
    ids = [
        api.post("/migrations", json={"app": "echo", "destination": h}).json()["id"]
        for h in ("h3", "h4", "h2")
    ]
    eventually(lambda: api.get(f"/migrations/{ids[0]}").json()["state"] == "running", "starting")
    assert [m["state"] for m in api.get("/migrations").json()] == ["running", "queued", "queued"]
    assert api.delete(f"/migrations/{ids[1]}").json()["state"] == "cancelled"
    refused = api.delete(f"/migrations/{ids[0]}")
    assert (refused.status_code, refused.json()["error"]) == (
        409,
        f"migration {ids[0]} is running: only a queued one can be cancelled",
    )
    mover.go.set()
    eventually(lambda: api.get(f"/migrations/{ids[2]}").json()["outcome"] == "completed", "finishing")
    assert mover.moved == [("echo", "h3"), ("echo", "h2")]
    assert api.get("/migrations/m99").status_code == 404
    assert 'p4ferry_migrations_total{outcome="completed"} 2' in api.get("/metrics").text


def test_a_mover_that_fails_is_reported(api: httpx.Client, mover: Mover) -> None:
    """Whatever it raises becomes the report's reason."""
    mover.go.set()
    id = api.post("/migrations", json={"app": "cursed", "destination": "h3"}).json()["id"]
    eventually(lambda: api.get(f"/migrations/{id}").json()["state"] == "failed", "failing")
    assert api.get(f"/migrations/{id}").json()["reason"] == "OSError: no such luck"


def test_events_are_streamed(api: httpx.Client, mover: Mover) -> None:
    """A reader sees what happened before and what happens now, and the stream ends with the controller."""
    api.post("/insert_node", json=H2)
    seen: list[str] = []
    with api.stream("GET", "/events", headers={"Last-Event-ID": "0"}) as stream:
        assert stream.headers["content-type"].startswith("text/event-stream")
        mover.go.set()
        api.post("/migrations", json={"app": "echo", "destination": "h3"})
        for line in stream.iter_lines():
            if line.startswith("event: "):
                seen.append(line.removeprefix("event: "))
            if seen[-1:] == ["migration_ended"]:
                break
    wanted = [
        "backend_added",
        "migration_queued",
        "migration_started",
        "migration_progress",
        "migration_ended",
    ]
    assert [kind for kind in seen if kind in wanted] == wanted


def test_a_port_in_use(program: tuple[Path, Path], switch: ModelSwitch) -> None:
    """The message says which, and the controller does not start."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = controller_config(program, switch.address)
        object.__setattr__(config, "http_port", port)
        controller = Controller(config)
        with pytest.raises(ConfigError, match=f"cannot listen on 127.0.0.1:{port}: Address already in use"):
            controller.start(10)


# ---- the command line


def run_cli(controller: Controller, *arguments: str) -> int:
    """Run p4ferry against a controller."""
    assert controller.url is not None
    return cli.main(["--url", controller.url, *arguments])


def test_the_command_migrates(
    controller: Controller, mover: Mover, capsys: pytest.CaptureFixture[str]
) -> None:
    """It waits for the end, shows the report, and its status tells whether it worked."""
    mover.go.set()
    assert run_cli(controller, "migrate", "echo", "h3") == 0
    assert "m1: echo to h3: completed" in capsys.readouterr().out
    assert run_cli(controller, "--json", "migrate", "shy", "h3") == 1
    assert json.loads(capsys.readouterr().out)["outcome"] == "rolled_back"
    assert run_cli(controller, "report", "m1") == 0
    assert run_cli(controller, "report", "m2") == 1
    assert run_cli(controller, "migrate", "echo", "h9") == 1
    assert "p4ferry: there is no host 'h9'" in capsys.readouterr().err


@pytest.mark.parametrize("what", ["nodes", "services", "apps", "connections", "switches", "migrations"])
def test_the_command_lists(
    controller: Controller, api: httpx.Client, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a table, or as the API's JSON."""
    api.post("/insert_node", json=H2)
    assert run_cli(controller, what) == 0
    assert what in capsys.readouterr().out
    assert run_cli(controller, "--json", what) == 0
    assert json.loads(capsys.readouterr().out) == api.get(f"/{what}").json()


@pytest.mark.parametrize("url", ["http://127.0.0.1:9", "not a url", "127.0.0.1:5000"])
def test_the_command_says_when_nobody_answers(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One sentence, no traceback."""
    assert cli.main(["--url", url, "nodes"]) == 1
    error = capsys.readouterr().err
    assert error.startswith(f"p4ferry: no p4ferry controller answers at {url}")
    assert len(error.splitlines()) == 1
