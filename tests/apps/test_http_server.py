"""The counting HTTP server, over one connection that stays open."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from pathlib import Path

SERVER = Path(__file__).resolve().parents[2] / "apps" / "http_server.py"


def test_it_counts_on_one_connection() -> None:
    """Requests and connections are counted from its start."""
    with subprocess.Popen(
        [sys.executable, str(SERVER), "--host", "127.0.0.1", "--port", "0"], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline().split()[-1])
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            for number in (1, 2, 3):
                connection.request("GET", "/")
                told = json.loads(connection.getresponse().read())
                assert (told["requests"], told["connections"]) == (number, 1)
            connection.request("GET", "/other")
            answer = connection.getresponse()
            assert (answer.status, json.loads(answer.read())) == (
                404,
                {"error": "there is no /other, only /"},
            )
            process.terminate()
            assert process.wait(10) == 0
        finally:
            process.kill()


def test_an_address_in_use_is_one_sentence() -> None:
    """No traceback."""
    command = [sys.executable, str(SERVER), "--host", "203.0.113.1", "--port", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("http_server: cannot listen on 203.0.113.1 port 1: ")
    assert len(done.stderr.splitlines()) == 1
