"""Containernet's own style of script, on our container hosts: only the import line changes.

    from topo.containernet import Containernet

    net = Containernet(controller=Controller)
    net.addController("c0")
    d1 = net.addDocker("d1", ip="10.0.0.251", dimage="ubuntu:trusty")
    …

`Containernet` is a Mininet network whose switches are learning bridges of the kernel, each in a network namespace of
its own: they need neither Open vSwitch nor a controller, take links while they run, and neither Docker's firewall rules
nor anything else of the machine applies to them. docs/containernet.md says what differs.
"""

from __future__ import annotations

import atexit
import os
import shutil
from typing import Any

from mininet.log import info, output
from mininet.net import Mininet
from mininet.node import Controller, Host, OVSSwitch, RemoteController, Switch

from topo import modules, running, shaping
from topo.containers.host import ContainerHost, Docker, Podman, link_options
from topo.errors import BadNetwork, TestbedError
from topo.node_shell import GuardedHost, GuardedShell

__all__ = ["Containernet", "Docker", "LearningBridge", "Podman"]


class LearningBridge(GuardedShell, Switch):
    """A switch that learns by itself: a bridge of the kernel in its own network namespace."""

    def __init__(self, name: str, **params: Any) -> None:
        """Take Mininet's parameters; those that are for OpenFlow have no effect."""
        super().__init__(name, **{**params, "inNamespace": True})
        self._is_running = False

    def start(self, controllers: Any) -> None:
        """Begin to forward; controllers are not asked."""
        self.cmd(f"ip link add {self.name} type bridge && ip link set {self.name} up")
        self._is_running = True
        for intf in self.intfList():
            self.attach(intf)

    def attach(self, intf: Any) -> None:
        """Take an interface as a port."""
        if self._is_running:
            self.cmd(f"ip link set {intf} master {self.name} up")

    def connected(self) -> bool:
        """Say that there is no controller to wait for."""
        return True


class QuietController(GuardedShell, Controller):
    """Stands for a controller in scripts that add one; none is needed, none is started."""

    def checkListening(self) -> None:
        """Expect no other controller."""

    def start(self) -> None:
        """Start nothing."""

    def stop(self, *_: Any, **__: Any) -> None:
        """End the node's shell."""
        self.terminate()


class Containernet(Mininet):
    """A Mininet network with container hosts, which can also be added and removed while it runs; a context manager."""

    def __init__(self, topo: Any = None, switch: type[Switch] = LearningBridge, **params: Any) -> None:
        """Take Mininet's parameters."""
        if os.geteuid() != 0:
            raise TestbedError("networks need root: call the script with sudo .venv/bin/python")
        modules.prepare(modules.Use.LINKS, modules.Use.BRIDGE)
        Mininet.inited = True  # Mininet.init would only raise resource limits, which not every root may
        self._is_started = False
        self._is_stopped = False
        try:
            super().__init__(topo=topo, switch=switch, **{"controller": None, "host": GuardedHost, **params})
        except BaseException:
            if hasattr(self, "nameToNode"):  # a topology was being built
                self.stop()
            raise
        atexit.register(self.stop)  # a script that fails, or Ctrl-C

    def __enter__(self) -> Containernet:
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    # ---- nodes

    def addDocker(self, name: str, cls: type[ContainerHost] = Docker, **params: Any) -> ContainerHost:
        """Add a Docker container as a host; takes containernet's parameters."""
        host: ContainerHost = self.addHost(name, cls=cls, **params)
        return host

    def addPodman(self, name: str, cls: type[ContainerHost] = Podman, **params: Any) -> ContainerHost:
        """Add a Podman container as a host; takes the same parameters."""
        return self.addDocker(name, cls, **params)

    def addHost(self, name: str, cls: type[Host] | None = None, **params: Any) -> Any:
        """Add a host of any kind."""
        if name in self.nameToNode:
            raise BadNetwork(f"there is a node {name} already")
        return super().addHost(name, cls=cls, **params)

    def removeDocker(self, name: str | Host, **_: Any) -> None:
        """Remove a host and its links; also while the network runs."""
        if isinstance(name, str) and name not in self.nameToNode:
            raise BadNetwork(f"there is no host {name}")
        running.remove_host(self, self[name] if isinstance(name, str) else name)

    removePodman = removeHost = removeDocker

    def addSwitch(self, name: str, cls: type[Switch] | None = None, **params: Any) -> Any:
        """Add a switch; Open vSwitch's become learning bridges where it is not installed."""
        if cls is not None and issubclass(cls, OVSSwitch) and not _has_openvswitch():
            info(f"*** {name}: Open vSwitch is not installed, {name} is a learning bridge\n")
            cls = LearningBridge
        switch = super().addSwitch(name, cls=cls, **params)
        if self._is_started:
            switch.start(self.controllers)
        return switch

    def addController(self, name: Any = "c0", controller: Any = None, **params: Any) -> Any:
        """Add a controller, if there is a switch that could use it: a learning bridge needs none."""
        wanted = controller or self.controller or Controller
        is_local = isinstance(wanted, type) and issubclass(wanted, Controller)
        if is_local and not issubclass(wanted, RemoteController) and not _has_openvswitch():
            info(f"*** {name}: no controller is started, the switches learn by themselves\n")
            wanted = QuietController
        return super().addController(name, wanted, **params)

    # ---- links

    def addLink(
        self, node1: Any, node2: Any, port1: int | None = None, port2: int | None = None, **params: Any
    ) -> Any:
        """Add a link, also while the network runs; a host's first one then gets its address, if the link has none."""
        one, two = (self._node(node) for node in (node1, node2))
        params = {
            **link_options(one, two),
            "port1": port1,
            "port2": port2,
            **shaping.without_netem(f"{one}-{two}", params),
        }
        if not self._is_started:
            return super().addLink(one, two, **params)
        link = running.join(self, super().addLink, one, two, **params)
        for intf, given in ((link.intf1, params.get("params1")), (link.intf2, params.get("params2"))):
            if isinstance(intf.node, Host) and len(intf.node.intfList()) == 1:
                intf.node.configDefault(**({"ip": None} if given and "ip" in given else {}))
        return link

    def removeLink(self, link: Any = None, node1: Any = None, node2: Any = None) -> None:
        """Remove a link, or the first one between two nodes; also while the network runs."""
        if link is None:
            one, two = self._node(node1), self._node(node2)
            between = self.linksBetween(one, two)
            if not between:
                raise BadNetwork(f"there is no link {one}-{two}")
            link = between[0]
        running.part(self, link)

    def _node(self, node: Any) -> Any:
        if not isinstance(node, str):
            return node
        if node not in self.nameToNode:
            raise BadNetwork(f"there is no node {node}")
        return self[node]

    # ---- running it

    def start(self) -> None:
        """Start everything that was added."""
        super().start()
        self._is_started = True

    def stop(self) -> None:
        """Stop and remove everything; once."""
        if self._is_stopped:
            return
        self._is_stopped = True
        atexit.unregister(self.stop)
        super().stop()

    def ping(self, hosts: Any = None, timeout: Any = None, manualdestip: str | None = None) -> Any:
        """Ping between hosts as Mininet does, or from each of them to one address; returns the loss in percent."""
        if manualdestip is None:
            return super().ping(hosts, timeout)
        sent = received = 0
        for node in hosts or self.hosts:
            options = f"-W {timeout}" if timeout else ""
            counted = self._parsePing(node.cmd(f"ping -c1 {options} {manualdestip}"))
            output(f"{node} -> {manualdestip if counted[1] else 'X'}\n")
            sent, received = sent + counted[0], received + counted[1]
        return 100.0 * (sent - received) / sent if sent else 0


def _has_openvswitch() -> bool:
    return shutil.which("ovs-vsctl") is not None
