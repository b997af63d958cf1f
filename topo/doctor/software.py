"""What is installed besides: CRIU, Mininet, Redis, container engines, Vagrant."""

from __future__ import annotations

import importlib.util
import platform
import shutil

from migration import messages
from migration.criu import VARIABLE, Criu, from_environment
from migration.errors import CriuMissing
from topo import criu_probe, paths
from topo.criu_setup import read_choice
from topo.doctor.findings import SETUP, Finding, fine, first_line, last_line, needed, optional, run

_CONTAINERS = f"{SETUP} CONTAINERS=1"


def check_criu() -> Finding:
    """Dump and restore a TCP connection with the CRIU that set-up chose, and say which that is and why."""
    named = from_environment()
    if named is not None:
        try:
            Criu.find()
        except CriuMissing as ex:
            return needed(_fault(ex), f"unset {VARIABLE}")
    binary = str(named or paths.criu_binary() or "criu")
    verdict = criu_probe.probe(binary)
    measured = {"version": verdict.version, "binary": shutil.which(binary) or ""}
    if named is not None:
        told = f"CRIU {verdict.version}, named by {VARIABLE}"
        if not verdict.works:
            return needed(
                f"{told}, on kernel {platform.release()}: {verdict.reason}", f"unset {VARIABLE}", **measured
            )
        return fine(f"dumps and restores a TCP connection with {told}", **measured)
    if not verdict.works:
        return needed(
            f"CRIU {verdict.version} on kernel {platform.release()}: {verdict.reason}",
            f"{SETUP} PROBE=1",
            **measured,
        )
    choice = read_choice()
    if choice is None:
        return needed(f"CRIU {verdict.version} works, but set-up did not choose it", SETUP, **measured)
    return fine(f"dumps and restores a TCP connection with {choice.describe()}", **measured)


def _fault(ex: CriuMissing) -> str:
    """Return what is wrong with a CRIU, without what to do: a finding has that for itself."""
    return str(ex).rpartition(": ")[0]


def check_pycriu() -> Finding:
    """Ask for CRIU's messages, of a version that fits the CRIU in use."""
    try:
        criu = Criu.find()
    except CriuMissing as ex:
        return needed(_fault(ex), f"unset {VARIABLE}" if from_environment() else SETUP)
    ours = (messages.FOLDER / messages.VERSION).read_text().strip()
    version = ".".join(map(str, criu.version))
    return fine(f"pycriu {ours} has the messages of CRIU {version}", path=str(messages.FOLDER))


def check_dirty_tracking() -> Finding:
    """Ask for soft-dirty tracking, which pre-copy rounds need."""
    done = run([str(paths.criu_binary() or "criu"), "check", "--feature", "mem_dirty_track"])
    if done.returncode != 0:
        return optional(
            f"kernel {platform.release()} does not track dirty pages",
            "iterative pre-copy of large programs",
        )
    return fine("the kernel tracks dirty pages")


def check_mininet() -> Finding:
    """Ask for Mininet and its helper."""
    if importlib.util.find_spec("mininet") is None or shutil.which("mnexec") is None:
        return needed("Mininet is not installed for this Python", SETUP)
    from mininet.net import VERSION

    return fine(f"Mininet {VERSION}", version=VERSION)


def check_redis() -> Finding:
    """Ask for the real Redis server, and for the library that the scenario's programs use."""
    if shutil.which("redis-server") is None:
        return optional("redis-server is not installed", f"the Redis scenario ({SETUP})")
    library = run(["/usr/bin/python3", "-c", "import redis; print(redis.__version__)"])
    if library.returncode != 0:
        return optional("python3-redis is not installed", f"the Redis scenario ({SETUP})")
    server = " ".join(run(["redis-server", "--version"]).stdout.split()[:3])
    return fine(
        f"{server}, python3-redis {library.stdout.strip()}", server=server, library=library.stdout.strip()
    )


def check_docker() -> Finding:
    """Ask for a Docker daemon that answers."""
    return _check_engine("docker", "addDocker, --hosts docker")


def check_podman() -> Finding:
    """Ask for Podman."""
    return _check_engine("podman", "addPodman, --hosts podman")


def _check_engine(name: str, lost: str) -> Finding:
    from topo.containers.engine import connect
    from topo.errors import TestbedError

    try:
        described = connect(name).describe()
    except TestbedError as ex:
        return optional(str(ex), lost)
    return fine(described, version=described)


def check_runc() -> Finding:
    """Ask for runc, which Docker and Podman start containers with."""
    if shutil.which("runc") is None:
        return optional(f"runc is not installed; {_CONTAINERS}", "containers")
    version = first_line(run(["runc", "--version"]))
    return fine(version, version=version)


def check_vagrant() -> Finding:
    """Ask for Vagrant."""
    if shutil.which("vagrant") is None:
        return optional("vagrant is not installed", "the VM lab (vagrant/)")
    version = last_line(run(["vagrant", "--version"]))
    return fine(version, version=version)
