"""`python -m dataplane.switch.engine.check PROGRAM…`: does this kernel's verifier take these programs?

A PROGRAM is a P4 source, a BMv2 JSON, generated C, an object that was compiled earlier, or a folder of these. Each is
compiled where it has to be, and loaded; nothing is attached. Printed is what came of it: loaded, refused (by us, by
name), or rejected by the verifier, and the verifier's effort.

`--objects DIR` only compiles, into that folder. Given such a folder, this module needs nothing but Python 3.10 and
libbpf 1.x: programs compiled on one machine can be loaded on the kernel of another.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from dataplane.switch.engine.libbpf import Object, VerifierRejected
from dataplane.switch.engine.verifier import summary
from dataplane.switch.pipeline import PipelineError, PipelineRejected

LOADED, REFUSED, REJECTED = "loaded", "refused", "rejected"
_SOURCES = (".p4", ".json", ".c")
_COMPILED = (".o", ".refused")
_PROCESSED = re.compile(r"processed (\d+) insns .*? peak_states (\d+)")
_TOOK = re.compile(r"verification time (\d+) usec")


class UsageError(Exception):
    """The command cannot be carried out; the message is for the user."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one program; a number is 0 where it is not known."""

    program: str
    outcome: str
    reason: str = ""
    instructions: int = 0
    """Of the program, as the kernel runs it."""
    verified: int = 0
    """Instructions that the verifier went through."""
    states: int = 0
    """That the verifier kept at the same time."""
    verifier_ms: float = 0
    load_ms: float = 0


@dataclass(frozen=True, slots=True)
class Compiled:
    """A program ready to be loaded, or why there is none."""

    name: str
    data: bytes = b""
    source: str = ""
    refused: str = ""


def find(paths: Sequence[Path]) -> Iterator[Path]:
    """Yield the programs that the paths name; of a folder, the compiled ones if it has any."""
    for path in paths:
        if not path.exists():
            raise UsageError(f"{path}: there is no such file or folder")
        if not path.is_dir():
            if path.suffix not in (*_SOURCES, *_COMPILED):
                raise UsageError(
                    f"{path}: is no P4 source, BMv2 JSON, C source or object (.p4, .json, .c, .o)"
                )
            yield path
            continue
        inside = sorted(child for child in path.iterdir() if child.is_file())
        compiled = [child for child in inside if child.suffix in _COMPILED]
        found = compiled or [child for child in inside if child.suffix in _SOURCES]
        if not found:
            raise UsageError(f"{path}: there is no program in this folder (.p4, .json, .c, .o)")
        yield from found


def compiled(path: Path, clang: str) -> Compiled:
    """Return a program as an object, compiling it if need be."""
    name = path.stem
    if path.suffix == ".refused":
        return Compiled(name, refused=path.read_text().strip())
    if path.suffix == ".o":
        source = path.with_suffix(".c")
        return Compiled(name, path.read_bytes(), source.read_text() if source.exists() else "")
    from dataplane.switch.engine.clang import Compiler, default_cache

    try:
        text = _c_source(path)
        return Compiled(name, Compiler(default_cache(), clang).compile(text), text)
    except PipelineRejected as ex:
        return Compiled(name, refused=str(ex))


def _c_source(path: Path) -> str:
    """Return the C source of a program; raises PipelineRejected."""
    from dataplane.switch.engine.source import Options, generate

    if path.suffix == ".c":
        return path.read_text()
    data = path.read_bytes() if path.suffix == ".json" else _compile_p4(path)
    return generate(data, Options()).text


def _compile_p4(path: Path) -> bytes:
    from dataplane.compiler import CompileError, compile_program

    try:
        return json.dumps(compile_program(path).bmv2_json).encode()
    except CompileError as ex:
        raise PipelineRejected(str(ex)) from ex


def keep(program: Compiled, folder: Path) -> None:
    """Write a compiled program to a folder, its C beside it."""
    if program.refused:
        (folder / f"{program.name}.refused").write_text(f"{program.refused}\n")
        return
    (folder / f"{program.name}.o").write_bytes(program.data)
    (folder / f"{program.name}.c").write_text(program.source)


def check(program: Compiled) -> Result:
    """Load a program, and let it go again; raises PermissionError."""
    if program.refused:
        return Result(program.name, REFUSED, program.refused)
    start = time.perf_counter()
    try:
        loaded = Object(program.data, statistics=True)
    except VerifierRejected as ex:
        if isinstance(ex.__cause__, PermissionError) or (not ex.log.strip() and os.geteuid() != 0):
            raise PermissionError from ex
        reason = summary(ex.log, program.source) if ex.log.strip() else f"the kernel says: {ex}"
        return Result(program.name, REJECTED, reason, load_ms=_ms(start))
    took = _ms(start)
    try:
        processed, spent = _PROCESSED.search(loaded.log), _TOOK.search(loaded.log)
        return Result(
            program.name,
            LOADED,
            instructions=loaded.instructions(),
            verified=int(processed[1]) if processed else loaded.verified_insns(),
            states=int(processed[2]) if processed else 0,
            verifier_ms=int(spent[1]) / 1000 if spent else 0,
            load_ms=took,
        )
    finally:
        loaded.close()


def _ms(start: float) -> float:
    return round((time.perf_counter() - start) * 1000, 1)


def line(result: Result) -> str:
    """Return a result as a line of the table."""
    if result.outcome != LOADED:
        return f"{result.outcome:8}  {result.program}: {result.reason}"
    return (
        f"{result.outcome:8}  {result.program}: {result.instructions} instructions, {result.verified} verified, "
        f"{result.states} states, {result.verifier_ms:.1f} ms in the verifier, {result.load_ms:.0f} ms to load"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Check the programs of a command line; the status is 1 if the verifier rejects one."""
    parser = argparse.ArgumentParser(
        prog="dataplane.switch.engine.check", description="Load programs, attach nothing."
    )
    parser.add_argument(
        "programs", nargs="+", type=Path, metavar="PROGRAM", help=".p4, .json, .c, .o, or a folder"
    )
    parser.add_argument("--objects", type=Path, metavar="DIR", help="only compile, into this folder")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results there, too")
    parser.add_argument("--clang", default="clang", help="the compiler (%(default)s)")
    options = parser.parse_args(arguments)
    try:
        if options.objects is not None:
            return _compile_all(options.programs, options.objects, options.clang)
        return _check_all(options.programs, options.json, options.clang)
    except UsageError as ex:
        return _complain(str(ex), 2)
    except PermissionError as ex:
        return _complain(
            f"{ex.filename}: {ex.strerror}" if ex.filename else "loading a program needs root", 1
        )
    except OSError as ex:
        return _complain(f"{ex.filename}: {ex.strerror}", 1)
    except PipelineError as ex:
        return _complain(str(ex), 1)


def _complain(message: str, status: int) -> int:
    print(f"check: {message}", file=sys.stderr)
    return status


def _compile_all(paths: Sequence[Path], folder: Path, clang: str) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    names: set[str] = set()
    for path in find(paths):
        program = compiled(path, clang)
        if program.name in names:
            raise UsageError(
                f"{path}: another program is called {program.name}, too; compile it to another folder"
            )
        names.add(program.name)
        keep(program, folder)
        print(f"{'refused' if program.refused else 'compiled':8}  {program.name} {program.refused}".rstrip())
    return 0


def _check_all(paths: Sequence[Path], report: Path | None, clang: str) -> int:
    results: list[Result] = []
    for path in find(paths):
        results.append(check(compiled(path, clang)))
        print(line(results[-1]), flush=True)
    counts = {outcome: sum(r.outcome == outcome for r in results) for outcome in (LOADED, REFUSED, REJECTED)}
    print(f"{platform.release()}: " + ", ".join(f"{number} {outcome}" for outcome, number in counts.items()))
    if report is not None:
        kernel = {"kernel": platform.release(), "machine": platform.machine()}
        report.write_text(json.dumps(kernel | {"programs": [asdict(r) for r in results]}, indent=2) + "\n")
    return 1 if counts[REJECTED] else 0


if __name__ == "__main__":
    sys.exit(main())
