"""A testbed on which faults are let loose: an echo server behind a VIP, a client that never stops, and the checks."""

from __future__ import annotations

import contextlib
import hashlib
import os
import select
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from migration import preload
from migration.namespaces import in_netns
from migration.repair import unrepair
from migration.tree import is_running, processes, state
from tests.faults import cells
from tests.faults.cells import Cell
from tests.topo.crash import SERVER, VIP, Caller
from topo import paths
from topo.runs import MARKER
from topo.testbed import LoadBalancerNetwork, Testbed
from topo.waiting import wait_until

IMAGES_BYTES = 96 << 20  # of the tmpfs that can be filled
ROOM_LEFT = 256 << 10
SHORT = 1.5  # seconds that a step may take when something is stalled
WATCH_S = 0.0005
REPLY_S = 20.0
SOURCE = Path(__file__).with_name("crew.c")
CREW = preload.STORE / f"crew-{hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:16]}"


class Traffic:
    """Calls the echo server without a pause, on one connection."""

    def __init__(self, host_pid: int) -> None:
        self._caller = Caller(host_pid)
        self.error: Exception | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._ended.wait(0.002):
            try:
                self._caller.call()
            except (OSError, AssertionError) as ex:
                self.error = ex
                return

    def goes_on(self) -> bool:
        """Wait for some more replies; say whether they came."""
        wanted = self._caller.sent + 5
        return (
            wait_until(lambda: self._caller.sent >= wanted or self.error is not None, REPLY_S)
            and not self.error
        )

    def close(self) -> None:
        """End it."""
        self._ended.set()
        self._thread.join(REPLY_S)
        self._caller.close()


class CrewTraffic:
    """Listens to a crew, each member of which counts on its own connection; none may miss or repeat a number."""

    def __init__(self, host_pid: int, members: int) -> None:
        address, port = VIP.split(":")
        self.error: Exception | None = None
        self._ended = threading.Event()
        self._poll = select.poll()
        self._heard: dict[int, int] = {}
        self._rest: dict[int, bytes] = {}
        self._sockets: dict[int, socket.socket] = {}
        for _ in range(members):
            one = in_netns(host_pid, lambda: socket.create_connection((address, int(port)), REPLY_S))
            self._sockets[one.fileno()] = one
            self._heard[one.fileno()], self._rest[one.fileno()] = 0, b""
            self._poll.register(one, select.POLLIN)
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._ended.is_set():
                for fd, _ in self._poll.poll(100):
                    self._hear(fd)
        except (OSError, AssertionError) as ex:
            self.error = ex

    def _hear(self, fd: int) -> None:
        data = self._sockets[fd].recv(1 << 16)
        assert data, "the server closed a connection"
        data = self._rest[fd] + data
        numbers = memoryview(data)[: len(data) // 4 * 4].cast("I")
        for number in numbers:
            assert number == self._heard[fd], f"{number} instead of {self._heard[fd]}"
            self._heard[fd] += 1
        self._rest[fd] = data[len(numbers) * 4 :]

    def goes_on(self) -> bool:
        """Wait for some more numbers from every member; return True if they came."""
        wanted = {fd: heard + 3 for fd, heard in self._heard.items()}

        def has_come() -> bool:
            return self.error is not None or all(self._heard[fd] >= count for fd, count in wanted.items())

        return wait_until(has_come, REPLY_S) and self.error is None

    def close(self) -> None:
        """Hang up."""
        self._ended.set()
        self._thread.join(REPLY_S)
        for one in self._sockets.values():
            one.close()


def build_crew() -> Path:
    """Compile the crew, if that has not been done."""
    if not CREW.exists():
        compiler = next(filter(None, map(shutil.which, preload.COMPILERS)))
        CREW.parent.mkdir(parents=True, exist_ok=True)
        command = [compiler, "-O1", "-pthread", "-o", str(CREW), str(SOURCE)]
        subprocess.run(command, check=True, timeout=60)
    return CREW


@contextlib.contextmanager
def small_images() -> Iterator[Path]:
    """Put a small tmpfs where the images go, so that it can be filled without filling the machine's memory."""
    paths.IMAGES.mkdir(parents=True, exist_ok=True)
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={IMAGES_BYTES}", "tmpfs", paths.IMAGES], check=True, timeout=10
    )
    try:
        yield paths.IMAGES
    finally:
        subprocess.run(["umount", "-l", paths.IMAGES], check=True, timeout=10)


class Scene:
    """One testbed for many cells; a context manager."""

    def __init__(self, crew: str = cells.ECHO) -> None:
        self._crew = crew
        self._cell: Cell | None = None
        self._stack = contextlib.ExitStack()
        self.struck: list[str] = []
        """What the fault of the present cell has hit."""
        self._undo: list[contextlib.AbstractContextManager[object]] = []

    def __enter__(self) -> Scene:
        with contextlib.ExitStack() as stack:
            stack.enter_context(small_images())
            self.net = stack.enter_context(Testbed(LoadBalancerNetwork(hosts=3), fault=self._on_step))
            here = self.net.hosts["h1"].pid
            self.traffic: Traffic | CrewTraffic
            if self._crew == cells.ECHO:
                self.net.run("echo", "h2", SERVER, service=VIP)
                self.traffic = Traffic(here)
            else:
                count, kind = self._crew.split()
                command = [str(build_crew()), kind, count, VIP.split(":")[1]]
                self.net.run("echo", "h2", command, service=VIP)
                self.traffic = CrewTraffic(here, int(count))
            stack.callback(self.traffic.close)
            assert self.traffic.goes_on(), self.traffic.error
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    # ---- one cell

    def play(self, cell: Cell) -> tuple[str, str]:
        """Migrate with a cell's fault; return the outcome, and what had been hit. Raises AssertionError."""
        (source,) = [app["host"] for app in self.net.apps()]
        destination = "h3" if source == "h2" else "h2"
        self.struck.clear()
        self._source, self._destination = source, destination
        with contextlib.ExitStack() as self._after:
            if cell.fault == cells.TIMEOUT:
                self.net.timeouts.steps[cell.step] = 0.3
                self._after.callback(self.net.timeouts.steps.clear)
            if cell.fault == cells.STALLED:
                self.net.timeouts.steps.update(dict.fromkeys(cells.STEPS, SHORT))
                self._after.callback(self.net.timeouts.steps.clear)
            self._cell = cell
            report = self.net.migrate("echo", destination)
            self._cell = None
        outcome = str(report.outcome.value)
        assert "Error:" not in str(report.reason), report.reason  # a sentence, not an exception's name
        assert outcome in (cells.COMPLETED, cells.ROLLED_BACK), f"{outcome}: {report.reason}"
        assert (report.reason is None) == (outcome == cells.COMPLETED), report.reason
        if self.struck:
            assert outcome in cell.outcomes, f"{outcome}: {report.reason}"
        else:
            assert outcome == cells.COMPLETED, report.reason
        if cell.fault == cells.DISK and outcome == cells.ROLLED_BACK:
            assert "No space left" in str(report.reason) or "room" in str(report.reason), report.reason
        check_instance(self.net, destination if outcome == cells.COMPLETED else source)
        assert self.traffic.goes_on(), f"the connection is lost: {self.traffic.error}; {report}"
        check_nothing_left(self.net)
        return outcome, ", ".join(self.struck)

    def _on_step(self, step: str, when: str) -> None:
        """Strike if this is the point. Called from the migration's threads."""
        cell = self._cell
        if cell is None or cell.step != step:
            return
        if cell.when == cells.DURING and when == "before":
            threading.Thread(target=self._strike_later, args=(cell,), daemon=True).start()
        elif cell.when == when:
            self._strike(cell)

    def _strike_later(self, cell: Cell) -> None:
        time.sleep(cell.delay)
        self._strike(cell)

    def _strike(self, cell: Cell) -> None:
        match cell.fault:
            case cells.DUMPER:
                self._signal_worker(cell, self._source, signal.SIGKILL)
            case cells.RESTORER:
                self._signal_worker(cell, self._destination, signal.SIGKILL)
            case cells.PAGES:
                self._signal_worker(cell, self._destination, signal.SIGKILL)
            case cells.STALLED:
                self._signal_worker(cell, self._destination, signal.SIGSTOP)
            case cells.SWITCH:
                process = self.net.mininet["s1"].process
                process.kill()
                process.wait()
                self.struck.append(f"switch {process.pid}")
            case cells.DISK:
                self._fill()
            case cells.TIMEOUT:
                time.sleep(0.35)
                self.struck.append("the clock")

    def _signal_worker(self, cell: Cell, host: str, number: int) -> None:
        """Signal the CRIU worker in a host; before there is one, as soon as it comes."""
        is_server = cell.fault == cells.PAGES
        if (cell.step, cell.when) != ("prepare", "before"):
            self._signal_workers(host, number, is_server)
            return

        def watch() -> None:
            wait_until(lambda: self._signal_workers(host, number, is_server), 5.0, WATCH_S)

        threading.Thread(target=watch, daemon=True).start()

    def _signal_workers(self, host: str, number: int, is_server: bool) -> bool:
        namespace = Path(f"/proc/{self.net.hosts[host].pid}/ns/net").readlink()
        for pid in self.net.custody.children("worker"):
            with contextlib.suppress(OSError):
                command = Path(f"/proc/{pid}/cmdline").read_bytes()
                is_there = Path(f"/proc/{pid}/ns/net").readlink() == namespace and is_running(pid)
                if is_there and (b"page-server" in command) == is_server:
                    os.kill(pid, number)
                    if number == signal.SIGKILL:
                        wait_until(lambda pid=pid: not is_running(pid), 5.0, WATCH_S)  # type: ignore[misc]
                    self.struck.append(f"worker {pid} in {host}")
                    return True
        return False

    def _fill(self) -> None:
        """Leave next to nothing on the images' file system, until the cell is over."""
        status = os.statvfs(paths.IMAGES)
        filler = paths.IMAGES / "filler"
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, max(1, status.f_bavail * status.f_frsize - ROOM_LEFT))
        self._after.callback(filler.unlink)
        self.struck.append("the disk")


# ---- checks


def servers(run: str) -> list[int]:
    """List the processes of a run's servers by what /proc says, not by what the testbed believes."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if (
                b"apps.echo.server" in command or command.startswith(str(CREW).encode())
            ) and f"{MARKER}={run}".encode() in environment.split(b"\0"):
                found.append(int(entry.name))
    return [pid for pid in found if is_running(pid)]


def check_instance(net: Testbed, host: str) -> None:
    """See that exactly one instance of the program lives, where it is said to, and that it is free to run."""
    (app,) = net.apps()
    assert (app["state"], app["host"]) == ("running", host), app
    pid = app["pid"]
    assert sorted(servers(net.folder.name)) == sorted(processes(pid))
    # A CRIU that is killed while it probes the kernel leaves helpers, which end by themselves.
    assert wait_until(lambda: net.custody.children("program", "restored") == [pid], 3.0)
    assert Path(f"/proc/{pid}/ns/net").readlink() == Path(f"/proc/{net.hosts[host].pid}/ns/net").readlink()
    assert wait_until(lambda: state(pid) in "SR", 2.0), state(pid)
    assert unrepair(processes(pid)) == 0


def check_nothing_left(net: Testbed) -> None:
    """See that nothing of the migration is left: workers, images, journals, firewall tables, holds."""
    assert wait_until(lambda: net.custody.children("worker") == [], 3.0)
    assert [p.name for p in paths.IMAGES.rglob("*") if p.is_file()] == []
    assert list((net.folder / "journals").glob("*")) == []
    for host in net.hosts.values():
        command = ["nsenter", f"--net=/proc/{host.pid}/ns/net", "nft", "list", "tables"]
        assert subprocess.run(command, capture_output=True, check=True, timeout=10).stdout == b""
    held = [row for row in net.controller.tables["s1"].rows.values() if row.table.startswith("hold")]
    assert held == [], held
