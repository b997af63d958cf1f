"""Hosts with a management network, and programs with so much memory that its way matters."""

from __future__ import annotations

import os
import signal
import socket
import struct
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moving import PYTHON, Stage, says, stage, wait_until

from migration import messages
from migration.images import INVENTORY_IMAGE
from migration.model import App, Host
from migration.namespaces import in_netns
from migration.process import ProcessRuntime
from migration.report import Report
from migration.slowness import scaled
from migration.transfer.modes import Mode, Via, Wish
from migration.transfer.precopy import PreCopy
from topo import management

MEMORY = str(Path(__file__).parent / "programs" / "memory.py")
WRITING = str(Path(__file__).parent / "programs" / "writing.py")
PORT = 7000
NUMBERS = {"A": 1, "B": 2, "C": 3, "D": 4}


@contextmanager
def managed(folder: Path, rate: int | None = None) -> Iterator[Stage]:
    """Build a stage whose hosts have management addresses, and check afterwards that pipes are as they were."""
    limit = Path("/proc/sys/fs/pipe-max-size")
    before = limit.read_text()
    with stage(folder) as scene:
        bridge = scene.runtime.custody.hold(management.NAMESPACE)
        pids = {name: host.pid for name, host in scene.hosts.items()}
        management.build(bridge, pids, NUMBERS, rate)
        for name, host in list(scene.hosts.items()):
            scene.hosts[name] = replace(host, management=management.address(NUMBERS[name]))
        yield scene
    assert limit.read_text() == before


class Untracked(PreCopy):
    """Pre-copy on a kernel that does not track: each round is a dump of all pages that leaves the program running.

    CRIU looks in the inventory of a round for its time, which only a tracking dump writes.
    """

    request = "DUMP"

    def adjust(self, options: Any, folder: Path) -> None:
        super().adjust(options, folder)
        options.track_mem = False
        options.leave_running = folder.name.startswith("pre-")

    def round(self, number: int) -> int:
        moved = super().round(number)
        inventory = messages.load("images.inventory_pb2")
        path = self.near / f"pre-{number}" / INVENTORY_IMAGE
        image = path.read_bytes()  # a magic, a length, an entry
        entry = inventory.inventory_entry.FromString(image[8:])
        entry.dump_uptime = int(time.clock_gettime(time.CLOCK_BOOTTIME) * 1_000_000)
        message = entry.SerializeToString()
        path.write_bytes(image[:4] + struct.pack("<I", len(message)) + message)
        return moved


@dataclass
class Memory:
    """A running program of programs/memory.py and a connection to it."""

    scene: Stage
    app: App
    connection: socket.socket

    def ask(self, line: str = "sum") -> str:
        """Ask the program over the one connection."""
        self.connection.sendall(f"{line}\n".encode())
        answer = b""
        while not answer.endswith(b"\n"):
            data = self.connection.recv(4096)
            assert data, "the program hung up"
            answer += data
        return answer.decode().strip()

    def migrate(self, to: str, mode: Mode, via: Via | None = None, **options: Any) -> Report:
        """Move it."""
        migrator = self.scene.migrator(**options)
        return migrator.migrate(self.app, self.scene.hosts[to], wish=Wish(mode, via))

    @property
    def is_running(self) -> bool:
        """Say whether it runs."""
        return self.scene.runtime.is_running(self.app)


def remember(scene: Stage, mebibytes: int = 60) -> Memory:
    """Start a program with so much memory on B, and connect to it from A."""
    return _start(scene, [PYTHON, MEMORY, str(PORT), str(mebibytes)])


def keep_writing(scene: Stage, mebibytes: int, hot_mebibytes: int) -> Memory:
    """Start a program that writes a part of its memory all the time on B, and connect to it from A."""
    return _start(scene, [PYTHON, WRITING, str(PORT), str(mebibytes), str(hot_mebibytes)])


def _start(scene: Stage, command: list[str]) -> Memory:
    log = scene.folder / "memory.log"
    app = scene.runtime.launch("memory", scene.hosts["B"], command, log)
    wait_until(lambda: says(log, "listening"), "the program listening")
    address = (str(scene.hosts["B"].address), PORT)
    connection = in_netns(scene.hosts["A"].pid, lambda: socket.create_connection(address, timeout=scaled(20)))
    return Memory(scene, app, connection)


def helpers(runtime: ProcessRuntime, word: str) -> list[int]:
    """List the CRIU processes whose command line has a word: page-server, lazy-pages, "dump --rpc"."""
    found = []
    for pid in runtime.custody.children("worker"):
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
        if word.encode() in command:
            found.append(pid)
    return found


def killing(runtime: ProcessRuntime, word: str, step: str, when: str) -> Callable[[str, str], None]:
    """Return a fault that kills a CRIU process at a step."""

    def fault(now: str, phase: str) -> None:
        if (now, phase) == (step, when):
            pids = helpers(runtime, word)
            assert pids, f"no {word} runs at {step}"
            for pid in pids:
                os.kill(pid, signal.SIGKILL)
                assert runtime.custody.wait_for_death(pid, 5)

    return fault


def interface_bytes(host: Host) -> int:
    """Return how many bytes a host has sent over its management interface."""

    def read() -> int:
        for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
            name, _, numbers = line.strip().partition(":")
            if name.endswith("-mgmt"):
                return int(numbers.split()[8])
        raise AssertionError("no management interface")

    return in_netns(host.management_place, read)
