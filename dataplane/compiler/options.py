"""The command line: p4c-bm2-ss's options."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from .errors import MAX_ERRORS

VERSION = "0.1.0"
FORMATS = ("text", "binary", "json")
SUFFIXES = {
    ".txt": "text",
    ".txtpb": "text",
    ".textproto": "text",
    ".bin": "binary",
    ".pb": "binary",
    ".json": "json",
}
# Options of p4c-bm2-ss that ask for something this compiler does not do.
REFUSED = {
    "--toJSON": "dumping the compiler's own tree",
    "--fromJSON": "reading another compiler's tree",
    "--p4runtime-entries-files": "writing P4Runtime entries",
    "--p4runtime-entries-file": "writing P4Runtime entries",
    "--pp": "pretty-printing the program",
    "--top4": "dumping the compiler's passes",
    "--dump": "dumping the compiler's passes",
    "--parser-inline-opt": "inlining parsers in p4c's other way",
    "--loopsUnroll": "unrolling loops",
    "--ndebug": "leaving assert and assume out",
}


class UsageError(Exception):
    """The command line is wrong; the message is one sentence."""


class Parser(argparse.ArgumentParser):
    """Raises UsageError instead of exiting."""

    def error(self, message: str) -> None:  # type: ignore[override]
        """Report a wrong command line."""
        raise UsageError(message)


def build_parser() -> Parser:
    """Return the parser of the command line."""
    parser = Parser(
        prog="p4ferry-p4c",
        description="Compile P4_16 (v1model) to BMv2 JSON and P4Info. Takes the options of p4c-bm2-ss.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("program", nargs="?", type=Path, metavar="FILE", help="the P4_16 program")
    add("-o", dest="output", type=Path, metavar="FILE", help="write the BMv2 JSON here")
    add(
        "--p4runtime-files",
        metavar="FILES",
        help="write P4Info to these files (comma separated; .txt .txtpb .bin .json)",
    )
    add("--p4runtime-file", type=Path, metavar="FILE", help="write P4Info here, in --p4runtime-format")
    add(
        "--p4runtime-format",
        choices=FORMATS,
        default="binary",
        help="the format of --p4runtime-file (default: binary)",
    )
    add(
        "-I",
        dest="include_dirs",
        action="append",
        default=[],
        type=Path,
        metavar="DIR",
        help="look for #include files here",
    )
    add("-D", dest="defines", action="append", default=[], metavar="NAME[=VALUE]", help="define a macro")
    add("-U", dest="undefines", action="append", default=[], metavar="NAME", help="undefine a macro")
    add("-E", dest="preprocess_only", action="store_true", help="print the preprocessed program and stop")
    add("--std", dest="std", default="p4-16", metavar="p4-16", help="the language's version")
    add(
        "--p4v",
        "--p4-16",
        dest="p4v",
        nargs="?",
        const="16",
        default="16",
        metavar="16",
        help="the language's version",
    )
    add("--arch", default="v1model", metavar="v1model", help="the architecture")
    add("--target", "-b", default="bmv2", metavar="bmv2", help="the target")
    add("--emit-externs", action="store_true", help="accepted; all externs of v1model are always written")
    add(
        "--Wdisable",
        nargs="?",
        const="",
        action="append",
        default=[],
        metavar="KIND",
        help="silence a kind of warnings, or all",
    )
    add("--Werror", action="store_true", help="treat warnings as errors")
    add("--nocpp", action="store_true", help="refuse: the preprocessor is built in")
    add(
        "-T",
        dest="trace",
        action="append",
        default=[],
        metavar="LEVEL",
        help="accepted and ignored: this compiler writes no trace",
    )
    add("-v", action="count", dest="verbose", help="accepted and ignored")
    add(
        "--Wwarn",
        nargs="?",
        action="append",
        default=[],
        help="accepted: warnings are shown unless --Wdisable says otherwise",
    )
    add(
        "--maxErrorCount", type=int, default=MAX_ERRORS, metavar="N", help="stop after N errors (default: 20)"
    )
    add("--version", action="store_true", help="print the version and stop")
    for option, what in REFUSED.items():
        add(
            option,
            nargs="?",
            const="",
            dest="refused_" + option.strip("-").replace("-", "_"),
            help=f"refused: {what}",
        )
    return parser


def parse_options(argv: Sequence[str]) -> argparse.Namespace:
    """Read and check the command line; raises UsageError."""
    # -DNAME=1 and -Idir as well as -D NAME=1 are understood by argparse itself.
    options = build_parser().parse_args(list(argv))
    if options.version:
        return options
    for option, what in REFUSED.items():
        if getattr(options, "refused_" + option.strip("-").replace("-", "_")) is not None:
            raise UsageError(f"{option} ({what}) is not supported")
    if options.nocpp:
        raise UsageError("--nocpp is not supported: the preprocessor is built in")
    if options.std not in ("p4-16", "p4_16", "p4") or options.p4v not in ("16", "p4-16"):
        raise UsageError(
            "only P4_16 is supported; translate the program to P4_16 first (p4test --std p4-14 does)"
        )
    if options.arch != "v1model":
        raise UsageError(f"architecture '{options.arch}' is not supported; only v1model is")
    if options.target != "bmv2":
        raise UsageError(f"target '{options.target}' is not supported; only bmv2 is")
    if options.program is None:
        raise UsageError("name a P4 program to compile")
    for name in options.p4runtime_files.split(",") if options.p4runtime_files else []:
        if Path(name).suffix not in SUFFIXES:
            raise UsageError(f"--p4runtime-files: '{name}' must end in one of {', '.join(SUFFIXES)}")
    return options


def macro_definitions(written: Sequence[str]) -> dict[str, str]:
    """Split -D NAME=VALUE; a bare name is 1."""
    result = {}
    for definition in written:
        name, equals, value = definition.partition("=")
        if not name.isidentifier():
            raise UsageError(f"-D: '{name}' is not a name")
        result[name] = value if equals else "1"
    return result
