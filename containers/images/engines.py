"""Hand images to Docker or Podman: their own `load` commands, fed from the layout. Neither ever pulls.

An engine that has the image already, by the digest of its configuration (the image's id in both), is left alone.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from subprocess import CompletedProcess
from typing import BinaryIO, cast

from ..errors import EngineFailed
from ..oci.layout import Layout
from .archives import Format, write
from .privileges import as_root

_TIMEOUT = 300  # seconds; a large image on a slow disk
Runner = Callable[[Sequence[str]], "CompletedProcess[str]"]


class Engine(Enum):
    """A container engine, by the name of its command."""

    DOCKER = "docker"
    PODMAN = "podman"

    @property
    def format(self) -> Format:
        """Return what its `load` reads: Debian 12's Docker (20.10) knows only its own format."""
        return Format.DOCKER if self is Engine.DOCKER else Format.OCI

    @property
    def is_installed(self) -> bool:
        """Say whether its command is there."""
        return shutil.which(self.value) is not None


def run(command: Sequence[str]) -> CompletedProcess[str]:
    """Run an engine's command as root, whose images hosts are started from, and keep what it says."""
    if shutil.which(command[0]) is None:  # sudo would only return a status
        raise FileNotFoundError(command[0])
    return subprocess.run(as_root(command), capture_output=True, text=True, check=False, timeout=_TIMEOUT)


def load(layout: Path, reference: str, engine: Engine, run: Runner = run) -> bool:
    """Give an image to an engine; says whether the engine lacked it."""
    source = Layout.open(layout)
    found = source.resolve(reference)
    try:
        if _image_id(engine, reference, run) == str(found.manifest.config.digest):
            return False
        with tempfile.NamedTemporaryFile(prefix="p4ferry-image-", suffix=".tar") as file:
            write(source, reference, engine.format, cast(BinaryIO, file))
            file.flush()
            done = run([engine.value, "load", "--quiet", "--input", file.name])
    except FileNotFoundError as ex:
        package = "docker.io" if engine is Engine.DOCKER else "podman"
        raise EngineFailed(f"{engine.value} is not installed (type: apt-get install {package})") from ex
    except subprocess.TimeoutExpired as ex:
        raise EngineFailed(f"{engine.value} does not answer within {_TIMEOUT} s") from ex
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["it ended without saying why"])[-1]
        raise EngineFailed(f"{engine.value} does not take {reference}: {last}")
    return True


def _image_id(engine: Engine, reference: str, run: Runner) -> str | None:
    """Return the id of the image that the engine has under this name."""
    done = run([engine.value, "image", "inspect", "--format", "{{.Id}}", reference])
    if done.returncode != 0:
        return None
    return f"sha256:{done.stdout.strip().removeprefix('sha256:')}"
