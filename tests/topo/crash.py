"""A testbed whose process kills itself at a chosen point of a migration, and what its test sees from outside.

Run as `python crash.py STEP WHEN MODE [ROOT]`: builds a testbed with an echo server behind a VIP, says where its
client's host is, waits for a line, and migrates. STEP "-" only waits to be killed; "passage.NAME" is a method of the
passage. With a root file system the server is a container.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from migration.namespaces import in_netns
from migration.passage import ProcessPassage
from tests.roots import ECHO
from topo.measure import TCP_ECHO
from topo.testbed import LoadBalancerNetwork, Testbed

SERVER = ["/usr/bin/python3", str(TCP_ECHO), "server"]
VIP = "10.0.0.100:7000"
REPLY_TIMEOUT = 20.0


class Caller:
    """A connection to the echo server, made in a host and held by this process."""

    def __init__(self, host_pid: int) -> None:
        address, port = VIP.split(":")
        self.socket = in_netns(host_pid, lambda: socket.create_connection((address, int(port)), 10))
        self.socket.settimeout(REPLY_TIMEOUT)
        self.sent = 0

    def call(self) -> None:
        """Send something new, and see it come back."""
        self.sent += 1
        message = f"call {self.sent:06}\n".encode()
        self.socket.sendall(message)
        reply = b""
        while len(reply) < len(message):
            piece = self.socket.recv(100)
            assert piece, "the server closed the connection"
            reply += piece
        assert reply == message

    def close(self) -> None:
        """Hang up."""
        self.socket.close()


class Doomed:
    """The testbed in its own process."""

    def __init__(
        self, step: str = "-", when: str = "-", mode: str = "auto", root: Path | None = None
    ) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, step, when, mode, *([str(root)] if root else [])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None and self.process.stdin is not None
        line = self.process.stdout.readline()
        assert line, "the testbed did not start"
        self.hosts: dict[str, int] = json.loads(line)["hosts"]

    def migrate(self) -> None:
        """Let it go to its death."""
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        assert self.process.wait(60) == -signal.SIGKILL

    def kill(self) -> None:
        """Kill it where it is."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        """See to it that it is gone."""
        self.kill()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()


@contextmanager
def doomed(
    step: str = "-", when: str = "-", mode: str = "auto", root: Path | None = None
) -> Iterator[tuple[Doomed, Caller]]:
    """Give a testbed that is to be killed, and a connection through it."""
    testbed = Doomed(step, when, mode, root)
    try:
        caller = Caller(testbed.hosts["h1"])
        try:
            caller.call()
            yield testbed, caller
        finally:
            caller.close()
    finally:
        testbed.close()


def die_around(name: str, when: str) -> None:
    """Make a method of every passage the process's last."""
    method = getattr(ProcessPassage, name)

    def last(*arguments: object, **options: object) -> None:
        if when == "after":
            method(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(ProcessPassage, name, last)


def main(step: str, when: str, mode: str, root: str = "") -> None:
    """Be the doomed process."""

    def fault(at: str, moment: str) -> None:
        if (at, moment) == (step, when):
            os.kill(os.getpid(), signal.SIGKILL)

    if step.startswith("passage."):
        die_around(step.removeprefix("passage."), when)
    with Testbed(LoadBalancerNetwork(hosts=3), fault=fault, mode=mode) as bed:
        if root:
            bed.run("echo", "h2", ["python3", ECHO, "server"], service=VIP, image=root)
        else:
            bed.run("echo", "h2", SERVER, service=VIP)
        print(json.dumps({"hosts": {name: host.pid for name, host in bed.hosts.items()}}), flush=True)
        sys.stdin.readline()
        bed.migrate("echo", "h3")


if __name__ == "__main__":
    main(*sys.argv[1:])
