"""Mininet hosts whose programs can be moved: a network and mount namespace with one address and a default route."""

from __future__ import annotations

import subprocess
from typing import Any

from mininet.link import Link
from mininet.node import Host

from topo.node_shell import GuardedShell

OFFLOADS = ("rx", "off", "tx", "off", "sg", "off", "tso", "off", "gso", "off", "gro", "off")


class ProcessHost(GuardedShell, Host):
    """A Mininet host; programs started by the testbed in it are processes of the machine."""

    def __init__(
        self, name: str, offload: bool = True, holder: int = 0, adopted: bool = False, **params: Any
    ) -> None:
        """Take `offload=False` for networks whose switches handle packets in user space.

        `holder` is a process that holds the host's namespaces, so that they do not end with Mininet's shell; the
        host then takes its PID. An `adopted` host has been configured by an earlier run.
        """
        self.offload = offload
        self.holder = holder
        self.adopted = adopted
        super().__init__(name, **params)

    def startShell(self, mnopts: str | None = None) -> None:
        """Start Mininet's shell, in the holder's namespaces if there is one."""
        if not self.holder:
            super().startShell(mnopts)
            return
        self.inNamespace = False  # mnexec is to attach, not to make new namespaces
        try:
            super().startShell(f"-cda{self.holder}")
        finally:
            self.inNamespace = True
        self.pid = self.holder

    def config(self, **params: Any) -> dict[str, Any]:
        """Configure as Mininet does; then set what the host's own namespace needs."""
        if self.adopted:
            return self._note_addresses(**params)
        result: dict[str, Any] = super().config(**params)
        self.cmd("ip link set lo up")
        if not self.offload:
            for interface in self.intfNames():
                disable_offloads(interface, self.pid)
        return result

    def _note_addresses(self, ip: str | None = None, mac: str | None = None, **_: Any) -> dict[str, Any]:
        """Tell Mininet what an adopted host's interface has; setting it again would cut its connections."""
        interface = self.defaultIntf()
        if interface is not None:
            interface.mac = mac or interface.mac
            if ip is not None:
                interface.ip, interface.prefixLen = ip.split("/")
        return {}


class AdoptedLink(Link):
    """A link that is there already: Mininet only notes its two interfaces."""

    def __init__(self, node1: Any, node2: Any, **options: Any) -> None:
        """Take Mininet's parameters."""
        super().__init__(node1, node2, params1={"up": None}, params2={"up": None}, **options)

    @classmethod
    def makeIntfPair(cls, *_: Any, **__: Any) -> None:
        """Make nothing."""


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
