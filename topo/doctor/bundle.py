"""Packing what a bug report needs into one file: versions, findings, our own logs; addresses and names are taken out.

    p4ferry-bundle/contents.json        what is in it, what was left out and why
    p4ferry-bundle/doctor.json          the findings
    p4ferry-bundle/versions.json        commit, packages, kernel, distribution
    p4ferry-bundle/verifier/…           what the kernel's verifier said of the last programs that it refused
    p4ferry-bundle/run-PID-START/…      logs of runs whose folders are there: running, or killed
    p4ferry-bundle/last-run/…           logs, report and traces of the run that ended last

Only files that `topo.run_logs` lists get in: no output of programs, no image of their memory.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import platform
import subprocess
import tarfile
import time
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from dataplane.switch.engine.clang import default_cache
from topo import paths
from topo.doctor import machine
from topo.doctor.findings import last_line, run
from topo.doctor.redaction import Machine, Redactor
from topo.errors import TestbedError
from topo.run_logs import TAIL, RunLog, logs_of

FOLDER = "p4ferry-bundle"
_VERIFIER_LOGS = 3
TOTAL = 20 << 20  # bytes in it, before they are packed
# dpkg-query's patterns: what the project runs on, not all that somebody has installed.
_PACKAGES = (
    "bpftool", "buildah", "clang*", "conmon", "containerd*", "criu*", "crun", "docker*", "ethtool", "iproute2", "kmod",
    "libbpf*", "libc6", "libprotobuf*", "linux-image-*", "linux-modules-*", "llvm*", "make", "mininet", "netavark",
    "nftables", "openvswitch*", "podman", "python3", "python3.*", "python3-pycriu", "python3-protobuf", "python3-redis",
    "qemu-system-x86", "redis-server", "runc", "systemd", "tcpdump", "util-linux", "vagrant",
)  # fmt: skip


def pack(
    path: Path,
    findings: Mapping[str, Any],
    redactor: Redactor | None = None,
    runs: Path = paths.RUNS,
    images: Path = paths.IMAGES,
    last_run: Path = paths.STATE / "last-run",
    cache: Path | None = None,
    total: int = TOTAL,
) -> str:
    """Write the bundle; returns a sentence about it. Raises TestbedError, with no file left; never overwrites one."""
    redactor = redactor or Redactor(Machine.of_this_one())
    try:
        with _new_file(path) as file, tarfile.open(fileobj=file, mode="w:gz") as archive:
            packer = _Packer(archive, redactor, total)
            packer.add("doctor.json", redactor.known(json.dumps(findings, indent=2)).encode())
            packer.add("versions.json", redactor.known(json.dumps(versions(), indent=2)).encode())
            for log in _verifier_logs(cache or default_cache()):
                packer.add_log(f"verifier/{log.name}", log)
            for name, log in _logs(runs, images, last_run):
                packer.add_log(name, log)
            packer.finish()
    except FileExistsError as ex:
        raise TestbedError(
            f"--bundle {path}: there is a file of that name already, choose another one"
        ) from ex
    except OSError as ex:
        raise TestbedError(f"--bundle {path}: it cannot be written: {ex.strerror or ex}") from ex
    return (
        f"{path}: {len(packer.contents)} files, {max(1, path.stat().st_size >> 10)} KiB. Memory images and programs' "
        "output are not in it; addresses and names of this machine are replaced by placeholders."
    )


def versions() -> dict[str, Any]:
    """Return what runs here, in which version."""
    return {
        **machine.describe(),
        "kernel_version": platform.version(),
        "libc": " ".join(platform.libc_ver()),
        "commit": _git("rev-parse", "HEAD"),
        "changed_files": len(_git("status", "--porcelain").splitlines()),
        "criu": _first_words([str(paths.criu_binary() or "criu"), "--version"]),
        "packages": _packages(),
        "python_packages": {
            found.name: found.version
            for found in sorted(metadata.distributions(), key=lambda found: str(found.name).lower())
        },
    }


def _verifier_logs(cache: Path) -> list[RunLog]:
    """List the latest logs of programs that the kernel refused (dataplane/switch/engine/engine.py)."""
    found = [(path.stat().st_mtime, path) for path in cache.glob("verifier-*.log") if path.is_file()]
    return [RunLog(path, path.name) for _, path in sorted(found, reverse=True)[:_VERIFIER_LOGS]]


def _logs(runs: Path, images: Path, last_run: Path) -> Iterator[tuple[str, RunLog]]:
    """List what is packed of runs, the latest first."""
    with contextlib.suppress(OSError):
        folders = sorted((p for p in runs.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)
        for folder in reversed(folders):
            for log in logs_of(folder, images / folder.name):
                yield f"run-{folder.name}/{log.name}", log
    with contextlib.suppress(OSError):
        for log in logs_of(last_run):
            yield f"last-run/{log.name}", log
        for path in sorted(last_run.glob("criu/**/*.log")):
            yield f"last-run/{path.relative_to(last_run)}", RunLog(path, path.name)


class _Packer:
    """An archive that takes texts until it is full."""

    def __init__(self, archive: tarfile.TarFile, redactor: Redactor, room: int) -> None:
        self._archive = archive
        self._redactor = redactor
        self._room = room
        self._now = int(time.time())
        self.contents: dict[str, int] = {}
        self._left_out: dict[str, str] = {}

    def add_log(self, name: str, log: RunLog) -> None:
        """Add the end of a log, without what it says of the machine."""
        text = self._redactor.log(log.tail().decode(errors="replace"))
        name = self._redactor.log(name)
        if not text:
            self._left_out[name] = "empty, or not readable"
            return
        self.add(name, text.encode())
        with contextlib.suppress(OSError):
            if name in self.contents and (size := log.path.stat().st_size) > TAIL:
                self._left_out[name] = f"all but the last {TAIL} of {size} bytes"

    def add(self, name: str, content: bytes) -> None:
        """Add a file, if there is room for it."""
        if len(content) > self._room:
            self._left_out[name] = f"no room: {len(content)} bytes"
            return
        self._room -= len(content)
        self.contents[name] = len(content)
        self._write(name, content)

    def finish(self) -> None:
        """Add the list of what is in it."""
        listed = {"version": 1, "files": dict(self.contents), "left_out": self._left_out}
        self._write("contents.json", json.dumps(listed, indent=2).encode())
        self.contents["contents.json"] = 0

    def _write(self, name: str, content: bytes) -> None:
        entry = tarfile.TarInfo(f"{FOLDER}/{name}")  # of nobody: no user's name or number
        entry.size, entry.mtime, entry.mode = len(content), self._now, 0o644
        self._archive.addfile(entry, io.BytesIO(content))


@contextlib.contextmanager
def _new_file(path: Path) -> Iterator[io.BufferedWriter]:
    """Give a file that was not there; it belongs to whoever called sudo, and is gone if it does not become whole."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with open(fd, "wb") as file:  # noqa: PTH123 - a descriptor
            if os.geteuid() == 0 and (user := os.environ.get("SUDO_UID", "")).isdigit():
                group = os.environ.get("SUDO_GID", "")
                os.fchown(fd, int(user), int(group) if group.isdigit() else -1)
            yield file
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def _git(*words: str) -> str:
    """Ask git about the checkout, which may belong to another user than root."""
    try:
        done = run(["git", "-c", f"safe.directory={paths.CHECKOUT}", "-C", str(paths.CHECKOUT), *words])
    except (OSError, subprocess.SubprocessError) as ex:
        return f"unknown: {ex}"
    return done.stdout.strip() if done.returncode == 0 else f"unknown: {last_line(done)}"


def _packages() -> dict[str, str]:
    """Return the versions of packages that the project uses, where dpkg knows them."""
    try:
        done = run(["dpkg-query", "-W", "-f", "${db:Status-Abbrev}\t${Package}\t${Version}\n", *_PACKAGES])
    except (OSError, subprocess.SubprocessError):
        return {}
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    return {row[1]: row[2] for row in rows if len(row) == 3 and row[0].startswith("ii")}


def _first_words(command: list[str]) -> str:
    try:
        return " ".join(run(command).stdout.split()[:4])
    except (OSError, subprocess.SubprocessError) as ex:
        return str(ex)
