"""The Redis scenario: the demo as a user runs it, its judgement, and a Redis that is just saving its data."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from apps.echo.client import gap_between
from apps.kept.watch import clock
from migration.report import Connections, Outcome, Report
from tests.topo.machine import load_report
from tests.topo.test_lb import LB, lb
from topo.plan import LoadBalancerNetwork
from topo.redis_demo import REDIS, Programs, find_problems, redis_server
from topo.testbed import Testbed
from topo.waiting import wait_until

PRODUCER = {
    "done": True,
    "acknowledged": 700,
    "runs": [[1, 700]],
    "wrong_replies": 0,
    "reconnects": 0,
    "resets": 0,
    "errors": [],
}
POLLER = {
    "done": True,
    "counter": 700,
    "counter_went_back": 0,
    "uptime_went_back": 0,
    "bad_answers": 0,
    "new_connections": 0,
    "backend_reconnects": 0,
    "clients_min": 2,
    "clients_max": 2,
    "resets": 0,
    "errors": [],
}


def completed(outcome: Outcome = Outcome.COMPLETED, broken: int = 0) -> Report:
    """Return a report."""
    made = Report("m1", "redis", "h2", "h3", "process")
    made.outcome, made.connections = outcome, Connections(2, 2 - broken, broken)
    return made


def test_nothing_wrong_is_said_to_be_right() -> None:
    """The judgement's other half is below."""
    assert find_problems([completed()], 1, PRODUCER, POLLER) == []


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda p, q: p.update(acknowledged=701), "701 increments were acknowledged"),
        (lambda p, q: q.update(counter=701), "Redis counts 701"),
        (lambda p, q: p.update(runs=[[1, 300], [302, 701]]), "have gaps"),
        (lambda p, q: p.update(wrong_replies=1), "producer: wrong_replies is 1"),
        (lambda p, q: p.update(reconnects=1), "producer: reconnects is 1"),
        (lambda p, q: p.update(errors=["broken"]), "producer: broken"),
        (lambda p, q: q.update(uptime_went_back=1), "poller: uptime_went_back is 1"),
        (lambda p, q: q.update(counter_went_back=2), "poller: counter_went_back is 2"),
        (lambda p, q: q.update(backend_reconnects=1), "poller: backend_reconnects is 1"),
        (lambda p, q: q.update(new_connections=1), "poller: new_connections is 1"),
        (lambda p, q: q.update(clients_min=1), "1 to 2 clients instead of 2"),
        (lambda p, q: q.update(done=False), "left no result"),
    ],
)
def test_whatever_is_wrong_is_said(
    change: Callable[[dict[str, Any], dict[str, Any]], None], words: str
) -> None:
    """Each promise of the scenario is looked at."""
    producer: dict[str, Any] = dict(PRODUCER)
    poller: dict[str, Any] = dict(POLLER)
    change(producer, poller)
    assert any(words in problem for problem in find_problems([completed()], 1, producer, poller))


def test_failed_and_missing_migrations_are_wrong() -> None:
    """Completed with a broken connection is no success either."""
    reports = [completed(Outcome.ROLLED_BACK), completed(broken=1)]
    assert len(find_problems(reports, 3, PRODUCER, POLLER)) == 3


@pytest.mark.net
@pytest.mark.usefixtures("leaves_nothing")
@pytest.mark.parametrize(("topology", "count"), [("single", 3), ("triangle", 1)])
def test_redis_its_producer_and_its_backend_move(topology: str, count: int, tmp_path: Path) -> None:
    """Redis goes round, then its clients go, then both ends of a connection at once; nobody notices but for a pause."""
    out = tmp_path / "out.json"
    arguments = ["--demo", "redis", "--topology", topology, "--json", str(out)]
    done = lb(*arguments, *(["--count", str(count)] if count != 3 else []))
    assert done.returncode == 0, done.stdout + done.stderr
    migrations = load_report(out)
    way = ["h2", "h3", "h4", "h2", "h3"]
    alone = [("redis", way[n], way[n + 1]) for n in range(count)]
    alone += [("producer", "h1", "h4"), ("app", "h1", "h3")]
    went = [(m["app"], m["source"], m["destination"]) for m in migrations]
    assert went[: len(alone)] == alone
    assert set(went[len(alone) :]) == {("redis", way[count], way[count + 1]), ("producer", "h4", "h1")}
    connections = {"redis": 2, "producer": 1, "app": 2}
    for migration in migrations:
        number = connections[migration["app"]]
        assert migration["outcome"] == "completed", migration
        assert migration["connections"] == {"established": number, "kept": number, "broken": 0}
        client = migration["client"]
        assert client["measured_by"] == ("poller" if migration["app"] == "app" else "producer")
        assert client["requests"] > 0 and client["gap_ms"] > 0
        zero = ("resets", "reconnects", "lost_bytes", "duplicated_bytes")
        assert [client[name] for name in zero] == [0, 0, 0, 0]
        # A pause beyond TCP's smallest time-out (200 ms) is a slow machine's, not the hold's.
        assert client["retransmits"] == 0 or client["gap_ms"] > 200, migration
    for words in ("redis and producer at the same time", "0 new ones", "clients, longest gap"):
        assert words in done.stdout


@pytest.mark.net
@pytest.mark.usefixtures("leaves_nothing")
def test_an_interrupted_demo_leaves_nothing() -> None:
    """Ctrl-C while Redis is about to move, under load."""
    command = [sys.executable, str(LB), "--http-port", "5099", "--demo", "redis"]
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "redis h2 -> h3" in line:
                process.send_signal(signal.SIGINT)
                break
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "interrupted" in said and "Traceback" not in said


@pytest.mark.net
def test_the_demos_options_are_checked() -> None:
    """Options of the other demo are refused, in a sentence."""
    done = lb("--demo", "redis", "--bulk")
    assert done.returncode == 1 and "--bulk and --connections are options of --demo echo" in done.stderr


@pytest.mark.net
@pytest.mark.usefixtures("leaves_nothing")
def test_three_connected_programs_move_at_once_again_and_again() -> None:
    """Redis, its producer and the backend leave together, also from one host or to one; nothing is lost or left."""
    hosts = {"redis": ["h2", "h3", "h5"], "producer": ["h1", "h3", "h2", "h4"], "app": ["h1", "h3", "h5"]}
    with Testbed(LoadBalancerNetwork(hosts=5)) as bed:
        programs = Programs(bed)
        programs.start()
        for number in range(1, 7):
            ids = [bed.queue_migration(app, way[number % len(way)]) for app, way in hosts.items()]
            for id in ids:
                report = bed.wait_for_migration(id)
                assert report.outcome is Outcome.COMPLETED, report.reason
        assert bed.controller.steering._moves == {} and bed.controller.steering._left == set()
        producer, poller = programs.stop()
    assert find_problems([], 0, producer, poller) == []
    assert producer["replies"] > 500


@pytest.mark.net
@pytest.mark.usefixtures("leaves_nothing")
def test_a_frozen_programs_retransmissions_do_not_outdate_its_copy() -> None:
    """Both ends stand still for longer than TCP waits; the copy is heard at once all the same.

    The frozen kernel's retransmissions have later timestamps than what the copy sends first: if they reached the peer,
    it would refuse the copy's segments as old ones until those are sent again.
    """

    def slow(step: str, when: str) -> None:
        if (step, when) == ("restore", "before"):
            time.sleep(0.6)  # three times TCP's smallest time-out

    with Testbed(LoadBalancerNetwork(hosts=4), fault=slow) as bed:
        programs = Programs(bed)
        programs.start()
        for redis, producer in (("h3", "h4"), ("h2", "h1")):
            before = programs.status("producer")["retransmits"]
            started = clock()
            ids = [bed.queue_migration("producer", producer), bed.queue_migration("redis", redis)]
            for id in ids:
                report = bed.wait_for_migration(id)
                assert report.outcome is Outcome.COMPLETED, report.reason
            settled = clock() + 1
            assert wait_until(lambda at=settled: programs.status("producer")["time"] > at, 10)  # type: ignore[misc]
            status = programs.status("producer")
            gap = gap_between(status, started, settled)
            assert gap is not None and gap > 600
            assert status["retransmits"] == before, status
        assert find_problems([], 0, *programs.stop()) == []


def redis_cli(bed: Testbed, *words: str) -> str:
    """Ask Redis from h1, over a connection of its own."""
    host, port = REDIS.split(":")
    enter = ["nsenter", "--target", str(bed.host("h1").pid), "--net"]
    command = [*enter, "redis-cli", "-h", host, "-p", port, *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=True).stdout.strip()


@pytest.mark.net
@pytest.mark.usefixtures("leaves_nothing")
def test_redis_moves_while_a_child_of_it_writes_its_data(tmp_path: Path) -> None:
    """The saving child goes along, goes on writing, and ends well; the data are whole in memory and in the file."""
    with Testbed(LoadBalancerNetwork(hosts=4)) as bed:
        bed.run("redis", "h2", redis_server(tmp_path), service=REDIS)
        redis_cli(bed, "eval", "for i = 1, 2000 do redis.call('set', 'key:' .. i, 'value:' .. i) end", "0")
        redis_cli(bed, "config", "set", "rdb-key-save-delay", "1000")  # microseconds
        before = redis_cli(bed, "lastsave")
        time.sleep(1.1)  # LASTSAVE counts in seconds
        assert "started" in redis_cli(bed, "bgsave")
        for to in ("h3", "h4"):
            report = bed.migrate("redis", to)
            assert report.outcome is Outcome.COMPLETED, report.reason
            assert "rdb_bgsave_in_progress:1" in redis_cli(bed, "info", "persistence")
        assert wait_until(lambda: redis_cli(bed, "lastsave") != before, 30.0, 0.1)
        assert "rdb_last_bgsave_status:ok" in redis_cli(bed, "info", "persistence")
        assert redis_cli(bed, "dbsize") == "2000"
        assert redis_cli(bed, "get", "key:1999") == "value:1999"
    checked = subprocess.run(
        ["redis-check-rdb", str(tmp_path / "redis" / "dump.rdb")], capture_output=True, text=True, check=True
    )
    assert "2000 keys read" in checked.stdout
