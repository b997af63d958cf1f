"""Mininet switch nodes that run P4: one process each, the same options, P4Runtime on its own port.

`EbpfSwitch` runs `p4ferry-switch`, `Bmv2Switch` runs `simple_switch_grpc`; nothing else differs but that BMv2,
which handles packets in user space, needs checksum and segmentation offloads off on the links around it.
"""

from __future__ import annotations

import ctypes
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, Protocol

from mininet.log import error
from mininet.node import Switch

from dataplane.switch import port_control
from migration.slowness import scaled
from topo import paths
from topo.errors import BadNetwork, MissingTool, SwitchFailed, TestbedError
from topo.node_shell import GuardedShell
from topo.processes import AdoptedProcess, ProcessName

READY_TIMEOUT = scaled(15.0)  # seconds
STOP_TIMEOUT = scaled(5.0)
_ATTEMPT_S = 0.2  # for an answer, before it is looked whether the process still runs
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes(
    (0, 0, 0, 4, 0, 0, 0, 0, 0)
)  # and an empty SETTINGS frame
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None)


def die_with_parent() -> None:
    """Ask the kernel to end this (child) process when its parent ends, so that a crash leaves no switch."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class Starter(Protocol):
    """How a switch's processes are started, one after another."""

    def start(
        self, argv: Sequence[str], writable: Sequence[Path]
    ) -> subprocess.Popen[bytes] | AdoptedProcess:
        """Start the program, which writes to some folders; raises SwitchFailed."""

    def adopt(self) -> None:
        """Take over the process that an earlier run has started."""

    def last_words(self) -> str:
        """Return the last line that the program has written."""

    def close(self) -> None:
        """Remove what is left of a process that has ended."""


class ProcessStarter:
    """Starts processes of the machine."""

    def __init__(self, outlives_us: bool) -> None:
        self._outlives_us = outlives_us
        self._output: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by close

    def start(self, argv: Sequence[str], writable: Sequence[Path]) -> subprocess.Popen[bytes]:
        """Start the program, in a session of its own: Ctrl-C in the CLI is not for the switch."""
        return subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=self._output,
            stderr=subprocess.STDOUT,
            cwd=paths.CHECKOUT,
            preexec_fn=None if self._outlives_us else die_with_parent,
            start_new_session=True,
        )

    def adopt(self) -> None:
        """Do nothing: its output went with the process that had it."""

    def last_words(self) -> str:
        """Return the last line that the program has written."""
        self._output.seek(0)
        lines = self._output.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""

    def close(self) -> None:
        """Forget the output."""
        self._output.close()


class P4RuntimeSwitch(GuardedShell, Switch):
    """A switch process that serves P4Runtime; subclasses say which."""

    offload = True
    """Whether the switch forwards packets whose checksum and segmentation are left to the receiver."""

    def __init__(
        self,
        name: str,
        device_id: int = 1,
        grpc_port: int = 9559,
        cpu_port: int = 255,
        log_dir: Path = Path("/tmp"),
        log_enabled: bool = True,
        pcap_dump: bool = False,
        pcap_dir: Path | None = None,
        outlives_us: bool = False,
        adopted: ProcessName | None = None,
        starter: Starter | None = None,
        **params: Any,
    ) -> None:
        """Take p4-utils' parameters; the process starts with `start`.

        One that `outlives_us` goes on when this process is killed. An `adopted` one of an earlier run is used, if
        it still runs, instead of a new one. Without a `starter` it is a process of the machine.
        """
        super().__init__(name, dpid=f"{device_id:x}", **{**params, "inNamespace": False})
        self.device_id = device_id
        self.grpc_port = grpc_port
        self.cpu_port = cpu_port
        self.log_file = log_dir / f"{name}.log"
        self.log_enabled = log_enabled
        self.pcap_dir = (pcap_dir or log_dir) if pcap_dump else None
        self.bmv2_json: Path | None = None
        self.outlives_us = outlives_us
        self.adopted = adopted
        self.starter = starter or ProcessStarter(outlives_us)
        self.process: subprocess.Popen[bytes] | AdoptedProcess | None = None

    @classmethod
    def command(cls) -> list[str]:
        """Return how the switch program is called; raises MissingTool."""
        raise NotImplementedError

    @property
    def grpc_address(self) -> str:
        """Return where P4Runtime is served."""
        return f"127.0.0.1:{self.grpc_port}"

    def arguments(self) -> list[str]:
        """Return the whole command line, in simple_switch_grpc's options."""
        ports = [
            word for port, intf in sorted(self.intfs.items()) if port > 0 for word in ("-i", f"{port}@{intf}")
        ]
        log = ["--log-file", str(self.log_file), "-L", "info"] if self.log_enabled else []
        pcap = ["--pcap", str(self.pcap_dir)] if self.pcap_dir else []
        program = str(self.bmv2_json) if self.bmv2_json else "--no-p4"
        # fmt: off
        return [*self.command(), *ports, "--device-id", str(self.device_id), *log, *pcap, program,
                "--", "--grpc-server-addr", self.grpc_address, "--cpu-port", str(self.cpu_port)]
        # fmt: on

    def start(self, controllers: Any) -> None:
        """Start the process; `wait_ready` tells when it serves."""
        adopted, self.adopted = self.adopted, None
        if adopted is not None:
            self.starter.adopt()
            if adopted.is_alive:
                self.process = AdoptedProcess(adopted)
                return
        if _answers(self.grpc_port):
            raise SwitchFailed(
                f"{self.name}: port {self.grpc_port} is in use by another program, perhaps another testbed"
            )
        folders = [self.log_file.parent] if self.log_enabled else []
        folders += [self.pcap_dir] if self.pcap_dir else []
        self.process = self.starter.start(self.arguments(), folders)

    def wait_ready(self, timeout: float = READY_TIMEOUT) -> None:
        """Return when P4Runtime is served; raises SwitchFailed."""
        assert self.process is not None
        deadline = time.monotonic() + timeout
        while not _serves(self.grpc_port):
            if self.process.poll() is not None:
                raise SwitchFailed(f"{self.name}: {self.command()[0]} ended at once: {self._last_words()}")
            if time.monotonic() > deadline:
                raise SwitchFailed(
                    f"{self.name}: P4Runtime not served on {self.grpc_address} after {timeout:g} s; "
                    f"its last words: {self._last_words()}"
                )
            time.sleep(0.005)

    def attach(self, intf: Any) -> None:
        """Take an interface as a port while the switch runs; raises BadNetwork."""
        raise BadNetwork(
            f"{self.name}: {self.command()[0]} takes ports only when it starts: link {intf} before"
        )

    def detach(self, intf: Any) -> None:
        """Give up the port of an interface that is about to go."""

    def _last_words(self) -> str:
        return self.starter.last_words() or f"exit status {self.process.returncode if self.process else '?'}"

    def stop(self, deleteIntfs: bool = True) -> None:
        """End the process and, like every Mininet switch, delete its interfaces."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(STOP_TIMEOUT)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
        self.process = None
        try:
            self.starter.close()
        except TestbedError as ex:
            error(f"*** {ex}\n")  # a container: the run goes on to own it, and the next one cleans up
        super().stop(deleteIntfs)


class EbpfSwitch(P4RuntimeSwitch):
    """The embedded switch: the P4 program runs in the kernel."""

    @classmethod
    def command(cls) -> list[str]:
        return [sys.executable, "-m", "dataplane.switch"]

    @property
    def port_socket(self) -> str:
        """Return where the switch takes requests about its ports."""
        return f"p4ferry-ports-{self.grpc_port}"

    def arguments(self) -> list[str]:
        """Return the whole command line, ours and simple_switch_grpc's options."""
        words = super().arguments()
        at = words.index("--device-id")
        return [*words[:at], "--port-socket", self.port_socket, *words[at:]]

    def attach(self, intf: Any) -> None:
        """Take an interface as a port while the switch runs; raises BadNetwork."""
        self._ask("add", str(self.ports[intf]), str(intf))

    def detach(self, intf: Any) -> None:
        """Give up the port of an interface that is about to go."""
        self._ask("remove", str(self.ports[intf]))

    def _ask(self, *words: str) -> None:
        try:
            answer = port_control.ask(self.port_socket, *words)
        except OSError as ex:
            answer = f"it does not answer ({ex.strerror})"
        if answer != port_control.OK:
            raise BadNetwork(f"{self.name}: {answer}")


class Bmv2Switch(P4RuntimeSwitch):
    """BMv2's simple_switch_grpc, from PATH."""

    offload = False

    @classmethod
    def command(cls) -> list[str]:
        binary = shutil.which("simple_switch_grpc")
        if binary is None:
            raise MissingTool("simple_switch_grpc is not on PATH: install BMv2, or use --target ebpf")
        return [binary]


def _serves(port: int) -> bool:
    """Tell whether P4Runtime is served: an HTTP/2 server answers a client's preface with its settings (RFC 9113, 3.4).

    That the port is open does not say so: our switch opens it before it has loaded its P4 program.
    """
    try:
        with socket.create_connection(("127.0.0.1", port), _ATTEMPT_S) as connection:
            connection.sendall(_PREFACE)
            return connection.recv(1) != b""
    except OSError:
        return False


def _answers(port: int) -> bool:
    """Say whether something listens on a TCP port of the loopback."""
    with socket.socket() as sock:
        sock.settimeout(1.0)
        return sock.connect_ex(("127.0.0.1", port)) == 0
