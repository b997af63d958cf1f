"""The Mininet node that is a container.

Its network is configured from outside, with the machine's tools in the container's network namespace, so nothing need
be installed in the image; what the user types (`h2 COMMAND`, `cmd`, `popen`) runs inside. The container is made when
the node is and removed when it ends.
"""

from __future__ import annotations

import os
import select
import subprocess
from typing import Any

from mininet.log import error
from mininet.node import Host
from mininet.util import getincrementaldecoder, moveIntf

from topo.containers import engine as engines
from topo.containers.engine import Engine
from topo.containers.enter import PROMPT
from topo.containers.leftovers import Membership
from topo.containers.limits import Limits, parse_limits, with_swap
from topo.containers.published import PublishedPorts
from topo.containers.shell import (
    answer,
    end_shell,
    entering,
    open_terminal,
    run_outside,
    start_shell,
    why_none,
)
from topo.containers.spec import HOST_PARAMETERS, parse_spec
from topo.errors import BadNetwork, ContainerFailed
from topo.hosts import disable_offloads

PREFIX = "mn."  # containernet's: the container of d1 is mn.d1 for the engine's own commands
_POLL = 100  # milliseconds


class ContainerHost(Host):
    """A host that is a container; subclasses say which engine's."""

    engine_name = ""

    # Mininet's own, which have no types.
    shell: Any
    stdin: Any
    stdout: Any
    pollOut: Any
    decoder: Any
    readbuf: str
    slave: int

    def __init__(
        self,
        name: str,
        dimage: str | None = None,
        dcmd: str | list[str] | None = None,
        offload: bool = True,
        engine: Engine | None = None,
        **params: Any,
    ) -> None:
        """Make and start the container; takes containernet's parameters and Mininet's.

        `offload=False` is for networks whose switches handle packets in user space.
        """
        self.spec = parse_spec(name, dimage, dcmd, **params)
        self.offload = offload
        self.engine = engine or engines.connect(self.engine_name)
        self.dimage = self.spec.image
        self.dname = PREFIX + name
        self.container = ""
        self.limits = self.spec.limits
        self._refusal: str | None = None
        self._published: PublishedPorts | None = None
        self._membership = Membership()
        try:
            self._membership.uses(self.engine)
            self.container = engines.start(self.engine, self.dname, name, self.spec, self._membership.run)
            self._first_process = self._running_process(name)
            super().__init__(name, **{key: value for key, value in params.items() if key in HOST_PARAMETERS})
            if self.spec.port_bindings and self.spec.network_mode == "none":
                self._published = PublishedPorts(name, self.pid, self.spec.port_bindings)
        except BaseException:
            self.terminate()
            raise

    def _running_process(self, name: str) -> int:
        pid = engines.process_of(self.engine, self.container)
        if pid == 0:
            log = self.engine.log(self.container)
            raise ContainerFailed(
                f"{name}: its command ended at once ({log or 'it said nothing'}): give another dcmd"
            )
        return pid

    @property
    def did(self) -> str:
        """The container's id; containernet's name for it."""
        return self.container

    # ---- the network, from outside

    def outside(self, *words: object, **_: Any) -> str:
        """Run the machine's own command in the container's network; returns its output."""
        return run_outside(self.pid, [str(word) for word in words])

    def addIntf(self, intf: Any, port: int | None = None, moveIntfFn: Any = moveIntf) -> None:
        """Add an interface, which is to configure itself from outside, too."""
        intf.cmd = self.outside
        intf.status = lambda: "OK" if intf.name in self.outside("ip link show") else "MISSING"
        super().addIntf(intf, port, moveIntfFn)

    def config(
        self,
        mac: str | None = None,
        ip: str | None = None,
        defaultRoute: str | None = None,
        lo: str = "up",
        **_: Any,
    ) -> dict[str, Any]:
        """Set address and default route."""
        result: dict[str, Any] = {}
        self.outside("ip link set lo", lo)
        self.setParam(result, "setMAC", mac=mac)
        self.setParam(result, "setIP", ip=ip)
        self.setParam(result, "setDefaultRoute", defaultRoute=defaultRoute)
        if not self.offload:
            for interface in self.intfNames():
                disable_offloads(interface, self.pid)
        return result

    def setDefaultRoute(self, intf: Any = None) -> None:
        """Set the default route through an interface, or as `via ADDRESS`."""
        route = intf if isinstance(intf, str) and " " in intf else f"dev {intf}"
        said = self.outside(f"ip route replace default {route}")
        if said:
            error(f"*** {self.name}: default route {route}: {said}")

    def setHostRoute(self, ip: str, intf: Any) -> str:
        """Add a route to one address."""
        return self.outside("ip route add", ip, "dev", intf)

    def setARP(self, ip: str, mac: str) -> str:
        """Add an ARP entry."""
        return self.outside("arp -s", ip, mac)

    # ---- commands, inside

    def startShell(self, mnopts: str | None = None) -> None:
        """Note which process to enter; the shell starts with the first command."""
        self.pid = self._first_process

    def sendCmd(self, *args: Any, **kwargs: Any) -> None:
        """Let the shell inside run a command, without waiting for its end."""
        self._check_shell()
        if self._refusal is None:
            super().sendCmd(*args, **kwargs)
        else:
            self.waiting = True
            answer(self.slave, f"{self.name}: {self._refusal}")

    def cmd(self, *args: Any, **kwargs: Any) -> str:
        """Run a command inside; returns its output."""
        self.sendCmd(*args, **kwargs)
        output: str = self.waitOutput(kwargs.get("verbose", False))
        return output

    def monitor(self, timeoutms: float | None = None, findPid: bool = True) -> str:
        """Return what a command has printed by now; a shell that ended with its container ends the command."""
        while timeoutms is None and not self.readbuf and not self._can_read():
            if self._refusal is None and self.shell.poll() is not None:
                self.waiting = False
                return ""
        output: str = super().monitor(timeoutms, findPid)
        return output

    def _can_read(self) -> bool:
        """Wait a moment for something to read; a terminal that was hung up has nothing any more."""
        return any(event & select.POLLIN for _, event in self.pollOut.poll(_POLL))

    def popen(self, *args: Any, **kwargs: Any) -> subprocess.Popen[Any]:
        """Start a program inside; takes Mininet's and Popen's parameters."""
        if kwargs.pop("shell", False):
            args = (["/bin/sh", "-c", " ".join(args[0]) if isinstance(args[0], list) else " ".join(args)],)
        process: subprocess.Popen[Any] = super().popen(*args, **{"mncmd": entering(self.pid), **kwargs})
        return process

    def _check_shell(self) -> None:
        """See that there is a living shell, or a reason why not."""
        if self.shell is not None and self.shell.poll() is None:
            return
        self.close_shell()
        self.master, self.slave = open_terminal()
        self.shell = start_shell(self.name, self.pid, self.slave)
        self._connect_terminal()
        while not self.readbuf.endswith(PROMPT) and self._refusal is None:
            if self._can_read():
                self.readbuf += self.decoder.decode(os.read(self.master, 1024))
            else:
                self._refusal = why_none(self.shell, self.readbuf)
        self.readbuf = ""
        if self._refusal is None:
            super().sendCmd("unset HISTFILE; set +m")
            self.waitOutput()

    def _connect_terminal(self) -> None:
        """Set what Mininet's own nodes have set when their shell runs."""
        self.stdin = self.stdout = os.fdopen(self.master, "r")
        self.pollOut = select.poll()
        self.pollOut.register(self.stdout)
        self.outToNode[self.stdout.fileno()] = self
        self.inToNode[self.stdin.fileno()] = self
        self.decoder = getincrementaldecoder()
        self.lastCmd = self.lastPid = None
        self.readbuf = ""

    def close_shell(self) -> None:
        """End the shell inside, if there is one; the next command starts another. A container moves without it."""
        shell, self.shell = self.shell, None
        if shell is None:
            return
        end_shell(shell)
        for nodes in (self.outToNode, self.inToNode):
            nodes.pop(self.master, None)
        self.stdin.close()
        os.close(self.slave)
        self.stdin = self.stdout = self.pollOut = None
        self._refusal, self.waiting, self.readbuf = None, False, ""

    # ---- limits

    def updateCpuLimit(
        self,
        cpu_quota: int | None = None,
        cpu_period: int | None = None,
        cpu_shares: int | None = None,
        cores: str | None = None,
    ) -> None:
        """Change how much CPU the container gets, at once; a `cpu_quota` of -1 takes its limit away."""
        said = {"cpu_period": cpu_period, "cpu_shares": cpu_shares}
        positive = {key: value for key, value in said.items() if value != -1}  # containernet's "as it is"
        self._update(cpu_quota=cpu_quota, cpuset_cpus=cores, **positive)

    def updateMemoryLimit(self, mem_limit: int | str = -1, memswap_limit: int | str = -1) -> None:
        """Change how much memory the container gets, at once; what is -1 stays as it is."""
        said = {"mem_limit": mem_limit, "memswap_limit": memswap_limit}
        self._update(**{key: value for key, value in said.items() if value != -1})

    def update_resources(self, **limits: Any) -> None:
        """Change any of the limits that a container can be made with."""
        self._update(**limits)

    def _update(self, **limits: Any) -> None:
        try:
            asked = parse_limits(**limits)
            new = with_swap(asked, self.limits)
        except (TypeError, ValueError) as ex:
            raise BadNetwork(f"{self.name}: {ex}") from ex
        if new != Limits():
            self.engine.update(self.container, new)
            self.limits = self.limits.changed_by(asked)

    # ---- the end

    def terminate(self) -> None:
        """Remove the container and everything that was in it; once."""
        if self._published is not None:
            self._published.close()
            self._published = None
        if getattr(self, "shell", None) is not None:
            self.close_shell()
        container, self.container = self.container, ""
        self._membership.end(self.engine.remove, container)


class Docker(ContainerHost):
    """A host that is a Docker container; containernet's name for it."""

    engine_name = "docker"


class Podman(ContainerHost):
    """A host that is a Podman container."""

    engine_name = "podman"


def link_options(*nodes: Any) -> dict[str, Any]:
    """Return what Mininet's links need to know about their nodes.

    It makes links by a command in the first node, which is wrong for one whose commands run in a container; those are
    made outside, and moved.
    """
    return {"fast": False} if any(isinstance(node, ContainerHost) for node in nodes) else {}


CONTAINER_HOSTS: dict[str, type[ContainerHost]] = {"docker": Docker, "podman": Podman}
