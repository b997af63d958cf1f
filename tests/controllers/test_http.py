"""The HTTP API: the original's bodies, resources, refusals that change nothing."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from controllers import cli
from controllers.controller import Controller
from controllers.errors import ConfigError
from tests.controllers.conftest import controller_config, eventually
from tests.controllers.model_switch import SYN, ModelSwitch, frame
from tests.controllers.mover import Mover
from tests.controllers.test_controller import client, flat
from tests.controllers.test_steering import HOSTS, AtOnce

H2 = {"ipv4": "10.0.2.2", "dmac": "08:00:00:00:02:02", "eport": "2"}
H3 = {"ipv4": "10.0.3.3", "dmac": "08:00:00:00:03:03", "eport": "3"}
TO_H3 = {"old_ipv4": "10.0.2.2", "new_ipv4": "10.0.3.3", "dmac": "08:00:00:00:03:03", "eport": "3"}


@pytest.fixture
def mover() -> Mover:
    """Make a mover."""
    return Mover()


@pytest.fixture
def controller(program: tuple[Path, Path], switch: ModelSwitch, mover: Mover) -> Iterator[Controller]:
    """Run a controller with apps."""
    apps = {name: {"host": "h2", "pid": 1} for name in ("echo", "redis", "shy", "cursed")}
    config = controller_config(program, switch.address, http_port=0)
    running = Controller(config, HOSTS, mover, lambda: apps, AtOnce())
    running.start(10)
    yield running
    mover.go.set()
    mover.end.set()
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
    assert set(paths["/migrations/{id}"]) == {"get", "delete"}
    trace = paths["/migrations/{id}/trace"]["get"]["responses"]
    assert list(trace["200"]["content"]) == ["text/plain"] and "404" in trace
    assert {"/insert_node", "/update_node", "/delete_node", "/migrations/{id}", "/events", "/metrics"} <= set(
        paths
    )


def numbers(api: httpx.Client) -> dict[str, float]:
    """Read /metrics with a parser of its format; labels are sorted."""
    answer = api.get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    found = {}
    for family in text_string_to_metric_families(answer.text):
        assert family.documentation
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            found[f"{sample.name}{{{labels}}}"] = sample.value
    return found


def test_metrics(api: httpx.Client, mover: Mover) -> None:
    """Counters, histograms of what migrations were like, and gauges of what is going on."""
    found = numbers(api)
    assert found["p4ferry_switch_up{switch=s1}"] == 1
    assert found["p4ferry_backends{service=echo,state=active}"] == 0
    assert found["p4ferry_held_packets_total{}"] == 0
    assert found["p4ferry_migrations_total{outcome=failed}"] == 0
    for app, host in (("echo", "h3"), ("redis", "h3"), ("echo", "h4")):
        api.post("/migrations", json={"app": app, "destination": host})
    eventually(lambda: len(mover.moving) == 2, "starting")
    found = numbers(api)
    assert (found["p4ferry_migrations_running{}"], found["p4ferry_migrations_queued{}"]) == (2, 1)
    mover.go.set()
    eventually(lambda: all(m["outcome"] for m in api.get("/migrations").json()), "finishing")
    found = numbers(api)
    assert found["p4ferry_migrations_total{outcome=completed}"] == 3
    assert found["p4ferry_migration_gap_seconds_count{}"] == 3
    assert found["p4ferry_migration_gap_seconds_bucket{le=0.02}"] == 0
    assert found["p4ferry_migration_gap_seconds_bucket{le=0.025}"] == 3
    assert found["p4ferry_migration_frozen_seconds_sum{}"] == pytest.approx(0.024)
    assert found["p4ferry_migration_step_seconds_bucket{le=0.001,step=hold}"] == 3
    assert found["p4ferry_image_bytes_bucket{le=4.194304e+06}"] == 3
    assert found["p4ferry_image_bytes_bucket{le=1.048576e+06}"] == 0
    assert (found["p4ferry_migrations_running{}"], found["p4ferry_migrations_queued{}"]) == (0, 0)


def test_migrations_wait_for_each_other(api: httpx.Client, mover: Mover) -> None:
    """One at a time for an app; one that waits is cancelled at once, one that runs turns back."""
    ids = [
        api.post("/migrations", json={"app": "echo", "destination": h}).json()["id"]
        for h in ("h3", "h4", "h2")
    ]
    eventually(lambda: api.get(f"/migrations/{ids[0]}").json()["state"] == "running", "starting")
    assert [m["state"] for m in api.get("/migrations").json()] == ["running", "queued", "queued"]
    assert api.delete(f"/migrations/{ids[1]}").json()["state"] == "cancelled"
    assert api.get(f"/migrations/{ids[1]}").json()["reason"] == "cancelled while it was queued"
    mover.go.set()
    eventually(lambda: api.get(f"/migrations/{ids[2]}").json()["outcome"] == "completed", "finishing")
    assert mover.moved == [("echo", "h3"), ("echo", "h2")]
    refused = api.delete(f"/migrations/{ids[2]}")
    assert (refused.status_code, refused.json()["error"]) == (
        409,
        f"migration {ids[2]} is over: it is completed",
    )
    assert api.get("/migrations/m99").status_code == api.delete("/migrations/m99").status_code == 404


def test_a_running_migration_is_cancelled(api: httpx.Client, mover: Mover) -> None:
    """It turns back, and says so; beyond its point of no return it is 409."""
    id = api.post("/migrations", json={"app": "echo", "destination": "h3"}).json()["id"]
    eventually(lambda: mover.moving, "starting")
    assert api.delete(f"/migrations/{id}").json()["state"] == "cancelling"
    assert api.delete(f"/migrations/{id}").status_code == 200  # as often as one likes
    mover.go.set()
    eventually(lambda: api.get(f"/migrations/{id}").json()["outcome"], "ending")
    report = api.get(f"/migrations/{id}").json()
    assert (report["outcome"], report["reason"]) == ("rolled_back", "cancelled before the step 'restore'")
    mover.end.clear()
    id = api.post("/migrations", json={"app": "echo", "destination": "h3"}).json()["id"]
    assert mover.committed.wait(5)
    refused = api.delete(f"/migrations/{id}")
    assert (refused.status_code, refused.json()["error"]) == (
        409,
        f"migration {id} cannot be cancelled any more: echo is being started on h3",
    )
    mover.end.set()
    eventually(lambda: api.get(f"/migrations/{id}").json()["outcome"] == "completed", "ending")


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
        "migration_progress",
        "migration_ended",
    ]
    assert [kind for kind in seen if kind in wanted] == wanted


def events_after(api: httpx.Client, number: int, until: str = "migration_ended") -> list[dict[str, str]]:
    """Read the stream's events behind a number, up to one of a kind."""
    events: list[dict[str, str]] = []
    with api.stream("GET", "/events", headers={"Last-Event-ID": str(number)}) as stream:
        event: dict[str, str] = {}
        for line in stream.iter_lines():
            if line:
                key, _, value = line.partition(": ")
                event[key] = value
                continue
            if "event" in event:
                events.append(event)
                if event["event"] == until:
                    break
            event = {}
    return events


def test_a_reader_comes_back(api: httpx.Client, mover: Mover) -> None:
    """From whatever number it asks on, it gets exactly what it has not seen."""
    mover.go.set()
    api.post("/migrations", json={"app": "echo", "destination": "h3"})
    whole = events_after(api, 0)
    numbers = [int(event["id"]) for event in whole]
    assert numbers == list(range(1, len(whole) + 1))
    for number in numbers[:-1]:
        assert events_after(api, number) == whole[number:]


def test_a_port_in_use(program: tuple[Path, Path], switch: ModelSwitch) -> None:
    """The message says which, and the controller does not start."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = controller_config(program, switch.address, http_port=port)
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
    out = capsys.readouterr().out
    assert "m1: echo to h3: completed" in out
    assert out.startswith("m1: echo to h3:\n  hold              0.9 ms\n")
    assert run_cli(controller, "--json", "migrate", "shy", "h3") == 1
    assert json.loads(capsys.readouterr().out)["outcome"] == "rolled_back"
    assert run_cli(controller, "report", "m1") == 0
    assert run_cli(controller, "report", "m2") == 1
    assert run_cli(controller, "migrate", "echo", "h9") == 1
    assert "p4ferry: there is no host 'h9'" in capsys.readouterr().err


def test_the_command_need_not_wait(
    controller: Controller, mover: Mover, capsys: pytest.CaptureFixture[str]
) -> None:
    """--no-wait prints the id; `cancel` waits until the migration is back."""
    assert run_cli(controller, "migrate", "echo", "h3", "--no-wait") == 0
    assert capsys.readouterr().out == "m1\n"
    mover.go_when_asked(mover.go)
    assert run_cli(controller, "cancel", "m1") == 0
    assert "m1: echo to h3: rolled_back (cancelled before the step 'restore')" in capsys.readouterr().out
    assert run_cli(controller, "cancel", "m1") == 1
    assert capsys.readouterr().err == "p4ferry: migration m1 is over: it is rolled_back\n"
    assert run_cli(controller, "trace", "m1") == 1
    assert capsys.readouterr().err == "p4ferry: migration m1 has no trace: it is rolled_back\n"


@pytest.mark.parametrize("in_time", [True, False])
def test_ctrl_c_at_the_command_cancels(controller: Controller, mover: Mover, in_time: bool) -> None:
    """It says what came of it: rolled back, or that it was too late."""
    assert controller.url is not None
    command = [sys.executable, "-m", "controllers.cli", "--url", controller.url, "migrate", "echo", "h3"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    if not in_time:
        mover.end.clear()
        mover.go.set()
        assert mover.committed.wait(20)
    eventually(lambda: mover.moving, "starting", 20)
    assert process.stdout is not None
    assert process.stdout.readline() == "m1: echo to h3:\n"
    process.send_signal(signal.SIGINT)
    while "cancel" not in (line := process.stdout.readline()):
        assert line, process.stderr
    (mover.go if in_time else mover.end).set()
    out, err = process.communicate(timeout=20)
    assert (process.returncode, err) == (130, "")
    if in_time:
        assert line == "cancelling m1\n"
        assert "m1: echo to h3: rolled_back (cancelled before the step 'restore')" in out
    else:
        assert line == "migration m1 cannot be cancelled any more: echo is being started on h3\n"
        assert "m1: echo to h3: completed" in out


def test_the_command_follows_events(
    controller: Controller, mover: Mover, capsys: pytest.CaptureFixture[str]
) -> None:
    """Up to the controller's end, from whatever event one likes."""
    mover.go.set()
    assert run_cli(controller, "migrate", "echo", "h3") == 0
    capsys.readouterr()

    def stop() -> None:
        eventually(lambda: controller.events.readers, "following", 20)
        controller.stop()

    threading.Thread(target=stop, daemon=True).start()
    assert run_cli(controller, "--json", "events", "--after", "1") == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["number"] for event in events] == list(range(2, len(events) + 2))
    assert events[-1]["event"] == "migration_ended"


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
