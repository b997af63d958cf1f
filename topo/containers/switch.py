"""A switch's process in a container of the machine's own network, as fully containerised set-ups have it.

The container is the machine seen through a narrow door: its root is empty (the image `host`), and what the switch needs
is mounted into it at its usual place, read-only: /usr with Python and clang, the checkout and its environment. So it
runs the very switch that would run without a container, no image has to be kept up to date, and none is downloaded. It
shares the machine's network, where the ports are, and its processes, and may load eBPF and configure interfaces. It is
not "privileged": that asks for all capabilities, and a root that lacks one can start no such container.

To its network a container is a process like any other: found by its PID, ended by a signal, started again when it ends.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from dataplane.switch.engine.clang import default_cache
from topo import paths
from topo.containers import engine as engines
from topo.containers.host import PREFIX
from topo.containers.leftovers import Membership
from topo.containers.provision import provide
from topo.containers.spec import ContainerSpec
from topo.errors import SwitchFailed, TestbedError
from topo.processes import AdoptedProcess, ProcessName
from topo.runs import MARKER

IMAGE = "host"
CAPABILITIES = ("SYS_ADMIN", "NET_ADMIN", "NET_RAW")
_MACHINE = (Path("/usr"), Path("/etc/alternatives"), Path("/etc/ld.so.cache"))
_PASSED_ON = ("PATH", "HOME", "XDG_CACHE_HOME", "LANG")


class ContainerStarter:
    """Starts the processes of one switch, each in a container called mn.NAME; a `topo.switches.Starter`."""

    def __init__(self, name: str, engine: str) -> None:
        """Choose an engine; raises MissingTool."""
        self._name = PREFIX + name
        self._engine = engines.connect(engine)
        self._container = ""
        self._membership: Membership | None = None

    def start(self, argv: Sequence[str], writable: Sequence[Path]) -> AdoptedProcess:
        """Start a program that may write to some folders; raises SwitchFailed."""
        try:
            self.remove()
            if self._membership is None:
                self._membership = Membership()
                self._membership.uses(self._engine)
            spec = container_of(provide(self._engine, IMAGE), argv, writable)
            self._container = engines.start(self._engine, self._name, self._name, spec, self._membership.run)
            pid = self._engine.pid(self._container)
            if pid == 0:
                raise ProcessLookupError("it ended at once")
            return AdoptedProcess(ProcessName.of(pid))
        except (TestbedError, ProcessLookupError) as ex:
            raise SwitchFailed(f"{self._name}: {self.last_words() or ex}") from ex

    def adopt(self) -> None:
        """Take over the container that an earlier run has started under this name."""
        self._container = self._name

    def last_words(self) -> str:
        """Return the last line that the program has written."""
        try:
            return self._engine.log(self._container) if self._container else ""
        except TestbedError:
            return ""

    def remove(self) -> None:
        """Remove the container, once its process has ended or to end it."""
        container, self._container = self._container, ""
        if container:
            self._engine.remove(container)

    def close(self) -> None:
        """Remove the container, and start no other."""
        self.remove()
        if self._membership is not None:
            self._membership.leave()
            self._membership = None


def container_of(image: str, argv: Sequence[str], writable: Sequence[Path]) -> ContainerSpec:
    """Describe the container of a command of the machine's."""
    program = shutil.which(argv[0]) or argv[0]
    environment = {name: os.environ[name] for name in (*_PASSED_ON, MARKER) if name in os.environ}
    mounts = {path: "ro" for path in (*_MACHINE, *_own(Path(program))) if path.exists()}
    cache = default_cache()
    cache.mkdir(parents=True, exist_ok=True)
    mounts |= {path.absolute(): "rw" for path in (cache, *writable)}
    return ContainerSpec(
        image,
        (program, *argv[1:]),
        environment={**environment, "PYTHONPATH": str(paths.CHECKOUT), "PYTHONDONTWRITEBYTECODE": "1"},
        volumes=tuple(f"{path}:{path}:{mode}" for path, mode in mounts.items()),
        network_mode="host",
        publish_all_ports=False,
        cap_add=CAPABILITIES,
        is_open=True,
        has_input=False,
    )


def _own(program: Path) -> Iterator[Path]:
    """Yield where our code, its environment and the program are, links followed."""
    yield paths.CHECKOUT
    for part in (paths.CHECKOUT / ".venv", paths.STATE):
        if not (real := part.resolve()).is_relative_to(paths.CHECKOUT):
            yield real
    if not program.is_relative_to("/usr") and not program.is_relative_to(paths.CHECKOUT):
        yield program.resolve().parent
