"""Say what works on this machine: every check tries the real thing and answers in one line.

An answer is "fine", "optional" (missing; the line says what is lost) or "needed" (missing; the line says what to
type). New check: one function, one row in CHECKS.
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from rich.console import Console
from rich.table import Table

from migration import messages
from migration.criu import Criu
from migration.errors import CriuMissing
from migration.slowness import scaled
from topo import criu_probe, paths
from topo.criu_setup import read_choice
from topo.netem import has_netem

PIPE_WIDTH = 200  # columns where nobody looks directly
_TIMEOUT = scaled(30.0)  # seconds for any child
_SETUP = "type: make setup"
_CONTAINERS = f"{_SETUP} CONTAINERS=1"
_CAPABILITIES = {"CAP_NET_ADMIN": 12, "CAP_SYS_PTRACE": 19, "CAP_SYS_ADMIN": 21, "CAP_BPF": 39}
_CAP_SYS_RESOURCE = 24


class Status(Enum):
    """How a check ended."""

    FINE = "fine"
    OPTIONAL = "optional"
    NEEDED = "needed"


@dataclass(frozen=True)
class Finding:
    """A check's answer."""

    status: Status
    detail: str


def fine(detail: str) -> Finding:
    """Answer that all is well."""
    return Finding(Status.FINE, detail)


def optional(detail: str, lost: str) -> Finding:
    """Answer that something is missing which one can do without."""
    return Finding(Status.OPTIONAL, f"{detail}; lost: {lost}")


def needed(detail: str, remedy: str) -> Finding:
    """Answer that something is missing which one cannot do without."""
    return Finding(Status.NEEDED, f"{detail}; {remedy}")


def check_kernel() -> Finding:
    """Ask for the oldest kernel that the generated programs are written for."""
    release = platform.release()
    version = tuple(int(part) for part in release.split("-")[0].split(".")[:2])
    if version < (5, 15):
        return needed(f"Linux {release} is older than 5.15", "boot a newer kernel")
    return fine(f"Linux {release}, {platform.machine()}")


def check_root() -> Finding:
    """Ask for root and its capabilities."""
    if os.geteuid() != 0:
        return needed("not root", "type: sudo python3 topo/lb.py --doctor")
    effective = _effective_capabilities()
    missing = [name for name, bit in _CAPABILITIES.items() if not effective >> bit & 1]
    if missing:
        return needed(f"root without {', '.join(missing)}", "start the container or VM with full privileges")
    if not effective >> _CAP_SYS_RESOURCE & 1:
        return fine(
            "root (without CAP_SYS_RESOURCE: resource limits cannot be raised, nothing here needs it)"
        )
    return fine("root, with all capabilities")


def check_namespaces() -> Finding:
    """Make a network namespace with a veth pair whose one end takes a tc (clsact) hook."""
    name = f"p4f{uuid.uuid4().hex[:6]}"
    script = f"ip link add {name}a type veth peer name {name}b && tc qdisc add dev {name}a clsact"
    done = _run(["unshare", "--net", "--mount", "sh", "-c", script])
    if done.returncode != 0:
        return needed(
            f"namespaces, veth or tc: {_last(done)}", "the kernel lacks CONFIG_VETH or NET_SCH_INGRESS"
        )
    return fine("network namespaces, veth pairs, tc clsact")


def check_netem() -> Finding:
    """Ask for netem, which link delay and loss need."""
    if not has_netem():
        return optional("the kernel has no netem", "link delay and loss")
    return fine("netem")


def check_hold_queues() -> Finding:
    """Make what held packets wait behind in the switch: a macvlan with a token bucket."""
    script = (
        "ip link add pfa type veth peer name pfb && ip link add link pfa name pfq type macvlan mode private"
        " && tc qdisc add dev pfq root tbf rate 8bit burst 65549 limit 1mb"
    )
    done = _run(["unshare", "--net", "sh", "-c", script])
    if done.returncode != 0:
        return optional(f"macvlan or tbf: {_last(done)}", "speed: held packets go to the controller and back")
    return fine("macvlan and tbf: held packets wait in the kernel")


def check_clang() -> Finding:
    """Compile for BPF."""
    clang = shutil.which("clang")
    if clang is None:
        return needed("clang is not installed", _SETUP)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "probe.c"
        source.write_text("int probe(void *context) { return 0; }\n")
        done = _run([clang, "-O2", "-target", "bpf", "-c", str(source), "-o", str(Path(folder) / "probe.o")])
    if done.returncode != 0:
        return needed(f"clang cannot compile for BPF: {_last(done)}", "install a clang with the BPF target")
    return fine(_run([clang, "--version"]).stdout.splitlines()[0])


def check_bpf() -> Finding:
    """Let the kernel verify a program of our own switch."""
    if importlib.util.find_spec("dataplane.switch.engine") is None:
        return needed("the embedded switch is not importable", _SETUP)
    try:
        ctypes.CDLL("libbpf.so.1")
    except OSError:
        return needed("libbpf.so.1 is not installed", _SETUP)
    if os.geteuid() != 0:
        return needed("only root can load BPF programs", "type: sudo python3 topo/lb.py --doctor")
    return _load_forward()


def _load_forward() -> Finding:
    """Compile and load forward.p4 without attaching it anywhere."""
    from topo.compile import Target, compile_p4
    from topo.errors import TestbedError

    script = (
        "import sys; from pathlib import Path; from dataplane.switch.engine import EbpfEngine\n"
        "engine = EbpfEngine(device_id=4000)\n"
        "try: engine.load(Path(sys.argv[1]).read_bytes()).close()\n"
        "finally: engine.close()\n"
    )
    try:
        program = compile_p4(paths.P4SRC / "forward.p4", Target.EBPF)
    except TestbedError as ex:
        return needed(f"p4ferry-p4c: {str(ex).splitlines()[0]}", "see make test")
    done = _run([str(paths.VENV_PYTHON), "-c", script, str(program.bmv2_json)])
    if done.returncode != 0:
        return needed(f"the kernel refuses a P4 program: {_last(done)}", "see its log")
    return fine("a P4 program compiles to eBPF and passes the verifier")


def check_criu() -> Finding:
    """Dump and restore a TCP connection with the CRIU that set-up chose, and say which that is and why."""
    verdict = criu_probe.probe(str(paths.criu_binary() or "criu"))
    choice = read_choice()
    if not verdict.works:
        return needed(f"CRIU {verdict.version}: {verdict.reason}", f"{_SETUP} PROBE=1")
    if choice is None:
        return needed(f"CRIU {verdict.version} works, but set-up did not choose it", _SETUP)
    return fine(f"dumps and restores a TCP connection with {choice.describe()}")


def check_pycriu() -> Finding:
    """Ask for CRIU's messages, of a version that fits the CRIU in use."""
    try:
        criu = Criu.find()
    except CriuMissing as ex:
        return needed(str(ex).removesuffix(": run `make setup`"), _SETUP)
    ours = (messages.FOLDER / messages.VERSION).read_text().strip()
    return fine(f"pycriu {ours} has the messages of CRIU {'.'.join(map(str, criu.version))}")


def check_dirty_tracking() -> Finding:
    """Ask for soft-dirty tracking, which pre-copy rounds need."""
    done = _run([str(paths.criu_binary() or "criu"), "check", "--feature", "mem_dirty_track"])
    if done.returncode != 0:
        return optional("the kernel does not track dirty pages", "iterative pre-copy of large programs")
    return fine("the kernel tracks dirty pages")


def check_mininet() -> Finding:
    """Ask for Mininet and its helper."""
    if importlib.util.find_spec("mininet") is None or shutil.which("mnexec") is None:
        return needed("Mininet is not installed for this Python", _SETUP)
    from mininet.net import VERSION

    return fine(f"Mininet {VERSION}")


def check_redis() -> Finding:
    """Ask for the real Redis server, and for the library that the scenario's programs use."""
    if shutil.which("redis-server") is None:
        return optional("redis-server is not installed", f"the Redis scenario ({_SETUP})")
    library = _run(["/usr/bin/python3", "-c", "import redis; print(redis.__version__)"])
    if library.returncode != 0:
        return optional("python3-redis is not installed", f"the Redis scenario ({_SETUP})")
    server = " ".join(_run(["redis-server", "--version"]).stdout.split()[:3])
    return fine(f"{server}, python3-redis {library.stdout.strip()}")


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
        return fine(connect(name).describe())
    except TestbedError as ex:
        return optional(str(ex), lost)


def check_runc() -> Finding:
    """Ask for runc, which Docker and Podman start containers with."""
    if shutil.which("runc") is None:
        return optional(f"runc is not installed; {_CONTAINERS}", "containers")
    return fine(_run(["runc", "--version"]).stdout.splitlines()[0])


def check_bmv2() -> Finding:
    """Ask for BMv2 and p4c."""
    missing = [tool for tool in ("simple_switch_grpc", "p4c-bm2-ss") if shutil.which(tool) is None]
    if missing:
        return optional(f"{' and '.join(missing)} not on PATH", "--target bmv2")
    return fine("simple_switch_grpc and p4c-bm2-ss")


def check_vagrant() -> Finding:
    """Ask for Vagrant."""
    if shutil.which("vagrant") is None:
        return optional("vagrant is not installed", "the VM lab (vagrant/)")
    return fine(_last(_run(["vagrant", "--version"])))


CHECKS: dict[str, Callable[[], Finding]] = {
    "kernel": check_kernel,
    "privileges": check_root,
    "network": check_namespaces,
    "link emulation": check_netem,
    "hold queues": check_hold_queues,
    "clang": check_clang,
    "eBPF": check_bpf,
    "CRIU": check_criu,
    "pycriu": check_pycriu,
    "dirty tracking": check_dirty_tracking,
    "Mininet": check_mininet,
    "Redis": check_redis,
    "Docker": check_docker,
    "Podman": check_podman,
    "runc": check_runc,
    "BMv2 and p4c": check_bmv2,
    "Vagrant": check_vagrant,
}
_COLOURS = {Status.FINE: "green", Status.OPTIONAL: "yellow", Status.NEEDED: "red"}


def examine(checks: dict[str, Callable[[], Finding]] = CHECKS) -> dict[str, Finding]:
    """Run checks; one that cannot even run is a finding, too."""
    findings = {}
    for name, check in checks.items():
        try:
            findings[name] = check()
        except (OSError, subprocess.SubprocessError) as ex:
            findings[name] = needed(f"the check itself failed: {ex}", _SETUP)
    return findings


def doctor() -> int:
    """Print all findings; the exit status is 0 if nothing that is needed is missing."""
    findings = examine()
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, finding in findings.items():
        colour = _COLOURS[finding.status]
        table.add_row(name, f"[{colour}]{finding.status.value}[/]", finding.detail)
    Console(width=None if sys.stdout.isatty() else PIPE_WIDTH).print(table)
    missing = [name for name, finding in findings.items() if finding.status is Status.NEEDED]
    if missing:
        print(f"\nMissing and needed: {', '.join(missing)}.")
    return 1 if missing else 0


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, timeout=_TIMEOUT, check=False, cwd=paths.CHECKOUT
    )


def _last(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"


def _effective_capabilities() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return int(line.split()[1], 16)
    return 0
