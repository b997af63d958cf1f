"""Images that hold nothing of the distribution's: made here, in a moment, without a package.

pause   one static program without a C library, compiled from pause.c: the first process of a pod's sandbox
host    empty folders and /usr's usual links: a root for programs that are the machine's own, mounted into it
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from ..errors import BuildFailed
from ..oci.layer import Node, link, tree

_SOURCES = Path(__file__).resolve().parent
# fmt: off
_FLAGS = ("-O2", "-static", "-nostdlib", "-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fno-ident",
          "-Wl,--build-id=none", "-Wl,-z,noseparate-code", "-Wl,-s")
# fmt: on
# What engines and containers have mounted over, and the folders that programs expect.
_FOLDERS = ("dev", "etc", "proc", "sys", "tmp")
_OF_A_HOST = (*_FOLDERS, "home", "opt", "root", "run", "srv", "usr", "var/tmp")
_LINKS = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")  # into usr/, as on every current Debian


def key_of(name: str) -> str:
    """Return all that decides what an image becomes: for a program its source and the compiler's options."""
    if name == "host":
        return " ".join((*_OF_A_HOST, *_LINKS))
    return f"{' '.join(_FLAGS)}\n{(_SOURCES / f'{name}.c').read_text()}"


def files(name: str) -> dict[str, Node]:
    """Return an image's files; raises BuildFailed."""
    if name == "host":
        links = [link(top, f"usr/{top}") for top in _LINKS]
        return tree([*(Node(path, 0o755) for path in _OF_A_HOST), *links])
    return tree([Node(name, 0o755, _compile(name)), *(Node(path, 0o755) for path in _FOLDERS)])


def _compile(name: str) -> bytes:
    compiler = shutil.which("clang")
    if compiler is None:
        raise BuildFailed(f"the image {name} is compiled, and clang is not installed (type: make setup)")
    with tempfile.TemporaryDirectory(prefix="p4ferry-images-") as folder:
        made = Path(folder) / name
        command = [compiler, *_FLAGS, "-o", str(made), str(_SOURCES / f"{name}.c")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            lines = (done.stderr + done.stdout).strip().splitlines() or ["it ended without saying why"]
            raise BuildFailed(f"clang does not compile {name}.c: {lines[0]}")
        return made.read_bytes()
