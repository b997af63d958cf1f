#!/usr/bin/env python3
"""A TCP echo server, and a client that measures what happens to its connections.

    tcp_echo.py server [--host ADDRESS] [--port 7000] [--udp] [--bulk]
    tcp_echo.py client --connect HOST:PORT [--connections N] [--rate R] [--size BYTES]
                       [--duration S | --requests N] [--json FILE|-] [--status FILE] [--bulk]

Without --duration and --requests the client goes on until SIGINT or SIGTERM. It prints its result as JSON
(echo/client.py says what is in it) and leaves with status 0 if every byte came back on the connections that
it began with. --status names a file that holds the result so far, replaced ten times a second.
Standard library only; the server runs without what it does not need, since every page of a program takes time
to move.
"""

from __future__ import annotations

import os
import signal
import sys

if __package__ in (None, ""):
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))  # noqa: PTH100,PTH120

import argparse

TYPE_CHECKING = False  # typing itself stays out of memory
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, NoReturn


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without repeating the usage."""

    def error(self, message: str) -> NoReturn:
        """Leave with status 2."""
        self.exit(2, f"{self.prog}: {message} (--help lists the options)\n")


def parse(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(prog="tcp_echo.py", description="TCP echo server and measuring client")
    modes = parser.add_subparsers(dest="mode", required=True)
    server = modes.add_parser("server", help="echo what comes in")
    server.add_argument("--host", default="0.0.0.0", help="address to listen on (:: for IPv4 and IPv6)")
    server.add_argument("--port", type=_port, default=7000)
    server.add_argument("--udp", action="store_true", help="echo datagrams as well")
    server.add_argument("--bulk", action="store_true", help="stream in both directions instead of echoing")
    client = modes.add_parser("client", help="send requests and measure")
    client.add_argument("--connect", required=True, metavar="HOST:PORT", type=_endpoint)
    client.add_argument("--connections", type=_positive, default=1, metavar="N")
    client.add_argument(
        "--rate", type=float, default=1000.0, help="requests a second, of all connections together (1000)"
    )
    client.add_argument("--size", type=_positive, default=64, help="bytes of a request, a multiple of 8 (64)")
    until = client.add_mutually_exclusive_group()
    until.add_argument("--duration", type=float, metavar="S", help="seconds to run")
    until.add_argument("--requests", type=_positive, metavar="N", help="requests to send, of all connections")
    client.add_argument("--json", metavar="FILE", default="-", help="where the result goes (-: stdout)")
    client.add_argument("--status", metavar="FILE", help="keep the result so far in this file")
    client.add_argument("--wait", type=float, default=5.0, metavar="S", help="seconds to wait for the server")
    client.add_argument("--bulk", action="store_true", help="stream at full speed in both directions")
    options = parser.parse_args(argv)
    if options.mode == "client":
        if not options.rate > 0:
            client.error(f"argument --rate: {options.rate} is not a rate; it must be more than 0")
        if options.size % 8:
            client.error(f"argument --size: {options.size} is not a multiple of 8")
        if options.bulk and options.requests:
            client.error("argument --requests: --bulk has no requests; use --duration")
    return options


def _port(text: str) -> int:
    if not text.isdigit() or not 0 <= int(text) < 65536:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port number")
    return int(text)


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _endpoint(text: str) -> tuple[str, int]:
    host, found, port = text.rpartition(":")
    if not found or not host:
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), _port(port)


def serve(options: argparse.Namespace) -> NoReturn:
    """Become the server, in a fresh interpreter without the modules that read the command line."""
    # Compiled here, if it has not been: compiling would leave memory behind in the server.
    sys.dont_write_bytecode = False
    import apps.echo.server  # noqa: F401

    call = f"run({options.host!r}, {options.port}, {options.udp}, {options.bulk})"
    code = (
        f"import sys; sys.path.insert(0, {sys.path[0]!r}); from apps.echo.server import run; sys.exit({call})"
    )
    environment = {**os.environ, "LC_ALL": "C"}  # without the files of a locale, which would be mapped
    os.execve(sys.executable, [sys.executable, "-S", "-E", "-c", code], environment)


def measure(options: argparse.Namespace) -> int:
    """Run a client and print its result."""
    import json

    from apps.echo.bulk_client import BulkClient
    from apps.echo.client import Client, Load, Unreachable
    from apps.status import replace

    client: Client | BulkClient
    if options.bulk:
        client = BulkClient(options.connections, options.duration)
    else:
        load = Load(options.connections, options.rate, options.size, options.duration, options.requests)
        client = Client(load, _status_writer(options.status) if options.status else None)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: client.stop())
    try:
        host, port = options.connect
        result = client.run(host, port, options.wait)
    except Unreachable as ex:
        print(f"tcp_echo: {ex}", file=sys.stderr)
        return 1
    text = json.dumps(result)
    if options.json == "-":
        print(text, flush=True)
    else:
        replace(options.json, text + "\n")
    return 0 if _is_clean(result) else 2


def _is_clean(result: dict[str, object]) -> bool:
    wrong = ("lost_bytes", "duplicated_bytes", "corrupt_bytes", "resets", "errors")
    return not any(result.get(key) for key in wrong) and result.get("hashes_equal", True) is True


def _status_writer(path: str) -> Callable[[dict[str, Any]], None]:
    import json

    from apps.status import replace

    def write(result: dict[str, Any]) -> None:
        replace(path, json.dumps(result))

    write({})
    return write


def main() -> int:
    """Do what the command line asks."""
    options = parse(sys.argv[1:])
    if options.mode == "server":
        serve(options)
    return measure(options)


if __name__ == "__main__":
    sys.exit(main())
