"""Ask a CRIU binary whether it works here, by a real dump and restore of an established TCP connection.

`criu check` passes on machines where every TCP dump fails, so nothing less is believed. A victim process holds both
ends of a connection over the loopback of a fresh network namespace and passes numbers through it; it is dumped,
restored, and must go on counting. Standard library only: set-up runs this file before any environment exists.

    python3 -m topo.criu_probe CRIU        prints one line; exit status 0 if it works
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from migration import criu_log

_CHECKOUT = Path(__file__).resolve().parent.parent
_VICTIM = """
import os, socket, sys, time
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname())
peer, _ = server.accept()
status = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT, 0o600)
number = 0
while True:
    client.sendall(number.to_bytes(8, "big"))
    got = int.from_bytes(peer.recv(8, socket.MSG_WAITALL), "big")
    if got != number:
        sys.exit(1)
    os.pwrite(status, b"%012d" % number, 0)
    number += 1
    time.sleep(0.01)
"""
_DEADLINE = (
    60.0  # seconds for each criu command and for the victim's progress; a slow machine is not a broken one
)


@dataclass(frozen=True)
class Verdict:
    """Whether the binary works, its version, and why not (one sentence)."""

    works: bool
    version: str
    reason: str = ""


def probe(criu: str) -> Verdict:
    """Dump and restore a TCP connection with `criu` (a path or a name on PATH); root is needed."""
    binary = shutil.which(criu)
    if binary is None:
        return Verdict(False, "", f"{criu} is not installed")
    version = version_of(binary)
    if os.geteuid() != 0:
        return Verdict(False, version, "only root can checkpoint")
    command = ["unshare", "--net", sys.executable, "-B", "-m", "topo.criu_probe", "--inside", binary]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=4 * _DEADLINE, check=False, cwd=_CHECKOUT
        )
    except (OSError, subprocess.TimeoutExpired) as ex:
        return Verdict(False, version, str(ex))
    if done.returncode == 0:
        return Verdict(True, version)
    lines = (done.stderr.strip() or done.stdout.strip() or f"exit status {done.returncode}").splitlines()
    return Verdict(False, version, lines[-1])


def version_of(binary: str) -> str:
    """Return what a CRIU says of its version."""
    try:
        done = subprocess.run(
            [binary, "--version"], capture_output=True, text=True, timeout=_DEADLINE, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return "unknown version"
    words = done.stdout.split()
    return words[1] if len(words) > 1 else "unknown version"


def _inside(binary: str) -> None:
    """Run the whole probe in the network namespace that the caller made."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory(prefix="p4ferry-criu-probe-") as name:
        folder = Path(name)
        status, images = folder / "status", folder / "images"
        images.mkdir()
        victim = subprocess.Popen(
            [sys.executable, "-c", _VICTIM, str(status)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            cwd="/",
        )
        restored: int | None = None
        try:
            _wait_for_progress(status, -1)
            _criu([binary, "dump", "--tree", str(victim.pid)], images, "dump")
            victim.wait(_DEADLINE)  # the PID must be free again
            before = int(status.read_text())
            pidfile = folder / "pid"
            _criu([binary, "restore", "--restore-detached", "--pidfile", str(pidfile)], images, "restore")
            restored = int(pidfile.read_text())
            _wait_for_progress(status, before)
        finally:
            if victim.poll() is None:
                victim.kill()
                victim.wait()
            if restored is not None:
                os.kill(restored, signal.SIGKILL)


def _criu(command: list[str], images: Path, name: str) -> None:
    """Run one criu command; the error of its log that is the cause of a failure becomes the exit message."""
    log = images / f"{name}.log"
    # Ordinary lines show which errors CRIU survived. By size: as migrations have files compared.
    options = ["--tcp-established", "--images-dir", str(images), "--log-file", str(log), "-v4"]
    options += ["--file-validation", "filesize"]
    try:
        done = subprocess.run(
            [*command, *options], capture_output=True, text=True, timeout=_DEADLINE, check=False
        )
    except subprocess.TimeoutExpired:
        raise SystemExit(f"{name} of a TCP connection does not end within {_DEADLINE:g} s") from None
    if done.returncode != 0:
        raise SystemExit(f"{name} of a TCP connection fails: {_cause(_read(log), done)}")


def _cause(log: str, done: subprocess.CompletedProcess[str]) -> str:
    """Return why a criu command failed: from its log, else from what it printed, else its end."""
    found = criu_log.cause(criu_log.errors(log)) or criu_log.cause(criu_log.errors(done.stderr))
    if found is not None:
        return found
    if done.returncode < 0:
        return f"it was killed by {signal.Signals(-done.returncode).name}"
    said = done.stderr.strip().splitlines()
    return said[-1] if said else f"exit status {done.returncode}"


def _read(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def _wait_for_progress(status: Path, beyond: int) -> None:
    deadline = time.monotonic() + _DEADLINE
    while time.monotonic() < deadline:
        text = _read(status)
        if len(text) == 12 and int(text) > beyond:
            return
        time.sleep(0.01)
    raise SystemExit("the connection of the probed program makes no progress")


def main() -> int:
    """Probe the binary named on the command line."""
    if len(sys.argv) == 3 and sys.argv[1] == "--inside":
        _inside(sys.argv[2])
        return 0
    if len(sys.argv) != 2:
        print("usage: python3 -m topo.criu_probe CRIU", file=sys.stderr)
        return 2
    verdict = probe(sys.argv[1])
    print(f"CRIU {verdict.version}: " + ("works" if verdict.works else verdict.reason))
    return 0 if verdict.works else 1


if __name__ == "__main__":
    sys.exit(main())
