"""Mininet hosts whose programs can be moved: a network and mount namespace with one address and a default route."""

from __future__ import annotations

import subprocess
from typing import Any

from mininet.node import Host

OFFLOADS = ("rx", "off", "tx", "off", "sg", "off", "tso", "off", "gso", "off", "gro", "off")


class ProcessHost(Host):
    """A Mininet host; programs started by the testbed in it are processes of the machine."""

    def __init__(self, name: str, offload: bool = True, **params: Any) -> None:
        """Take `offload=False` for networks whose switches handle packets in user space."""
        self.offload = offload
        super().__init__(name, **params)

    def config(self, **params: Any) -> Any:
        """Configure as Mininet does; then set what the host's own namespace needs."""
        result = super().config(**params)
        self.cmd("ip link set lo up")
        if not self.offload:
            for interface in self.intfNames():
                disable_offloads(interface, self.pid)
        return result


def disable_offloads(interface: str, pid: int | None = None) -> None:
    """Let an interface send only packets with complete checksums, of at most its MTU; `pid` names the namespace."""
    enter = ["nsenter", "--target", str(pid), "--net"] if pid else []
    for word, value in zip(OFFLOADS[::2], OFFLOADS[1::2], strict=True):
        # One at a time: a driver that lacks one of them must not keep the others on.
        subprocess.run(
            [*enter, "ethtool", "-K", interface, word, value],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            check=False,
        )
