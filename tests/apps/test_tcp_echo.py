"""The echo server and its clients over loopback, as processes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from apps.echo.client import gap_between

APPS = Path(__file__).resolve().parents[2] / "apps"


@contextmanager
def running(*command: str) -> Iterator[int]:
    """Run a server on a port that the system chooses; yield the port."""
    process = subprocess.Popen([sys.executable, *command, "--port", "0"], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "listening on" in line
        yield int(line.split()[-1])
    finally:
        process.terminate()
        assert process.wait(10) == 0


@contextmanager
def server(*arguments: str) -> Iterator[int]:
    """Run an echo server."""
    with running(str(APPS / "tcp_echo.py"), "server", *arguments) as port:
        yield port


def client(port: int, *arguments: str, host: str = "127.0.0.1") -> dict[str, Any]:
    """Run a client to its end."""
    command = [sys.executable, str(APPS / "tcp_echo.py"), "client", "--connect", f"{host}:{port}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    return dict(json.loads(done.stdout))


def test_every_request_comes_back() -> None:
    """A given number of requests on several connections is answered completely."""
    with server() as port:
        result = client(port, "--requests", "500", "--connections", "5", "--rate", "2000", "--size", "1000")
    assert result["requests"] == result["replies"] == 500
    assert result["bytes_sent"] == 500_000
    assert (result["lost_bytes"], result["duplicated_bytes"], result["corrupt_bytes"]) == (0, 0, 0)
    assert (result["resets"], result["errors"], result["reconnects"], result["retransmits"]) == (0, [], 0, 0)


def test_rate_is_kept() -> None:
    """The grid of deadlines gives the rate that was asked for; a busy machine may be late, but none is early."""
    with server() as port:
        result = client(port, "--duration", "1", "--rate", "400")
    assert 100 <= result["requests"] <= 401


def test_dual_stack_and_datagrams() -> None:
    """A server on :: serves both families, and echoes datagrams if asked to."""
    with server("--host", "::", "--udp") as port:
        assert client(port, "--requests", "10")["replies"] == 10
        assert client(port, "--requests", "10", host="[::1]")["replies"] == 10
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.settimeout(5)
            sock.sendto(b"datagram", ("127.0.0.1", port))
            assert sock.recv(100) == b"datagram"


def test_bulk_streams_are_compared_at_both_ends() -> None:
    """Full speed in both directions ends with equal hashes."""
    with server("--bulk") as port:
        result = client(port, "--bulk", "--duration", "0.5", "--connections", "2")
    assert result["hashes_equal"] is True
    assert result["bytes_sent"] > 1_000_000
    assert result["bytes_received"] > 1_000_000


def test_reader_that_does_not_read_costs_no_memory() -> None:
    """The server stops reading from who does not read, and echoes everything once he does."""
    data = os.urandom(4 << 20)
    with server() as port, socket.create_connection(("127.0.0.1", port)) as sock:
        sock.settimeout(0.3)
        sent = 0
        with pytest.raises(TimeoutError):
            while True:
                sent += sock.send(data[sent % len(data) :][:65536])
        sock.settimeout(10)
        got = bytearray()
        while len(got) < sent:
            got += sock.recv(1 << 16)
    expected = (data * (sent // len(data) + 1))[:sent]
    assert bytes(got) == expected


def test_status_and_gaps_can_be_asked_for_while_it_runs(tmp_path: Path) -> None:
    """A stopped server shows as a gap, in the window where it happened."""
    status = tmp_path / "status"
    command = [sys.executable, str(APPS / "tcp_echo.py"), "server", "--port", "0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    port = int(process.stdout.readline().split()[-1])
    arguments = ["--connect", f"127.0.0.1:{port}", "--status", str(status)]
    measuring = subprocess.Popen(
        [sys.executable, str(APPS / "tcp_echo.py"), "client", *arguments], stdout=subprocess.PIPE, text=True
    )
    wait_for_replies(status, 100)
    begin = time.monotonic()
    process.send_signal(signal.SIGSTOP)
    time.sleep(0.2)
    process.send_signal(signal.SIGCONT)
    end = time.monotonic()
    wait_for_replies(status, json.loads(status.read_text())["replies"] + 200)
    live = json.loads(status.read_text())
    assert gap_between(live, begin, end) == pytest.approx(200, abs=100)
    measuring.send_signal(signal.SIGINT)
    out, _ = measuring.communicate(timeout=20)
    result = json.loads(out)
    assert measuring.returncode == 0
    assert result["gap_ms"] == pytest.approx(200, abs=100)
    assert (gap_between(result, end + 0.3, end + 9) or 0) < 200
    process.terminate()
    process.wait(10)


def wait_for_replies(status: Path, count: int) -> None:
    """Wait until a client's status shows so many replies."""
    deadline = time.monotonic() + 10
    while not status.exists() or json.loads(status.read_text()).get("replies", 0) < count:
        assert time.monotonic() < deadline, f"no {count} replies within 10 s"
        time.sleep(0.02)


def test_broken_connections_are_counted_not_renewed(tmp_path: Path) -> None:
    """A server that dies leaves lost bytes, an error and no new connection; the status says so."""
    with server() as port:
        command = [sys.executable, str(APPS / "tcp_echo.py"), "client", "--connect", f"127.0.0.1:{port}"]
        status = tmp_path / "status"
        process = subprocess.Popen([*command, "--status", str(status)], stdout=subprocess.PIPE, text=True)
        wait_for_replies(status, 50)
    out, _ = process.communicate(timeout=20)
    result = json.loads(out)
    assert process.returncode == 2
    assert result["open"] == 0
    assert result["errors"]
    assert result["reconnects"] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["server", "--port", "99999"], "'99999' is not a port number"),
        (["client", "--connect", "nowhere"], "'nowhere' is not HOST:PORT"),
        (["client", "--connect", "h:1", "--size", "10"], "10 is not a multiple of 8"),
        (["client", "--connect", "h:1", "--rate", "0"], "must be more than 0"),
        (
            ["client", "--connect", "127.0.0.1:1", "--wait", "0"],
            "nobody answers at 127.0.0.1:1 (Connection refused)",
        ),
        (
            ["server", "--host", "192.0.2.1"],
            "cannot listen on 192.0.2.1 port 7000: Cannot assign requested address",
        ),
    ],
)
def test_mistakes_get_one_sentence(arguments: list[str], message: str) -> None:
    """No traceback, one line, a status that is not 0."""
    done = subprocess.run(
        [sys.executable, str(APPS / "tcp_echo.py"), *arguments], capture_output=True, text=True, timeout=20
    )
    assert done.returncode != 0
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_counter_counts_and_answers() -> None:
    """GET and INCR tell one count and one start."""
    with (
        running(str(APPS / "counter.py"), "--interval", "60") as port,
        socket.create_connection(("127.0.0.1", port), timeout=5) as sock,
    ):
        lines = sock.makefile("rw")

        def ask(command: str) -> str:
            lines.write(command + "\n")
            lines.flush()
            return lines.readline().strip()

        first, second, third = ask("GET"), ask("INCR"), ask("get")
        assert first.startswith("0 pid=")
        assert second.startswith("1 pid=")
        assert second == third
        assert first[1:] == second[1:]
        assert ask("WHAT") == "ERROR: say GET, INCR or QUIT"


def test_a_result_never_replaces_a_pipe_or_device(tmp_path: Path) -> None:
    """What --json names is written to if it is no regular file (/dev/null must stay what it is)."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    read = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with server() as port:
            command = [sys.executable, str(APPS / "tcp_echo.py"), "client", "--connect", f"127.0.0.1:{port}"]
            subprocess.run([*command, "--requests", "5", "--json", str(pipe)], timeout=60, check=True)
        assert pipe.is_fifo()
        assert json.loads(os.read(read, 1 << 16))["replies"] == 5
    finally:
        os.close(read)
