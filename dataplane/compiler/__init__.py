"""P4_16 (v1model) to BMv2 JSON and P4Info; README.md says what is supported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from .driver import Compiled, Options, compile_file
from .errors import CompileError


def compile_program(
    path: Path | str, include_dirs: Sequence[Path | str] = (), defines: Mapping[str, str] | None = None
) -> Compiled:
    """Compile a P4_16 program; raises CompileError, whose str() has positions, source lines and carets."""
    return compile_file(Path(path), Options([Path(d) for d in include_dirs], dict(defines or {})))


__all__ = ["CompileError", "Compiled", "compile_program"]
