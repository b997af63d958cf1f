"""The kernel's modules that the project uses: which are there, and loading those that are needed before they are.

The kernel loads most modules by itself when they are first asked for, but not where it may not run modprobe, and what
it answers when it cannot ("Unknown device type", "No such file or directory") does not name the module. So `prepare`
looks first. It reads files only, and starts modprobe for what is neither loaded nor built in.

A kernel tells of its modules in /proc/modules (loaded; there is no such file where modules are switched off),
/lib/modules/RELEASE/modules.builtin and modules.dep. That folder is missing in containers, for kernels that come
without modules, and after an update has removed the modules of the kernel that still runs. Then its configuration
(/proc/config.gz, /boot/config-RELEASE) says what is built in; without one the state is unknown, and only trying tells.
"""

from __future__ import annotations

import functools
import gzip
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from migration.slowness import scaled
from topo.errors import MissingTool

_TIMEOUT = scaled(20.0)  # seconds for modprobe and for each attempt


class State(Enum):
    """Where a module is."""

    BUILT_IN = "built in"
    LOADED = "loaded"
    LOADABLE = "loadable"
    MISSING = "missing"
    UNKNOWN = "unknown"


class Use(Enum):
    """What has to have its modules before it starts."""

    LINKS = "links"
    EBPF = "eBPF switches"
    BRIDGE = "bridges"
    MIGRATION = "migrations"


@dataclass(frozen=True)
class Module:
    """A module, by the name of its file; `option` is its name in the kernel's configuration, without CONFIG_."""

    name: str
    option: str
    purpose: str
    uses: frozenset[Use] = frozenset()
    """What loads it at its start; the kernel loads the others when they are asked for."""
    lost: str = ""
    """What one does without if it is missing; "" if nothing goes without it."""
    attempt: str = ""
    """A shell command that works in a new network namespace if the module is there."""

    @property
    def is_needed(self) -> bool:
        """Return True if nothing that uses it works without it."""
        return not self.lost


def _uses(*uses: Use) -> frozenset[Use]:
    return frozenset(uses)


_VETH = "ip link add name v0 type veth peer name v1"
MODULES = (
    Module("veth", "VETH", "links", _uses(Use.LINKS), attempt=_VETH),
    Module(
        "sch_ingress",
        "NET_SCH_INGRESS",
        "the hook of tc that P4 programs are attached to",
        _uses(Use.EBPF),
        attempt=f"{_VETH} && tc qdisc add dev v0 clsact",
    ),
    Module(
        "cls_bpf",
        "NET_CLS_BPF",
        "tc filters that run P4 programs",
        _uses(Use.EBPF),
        attempt=f"{_VETH} && tc qdisc add dev v0 clsact && tc filter add dev v0 ingress bpf bytecode '1,6 0 0 0'",
    ),
    Module("af_packet", "PACKET", "packets between controller and switch", _uses(Use.EBPF)),
    Module(
        "bridge",
        "BRIDGE",
        "the hosts' management network, and learning bridges",
        _uses(Use.BRIDGE),
        attempt="ip link add name b0 type bridge",
    ),
    Module(
        "nf_tables",
        "NF_TABLES",
        "dropping packets of connections that move",
        _uses(Use.MIGRATION),
        attempt="nft add table inet p4ferry_attempt",
    ),
    Module("inet_diag", "INET_DIAG", "reading the sockets of programs", _uses(Use.MIGRATION)),
    Module("tcp_diag", "INET_TCP_DIAG", "reading TCP sockets", _uses(Use.MIGRATION)),
    Module("udp_diag", "INET_UDP_DIAG", "reading UDP sockets", _uses(Use.MIGRATION)),
    Module("unix_diag", "UNIX_DIAG", "reading UNIX sockets", _uses(Use.MIGRATION)),
    Module(
        "netlink_diag",
        "NETLINK_DIAG",
        "CRIU reads netlink sockets by it",
        _uses(Use.MIGRATION),
        lost="migrations of programs with netlink sockets",
    ),
    Module(
        "af_packet_diag",
        "PACKET_DIAG",
        "CRIU reads packet sockets by it",
        _uses(Use.MIGRATION),
        lost="migrations of programs with packet sockets",
    ),
    Module(
        "macvlan",
        "MACVLAN",
        "hold queues",
        _uses(Use.EBPF),
        lost="hold queues in the kernel",
    ),
    Module("sch_tbf", "NET_SCH_TBF", "hold queues", _uses(Use.EBPF), lost="hold queues in the kernel"),
    Module("sch_netem", "NET_SCH_NETEM", "links' delay and loss", lost="links with delay, jitter or loss"),
    Module("sch_htb", "NET_SCH_HTB", "links' bandwidth", lost="links with a bandwidth"),
    Module("overlay", "OVERLAY_FS", "containers' file systems", lost="--hosts runc, and fast containers"),
)


class Kernel:
    """The running kernel's modules; `root` is where its files are (tests have their own)."""

    def __init__(self, release: str = "", root: Path = Path("/")) -> None:
        self.release = release or platform.release()
        self._root = root

    @property
    def folder(self) -> Path:
        """Where this kernel's modules would be."""
        return self._root / "lib/modules" / self.release

    @functools.cached_property
    def has_modules(self) -> bool:
        """Return True if this kernel can load modules at all."""
        return (self._root / "proc/modules").exists()

    @functools.cached_property
    def others(self) -> tuple[str, ...]:
        """The other kernels whose modules are installed."""
        parent = self.folder.parent
        found = parent.iterdir() if parent.is_dir() else iter(())
        return tuple(sorted(p.name for p in found if p.name != self.release and (p / "modules.dep").exists()))

    @property
    def was_updated(self) -> bool:
        """Return True if this kernel's modules are gone and another kernel's are there: only a reboot helps."""
        return self.has_modules and not self.folder.is_dir() and bool(self.others)

    def state(self, module: Module) -> State:
        """Find out where a module is, by reading files only."""
        if module.name in self._loaded:
            return State.LOADED
        if _contains(self._builtin, module.name) or (self._root / "sys/module" / module.name).is_dir():
            return State.BUILT_IN
        if self.folder.is_dir() and self._dependencies:
            return State.LOADABLE if _contains(self._dependencies, module.name) else State.MISSING
        return self._configured(module.option)

    def _configured(self, option: str) -> State:
        if f"CONFIG_{option}=y\n".encode() in self._config:
            return State.BUILT_IN
        # "=m" without the module's file: in a container the machine may have it, and load it when it is asked for.
        is_unknown = not self._config or f"CONFIG_{option}=m\n".encode() in self._config
        return State.UNKNOWN if is_unknown else State.MISSING

    def states(self, modules: Iterable[Module] = MODULES) -> dict[Module, State]:
        """Find out where modules are."""
        return {module: self.state(module) for module in modules}

    @functools.cached_property
    def _loaded(self) -> frozenset[str]:
        return frozenset(
            line.split(maxsplit=1)[0].decode()
            for line in _read(self._root / "proc/modules").splitlines()
            if line
        )

    @functools.cached_property
    def _builtin(self) -> bytes:
        return _listing(self.folder / "modules.builtin")

    @functools.cached_property
    def _dependencies(self) -> bytes:
        return _listing(self.folder / "modules.dep")

    @property
    def _config(self) -> bytes:
        return _configuration(self._root, self.release)


@functools.cache
def _configuration(root: Path, release: str) -> bytes:
    """Read a kernel's configuration, which cannot change; b"" if it is nowhere."""
    if packed := _read(root / "proc/config.gz"):
        try:
            return gzip.decompress(packed)
        except (OSError, EOFError):
            return b""
    return _read(root / "boot" / f"config-{release}")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""


def _listing(path: Path) -> bytes:
    """Read a list of module files; `-` and `_` are the same in their names (modprobe(8))."""
    return _read(path).replace(b"-", b"_")


def _contains(listing: bytes, name: str) -> bool:
    """Return True if a list of module files, compressed or not, has one; its `-` are `_` already."""
    return any(f"/{name}.ko{end}".encode() in listing for end in (":", ".", "\n"))


def updated(kernel: Kernel) -> str:
    """Return what an update of the kernel's package looks like."""
    return f"/lib/modules has those of {', '.join(kernel.others)} only, for the kernel was updated"


def remedy(kernel: Kernel, module: Module, distribution: str) -> str:
    """Return what to do about a missing module."""
    if kernel.was_updated:
        return f"{updated(kernel)}: reboot"
    if not kernel.has_modules:
        return f"it has no modules: boot a kernel with CONFIG_{module.option}"
    if distribution == "ubuntu":
        return (
            f"install linux-modules-extra-{kernel.release} (apt-get install), or boot linux-generic's kernel"
        )
    if distribution == "debian" and "cloud" in kernel.release:
        return "install linux-image-amd64 (apt-get install) and boot it: the cloud kernel leaves modules out"
    if distribution == "debian":
        return f"install linux-image-{kernel.release} (apt-get install --reinstall)"
    return f"install the package with more modules of kernel {kernel.release}, or boot one with CONFIG_{module.option}"


def why_missing(kernel: Kernel, module: Module, distribution: str) -> str:
    """Return in a sentence that a module is missing, what it is for, and what to do."""
    return (
        f"kernel {kernel.release} has no module {module.name} ({module.purpose}); "
        f"{remedy(kernel, module, distribution)}"
    )


Run = Callable[[list[str]], "str | None"]


def run(command: list[str]) -> str | None:
    """Run a command; return None if it worked, or the last line that it wrote."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as ex:
        return str(ex)
    if done.returncode == 0:
        return None
    return (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]


def load(kernel: Kernel, uses: Iterable[Use], distribution: str, run: Run = run) -> list[str]:
    """Load what some uses need and is only loadable; return sentences for the user, none if all was there.

    Raises MissingTool for a needed module that is missing. One that modprobe refuses may still come when the kernel
    itself asks for it (in a container it is the machine's modprobe that does it), so that is only said.
    """
    wanted = [module for module in MODULES if module.uses & frozenset(uses)]
    loaded, refused = [], []
    for module, state in kernel.states(wanted).items():
        if module.is_needed and (reason := why_not(module, state, run)) is not None:
            raise MissingTool(why_missing(kernel, module, distribution) + reason)
        if state is State.LOADABLE:
            reason = run([shutil.which("modprobe") or "/sbin/modprobe", module.name])
            if reason is None:
                loaded.append(module.name)
            elif module.is_needed:
                refused.append(f"kernel module {module.name} ({module.purpose}) was not loaded: {reason}")
    if loaded:
        refused.append(f"loaded kernel modules: {', '.join(loaded)}")
    return refused


def why_not(module: Module, state: State, run: Run = run) -> str | None:
    """Return None unless a module is missing; where nothing is written down, try it (the kernel then loads it)."""
    if state is State.MISSING:
        return ""
    if state is not State.UNKNOWN or not module.attempt:
        return None
    tried = run(["unshare", "--net", "sh", "-c", module.attempt])
    return None if tried is None else f" (trying it says: {tried})"


def prepare(*uses: Use) -> None:
    """Load what some uses need, once in a process, and say so in a sentence; raises MissingTool."""
    _prepare_once(frozenset(uses))


@functools.cache
def _prepare_once(uses: frozenset[Use]) -> None:
    if os.geteuid() != 0:
        return
    for sentence in load(Kernel(), uses, distribution()["ID"]):
        print(sentence, file=sys.stderr, flush=True)


@functools.cache
def distribution() -> dict[str, str]:
    """Return /etc/os-release (os-release(5)), with ID and PRETTY_NAME at least."""
    try:
        found = platform.freedesktop_os_release()
    except OSError:
        found = {}
    return {"ID": "linux", "PRETTY_NAME": "an unnamed distribution", **found}
