"""A root file system for containers, made of this machine's own programs: no image has to be built or fetched."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

PROJECT = Path(__file__).resolve().parent.parent
PROGRAMS = ("python3", "redis-server", "sh", "cat", "ls", "sleep", "touch", "rm", "mv", "mkdir")
ECHO = "/srv/apps/tcp_echo.py"
"""Where it is inside."""


def need_runc() -> None:
    """Install runc if it is missing; skip the test where that cannot be done."""
    if shutil.which("runc"):
        return
    command = ["apt-get", "install", "-y", "--no-install-recommends", "runc"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    if done.returncode != 0 or not shutil.which("runc"):
        pytest.skip(f"runc cannot be installed: {(done.stderr.strip().splitlines() or ['?'])[-1]}")


def build_root(folder: Path) -> Path:
    """Make a root file system with a few of this machine's programs, what they are linked with, and apps/."""
    for name in ("bin", "sbin", "lib", "lib64"):
        (folder / "usr" / name).mkdir(parents=True)
        (folder / name).symlink_to(f"usr/{name}")
    for name in ("etc", "proc", "sys", "tmp", "root", "var/lib/redis", "data", "srv"):
        (folder / name).mkdir(parents=True)
    (folder / "tmp").chmod(0o1777)
    (folder / "etc/passwd").write_text("root:x:0:0::/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")
    (folder / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")
    (folder / "data/from-image").write_text("original\n")
    found = [Path(path) for name in PROGRAMS if (path := shutil.which(name, path="/usr/bin:/bin"))]
    for path in found:
        shutil.copy(path, folder / "usr/bin" / path.name)
    real = Path("/usr/bin/python3").resolve()
    library = Path("/usr/lib") / real.name
    shutil.copytree(
        library,
        folder / library.relative_to("/"),
        symlinks=True,
        ignore=shutil.ignore_patterns("test", "config-*"),
    )
    for file in libraries([*found, *library.glob("lib-dynload/*.so")]):
        target = folder / file.relative_to("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)
    shutil.copytree(PROJECT / "apps", folder / "srv/apps", ignore=shutil.ignore_patterns("__pycache__"))
    return folder


def libraries(programs: Iterable[Path]) -> set[Path]:
    """Return what programs are linked with, the loader included."""
    done = subprocess.run(["ldd", *map(str, programs)], capture_output=True, text=True)
    words = (word for line in done.stdout.splitlines() for word in line.split())
    return {Path(word) for word in words if word.startswith("/") and not word.endswith(":")}
