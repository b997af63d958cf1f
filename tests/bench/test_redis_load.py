"""The load generator against a real Redis on loopback: what it counts, and that no lost write escapes it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.load.redis import RedisLoad, Writes, compile_load
from tests.apps.test_redis_programs import redis_server, wait_for
from topo.errors import TestbedError


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Compile it."""
    return compile_load(tmp_path_factory.mktemp("load"))


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[tuple[int, int]]:
    """Run a Redis; yield its port and process id."""
    with redis_server(tmp_path) as (port, process):
        wait_for(lambda: cli(port, "ping") == "PONG", "starting")
        yield port, process.pid


def cli(port: int, *words: str) -> str:
    """Say something to Redis."""
    command = ["redis-cli", "-p", str(port), *words]
    return subprocess.run(command, capture_output=True, text=True, timeout=10, check=False).stdout.strip()


@pytest.mark.parametrize("command", ["incr", "set"])
def test_every_acknowledged_write_is_found_again(program: Path, redis: tuple[int, int], command: str) -> None:
    """Rate, counts and verdict of an undisturbed run; a second one over the same keys of `set` as well."""
    port, _ = redis
    for _ in range(2 if command == "set" else 1):
        with RedisLoad(program, f"127.0.0.1:{port}", Writes(10, 2000, command, 100, 200), "k:") as load:
            time.sleep(0.5)  # the time that is measured
            seen = load.mark()
            verdict = load.stop()
        assert 0 < seen["replies"] <= seen["sent"] <= 2000 * seen["seconds"] + 10
        assert 0 < seen["gap_median_ms"] <= seen["gap_ms"]
        assert verdict["acknowledged"] >= seen["replies"]
        assert verdict["keys_checked"] == verdict["keys_written"] == 100
        assert [verdict[k] for k in ("lost", "unknown", "errors", "resets", "wrong_replies")] == [0] * 5
    assert int(cli(port, "dbsize")) == 100


def test_a_pause_is_a_gap_between_the_marks_around_it(program: Path, redis: tuple[int, int]) -> None:
    """Also one that has not ended when the mark is set."""
    port, pid = redis
    with RedisLoad(program, f"127.0.0.1:{port}", Writes(10, 2000), "k:") as load:
        wait_for(lambda: load.mark()["replies"] > 0, "writing")
        os.kill(pid, signal.SIGSTOP)
        time.sleep(0.3)  # the pause that is measured
        during = load.mark()
        os.kill(pid, signal.SIGCONT)
        wait_for(lambda: load.mark()["gap_ms"] < 250, "an undisturbed interval")
        assert load.stop()["lost"] == 0
    assert during["gap_ms"] >= 295 and during["gap_median_ms"] >= 250 and during["overall_gap_ms"] >= 250


@pytest.mark.parametrize("command", ["incr", "set"])
def test_a_lost_write_is_found(program: Path, redis: tuple[int, int], command: str) -> None:
    """Data that vanish behind the generator's back are counted as lost, key by key."""
    port, _ = redis
    with RedisLoad(program, f"127.0.0.1:{port}", Writes(4, 100, command, 5000), "k:") as load:
        wait_for(lambda: int(cli(port, "dbsize")) > 20, "writing")
        cli(port, "flushall")
        verdict = load.stop()
    assert verdict["lost"] >= 20


def test_a_lost_connection_stays_lost(program: Path, redis: tuple[int, int]) -> None:
    """It is counted, the others go on, and the verdict is still given."""
    port, _ = redis
    with RedisLoad(program, f"127.0.0.1:{port}", Writes(5, 500), "k:") as load:
        wait_for(lambda: load.mark()["replies"] > 0, "writing")
        address = next(
            field.removeprefix("addr=")
            for line in cli(port, "client", "list").splitlines()
            if "cmd=incr" in line
            for field in line.split()
            if field.startswith("addr=")
        )
        assert cli(port, "client", "kill", address) == "OK"
        wait_for(lambda: load.mark()["errors"] == 1, "noticing")
        wait_for(lambda: load.mark()["replies"] > 0, "going on")
        verdict = load.stop()
    assert (verdict["errors"], verdict["lost"]) == (1, 0)


def test_without_redis_there_is_no_load(program: Path) -> None:
    """It says why."""
    with (
        RedisLoad(program, "127.0.0.1:1", Writes(1, 10), "k:") as load,
        pytest.raises(TestbedError, match="cannot connect to Redis: Connection refused"),
    ):
        load.mark()
