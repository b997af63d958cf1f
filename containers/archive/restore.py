"""Hand a checked archive to Podman, which restores it; the file is removed when it has."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from subprocess import CompletedProcess

from ..errors import EngineFailed
from . import image
from .checkpoint import Limits

Runner = Callable[[Sequence[str]], "CompletedProcess[str]"]
_TIMEOUT = 600  # seconds; a program's memory is read from disk


def run(command: Sequence[str]) -> CompletedProcess[str]:
    """Run a command and keep what it says."""
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=_TIMEOUT)


def command(archive: Path, options: Sequence[str] = ()) -> list[str]:
    """Return what restores an archive; open connections stay, as they do in a migration."""
    return ["podman", "container", "restore", "--import", str(archive), "--tcp-established", *options]


def restore(path: Path, options: Sequence[str] = (), run: Runner = run, limits: Limits | None = None) -> str:
    """Restore an image's checkpoint with Podman; returns what Podman says, the container's id."""
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-", dir=path.parent) as folder:
        archive = Path(folder) / "checkpoint.tar"
        found = image.extract(path, archive, limits)
        try:
            done = run(command(archive, options))
        except FileNotFoundError as ex:
            kept = path.with_name(f"{path.name}.checkpoint.tar")
            image.extract(path, kept, limits)
            raise EngineFailed(
                f"podman is not installed; the checked archive is {kept} (type, where it is: "
                f"{shlex.join(command(kept, options))})"
            ) from ex
        except subprocess.TimeoutExpired as ex:
            raise EngineFailed(f"podman does not answer within {_TIMEOUT} s") from ex
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it ended without saying why"])[-1]
        raise EngineFailed(f"podman does not restore {found.name}: {last}")
    return done.stdout.strip()
