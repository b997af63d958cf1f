"""Programs that run as plain processes in hosts: starting, ending and moving them with CRIU."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from . import tree
from .criu import DUMP_LOG, RESTORE_LOG, Criu, Gate, Worker
from .custody import Custody
from .diag import Diag
from .errors import CriuMissing, LaunchFailed, MigrationError, Refused
from .images import FILES_IMAGE, INVENTORY_IMAGE, rewrite_files
from .inet import InetSocket, Relocation
from .model import App, Host
from .namespaces import in_netns
from .workspace import fill

GATE_TIMEOUT = 5.0


class ProcessRuntime:
    """Starts programs so that CRIU can always dump them, and owns them until closed."""

    name = "process"

    def __init__(self, criu: Criu | None = None) -> None:
        self._criu = criu
        self.custody = Custody()

    @property
    def criu(self) -> Criu:
        """The CRIU in use, looked for when it is first needed."""
        if self._criu is None:
            self._criu = Criu.find()
        return self._criu

    @criu.setter
    def criu(self, criu: Criu) -> None:
        self._criu = criu

    @property
    def fdinfo(self) -> Any:
        """The messages of files.img."""
        return self.criu.fdinfo

    @property
    def tcp_stream(self) -> Any:
        """The message of tcp-stream-*.img."""
        return self.criu.tcp_stream

    def launch(
        self,
        name: str,
        host: Host,
        argv: Sequence[str],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path = Path("/"),
    ) -> App:
        """Start a program in a host; its output is appended to `log`."""
        if not argv:
            raise LaunchFailed(f"{name} has no command to run")
        environment = dict(os.environ) if env is None else dict(env)
        try:
            pid = self.custody.spawn(host.pid, argv, environment, cwd, log.absolute())
        except LaunchFailed as ex:
            raise LaunchFailed(f"{name} could not be started on {host.name}: {ex}") from ex
        return App(name, host, pid, log.absolute())

    def terminate(self, app: App, timeout: float = 3.0) -> int | None:
        """Ask a program to end, make it end if it does not; return its exit status if known."""
        if _catches(app.pid, signal.SIGTERM):
            self.custody.kill(app.pid, signal.SIGTERM)
            if self.custody.wait(app.pid, timeout):
                return self.custody.exit_status(app.pid)
        # Without a handler PID 1 of a namespace ignores every signal but this one.
        self.custody.kill(app.pid, signal.SIGKILL)
        self.custody.wait(app.pid, timeout)
        return self.custody.exit_status(app.pid)

    def is_running(self, app: App) -> bool:
        """Say whether the program runs."""
        return self.custody.is_running(app.pid)

    def sockets(self, app: App) -> list[InetSocket]:
        """List the Internet sockets of the program."""
        inodes = tree.socket_inodes(tree.open_files(tree.processes(app.pid)))
        with Diag(app.host.pid) as diag:
            return [socket for socket in diag.inet() if socket.inode in inodes]

    def check(self, app: App, destination: Host) -> None:
        """Refuse a program that CRIU could not dump, or any if there is no CRIU."""
        try:
            assert self.criu
        except CriuMissing as ex:
            raise Refused(str(ex)) from ex
        files = tree.open_files(tree.processes(app.pid))
        if (file := tree.unmovable(files)) is not None:
            raise Refused(f"{app.name} cannot be moved: {tree.describe(file)}")
        inodes = tree.socket_inodes(files)
        with Diag(app.host.pid) as diag:
            for socket in diag.unix():
                if socket.inode in inodes and socket.peer and socket.peer not in inodes:
                    raise Refused(
                        f"{app.name} cannot be moved: a UNIX socket connects it with another program"
                    )

    def image_estimate(self, app: App) -> int:
        """Bound the size of the checkpoint by the resident memory."""
        return tree.resident_bytes(tree.processes(app.pid))

    def open_passage(self, app: App, destination: Host, folder: Path, *, lock: bool) -> ProcessPassage:
        """Start the CRIU workers of one migration."""
        return ProcessPassage(self.criu, self.custody, app, destination, folder, lock=lock)

    def revive(self, app: App, host: Host, images: Path) -> int:
        """Restore a program that a crash has ended from what its migration left; see recovery.py."""
        return revive(self.criu, self.custody, host, app.log, images, images.parent)

    def close(self) -> None:
        """End every program."""
        self.custody.close()

    def __enter__(self) -> ProcessRuntime:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class ProcessPassage:
    """One process tree on its way; see runtime.Passage."""

    def __init__(
        self, criu: Criu, custody: Custody, app: App, destination: Host, folder: Path, *, lock: bool
    ) -> None:
        self._criu, self._custody = criu, custody
        self._pid, self._log, self._source = app.pid, app.log, app.host
        self._destination = destination
        self._lock = "NFTABLES" if lock else "SKIP"
        self._folder = folder
        self.images, self.moved = folder / "images", folder / "moved"
        for path in (self.images, self.moved):
            path.mkdir(mode=0o700)
        self._gate = Gate(self.moved / INVENTORY_IMAGE)
        self._is_frozen = self._has_ended = False
        self._copy = 0
        self._workers: list[Worker] = []
        self._restorer = self._start(
            destination, f"restore it on {destination.name}", self.moved / RESTORE_LOG
        )
        self._dumper = self._start(app.host, f"checkpoint it on {app.host.name}", self.images / DUMP_LOG)
        self._get_ready()

    def _start(self, host: Host, action: str, log: Path) -> Worker:
        try:
            worker = Worker(self._criu, self._custody, host.pid, action, log)
        except MigrationError:
            self.close()
            raise
        self._workers.append(worker)
        return worker

    def _get_ready(self) -> None:
        """Let both workers do all that needs no frozen program: mostly probing the kernel, some 30 ms."""
        try:
            self._restorer.request("RESTORE", self.moved, lock=self._lock)
            self._dumper.request("DUMP", self.images, pid=self._pid, lock=self._lock)
            self._dumper.wait_for("pre-dump")
            self._gate.wait_for(self._restorer.pid, GATE_TIMEOUT)
        except MigrationError:
            self.close()
            raise

    def freeze(self) -> None:
        """Let the dump worker go on, up to the complete image."""
        self._dumper.answer(True)
        self._dumper.wait_for("post-dump")
        self._is_frozen = True

    def restore(self) -> int:
        """Open the gate, and stop where everything is built but has not run."""
        try:
            self._gate.open((self.images / INVENTORY_IMAGE).read_bytes())
        except OSError as ex:
            raise self._restorer.failure() from ex
        self._copy = self._restorer.wait_for("post-restore")
        return self._copy

    def end_source(self) -> None:
        """Let the dump worker end what it froze."""
        self._is_frozen = False
        self._has_ended = True
        self._dumper.answer(True)
        # Dead is enough; that CRIU has cleaned up is waited for in close().
        if not self._custody.wait_for_death(self._pid, 5):
            raise MigrationError(f"process {self._pid} was checkpointed but did not end")

    def resume(self) -> None:
        """Let the restore worker finish: TCP leaves repair mode and the copy runs."""
        self._restorer.answer(True)
        self._restorer.finish()

    def back_out(self) -> None:
        """Kill the copy first, then thaw the original."""
        self._destroy_copy()
        if not self._custody.is_running(self._pid):
            # CRIU holds its sockets still, in repair mode. Killed, it closes them without a word to the peers.
            self._custody.kill(self._dumper.pid, signal.SIGKILL)
        elif self._is_frozen:
            self._dumper.answer(False)
        # Before the freeze, hanging up is enough: CRIU waits at pre-dump and has touched nothing.
        self._dumper.close()
        self._is_frozen = False
        if not self._custody.is_running(self._pid):
            raise MigrationError(f"process {self._pid} did not outlive the attempt")

    def _destroy_copy(self) -> None:
        """End what the restore worker has built, and the worker; at its gate it hears nothing but a signal."""
        self._custody.kill(self._restorer.pid, signal.SIGKILL)
        if self._copy:
            self._custody.kill(self._copy, signal.SIGKILL)
            self._custody.wait(self._copy, 5)
        self._restorer.close()

    def revive(self) -> int:
        """Restore the untouched image where it came from."""
        self._destroy_copy()
        return revive(self._criu, self._custody, self._source, self._log, self.images, self._folder)

    def close(self) -> None:
        """Hang up on the workers, and take away the firewall tables that a locked dump leaves."""
        if self._has_ended:
            self._dumper.drain()
        for worker in self._workers:
            worker.close()
        if self._lock == "NFTABLES":
            for host in (self._source, self._destination):
                in_netns(host.pid, remove_criu_tables)


def revive(criu: Criu, custody: Custody, host: Host, log: Path, images: Path, parent: Path) -> int:
    """Restore a checkpoint at the host that it was taken from; return the program's PID."""
    folder = parent / "revived"
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that failed
    folder.mkdir(mode=0o700)
    stay = Relocation(host.address, host.address, {})
    rewritten = rewrite_files((images / FILES_IMAGE).read_bytes(), stay, criu.fdinfo, frozenset({log}))
    fill(images, folder, {FILES_IMAGE: rewritten.image})
    os.link(images / INVENTORY_IMAGE, folder / INVENTORY_IMAGE)
    worker = Worker(criu, custody, host.pid, f"restore it on {host.name}", folder / RESTORE_LOG)
    try:
        worker.request("RESTORE", folder)
        pid = worker.wait_for("post-restore")
        worker.answer(True)
        worker.finish()
    finally:
        worker.close()
    return pid


def remove_criu_tables() -> None:
    """Delete CRIU's nftables tables in the current network namespace."""
    listing = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, timeout=10).stdout
    for line in listing.splitlines():
        if line.split()[-1].startswith("CRIU-"):
            subprocess.run(["nft", "delete", *line.split()], capture_output=True, timeout=10)


def _catches(pid: int, number: int) -> bool:
    """Say whether a process has a handler for a signal."""
    for line in tree.read_or_empty(Path(f"/proc/{pid}/status")).splitlines():
        key, _, value = line.partition(":")
        if key == "SigCgt":
            return bool(int(value, 16) >> (number - 1) & 1)
    return False
