"""The switch as a process, in a network namespace of its own with cables to raw sockets.

The client reaches it over a Unix socket: gRPC's threads are older than the namespace, and stay outside.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.dataplane.engine.network import Cable, own_namespace

CHECKOUT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "dataplane.switch"]
START_TIMEOUT = 15.0


@dataclass
class SwitchProcess:
    """A running `p4ferry-switch`."""

    process: subprocess.Popen[str]
    address: str

    def stop(self) -> tuple[int, str]:
        """Terminate it; return its status and what it printed."""
        self.process.send_signal(signal.SIGTERM)
        printed, _ = self.process.communicate(timeout=10)
        return self.process.returncode, printed


def start(socket_path: Path, *options: str) -> SwitchProcess:
    """Start the switch on a Unix socket, and return when it serves."""
    read, write = os.pipe()
    process = subprocess.Popen(
        [*COMMAND, *options, "--log-console", "--ready-fd", str(write), "--exit-with-parent",
         "--", "--grpc-server-addr", f"unix:{socket_path}"],
        cwd=CHECKOUT, pass_fds=[write], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    os.close(write)
    try:
        ready, _, _ = select.select([read], [], [], START_TIMEOUT)
        address = os.read(read, 200).decode().strip() if ready else ""
        if not address:
            process.kill()
            raise AssertionError(f"the switch does not start: {process.communicate()[0]}")
    finally:
        os.close(read)
    return SwitchProcess(process, address)


@contextmanager
def running(*options: str, ports: Sequence[int] = (1, 2)) -> Iterator[tuple[SwitchProcess, dict[int, Cable]]]:
    """Run a switch with these ports; fail if it does not end cleanly."""
    with ExitStack() as stack:
        stack.enter_context(own_namespace())
        cables = {number: Cable(number) for number in ports}
        for cable in cables.values():
            stack.callback(cable.close)
        interfaces = [word for number, cable in cables.items() for word in ("-i", f"{number}@{cable.port}")]
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="p4rt-"))
        switch = start(Path(folder) / "grpc", *options, *interfaces)
        try:
            yield switch, cables
        except BaseException:
            switch.process.kill()
            print(switch.process.communicate()[0])
            raise
        status, printed = switch.stop()
        assert status == 0, printed
        left = subprocess.run(
            ["tc", "filter", "show", "dev", "sw1", "ingress"], capture_output=True, text=True, check=False
        )
        assert left.stdout == "", "the switch left its filter"
        links = subprocess.run(["ip", "-br", "link"], capture_output=True, text=True, check=True).stdout
        assert len(links.splitlines()) == 1 + 2 * len(cables), links


def run_to_end(*words: str) -> tuple[int, str, str]:
    """Run the command until it ends by itself; return status, standard output and standard error."""
    done = subprocess.run(
        [*COMMAND, *words], cwd=CHECKOUT, capture_output=True, text=True, timeout=15, check=False
    )
    return done.returncode, done.stdout, done.stderr


def _output(*words: str) -> str:
    return subprocess.run(words, capture_output=True, text=True, check=True, timeout=10).stdout
