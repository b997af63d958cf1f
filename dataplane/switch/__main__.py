"""The command `p4ferry-switch`: simple_switch_grpc's command line, a switch in the kernel, P4Runtime.

Start: parse, bind the address, make the engine, bind the ports, run a program if one is given, serve. Everything
that was made is removed again on SIGTERM and SIGINT (status 0) and on every failure (status 1; 2 for a wrong command
line), in the opposite order. Standard output says `Server listening on ADDRESS` when the switch serves, as BMv2's
does; `--ready-fd N` gets the address on a descriptor of the launcher's choice.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import signal
import sys
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import metadata
from typing import TYPE_CHECKING

from dataplane.switch.options import SwitchOptions, UsageError, parse_options

if TYPE_CHECKING:
    from dataplane.switch.p4runtime.device import Device
    from dataplane.switch.pipeline import Engine

log = logging.getLogger("p4ferry-switch")

_PR_SET_PDEATHSIG = 1
_LEVELS = {"trace": logging.DEBUG, "debug": logging.DEBUG, "info": logging.INFO, "warn": logging.WARNING,
           "error": logging.ERROR, "off": logging.CRITICAL + 1}  # fmt: skip


class StartFailed(Exception):
    """The switch cannot start; the message is for the user."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the switch until it is told to stop; return the exit status."""
    try:
        options = parse_options(sys.argv[1:] if arguments is None else arguments)
    except UsageError as ex:
        return _complain(str(ex), 2)
    if options.version:
        print(f"p4ferry-switch {metadata.version('p4ferry')}")
        return 0
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        _start_logging(options)
        if options.exit_with_parent:
            _end_with_parent()
        with ExitStack() as cleaning:
            _start(options, cleaning)
            stop.wait()
            log.info("stopping")
    except StartFailed as ex:
        return _complain(str(ex), 1)
    return 0


def _complain(message: str, status: int) -> int:
    print(f"p4ferry-switch: {message}", file=sys.stderr)
    return status


def _start_logging(options: SwitchOptions) -> None:
    handler: logging.Handler
    if options.log_file is not None:
        try:
            handler = logging.FileHandler(options.log_file)
        except OSError as ex:
            raise StartFailed(f"--log-file {options.log_file}: {ex.strerror}") from ex
    elif options.log_console:
        handler = logging.StreamHandler(sys.stdout)
    else:
        handler = logging.NullHandler()
    logging.basicConfig(
        format="[%(asctime)s.%(msecs)03d] [%(levelname)s] %(message)s",
        datefmt="%H:%M:%S",
        level=_LEVELS[options.log_level],
        handlers=[handler],
    )
    for warning in options.warnings:
        print(f"p4ferry-switch: warning: {warning}", file=sys.stderr)
        log.warning("%s", warning)


def _end_with_parent() -> None:
    """Ask the kernel for SIGTERM when the parent ends."""
    parent = os.getppid()
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:
        raise StartFailed("the parent process has ended already")


def _start(options: SwitchOptions, cleaning: ExitStack) -> None:
    """Start everything, leaving in `cleaning` how to undo it; raises StartFailed."""
    if os.geteuid() != 0:
        raise StartFailed("a switch in the kernel needs root: call it with sudo")
    # gRPC would print its own account of an address in use before our sentence.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    # Imported late: a wrong command line is answered without waiting for gRPC.
    from dataplane.switch.p4runtime.device import Device
    from dataplane.switch.p4runtime.server import AddressInUse, P4RuntimeServer

    device = Device(options.device_id)
    try:
        server = P4RuntimeServer(device, options.address)
    except AddressInUse as ex:
        raise StartFailed(str(ex)) from ex
    cleaning.callback(server.stop)
    engine = _make_engine(options, device, cleaning)
    _start_capture(options, cleaning)
    _start_port_control(options, engine, cleaning)
    cleaning.callback(device.close)
    _run_program(options, device, engine)
    # The rows of large tables live long; looking through them again and again costs inserts 15 %.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    server.start()
    # Streams and calls end before what they use goes away.
    cleaning.callback(server.stop)
    _announce(options, server.port)


def _make_engine(options: SwitchOptions, device: Device, cleaning: ExitStack) -> Engine:
    from dataplane.switch.engine import EbpfEngine
    from dataplane.switch.pipeline import PipelineError

    try:
        engine = EbpfEngine(
            device_id=options.device_id,
            cpu_port=options.cpu_port,
            drop_port=options.drop_port,
            on_packet_in=device.on_packet_in,
            on_digest=device.on_digest,
        )
        cleaning.callback(engine.close)
        for port, name in options.interfaces:
            engine.add_port(port, name)
    except PipelineError as ex:
        raise StartFailed(str(ex)) from ex
    device.attach_engine(engine)
    return engine


def _start_capture(options: SwitchOptions, cleaning: ExitStack) -> None:
    if options.pcap_dir is None:
        return
    from dataplane.switch.capture import Capture, port_taps

    try:
        capture = Capture(port_taps([name for _, name in options.interfaces], options.pcap_dir))
    except OSError as ex:
        raise StartFailed(f"--pcap {options.pcap_dir}: {ex.strerror}") from ex
    cleaning.callback(capture.close)


def _start_port_control(options: SwitchOptions, engine: Engine, cleaning: ExitStack) -> None:
    if options.port_socket is None:
        return
    from dataplane.switch.port_control import PortControl

    try:
        control = PortControl(options.port_socket, engine)
    except OSError as ex:
        raise StartFailed(f"--port-socket {options.port_socket}: {ex.strerror}") from ex
    cleaning.callback(control.close)


def _run_program(options: SwitchOptions, device: Device, engine: Engine) -> None:
    from dataplane.switch.pipeline import PipelineError

    if options.program is None:
        return
    try:
        device.start_program(options.program.read_bytes())
    except OSError as ex:
        raise StartFailed(f"{options.program}: {ex.strerror}") from ex
    except PipelineError as ex:
        raise StartFailed(f"{options.program}: {ex}") from ex


def _announce(options: SwitchOptions, port: int) -> None:
    """Say that the switch serves, and where: with port 0 the kernel has chosen one."""
    host, _, given = options.address.rpartition(":")
    address = f"{host}:{port}" if given.isdecimal() else options.address
    log.info("device %d serves P4Runtime on %s", options.device_id, address)
    print(f"Server listening on {address}", flush=True)
    if options.ready_fd is None:
        return
    try:
        os.write(options.ready_fd, f"{address}\n".encode())
        os.close(options.ready_fd)
    except OSError as ex:
        raise StartFailed(f"--ready-fd {options.ready_fd}: {ex.strerror}") from ex


if __name__ == "__main__":
    sys.exit(main())
