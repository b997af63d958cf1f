"""Programs on a routed network, and what tests look at before and after moving them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from routed import RoutedNetwork, routed_network

from migration.migrator import Migrator
from migration.model import App, Host
from migration.process import ProcessRuntime
from migration.slowness import scaled

PROJECT = Path(__file__).resolve().parents[2]
ECHO = str(PROJECT / "apps" / "tcp_echo.py")
PYTHON = "/usr/bin/python3"


def wait_until(condition: Callable[[], Any], what: str, timeout: float = 10.0) -> None:
    """Wait for a condition, and say what did not come."""
    deadline = time.monotonic() + scaled(timeout)
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not happen within {timeout} s"
        time.sleep(0.01)


def says(log: Path, text: str) -> bool:
    """Say whether a program has printed a text."""
    return log.exists() and text in log.read_text()


@dataclass
class Measurement:
    """A measuring client that runs in a host."""

    process: subprocess.Popen[bytes]
    status: Path
    result: Path

    def wait_for_requests(self, more: int = 50) -> None:
        """Wait until the client has got some more replies."""
        before = self.replies()
        wait_until(lambda: self.replies() >= before + more, "more replies")

    def replies(self) -> int:
        """Return how many replies there were, a tenth of a second ago."""
        if not self.status.exists():
            return 0
        return int(json.loads(self.status.read_text()).get("replies", 0))

    def finish(self) -> dict[str, Any]:
        """End the client and return its result."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(60)
        return dict(json.loads(self.result.read_text()))


@dataclass
class Stage:
    """The network, the runtime, and a folder for what the test needs."""

    net: RoutedNetwork
    runtime: ProcessRuntime
    folder: Path

    @property
    def hosts(self) -> dict[str, Host]:
        """The hosts by name."""
        return self.net.hosts

    def migrator(self, **options: Any) -> Migrator:
        """Make a migrator whose files are the test's."""
        images = Path("/dev/shm") / f"p4ferry-test-{os.getpid()}"
        return Migrator(
            self.net.steering, self.runtime, images=images, journals=self.folder / "journals", **options
        )

    def serve(self, host: str = "B", *arguments: str, name: str = "echo") -> App:
        """Start an echo server and wait until it listens."""
        log = self.folder / f"{name}.log"
        app = self.runtime.launch(name, self.hosts[host], [PYTHON, ECHO, "server", *arguments], log)
        wait_until(lambda: says(log, "listening"), "the server listening")
        return app

    def command(self, *arguments: str) -> list[str]:
        """Return the command of a client; without --json it reports into our folder."""
        files = ["--json", str(self.folder / "client.json")]
        if "--bulk" not in arguments:
            files += ["--status", str(self.folder / "client.status")]
        return [PYTHON, ECHO, "client", *files, *arguments]

    def measure(self, host: str, *arguments: str) -> Measurement:
        """Run a measuring client in a host, not movable."""
        enter = ["nsenter", f"--net=/proc/{self.hosts[host].pid}/ns/net"]
        process = subprocess.Popen([*enter, *self.command(*arguments)])
        return Measurement(process, self.folder / "client.status", self.folder / "client.json")


@contextmanager
def stage(folder: Path) -> Iterator[Stage]:
    """Build all of it and check at the end that nothing is left over."""
    images = Path("/dev/shm") / f"p4ferry-test-{os.getpid()}"
    with routed_network("ABCD") as net:
        with ProcessRuntime() as runtime:
            keeper = runtime.custody.pid
            yield Stage(net, runtime, folder)
            left = criu_leftovers(net, keeper)
            deadline = time.monotonic() + 2
            while left and time.monotonic() < deadline:  # the keeper reaps orphans when it hears of them
                time.sleep(0.05)
                left = criu_leftovers(net, keeper)
        assert not Path(f"/proc/{keeper}").exists()
    assert left == []
    assert not images.exists() or list(images.iterdir()) == []
    if images.exists():
        images.rmdir()
    assert list((folder / "journals").glob("*")) == []


def criu_leftovers(net: RoutedNetwork, keeper: int) -> list[str]:
    """List firewall tables, workers and zombies that a migration should have removed."""
    left = []
    for host in net.hosts.values():
        listing = subprocess.run(
            ["nsenter", f"--net=/proc/{host.pid}/ns/net", "nft", "list", "tables"],
            capture_output=True,
            text=True,
            check=True,
        )
        left += [
            f"{host.name}: {line}"
            for line in listing.stdout.splitlines()
            if "CRIU" in line or "p4ferry" in line
        ]
    for pid in Path(f"/proc/{keeper}/task/{keeper}/children").read_text().split():
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue  # reaped meanwhile
        if state == "Z" or b"swrk" in command:
            left.append(f"process {pid} ({state}, {command!r})")
    return left


def open_descriptors() -> int:
    """Count this process's open descriptors."""
    return len(list(Path("/proc/self/fd").iterdir()))


def rounds(app: App) -> int:
    """Return how many rounds a program has done; fail if it found something wrong."""
    lines = app.log.read_text().splitlines()
    assert not (bad := [line for line in lines if not line.startswith("ok ")]), bad
    assert [int(line[3:]) for line in lines] == list(range(1, len(lines) + 1))
    return len(lines)


def wait_for_rounds(scene: Stage, app: App, more: int = 5) -> None:
    """Wait until a program has done some more rounds."""
    before = rounds(app)

    def done() -> bool:
        assert scene.runtime.is_running(app), app.log.read_text()[-2000:]
        return rounds(app) >= before + more

    wait_until(done, "more rounds")
