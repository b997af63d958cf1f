"""CRIU: where it is, and a worker (`criu swrk`) that is driven over its RPC.

Protocol buffers come from pycriu (messages.py). A worker serves one
request. While it works it sends notifications and waits for each answer; that is how a migration stops it at
the right places:

- a dump at `pre-dump`: everything about the kernel is probed, no process has been touched yet;
- a dump at `post-dump`: the image is complete, the processes are frozen; "no" lets them run on;
- a restore at `post-restore`: everything is built but nothing has run, TCP sockets are in repair mode;
  "no" kills what was built.

Of the others, `agree_ahead` answers some before they are asked, which saves waiting for whoever would answer.

A restore has no notification before it reads the image. Its inventory.img is a FIFO, and the worker waits
there until `Gate.open` writes the real one.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from . import criu_log, messages, preload, tree
from .attributes import Inherited
from .criu_version import OLDEST, SINCE_PLAIN_FOLDERS, parse_version
from .custody import PROJECT, Custody, HasDescriptor
from .deadline import Deadline, Timeouts
from .errors import CriuFailed, CriuMissing, StepTimeout
from .namespaces import set_priority
from .slowness import scaled

DRAIN_TIMEOUT = scaled(5.0)
KILL_TIMEOUT = scaled(1.0)  # in which a worker that has hung up is gone
SETTLE_TIME = scaled(0.05)  # in which a worker mounts something where it has just made a folder
PRIVATE = PROJECT / ".p4ferry"
VARIABLE = "P4FERRY_CRIU"
"""Names the binary of a CRIU that is to be used instead of set-up's."""
READABLE, HUNG_UP, SILENT = "readable", "hung up", "silent"
DUMP_LOG = "dump.log"
RESTORE_LOG = "restore.log"
# Errors and warnings only: writing the whole debug log takes time while the program stands still.
LOG_LEVEL = 2
# How a restore knows the files that a program has open or mapped: by their sizes. CRIU's own choice is build ids, for
# which it opens and reads every library twice while the program stands still. (RPC has no such option.)
BY_SIZE = ("--file-validation", "filesize")


@dataclass(frozen=True, slots=True)
class Criu:
    """A CRIU binary and the Python modules of its image format."""

    binary: Path
    rpc: Any
    fdinfo: Any
    tcp_stream: Any
    version: tuple[int, ...]

    @staticmethod
    def find(binary: Path | None = None, python: Path | None = None) -> Criu:
        """Take what was named, else $P4FERRY_CRIU, else the private CRIU of this checkout, else PATH's."""
        named = None if binary is not None else from_environment()
        chosen = binary or named or _private() or _on_path()
        advice = f"name another one in {VARIABLE}, or unset it" if named else "run `make setup` again"
        if chosen is None:
            raise CriuMissing(f"CRIU is not installed: run `make setup`, or name its binary in {VARIABLE}")
        try:
            # A session of its own, as for all children of a migration: Ctrl-C is for whoever asked for it.
            done = subprocess.run(
                [chosen, "--version"],
                capture_output=True,
                text=True,
                timeout=scaled(20.0),
                start_new_session=True,
            )
        except (OSError, subprocess.TimeoutExpired) as ex:
            why = ex.strerror if isinstance(ex, OSError) else ex
            raise CriuMissing(f"CRIU at {chosen} cannot be run ({why}): {advice}") from ex
        if done.returncode != 0 or not done.stdout.startswith("Version: "):
            said = (done.stderr or done.stdout).strip().splitlines()[-1:] or [
                f"exit status {done.returncode}"
            ]
            raise CriuMissing(f"CRIU at {chosen} does not work ({said[0]}): {advice}")
        version = done.stdout.split()[1]  # Version: 4.2.1
        if parse_version(version) < OLDEST:
            raise CriuMissing(
                f"CRIU {version} at {chosen} is too old, migrations need {'.'.join(map(str, OLDEST))} or newer: "
                + advice
            )
        messages.check(version, python)
        return Criu(
            chosen,
            messages.load(messages.RPC, python),
            messages.load(messages.FDINFO, python),  # of files.img
            messages.load(messages.TCP_STREAM, python),
            parse_version(version),
        )


def from_environment() -> Path | None:
    """Return the CRIU that a user has named."""
    value = os.environ.get(VARIABLE)
    return Path(value) if value else None


def _private() -> Path | None:
    path = PRIVATE / "bin" / "criu"
    return path if path.exists() else None


def _on_path() -> Path | None:
    found = shutil.which("criu")
    return Path(found) if found else None


def linked(folder: Path) -> Path:
    """Return a symbolic link to a folder, made beside it."""
    link = folder.with_name(f"{folder.name}.link")
    with contextlib.suppress(FileExistsError):
        link.symlink_to(folder)
    return link


class Aside(Protocol):
    """Something to do while a worker works."""

    def fileno(self) -> int:
        """Return a descriptor that is readable when there is something to do."""

    def go_on(self) -> None:
        """Do it."""


class Worker:
    """One `criu swrk` in the namespaces of a process, for one dump or restore."""

    def __init__(
        self,
        criu: Criu,
        custody: Custody,
        place: int,
        action: str,
        log: Path,
        *files: HasDescriptor,
        deadline: Deadline | None = None,
        copy_mounts: bool = False,
        undo: Path | None = None,
        inherited: Inherited | None = None,
    ) -> None:
        """Start the worker in the namespaces of the process `place`; `files` are its descriptors from 4 on.

        What it changes in a program that it dumps is written to `undo`.

        With `copy_mounts` it has a copy of the mounts of its own, which is what it restores gets. So is `inherited`.
        """
        self._rpc, self._version = criu.rpc, criu.version
        self._custody = custody
        self._action = action
        self._log = log
        self._deadline = deadline or Deadline()
        self._answered = 0
        self.is_stuck = False
        """It did not answer in time: only a signal will end it."""
        self._socket, other = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with other:
            argv = [str(criu.binary), *BY_SIZE, "swrk", "3"]
            env = preload.environment(undo)
            self.pid = custody.start_criu(
                place, argv, other, *files, env=env, copy=copy_mounts, inherited=inherited
            )
        self.began = tree.start_time(self.pid)
        self._process: int | None = None
        with contextlib.suppress(ProcessLookupError):  # ended already; the socket tells
            self._process = os.pidfd_open(self.pid)

    def request(
        self,
        kind: str,
        images: Path,
        *,
        pid: int | None = None,
        lock: str = "SKIP",
        adjust: Callable[[Any], None] = lambda _: None,
    ) -> None:
        """Send the request: DUMP of `pid` into, or RESTORE from, the folder `images`; `adjust` its options."""
        request = self._rpc.criu_req(type=getattr(self._rpc, kind))
        options = request.opts
        options.images_dir_fd = -1
        options.images_dir = str(images if self._version >= SINCE_PLAIN_FOLDERS else linked(images))
        options.log_file = self._log.name
        options.log_level = LOG_LEVEL
        options.tcp_established = True
        options.file_locks = True
        options.link_remap = True
        options.ghost_limit = 64 << 20
        options.notify_scripts = True
        options.network_lock = getattr(self._rpc, lock)
        options.manage_cgroups = False
        options.manage_cgroups_mode = self._rpc.IGNORE
        if pid is not None:
            options.pid = pid
        else:
            # The restored processes become children of the keeper.
            options.rst_sibling = True
        adjust(options)
        self._send(request)

    def wait_for(self, script: str, aside: Aside | None = None) -> int:
        """Agree to every notification up to `script`, which stays unanswered; return the PID it names.

        Meanwhile `aside` is seen to. Raises CriuFailed if it was answered ahead: then CRIU has gone on.
        """
        while True:
            response = self._receive(aside)
            if response.type != self._rpc.NOTIFY:
                raise self.failure()
            if response.notify.script == script:
                if self._answered:
                    raise CriuFailed(self._action, [f"it came to {script} without the steps before"])
                return int(response.notify.pid)
            if self._answered:
                self._answered -= 1
            else:
                self.answer(True)

    def agree_ahead(self, count: int) -> None:
        """Agree to the next notifications, which are still to come and will not be waited for.

        They wait in CRIU's socket, one for each time that it asks. So there must be no more than are certain to come
        before what is waited for.
        """
        for _ in range(count):
            self.answer(True)
        self._answered += count

    def answer(self, agree: bool) -> None:
        """Answer the notification that `wait_for` returned at."""
        self._send(self._rpc.criu_req(type=self._rpc.NOTIFY, notify_success=agree))

    def finish(self) -> None:
        """Agree to the remaining notifications until CRIU reports success."""
        while True:
            response = self._receive()
            if response.type == self._rpc.NOTIFY:
                self.answer(True)
            elif response.success:
                return
            else:
                raise self.failure()

    def set_priority(self, nice: int) -> None:
        """Let it go ahead of others or behind them, as far as that is permitted."""
        set_priority(self.pid, nice)

    def pause(self) -> None:
        """Stop it before its next instruction, until `go_on`; what it is told meanwhile waits for it."""
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        """Let it run, if it was stopped."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            if self._process is not None:
                signal.pidfd_send_signal(self._process, number)

    def features(self) -> Any:
        """Ask for the kernel's features, and return them as CRIU's message."""
        self._send(
            self._rpc.criu_req(type=self._rpc.FEATURE_CHECK, features={"mem_track": True, "lazy_pages": True})
        )
        response = self._receive()
        if not response.success:
            raise self.failure()
        return response.features

    def drain(self) -> None:
        """Read what is left to be said by a worker whose result does not matter any more."""
        if self._socket.fileno() < 0:
            return  # closed: that was waited for already
        self._deadline = Deadline(Timeouts(DRAIN_TIMEOUT))
        self._deadline.start("drain")
        with contextlib.suppress(CriuFailed, StepTimeout):
            self.finish()

    def close(self) -> None:
        """Hang up (CRIU then lets a frozen program run on, and kills a half-built one) and see it end."""
        if self._process is not None:
            os.close(self._process)
            self._process = None
        self._socket.close()
        if self.is_stuck or not self._custody.wait(self.pid, 5.0):
            self.kill()

    def kill(self) -> None:
        """End it as it is, and see it gone; what it traced runs on."""
        self._custody.kill(self.pid, signal.SIGKILL)
        self._custody.wait(self.pid, 5.0)

    def has_ended(self) -> bool:
        """Say whether it has hung up, without waiting for what it may still say."""
        return self._listen(0, 0.0) == HUNG_UP

    def was_killed(self) -> bool:
        """Return True if it has ended by a signal, rather than by giving up."""
        status = self._custody.exit_status(self.pid) if self._custody.wait(self.pid, KILL_TIMEOUT) else None
        return status is not None and status < 0

    def _listen(self, events: int, timeout: float, aside: Aside | None = None) -> str:
        """Wait for something to read (if `events` asks for it), for the worker's end, or to have done something aside.

        Its socket alone would not tell: what it was restoring when it was killed has inherited it.
        """
        poller = select.poll()
        poller.register(self._socket, events)  # hanging up is always told
        if self._process is not None:
            poller.register(self._process, select.POLLIN)
        if aside is not None:
            poller.register(aside.fileno(), select.POLLIN)
        told = dict(poller.poll(timeout * 1000))
        if told.get(self._socket.fileno(), 0) & select.POLLIN & events:
            return READABLE  # whatever is aside has to wait
        if aside is not None and told.pop(aside.fileno(), 0):
            aside.go_on()
        return HUNG_UP if told else SILENT

    def _send(self, message: Any) -> None:
        try:
            self._socket.send(message.SerializeToString())
        except OSError as ex:
            raise self.failure() from ex

    def _receive(self, aside: Aside | None = None) -> Any:
        try:
            while (heard := self._listen(select.POLLIN, self._deadline.left(), aside)) == SILENT:
                pass
        except StepTimeout:
            self.is_stuck = True
            raise
        if heard == HUNG_UP:
            raise self.failure()
        try:
            data = self._socket.recv(1 << 16)
        except OSError as ex:
            raise self.failure() from ex
        if not data:
            raise self.failure()
        response = self._rpc.criu_resp()
        response.ParseFromString(data)
        return response

    def failure(self) -> CriuFailed:
        """Describe why CRIU gave up."""
        return CriuFailed(self._action, error_lines(self._log))


def error_lines(log: Path) -> list[str]:
    """Return what CRIU logged as errors, without time stamps and source positions."""
    try:
        return criu_log.errors(log.read_text(errors="replace"))
    except OSError:
        return []


def remove_mount_roots(since: float, folder: Path = Path("/tmp")) -> None:
    """Remove the empty folders below which CRIU builds mount trees, left by a worker that was killed since some time.

    Another worker's is soon a mount in its namespace, so what stays without one is nobody's.
    """
    for path in folder.glob(".criu.mntns.*"):
        with contextlib.suppress(OSError):
            if path.stat().st_ctime >= since and not _is_mounted_anywhere(str(path)):
                time.sleep(SETTLE_TIME)
                if not _is_mounted_anywhere(str(path)):
                    path.rmdir()


def _is_mounted_anywhere(path: str) -> bool:
    for process in tree.PROC.iterdir():
        with contextlib.suppress(OSError):  # it has ended
            if process.name.isdigit() and path in (process / "mountinfo").read_text():
                return True
    return False


def waits_at_gate(pid: int) -> bool:
    """Say whether a process, if it is still there, stands at a gate."""
    try:
        return is_at_gate(pid)
    except OSError:
        return False


def is_at_gate(pid: int) -> bool:
    """Say whether a worker stands at a gate; raises OSError when it is gone."""
    return "partner" in Path(f"/proc/{pid}/wchan").read_text()  # fifo_open: wait_for_partner()


class Gate:
    """A FIFO in the place of an image file, at which a CRIU restore waits."""

    def __init__(self, path: Path) -> None:
        self._path = path
        os.mkfifo(path, 0o600)

    def wait_for(self, pid: int, timeout: float) -> bool:
        """Wait until a process stands at the gate; say whether it does."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            try:
                if is_at_gate(pid):
                    return True
            except OSError:
                return False
            time.sleep(0.002)
        return False

    def open(
        self, content: bytes, is_over: Callable[[], bool] = lambda: False, timeout: float = 10.0
    ) -> None:
        """Hand the file to the reader that waits for it, unless `is_over` says that it is gone."""
        deadline = time.monotonic() + timeout
        while True:
            try:
                # Opens only when a reader is there; one that is blocked in open() counts as well.
                fd = os.open(self._path, os.O_WRONLY | os.O_NONBLOCK)
                break
            except OSError as ex:
                if ex.errno != errno.ENXIO or time.monotonic() > deadline or is_over():
                    raise
                time.sleep(0.001)
        with os.fdopen(fd, "wb", buffering=0) as pipe:
            if pipe.write(content) != len(content):
                raise ValueError(f"{self._path.name} is larger than a pipe holds ({len(content)} bytes)")
