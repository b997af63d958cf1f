"""A real network for the controller's tests: hosts in namespaces, and between them the switch with load_balancer.p4.

hN is 10.0.N.N/24 behind port N, its gateway 10.0.N.254 is the switch. Everything is gone when the block ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import TypeVar

from pyroute2 import IPRoute, NetlinkError

from controllers import rows
from controllers.config import SwitchConfig
from controllers.hosts import Host
from controllers.rows import Row

CHECKOUT = Path(__file__).parents[2]
PREFIX = "ctlt"
DEVICE_ID = 4242
"""Not one that other switches on this machine have: the name of the CPU port is made of it."""
_CLONE_NEWNET = 0x40000000
_T = TypeVar("_T")


def compile_program(folder: Path, name: str = "load_balancer") -> tuple[Path, Path]:
    """Compile a program; return P4Info and JSON."""
    info, program = folder / f"{name}.p4info.txtpb", folder / f"{name}.json"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "dataplane.compiler",
            "-o",
            program,
            "--p4runtime-files",
            info,
            f"p4src/{name}.p4",
        ],
        cwd=CHECKOUT,
        check=True,
        capture_output=True,
        timeout=60,
    )
    return info, program


def inside(pid: int, work: Callable[[], _T]) -> _T:
    """Call a function in the network namespace of a process, in a thread that ends there."""
    result: list[_T] = []

    def enter() -> None:
        with Path(f"/proc/{pid}/ns/net").open("rb") as namespace:
            assert ctypes.CDLL(None).setns(namespace.fileno(), _CLONE_NEWNET) == 0
        result.append(work())

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    return result[0]


def _mac(number: int) -> str:
    return f"08:00:00:00:{number:02x}:{number:02x}"


def _own_mac(number: int) -> int:
    return 0x08_00_00_00_FE_00 | number


def _rows(number: int) -> list[Row]:
    network, gateway = IPv4Network(f"10.0.{number}.0/24"), IPv4Address(f"10.0.{number}.254")
    mac = int(_mac(number).replace(":", ""), 16)
    return [
        rows.route(network, number, _own_mac(number), mac),
        rows.arp_reply(gateway, _own_mac(number)),
        rows.echo_reply(gateway),
    ]


@dataclass
class Network:
    """What runs."""

    hosts: dict[str, Host]
    switch: SwitchConfig
    process: subprocess.Popen[bytes]

    def tcp(self, host: str) -> socket.socket:
        """Open a TCP socket on a host."""
        return inside(self.hosts[host].pid, lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))


@contextmanager
def network(folder: Path, hosts: int = 4) -> Iterator[Network]:
    """Build it; the switch has no program yet."""
    with ExitStack() as stack:
        made = {f"h{n}": stack.enter_context(_host(n)) for n in range(1, hosts + 1)}
        info, program = compile_program(folder)
        process, address = stack.enter_context(_switch([f"{n}@{PREFIX}-s{n}" for n in range(1, hosts + 1)]))
        all_rows = tuple(row for n in range(1, hosts + 1) for row in _rows(n))
        config = SwitchConfig(DEVICE_ID, "s1", address, info, program, master=True, rows=all_rows)
        yield Network(made, config, process)


@contextmanager
def _host(number: int) -> Iterator[Host]:
    process = subprocess.Popen(["unshare", "--net", "sleep", "infinity"], stdin=subprocess.DEVNULL)
    near, far = f"{PREFIX}-s{number}", f"{PREFIX}-h{number}"
    try:
        _wait_for_namespace(process.pid)
        with IPRoute() as ip:
            ip.link("add", ifname=near, kind="veth", peer={"ifname": far, "address": _mac(number)})
            Path(f"/proc/sys/net/ipv6/conf/{near}/disable_ipv6").write_text("1")
            ip.link("set", index=ip.link_lookup(ifname=near)[0], state="up")
            ip.link("set", index=ip.link_lookup(ifname=far)[0], net_ns_pid=process.pid)
        inside(process.pid, lambda: _configure(far, number))
        yield Host(
            f"h{number}", process.pid, IPv4Address(f"10.0.{number}.{number}"), _mac(number), "s1", number
        )
    finally:
        process.kill()
        process.wait()
        # The kernel removes the pair itself when the namespace ends; that takes its time.
        with IPRoute() as ip, contextlib.suppress(NetlinkError):
            for index in ip.link_lookup(ifname=near):
                ip.link("del", index=index)


def _wait_for_namespace(pid: int) -> None:
    """Wait until a child has left the namespace of this process."""
    own = Path("/proc/self/ns/net").readlink()
    for _ in range(1000):
        if Path(f"/proc/{pid}/ns/net").readlink() != own:
            return
        select.select([], [], [], 0.005)
    raise AssertionError("unshare does not make a namespace")


def _configure(interface: str, number: int) -> None:
    Path("/proc/sys/net/ipv6/conf/all/disable_ipv6").write_text("1")
    with IPRoute() as ip:
        index = ip.link_lookup(ifname=interface)[0]
        ip.addr("add", index=index, address=f"10.0.{number}.{number}", prefixlen=24)
        for up in (index, ip.link_lookup(ifname="lo")[0]):
            ip.link("set", index=up, state="up")
        ip.route("add", dst="default", gateway=f"10.0.{number}.254")


@contextmanager
def _switch(ports: list[str]) -> Iterator[tuple[subprocess.Popen[bytes], str]]:
    read, write = os.pipe()
    interfaces = [word for port in ports for word in ("-i", port)]
    process = subprocess.Popen(
        [sys.executable, "-m", "dataplane.switch", "--no-p4", "--device-id", str(DEVICE_ID), *interfaces,
         "--ready-fd", str(write),
         "--exit-with-parent", "--log-console", "--", "--grpc-server-addr", "127.0.0.1:0", "--cpu-port", "255"],
        cwd=CHECKOUT, pass_fds=[write], stdin=subprocess.DEVNULL,
    )  # fmt: skip
    os.close(write)
    try:
        ready, _, _ = select.select([read], [], [], 15)
        address = os.read(read, 200).decode().strip() if ready else ""
        assert address, "the switch does not start"
        yield process, address
    finally:
        os.close(read)
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
