"""Kernel modules: where they are by a kernel's files, what is loaded at a start, and what is said of missing ones."""

from __future__ import annotations

import gzip
import os
import subprocess
import time
from pathlib import Path

import pytest

from migration.slowness import scaled
from topo.errors import MissingTool
from topo.modules import MODULES, Kernel, Module, State, Use, load, prepare, run, why_missing

RELEASE = "6.1.0-18-amd64"
NAMED = {module.name: module for module in MODULES}
EVERY_USE = tuple(Use)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def _distribution_kernel(root: Path, release: str = RELEASE, without: str = "") -> Kernel:
    """Lay out a kernel as distributions do: veth is loaded, af_packet built in, the others are files."""
    names = [name for name in NAMED if name not in (without, "af_packet")]
    files = "".join(f"kernel/net/{name}.ko.xz: kernel/net/core.ko.xz\n" for name in names)
    _write(root / "lib/modules" / release / "modules.dep", files)
    _write(root / "lib/modules" / release / "modules.builtin", "kernel/net/packet/af_packet.ko\n")
    _write(root / "proc/modules", "veth 32768 0 - Live 0x0000000000000000\n")
    return Kernel(release, root)


class Modprobe:
    """What `run` is given, and answers."""

    def __init__(self, answer: str | None = None) -> None:
        self.commands: list[list[str]] = []
        self._answer = answer

    def __call__(self, command: list[str]) -> str | None:
        """Answer as modprobe does."""
        self.commands.append(command)
        return self._answer


def test_a_kernel_of_a_distribution_says_where_each_module_is(tmp_path: Path) -> None:
    """Loaded, built in, loadable or missing, by what depmod wrote."""
    kernel = _distribution_kernel(tmp_path, without="sch_netem")
    states = {module.name: state for module, state in kernel.states().items()}
    assert (states.pop("veth"), states.pop("af_packet")) == (State.LOADED, State.BUILT_IN)
    assert states.pop("sch_netem") is State.MISSING
    assert set(states.values()) == {State.LOADABLE}


@pytest.mark.parametrize(
    ("file", "state"),
    [
        ("kernel/net/sched/sch-netem.ko", State.LOADABLE),  # modprobe(8): - and _ are the same
        ("kernel/net/sched/sch_netem.ko.zst", State.LOADABLE),
        ("kernel/net/sched/sch_netem.ko.gz", State.LOADABLE),
        ("kernel/net/sched/my_sch_netem.ko", State.MISSING),
        ("kernel/net/sched/sch_netem_extra.ko", State.MISSING),
    ],
)
def test_module_files_have_many_names(file: str, state: State, tmp_path: Path) -> None:
    """Compressed or not; another module whose name only contains this one is not it."""
    kernel = _distribution_kernel(tmp_path)
    _write(kernel.folder / "modules.dep", f"{file}:\n")
    assert kernel.state(NAMED["sch_netem"]) is state


@pytest.mark.parametrize(
    ("line", "state"),
    [
        ("CONFIG_NET_SCH_NETEM=y", State.BUILT_IN),
        ("# CONFIG_NET_SCH_NETEM is not set", State.MISSING),
        ("CONFIG_NET_SCH_NETEM=m", State.UNKNOWN),  # a container's machine may load it
        ("CONFIG_NET_SCH_NETEM_MORE=y", State.MISSING),
    ],
)
@pytest.mark.parametrize("is_packed", [True, False])
def test_without_modules_folder_the_configuration_says_it(
    line: str, state: State, is_packed: bool, tmp_path: Path
) -> None:
    """/proc/config.gz, or /boot/config-RELEASE."""
    text = f"CONFIG_NET=y\n{line}\n"
    if is_packed:
        (tmp_path / "proc").mkdir()
        (tmp_path / "proc/config.gz").write_bytes(gzip.compress(text.encode()))
    else:
        _write(tmp_path / f"boot/config-{RELEASE}", text)
    assert Kernel(RELEASE, tmp_path).state(NAMED["sch_netem"]) is state


def test_nothing_written_down_is_unknown_not_missing(tmp_path: Path) -> None:
    """A container sees neither modules nor configuration; /sys/module still tells of some that are there."""
    (tmp_path / "sys/module/bridge").mkdir(parents=True)
    kernel = Kernel(RELEASE, tmp_path)
    assert kernel.state(NAMED["veth"]) is State.UNKNOWN
    assert kernel.state(NAMED["bridge"]) is State.BUILT_IN


def test_a_broken_configuration_says_nothing(tmp_path: Path) -> None:
    """As if there were none."""
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/config.gz").write_bytes(b"\x1f\x8b broken")
    assert Kernel(RELEASE, tmp_path).state(NAMED["veth"]) is State.UNKNOWN


def test_what_is_only_loadable_is_loaded_with_a_sentence(tmp_path: Path) -> None:
    """Each once, none that is loaded or built in, none that no use needs."""
    modprobe = Modprobe()
    (said,) = load(_distribution_kernel(tmp_path), EVERY_USE, "debian", modprobe)
    names = [command[-1] for command in modprobe.commands]
    assert all(command[0].endswith("/modprobe") for command in modprobe.commands)
    assert names == [m.name for m in MODULES if m.uses and m.name not in ("veth", "af_packet")]
    assert said == f"loaded kernel modules: {', '.join(names)}"


def test_nothing_is_said_where_all_is_there(tmp_path: Path) -> None:
    """And nothing is started."""
    modprobe = Modprobe()
    kernel = _distribution_kernel(tmp_path)
    _write(tmp_path / "proc/modules", "".join(f"{name} 1 0 - Live 0x0\n" for name in NAMED))
    assert load(kernel, EVERY_USE, "debian", modprobe) == [] and modprobe.commands == []


def test_only_what_the_use_needs_is_looked_at(tmp_path: Path) -> None:
    """A network without migrations is not refused for a missing tcp_diag."""
    kernel = _distribution_kernel(tmp_path, without="tcp_diag")
    load(kernel, [Use.LINKS, Use.EBPF], "debian", Modprobe())
    with pytest.raises(MissingTool, match="has no module tcp_diag"):
        load(kernel, [Use.MIGRATION], "debian", Modprobe())


def test_a_module_that_one_can_do_without_is_no_error(tmp_path: Path) -> None:
    """Held packets then take another way."""
    load(_distribution_kernel(tmp_path, without="macvlan"), EVERY_USE, "debian", Modprobe())


def test_a_refusing_modprobe_is_said_but_does_not_stop(tmp_path: Path) -> None:
    """In a container it is the machine's modprobe that can load modules, when the kernel asks for them."""
    said = load(
        _distribution_kernel(tmp_path), [Use.MIGRATION], "debian", Modprobe("Operation not permitted")
    )
    assert (
        f"kernel module nf_tables ({NAMED['nf_tables'].purpose}) was not loaded: Operation not permitted"
        in said
    )
    assert not any("netlink_diag" in one for one in said)  # nothing needs it


@pytest.mark.parametrize(
    ("distribution", "release", "says"),
    [
        ("ubuntu", "6.8.0-31-generic", "linux-modules-extra-6.8.0-31-generic"),
        ("debian", "6.1.0-18-amd64", "linux-image-6.1.0-18-amd64"),
        ("debian", "6.1.0-18-cloud-amd64", "linux-image-amd64"),
        ("fedora", "6.11.4-301.fc41.x86_64", "CONFIG_NET_CLS_BPF"),
    ],
)
def test_the_error_names_module_kernel_purpose_and_package(
    distribution: str, release: str, says: str, tmp_path: Path
) -> None:
    """One sentence that one can act upon."""
    kernel = _distribution_kernel(tmp_path, release, without="cls_bpf")
    with pytest.raises(MissingTool) as error:
        load(kernel, [Use.EBPF], distribution, Modprobe())
    text = str(error.value)
    assert text.startswith(f"kernel {release} has no module cls_bpf ({NAMED['cls_bpf'].purpose})")
    assert says in text and "\n" not in text


def test_after_an_update_the_error_says_reboot(tmp_path: Path) -> None:
    """The running kernel's modules are gone, its successor's are there; what is loaded still works."""
    _distribution_kernel(tmp_path, "6.1.0-20-amd64")
    kernel = Kernel(RELEASE, tmp_path)
    assert kernel.was_updated
    refuses = Modprobe("Error: Unknown device type.")
    with pytest.raises(MissingTool) as error:
        load(kernel, [Use.BRIDGE], "debian", refuses)
    assert "has no module bridge" in str(error.value) and "6.1.0-20-amd64 only" in str(error.value)
    assert "reboot" in str(error.value) and "Unknown device type" in str(error.value)
    assert load(kernel, [Use.LINKS], "debian", refuses) == []  # veth is loaded


def test_a_kernel_without_modules_is_not_told_to_reboot(tmp_path: Path) -> None:
    """Others' modules in /lib/modules mean nothing to a kernel that can load none."""
    _distribution_kernel(tmp_path, "6.1.0-20-amd64")
    (tmp_path / "proc/modules").unlink()
    kernel = Kernel(RELEASE, tmp_path)
    assert not kernel.was_updated
    assert "CONFIG_BRIDGE" in why_missing(kernel, NAMED["bridge"], "debian")


@pytest.mark.net
@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
def test_attempts_tell_what_works_here() -> None:
    """On this very kernel: each works unless the files say that the module is missing; what is no module fails."""
    states = Kernel().states()
    tried = [m for m in MODULES if m.attempt and states[m] is not State.MISSING]
    assert {m.name for m in tried} == {"veth", "sch_ingress", "cls_bpf", "bridge", "nf_tables"}
    for module in tried:
        assert run(["unshare", "--net", "sh", "-c", module.attempt]) is None, module.name
    bad = Module("x", "X", "", attempt="ip link add name x0 type nosuchkind")
    assert run(["unshare", "--net", "sh", "-c", bad.attempt])


@pytest.mark.net
@pytest.mark.skipif(os.geteuid() != 0, reason="only root prepares")
def test_a_start_is_not_slowed_down(capfd: pytest.CaptureFixture[str]) -> None:
    """On this kernel with everything there: no output, and no measurable time (5 ms on the reference machine)."""
    prepare(*EVERY_USE)  # loads what was not, once
    capfd.readouterr()
    best = 1.0
    for _ in range(5):
        begin = time.perf_counter()
        assert load(Kernel(), EVERY_USE, "debian") == []
        best = min(best, time.perf_counter() - begin)
    assert best < scaled(0.05)  # ten times what it takes: a bound against starting programs, not a benchmark
    assert capfd.readouterr().err == ""


@pytest.mark.net
@pytest.mark.skipif(os.geteuid() != 0, reason="namespaces need root")
def test_every_needed_module_of_this_machine_is_known() -> None:
    """What the suite's networks work with is not reported missing."""
    missing = [m.name for m, state in Kernel().states().items() if state is State.MISSING and m.is_needed]
    assert missing == [], subprocess.run(["uname", "-a"], capture_output=True, text=True, check=False).stdout
