"""Programs of ours that are an image by themselves: one C file here, one static file in the image, no C library."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from ..errors import BuildFailed
from ..oci.layer import Node, tree

_SOURCES = Path(__file__).resolve().parent
# fmt: off
_FLAGS = ("-O2", "-static", "-nostdlib", "-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-fno-ident",
          "-Wl,--build-id=none", "-Wl,-z,noseparate-code", "-Wl,-s")
# fmt: on
# What engines and containers have mounted over, and the folders that programs expect.
_FOLDERS = ("dev", "etc", "proc", "sys", "tmp")


def source_of(name: str) -> bytes:
    """Return a program's C source."""
    return (_SOURCES / f"{name}.c").read_bytes()


def recipe_of(name: str) -> str:
    """Return all that decides what a program becomes: the compiler's options and the source."""
    return f"{' '.join(_FLAGS)}\n{source_of(name).decode()}"


def files(name: str) -> dict[str, Node]:
    """Compile a program, and return its image's files; raises BuildFailed."""
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
        program = Node(name, 0o755, made.read_bytes())
    return tree([program, *(Node(path, 0o755) for path in _FOLDERS)])
