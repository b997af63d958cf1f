"""Compile P4 programs for a target, once: outputs stay in the build folder until a source changes.

The embedded target's compiler is `p4ferry-p4c`, BMv2's is `p4c-bm2-ss` from PATH; both are called the same way, as
commands, because that is the boundary between them and us.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from migration.slowness import scaled
from topo import paths
from topo.errors import CompileFailed, MissingTool

_TIMEOUT = scaled(120.0)  # seconds


class Target(str, Enum):
    """What runs the P4 programs."""

    EBPF = "ebpf"
    BMV2 = "bmv2"


@dataclass(frozen=True)
class CompiledProgram:
    """The two outputs of a P4 compiler."""

    bmv2_json: Path
    p4info: Path


def compiler_command(target: Target) -> list[str]:
    """Return how the target's compiler is called; raises MissingTool."""
    if target is Target.EBPF:
        return [sys.executable, "-m", "dataplane.compiler"]
    binary = shutil.which("p4c-bm2-ss")
    if binary is None:
        raise MissingTool("p4c-bm2-ss is not on PATH: install p4c, or use --target ebpf")
    return [binary]


def compile_p4(source: Path, target: Target, build: Path = paths.BUILD) -> CompiledProgram:
    """Compile `source` unless its outputs are up to date; raises CompileFailed, MissingTool."""
    if not source.is_file():
        raise CompileFailed(f"P4 source {source} is not there")
    command = compiler_command(target)
    key = _fingerprint(command, _inputs(source, target))
    folder = build / target.value / f"{source.stem}-{key}"
    program = CompiledProgram(folder / f"{source.stem}.json", folder / f"{source.stem}.p4info.txtpb")
    if program.bmv2_json.exists() and program.p4info.exists():
        return program
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / "partial.json"  # renamed last, so that an interrupted run leaves no half output
    # fmt: off
    command += ["--p4v", "16", "--arch", "v1model", "-I", str(source.parent), "-o", str(partial),
                "--p4runtime-files", str(program.p4info), str(source)]
    # fmt: on
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=_TIMEOUT, check=False, cwd=paths.CHECKOUT
        )
    except subprocess.TimeoutExpired as ex:
        raise CompileFailed(f"compiling {source} took longer than {_TIMEOUT} s") from ex
    if done.returncode != 0:
        raise CompileFailed(done.stderr.strip() or f"{command[0]} failed on {source}")
    partial.rename(program.bmv2_json)
    paths.give_to_owner(build.parent, build, folder.parent, folder, *folder.iterdir())
    return program


def _inputs(source: Path, target: Target) -> Iterable[Path]:
    """List what the outputs depend on: the sources beside it, and our compiler itself."""
    yield from sorted(source.parent.glob("*.p4"))
    if target is Target.EBPF:
        compiler = paths.CHECKOUT / "dataplane" / "compiler"
        yield from sorted(p for p in compiler.rglob("*") if p.suffix in (".py", ".p4"))


def _fingerprint(command: list[str], inputs: Iterable[Path]) -> str:
    digest = hashlib.sha256(repr(command).encode())
    for path in inputs:
        stat = path.stat()
        digest.update(f"{path}:{stat.st_size}:{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
