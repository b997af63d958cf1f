"""The Mininet node that is a pod: one address, and containers that share it and talk over localhost.

A pod is a sandbox (a container that does nothing, or Podman's pod with its infra container) whose network namespace the
switch's link leads to, and containers that join it. They come and go, also by migration, while the sandbox stays; so
who is in a pod is asked of the engine and not noted here.

    pod = net.addPod("p1", engine="podman", ip="10.0.1.1/24", defaultRoute="via 10.0.1.254")
    pod.addContainer("redis", "redis")
    pod.addContainer("app", "app", ["--redis", "127.0.0.1:6379"])

What the user types (`p1 COMMAND`, `cmd`, `popen`) are the machine's programs in the pod's network, as on a host that is
no container; `run_in` is for a command inside one of its containers.
"""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from topo.containers import engine as engines
from topo.containers.engine import ENGINES, Engine, Member
from topo.containers.host import PREFIX
from topo.containers.leftovers import Membership
from topo.containers.podspec import parse_member, parse_pod
from topo.containers.provision import PAUSE, provide
from topo.containers.published import PublishedPorts
from topo.containers.shell import entering
from topo.containers.spec import HOST_PARAMETERS, ContainerSpec
from topo.description import PodName
from topo.errors import BadNetwork, ContainerFailed
from topo.hosts import ProcessHost


class Pod(ProcessHost):
    """A host that is a pod."""

    shell: Any  # Mininet's, which has no types
    pid: int

    def __init__(
        self,
        name: str,
        engine: str | Engine = ENGINES[0],
        offload: bool = True,
        adopted: PodName | None = None,
        **params: Any,
    ) -> None:
        """Make and start the sandbox; takes an engine's name, a host's parameters, and those of POD_PARAMETERS.

        `offload=False` is for networks whose switches handle packets in user space. An `adopted` pod of an earlier run
        is taken as it is.
        """
        own = parse_pod(name, PAUSE, **params)  # mistakes first, before anything is looked for
        self.engine = engines.connect(engine) if isinstance(engine, str) else engine
        self.pod = ""
        self._published: PublishedPorts | None = None
        self._membership = Membership()
        try:
            self._membership.uses(self.engine)
            if adopted is not None:
                self.pod, self._sandbox = adopted.id, adopted.sandbox.pid
            else:
                self.pod, self._sandbox = self._make(name, own)
            host = {key: value for key, value in params.items() if key in HOST_PARAMETERS}
            super().__init__(name, offload, adopted=adopted is not None, **host)
            if own.port_bindings:
                self._published = PublishedPorts(name, self.pid, own.port_bindings)
        except BaseException:
            if adopted is None:
                self._remove()
            raise

    def _make(self, name: str, described: ContainerSpec) -> tuple[str, int]:
        spec = replace(described, image=provide(self.engine, PAUSE))
        if spec.rm:
            self.engine.remove_pod(PREFIX + name)
        pod, sandbox = self.engine.make_pod(PREFIX + name, name, spec, self._membership.run)
        if sandbox == 0:
            self.engine.remove_pod(pod)
            raise ContainerFailed(f"{name}: its sandbox ended at once")
        return pod, sandbox

    # ---- containers

    def addContainer(
        self, name: str, image: str, command: str | Sequence[str] | None = None, **params: Any
    ) -> Member:
        """Start a container in the pod; takes containernet's parameters, but those that are the pod's own.

        `image` is one of ours by its short name, or anything that the engine has; `command` comes after the image's
        entrypoint. The engine's name for it is mn.NAME, so names are given once in a network.
        """
        described = parse_member(self.name, name, image, command, **params)
        reference = provide(self.engine, image)
        has_command = described.command or (
            self.engine.has_image(reference) and self.engine.image_has_command(reference)
        )
        spec = replace(described, image=reference, pod=self.pod, has_input=not has_command)
        made = engines.start(self.engine, PREFIX + name, self.name, spec, self._membership.run)
        pid = engines.process_of(self.engine, made)
        if pid == 0:
            said = self.engine.log(made)
            self.engine.remove(made)
            raise ContainerFailed(f"{name} ended at once: {said or 'it said nothing'}")
        return Member(made, PREFIX + name, spec.image, pid)

    def containers(self) -> list[Member]:
        """List the containers that are in the pod now, running or not."""
        return self.engine.members(self.pod)

    def removeContainer(self, name: str) -> None:
        """End and remove one of the pod's containers, by the name that it was given."""
        self.engine.remove(self._member(name).id)

    def run_in(self, name: str, *command: str) -> str:
        """Run a command inside one of the pod's containers; returns what it prints."""
        member = self._member(name)
        if member.pid == 0:
            raise BadNetwork(f"the container {name} of {self.name} does not run any more")
        done = subprocess.run(
            [*entering(member.pid), *command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        return done.stdout

    def _member(self, name: str) -> Member:
        for member in (found := self.containers()):
            if member.name == PREFIX + name:
                return member
        there = ", ".join(member.name.removeprefix(PREFIX) for member in found) or "none"
        raise BadNetwork(f"{self.name} has no container {name} (there are: {there})")

    # ---- the machine's commands, in the pod's network

    def startShell(self, mnopts: str | None = None) -> None:
        """Start Mininet's shell with the machine's files: the sandbox's image has none."""
        self.inNamespace = False  # mnexec is not to make namespaces
        try:
            super().startShell(mnopts)
        finally:
            self.inNamespace = True
        self.pid = self._sandbox

    def _popen(self, cmd: list[str], **params: Any) -> subprocess.Popen[Any]:
        """Start what Mininet starts for this node in the pod's network."""
        return subprocess.Popen(["nsenter", f"--net=/proc/{self._sandbox}/ns/net", *cmd], **params)

    def popen(self, *args: Any, **kwargs: Any) -> subprocess.Popen[Any]:
        """Start one of the machine's programs in the pod's network; takes Mininet's and Popen's parameters."""
        process: subprocess.Popen[Any] = super().popen(*args, **{"mncmd": ["mnexec", "-d"], **kwargs})
        return process

    # ---- the end

    def terminate(self) -> None:
        """Remove the pod and everything that is in it; once."""
        if getattr(self, "shell", None) is not None:
            super().terminate()
        self._remove()

    def _remove(self) -> None:
        if self._published is not None:
            self._published.close()
            self._published = None
        pod, self.pod = self.pod, ""
        self._membership.end(self.engine.remove_pod, pod)
