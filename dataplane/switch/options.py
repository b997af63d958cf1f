"""The command line of simple_switch_grpc, as far as it makes sense for a switch in the kernel.

General options come first, then `--` and the target's own, as BMv2 has it. Options that only matter inside BMv2 are
taken with a warning; options that would change what the switch does, and that it cannot do, are refused.
Ours alone are `--ready-fd`, `--exit-with-parent` and `--port-socket`, for launchers.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

DEFAULT_ADDRESS = "0.0.0.0:9559"
DEFAULT_CPU_PORT = 255
DEFAULT_DROP_PORT = 511
MAX_PORT = 511  # v1model's ports have 9 bits
LOG_LEVELS = ("trace", "debug", "info", "warn", "error", "off")


class UsageError(Exception):
    """The command line cannot be followed; the message is for the user."""


@dataclass(frozen=True)
class SwitchOptions:
    """What the switch is asked to do."""

    program: Path | None = None
    interfaces: tuple[tuple[int, str], ...] = ()
    device_id: int = 0
    address: str = DEFAULT_ADDRESS
    cpu_port: int = DEFAULT_CPU_PORT
    drop_port: int = DEFAULT_DROP_PORT
    log_console: bool = False
    log_file: Path | None = None
    log_level: str = "info"
    pcap_dir: Path | None = None
    ready_fd: int | None = None
    port_socket: str | None = None
    exit_with_parent: bool = False
    version: bool = False
    warnings: tuple[str, ...] = field(default=())


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see --help")


_IGNORED_FLAGS = ("--debugger", "--log-flush")
_IGNORED_VALUES = (
    "--thrift-port",
    "--nanolog",
    "--notifications-addr",
    "--debugger-addr",
    "--max-port-count",
    "--trace-dir",
    "--dump-packet-data",
    "--log-file-max-size",
    "--log-file-max-files",
)
_REFUSED = {
    "--use-files": "packets come from interfaces only",
    "--packet-in": "packets come from interfaces only",
    "--restore-state": "state cannot be restored from a file",
}
_TARGET_IGNORED_FLAGS = ("--disable-swap",)
_TARGET_IGNORED_VALUES = ("--priority-queues",)
_TARGET_REFUSED = {
    "--grpc-server-ssl": "TLS is not offered",
    "--grpc-server-cacert": "TLS is not offered",
    "--grpc-server-cert": "TLS is not offered",
    "--grpc-server-key": "TLS is not offered",
    "--grpc-server-with-client-auth": "TLS is not offered",
    "--dp-grpc-server-addr": "packets come from interfaces only",
    "--egress-spec-init-to-drop": "egress_spec starts at 0",
}


def _general_parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="p4ferry-switch",
        usage="p4ferry-switch [options] [JSON] [-- target options]",
        description="A P4 switch in the kernel, driven through P4Runtime. Takes simple_switch_grpc's options.",
        epilog=_target_parser().format_help().replace("options:", "Target options (after --):"),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("program", nargs="?", metavar="JSON", help="BMv2 JSON to run from the start")
    parser.add_argument(
        "-i", "--interface", action="append", default=[], metavar="PORT@INTF", help="bind a port; repeatable"
    )
    parser.add_argument(
        "--device-id", type=_number(0, (1 << 64) - 1), default=0, metavar="N", help="default 0"
    )
    parser.add_argument("--no-p4", action="store_true", help="start without a program")
    parser.add_argument("--log-console", action="store_true", help="log to standard output")
    parser.add_argument("--log-file", type=Path, metavar="FILE", help="log to a file")
    parser.add_argument("-L", "--log-level", choices=LOG_LEVELS, default="info", help="default info")
    parser.add_argument(
        "--pcap", nargs="?", const=".", metavar="DIR", help="write INTF_in.pcap and INTF_out.pcap"
    )
    parser.add_argument("-v", "--version", action="store_true", help="print the version")
    parser.add_argument(
        "--ready-fd",
        type=_number(0, 1 << 20),
        metavar="N",
        help="write the address to this descriptor when serving",
    )
    parser.add_argument(
        "--port-socket",
        metavar="NAME",
        help="take `add PORT INTF` and `remove PORT` on an abstract Unix socket",
    )
    parser.add_argument("--exit-with-parent", action="store_true", help="end when the parent process ends")
    _add_others(parser, _IGNORED_FLAGS, _IGNORED_VALUES, _REFUSED)
    return parser


def _target_parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="p4ferry-switch", usage=argparse.SUPPRESS, add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--grpc-server-addr", default=DEFAULT_ADDRESS, metavar="ADDR", help=f"default {DEFAULT_ADDRESS}"
    )
    parser.add_argument(
        "--cpu-port", type=_number(1, MAX_PORT), default=DEFAULT_CPU_PORT, metavar="N",
        help=f"packet-in and packet-out; default {DEFAULT_CPU_PORT}",
    )  # fmt: skip
    parser.add_argument(
        "--drop-port", type=_number(0, MAX_PORT), default=DEFAULT_DROP_PORT, metavar="N",
        help=f"default {DEFAULT_DROP_PORT}",
    )  # fmt: skip
    _add_others(parser, _TARGET_IGNORED_FLAGS, _TARGET_IGNORED_VALUES, _TARGET_REFUSED)
    return parser


def _add_others(
    parser: argparse.ArgumentParser, flags: Sequence[str], values: Sequence[str], refused: dict[str, str]
) -> None:
    for option in flags:
        parser.add_argument(option, action="append_const", const=option, dest="ignored", help="ignored")
    for option in values:
        parser.add_argument(option, metavar="X", action=_Ignore, help="ignored")
    for option in refused:
        parser.add_argument(option, nargs="?", action=_Refuse, help=argparse.SUPPRESS)


class _Ignore(argparse.Action):
    def __call__(
        self, parser: object, namespace: argparse.Namespace, values: object, option_string: str | None = None
    ) -> None:
        namespace.ignored = [*(getattr(namespace, "ignored", None) or []), self.option_strings[0]]


class _Refuse(argparse.Action):
    def __call__(
        self, parser: object, namespace: object, values: object, option_string: str | None = None
    ) -> NoReturn:
        option = self.option_strings[0]
        raise UsageError(f"{option} is not possible here: {(_REFUSED | _TARGET_REFUSED)[option]}")


class _number:  # noqa: N801 - argparse prints the name of a type
    """An integer within limits."""

    def __init__(self, low: int, high: int) -> None:
        self.low, self.high = low, high

    def __call__(self, text: str) -> int:
        try:
            value = int(text, 0)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not self.low <= value <= self.high:
            raise argparse.ArgumentTypeError(f"{value} is not in {self.low}..{self.high}")
        return value


def parse_options(arguments: Sequence[str]) -> SwitchOptions:
    """Parse a command line; raises UsageError. `--help` prints and raises SystemExit."""
    words = list(arguments)
    split = words.index("--") if "--" in words else len(words)
    general = _general_parser().parse_args(words[:split])
    target = _target_parser().parse_args(words[split + 1 :])
    if general.version:
        return SwitchOptions(version=True)
    if general.pcap is not None and general.program is None and general.pcap.endswith(".json"):
        general.program, general.pcap = general.pcap, "."  # `--pcap JSON`: BMv2 takes DIR only as --pcap=DIR
    ignored = [*(getattr(general, "ignored", None) or []), *(getattr(target, "ignored", None) or [])]
    warnings = [f"{option} has no effect on this switch" for option in ignored]
    if general.no_p4 and general.program is not None:
        warnings.append(f"{general.program} is ignored because of --no-p4")
    options = SwitchOptions(
        program=Path(general.program) if general.program and not general.no_p4 else None,
        interfaces=_interfaces(general.interface),
        device_id=general.device_id,
        address=target.grpc_server_addr,
        cpu_port=target.cpu_port,
        drop_port=target.drop_port,
        log_console=general.log_console,
        log_file=general.log_file,
        log_level=general.log_level,
        pcap_dir=Path(general.pcap) if general.pcap is not None else None,
        ready_fd=general.ready_fd,
        port_socket=general.port_socket,
        exit_with_parent=general.exit_with_parent,
        warnings=tuple(warnings),
    )
    _check(options, general.no_p4)
    return options


def _interfaces(texts: Sequence[str]) -> tuple[tuple[int, str], ...]:
    ports: dict[int, str] = {}
    for text in texts:
        number, at, name = text.partition("@")
        if not at or not number.isdecimal() or not name:
            raise UsageError(f"--interface {text}: write PORT@INTF, for example 1@veth1")
        port = int(number)
        if port > MAX_PORT:
            raise UsageError(f"--interface {text}: ports are 0..{MAX_PORT}")
        if port in ports or name in ports.values():
            raise UsageError(f"--interface {text}: this port or this interface is given twice")
        ports[port] = name
    return tuple(ports.items())


def _check(options: SwitchOptions, no_p4: bool) -> None:
    if options.log_console and options.log_file:
        raise UsageError("--log-console and --log-file exclude each other")
    if options.program is None and not no_p4:
        raise UsageError("give a BMv2 JSON file to run, or --no-p4 to start without one")
    if options.program is not None and not options.program.is_file():
        raise UsageError(f"{options.program}: there is no such file")
    if options.pcap_dir is not None and not options.pcap_dir.is_dir():
        raise UsageError(f"--pcap {options.pcap_dir}: there is no such directory")
    if options.cpu_port == options.drop_port:
        raise UsageError(f"--cpu-port and --drop-port are both {options.cpu_port}")
    for port, name in options.interfaces:
        if port in (options.cpu_port, options.drop_port):
            what = "CPU" if port == options.cpu_port else "drop"
            raise UsageError(f"--interface {port}@{name}: {port} is the {what} port")
    if ":" not in options.address:
        raise UsageError(f"--grpc-server-addr {options.address}: write ADDRESS:PORT")
