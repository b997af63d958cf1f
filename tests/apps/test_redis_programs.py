"""Producer, backend and poller against a real Redis on loopback: what they count, and that nothing escapes them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

APPS = Path(__file__).resolve().parents[2] / "apps"
PYTHON = "/usr/bin/python3"  # the one that has python3-redis


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def wait_for(condition: Any, what: str, timeout: float = 10.0) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen"
        time.sleep(0.01)


@contextmanager
def program(*command: str) -> Iterator[subprocess.Popen[str]]:
    """Run a program; kill it at the end if it still runs."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@contextmanager
def redis_server(folder: Path) -> Iterator[tuple[int, subprocess.Popen[str]]]:
    """Run a Redis; yield its port and process."""
    port = free_port()
    # fmt: off
    with program("redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder),
                 "--logfile", str(folder / "redis.log")) as process:
        # fmt: on
        yield port, process


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[int]:
    """Run a Redis; yield its port."""
    with redis_server(tmp_path) as (port, _):
        yield port


@contextmanager
def backend(redis: int) -> Iterator[int]:
    """Run the HTTP backend; yield its port."""
    with program(PYTHON, str(APPS / "app.py"), "--redis", f"127.0.0.1:{redis}", "--port", "0") as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "listening on" in line, line or process.communicate()
        yield int(line.split()[-1])
        process.terminate()
        assert process.wait(10) == 0


def run(name: str, *arguments: str) -> tuple[int, dict[str, Any], str]:
    """Run a client to its end: exit status, result, and what else it printed."""
    command = [PYTHON, str(APPS / name), *arguments, "--json", "-"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    *lines, last = done.stdout.splitlines() or [""]
    return done.returncode, json.loads(last) if last else {}, "\n".join([*lines, done.stderr])


def test_the_producer_keeps_every_acknowledged_value(redis: int, tmp_path: Path) -> None:
    """Two runs, one after the other, are told consecutive values; SIGTERM ends it with its result."""
    status, first, _ = run("producer.py", "--connect", f"127.0.0.1:{redis}", "--requests", "200")
    assert status == 0
    assert (first["acknowledged"], first["runs"]) == (200, [[1, 200]])
    assert (first["reconnects"], first["wrong_replies"], first["errors"], first["resets"]) == (0, 0, [], 0)
    told = tmp_path / "status.json"
    arguments = ["--connect", f"127.0.0.1:{redis}", "--rate", "500", "--status", str(told)]
    with program(PYTHON, str(APPS / "producer.py"), *arguments) as process:
        wait_for(lambda: told.exists() and json.loads(told.read_text())["replies"] > 20, "producing")
        running = json.loads(told.read_text())
        assert not running["done"]
        process.terminate()
        assert process.wait(10) == 0
    last = json.loads(told.read_text())
    assert last["done"] and last["replies"] == last["requests"] >= running["replies"]
    assert last["runs"] == [[201, 200 + last["replies"]]]


def test_the_producer_notices_another_writer(redis: int) -> None:
    """Values that are not one more than the last are counted, and its status tells."""
    target = ["--connect", f"127.0.0.1:{redis}", "--requests", "300", "--rate", "600"]
    other = threading.Thread(target=run, args=("producer.py", *target))
    other.start()
    status, result, _ = run("producer.py", *target)
    other.join()
    assert status == 2
    assert result["wrong_replies"] > 0 and result["acknowledged"] == 300


def test_a_lost_connection_is_never_made_anew(tmp_path: Path) -> None:
    """Redis dies and another takes its place: producer and poller end and say so, the backend answers 502."""
    with redis_server(tmp_path) as (port, first):
        told = tmp_path / "status.json"
        command = [PYTHON, str(APPS / "producer.py"), "--connect", f"127.0.0.1:{port}", "--status", str(told)]
        with backend(port) as http, program(*command) as producer:
            wait_for(lambda: told.exists() and json.loads(told.read_text())["replies"] > 20, "producing")
            first.kill()
            first.wait()
            again = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", ""]
            with program(*again):
                assert producer.wait(10) == 2
                result = json.loads(told.read_text())
                assert result["done"] and len(result["errors"]) == 1
                status, polled, said = run(
                    "poller.py", "--connect", f"127.0.0.1:{http}", "--requests", "3", "--quiet"
                )
                assert status == 2
                assert polled["bad_answers"] == 3 and "Redis does not answer" in polled["last_bad_answer"]
                with pytest.raises(urllib.error.HTTPError) as refused:
                    urllib.request.urlopen(f"http://127.0.0.1:{http}/get", timeout=5)
                told_by_backend = json.load(refused.value)
                assert told_by_backend["reconnects"] >= 1 and told_by_backend["errors"] >= 4
                assert said == ""


def test_the_poller_sees_what_the_producer_does(redis: int, tmp_path: Path) -> None:
    """Counter, uptime, clients; one line a second; one connection each."""
    told = tmp_path / "status.json"
    arguments = ["--connect", f"127.0.0.1:{redis}", "--rate", "400", "--status", str(told)]
    with backend(redis) as http, program(PYTHON, str(APPS / "producer.py"), *arguments):
        wait_for(lambda: told.exists() and json.loads(told.read_text())["replies"] > 20, "producing")
        status, result, printed = run("poller.py", "--connect", f"127.0.0.1:{http}", "--duration", "2.3")
    assert status == 0, printed
    assert result["anomalies"] == 0 and result["backend_reconnects"] == 0
    assert result["replies"] == result["requests"] > 50
    assert result["counter"] > 100 and result["clients_max"] == 2
    lines = printed.strip().splitlines()
    assert len(lines) == 2 and all("longest gap" in line and "clients" in line for line in lines)


def test_the_poller_notices_a_counter_that_goes_back(redis: int, tmp_path: Path) -> None:
    """A reset of the counter is an anomaly."""
    run("producer.py", "--connect", f"127.0.0.1:{redis}", "--requests", "50")
    told = tmp_path / "status.json"

    def status(name: str) -> int:
        return int(json.loads(told.read_text())[name]) if told.exists() else 0

    with backend(redis) as http:
        arguments = ["--connect", f"127.0.0.1:{http}", "--quiet", "--status", str(told)]
        with program(PYTHON, str(APPS / "poller.py"), *arguments) as poller:
            wait_for(lambda: status("replies") > 5, "polling")
            subprocess.run(["redis-cli", "-p", str(redis), "del", "counter"], check=True, capture_output=True)
            wait_for(lambda: status("counter_went_back") == 1, "noticing")
            poller.terminate()
            assert poller.wait(10) == 2
    assert status("new_connections") == 1  # redis-cli's
    assert status("anomalies") == 2


def test_http_connections_stay_open(redis: int) -> None:
    """HTTP/1.1 keep-alive; other paths are not found."""
    with backend(redis) as http, socket.create_connection(("127.0.0.1", http), timeout=5) as sock:
        for path, status in (("/get", b"200"), ("/", b"404"), ("/get", b"200")):
            sock.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert sock.recv(4096).startswith(b"HTTP/1.1 " + status)


@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("producer.py", ["--connect", "nowhere"], "'nowhere' is not HOST:PORT"),
        ("producer.py", ["--connect", "a:1", "--rate", "0"], "'0' is not a rate"),
        ("poller.py", ["--connect", "127.0.0.1:1", "--wait", "0.1"], "nobody answers at 127.0.0.1:1"),
        ("app.py", ["--redis", "127.0.0.1:1", "--wait", "0.1"], "nobody answers at 127.0.0.1:1"),
    ],
)
def test_mistakes_get_one_sentence(name: str, arguments: list[str], words: str) -> None:
    """What is wrong, in one line, and a status that is not zero."""
    command = [PYTHON, str(APPS / name), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode in (1, 2) and words in done.stderr and len(done.stderr.splitlines()) == 1


def test_the_programs_import_nothing_of_the_project() -> None:
    """They load modules of apps, of Python and of python3-redis only, wherever they are started from."""
    for name in ("producer", "app", "poller"):
        code = (
            f"import sys, runpy; sys.argv = ['x']\n"
            f"sys.path.insert(0, {str(APPS.parent)!r})\n"
            f"runpy.run_path({str(APPS / name)!r} + '.py', run_name='loaded')\n"
            "bad = {m.split('.')[0] for m in sys.modules} & "
            "{'topo', 'controllers', 'migration', 'dataplane', 'bench', 'tests'}\n"
            "sys.exit(', '.join(bad) or 0)"
        )
        done = subprocess.run([PYTHON, "-c", code], capture_output=True, text=True, cwd="/", check=False)
        assert done.returncode == 0, done.stderr


def test_signals_end_the_backend_whatever_is_open(redis: int) -> None:
    """SIGINT with a connection open: no traceback, status 0."""
    with program(PYTHON, str(APPS / "app.py"), "--redis", f"127.0.0.1:{redis}", "--port", "0") as process:
        assert process.stdout is not None and process.stderr is not None
        port = int(process.stdout.readline().split()[-1])
        with socket.create_connection(("127.0.0.1", port), timeout=5):
            os.kill(process.pid, signal.SIGINT)
            assert process.wait(10) == 0
        assert process.stderr.read() == ""
