"""The stages in a row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import ir
from .bmv2 import to_json
from .checker import Checker
from .errors import MAX_ERRORS, Abort, CompileError, Diagnostics
from .lexer import Token
from .midend import lower_program
from .parser import Parser
from .preprocessor import Preprocessor
from .source import Sources

if TYPE_CHECKING:
    from finsy.proto import p4i


@dataclass(frozen=True)
class Compiled:
    """A compiled program: BMv2's JSON, and the P4Info on demand."""

    bmv2_json: dict[str, Any]
    program: ir.Program = field(repr=False)
    diagnostics: Diagnostics = field(repr=False)

    @cached_property
    def p4info(self) -> p4i.P4Info:
        """Return the P4Info (protobuf is only imported for it)."""
        from .p4info import to_p4info

        return to_p4info(self.program, self.diagnostics)

    @property
    def warnings(self) -> str:
        """Return the warnings as text."""
        return self.diagnostics.render("warning")


@dataclass(frozen=True)
class Options:
    """What changes how a program is read."""

    include_dirs: Sequence[Path] = ()
    defines: Mapping[str, str] = field(default_factory=dict)
    undefines: Sequence[str] = ()
    disabled_warnings: frozenset[str] | None = frozenset()
    warnings_are_errors: bool = False
    max_errors: int = MAX_ERRORS


def read_program(path: Path) -> str:
    """Read a source file; what is wrong with it is one sentence."""
    try:
        return path.read_text(encoding="utf-8")
    except OSError as ex:
        raise CompileError(f"p4ferry-p4c: error: cannot read '{path}': {ex.strerror}") from ex
    except UnicodeDecodeError as ex:
        raise CompileError(f"p4ferry-p4c: error: cannot read '{path}': it is not UTF-8 text") from ex


def preprocess(path: Path, options: Options) -> tuple[list[Token], Diagnostics]:
    """Read a program and do the preprocessor's work."""
    text = read_program(path)
    sources = Sources()
    diagnostics = Diagnostics(sources)
    diagnostics.disabled_warnings = (
        None if options.disabled_warnings is None else set(options.disabled_warnings)
    )
    diagnostics.warnings_are_errors = options.warnings_are_errors
    diagnostics.max_errors = options.max_errors
    preprocessor = Preprocessor(sources, diagnostics, options.include_dirs)
    tokens = preprocessor.run(path, text, options.undefines, options.defines)
    return tokens, diagnostics


def compile_file(path: Path, options: Options) -> Compiled:
    """Compile a program; raises CompileError with all messages."""
    tokens, diagnostics = preprocess(path, options)
    diagnostics.check()
    tree = Parser(tokens, diagnostics).program()
    diagnostics.check()
    checker = Checker(diagnostics)
    checker.program(tree)
    diagnostics.check()
    try:
        program = lower_program(checker, tree, diagnostics)
        diagnostics.check()
        document = to_json(program, diagnostics, str(path))
    except Abort as ex:
        raise CompileError(diagnostics.render()) from ex
    diagnostics.check()
    return Compiled(document, program, diagnostics)
