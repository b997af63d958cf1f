"""The command p4ferry-p4c."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .driver import Compiled, Options, compile_file, preprocess
from .errors import CompileError
from .options import SUFFIXES, VERSION, UsageError, macro_definitions, parse_options

if TYPE_CHECKING:
    import argparse

    from finsy.proto import p4i


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    try:
        options = parse_options(sys.argv[1:] if argv is None else argv)
        if options.version:
            print(f"p4ferry-p4c {VERSION} (BMv2 JSON 2.23)")
            return 0
        return run(options)
    except UsageError as ex:
        print(f"p4ferry-p4c: error: {ex} (--help lists the options)", file=sys.stderr)
    except CompileError as ex:
        print(ex, file=sys.stderr)
        print(f"{count_errors(str(ex))} error(s)", file=sys.stderr)
    except RecursionError:
        print("p4ferry-p4c: error: the program is nested too deeply", file=sys.stderr)
    except Exception as ex:
        # A mistake of ours; whoever looks for it sets P4FERRY_DEBUG.
        if os.environ.get("P4FERRY_DEBUG"):
            raise
        print(f"p4ferry-p4c: internal error, please report it: {type(ex).__name__}: {ex}", file=sys.stderr)
    return 1


def count_errors(text: str) -> int:
    """Count the errors in the compiler's messages."""
    return sum(1 for line in text.splitlines() if ": error: " in line)


def run(options: argparse.Namespace) -> int:
    """Compile as the options say."""
    disabled = frozenset(kind for kind in options.Wdisable if kind)
    read = Options(
        options.include_dirs,
        macro_definitions(options.defines),
        options.undefines,
        None if "" in options.Wdisable else disabled,
        options.Werror,
        max(1, options.maxErrorCount),
    )
    if options.preprocess_only:
        return print_preprocessed(options, read)
    compiled = compile_file(options.program, read)
    if compiled.warnings:
        print(compiled.warnings, file=sys.stderr)
    write_outputs(options, compiled)
    return 0


def print_preprocessed(options: argparse.Namespace, read: Options) -> int:
    """Do what -E asks for."""
    from .preprocessor import render

    tokens, diagnostics = preprocess(options.program, read)
    text = render(tokens, diagnostics.sources)
    if options.output is not None:
        write(options.output, text.encode())
    else:
        sys.stdout.write(text)
    diagnostics.check()
    return 0


def write_outputs(options: argparse.Namespace, compiled: Compiled) -> None:
    """Write the files that were asked for, P4Info last."""
    targets = [
        (Path(name), SUFFIXES[Path(name).suffix])
        for name in (options.p4runtime_files or "").split(",")
        if name
    ]
    if options.p4runtime_file is not None:
        targets.append((options.p4runtime_file, options.p4runtime_format))
    p4info = compiled.p4info if targets else None
    if options.output is not None:
        write(options.output, (json.dumps(compiled.bmv2_json, indent=2) + "\n").encode())
    for path, form in targets:
        assert p4info is not None
        write(path, encode_p4info(p4info, form))


def encode_p4info(p4info: p4i.P4Info, form: str) -> bytes:
    """Encode P4Info as text, binary or JSON."""
    if form == "binary":
        # Maps have no order of their own; the same program gives the same bytes.
        return bytes(p4info.SerializeToString(deterministic=True))
    if form == "json":
        from google.protobuf import json_format

        return (json_format.MessageToJson(p4info, preserving_proto_field_name=False) + "\n").encode()
    from google.protobuf import text_format

    return text_format.MessageToString(p4info).encode()


def write(path: Path, content: bytes) -> None:
    """Write a file; what is wrong with it is one sentence."""
    try:
        path.write_bytes(content)
    except OSError as ex:
        raise CompileError(f"p4ferry-p4c: error: cannot write '{path}': {ex.strerror}") from ex


if __name__ == "__main__":
    sys.exit(main())
