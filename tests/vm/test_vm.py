"""The parts of `make vm-test` that need no machine: initramfs, kernels by path, plans, tables and JUnit."""

from __future__ import annotations

import gzip
import lzma
import shutil
import struct
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.vm import initramfs, results, systems
from tests.vm.errors import VmError
from tests.vm.machine import Outcome
from tests.vm.steps import STEPS, plan


def kernel_image(path: Path, version: str = "5.15.0-100-generic (build@host) #1") -> Path:
    """Write what looks like a bzImage of a version."""
    head = bytearray(0x1000)
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x20E, 0x600)
    head[0x800 : 0x800 + len(version) + 1] = version.encode() + b"\0"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head)
    return path


def module_folder(folder: Path, dep: str, builtin: str = "") -> Path:
    """Write modules.dep and modules.builtin."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "modules.dep").write_text(dep)
    (folder / "modules.builtin").write_text(builtin)
    return folder


def test_modules_come_in_the_order_to_load_them_in(tmp_path: Path) -> None:
    """What a module needs comes first, each once; what is built in is left out."""
    dep = (
        "kernel/virtio.ko:\nkernel/virtio_ring.ko.xz: kernel/virtio.ko\n"
        "kernel/virtio-pci.ko: kernel/virtio_ring.ko.xz kernel/virtio.ko\n"
        "kernel/virtio_blk.ko.zst: kernel/virtio_ring.ko.xz kernel/virtio.ko\n"
    )
    folder = module_folder(tmp_path, dep, "kernel/fs/ext4/ext4.ko\n")
    assert initramfs.needed(folder) == [
        *("kernel/virtio.ko", "kernel/virtio_ring.ko.xz", "kernel/virtio-pci.ko", "kernel/virtio_blk.ko.zst"),
    ]


def test_a_kernel_without_disks_is_refused(tmp_path: Path) -> None:
    """By the name of the driver."""
    folder = module_folder(tmp_path, "", "kernel/fs/ext4/ext4.ko\nkernel/virtio_pci.ko\n")
    with pytest.raises(VmError, match="has no virtio_blk, neither built in nor as a module"):
        initramfs.needed(folder)


@pytest.mark.parametrize("suffix", ["", ".xz", ".gz", ".zst"])
def test_modules_are_unpacked(tmp_path: Path, suffix: str) -> None:
    """Whatever the distribution packs them with; busybox loads plain ones only."""
    content, path = b"\x7fELF" + bytes(5000), tmp_path / f"a.ko{suffix}"
    if suffix == ".zst":
        if shutil.which("zstd") is None:
            pytest.skip("zstd is not installed (apt-get install zstd)")
        plain = tmp_path / "a.ko"
        plain.write_bytes(content)
        subprocess.run(["zstd", "-q", str(plain), "-o", str(path)], check=True)
    else:
        path.write_bytes({"": content, ".xz": lzma.compress(content), ".gz": gzip.compress(content)}[suffix])
    assert initramfs.unpacked(path) == content


@settings(max_examples=30)
@given(
    st.dictionaries(st.from_regex(r"[a-z]{1,12}(\.ko)?", fullmatch=True), st.binary(max_size=300), max_size=6)
)
def test_cpio_reads_the_archive(files: dict[str, bytes]) -> None:
    """The real cpio unpacks what we packed."""
    if shutil.which("cpio") is None:
        pytest.skip("cpio is not installed (apt-get install cpio)")
    packed = initramfs.archive(("dir",), [(f"dir/{name}", 0o644, content) for name, content in files.items()])
    listed = subprocess.run(["cpio", "-it", "--quiet"], input=packed, stdout=subprocess.PIPE, check=True)
    assert listed.stdout.decode().split() == ["dir", *(f"dir/{name}" for name in files)]
    for name, content in files.items():
        command = ["cpio", "-i", "--quiet", "--to-stdout", f"dir/{name}"]
        assert subprocess.run(command, input=packed, stdout=subprocess.PIPE, check=True).stdout == content


def test_a_kernel_by_path_brings_its_version_and_modules(tmp_path: Path) -> None:
    """As a package unpacks; MODULES= names them elsewhere."""
    image = kernel_image(tmp_path / "boot" / "vmlinuz")
    modules = module_folder(tmp_path / "usr/lib/modules/5.15.0-100-generic", "")
    (found,) = systems.choose(str(image))
    assert (found.label, found.modules, found.distribution.name) == (
        "5.15.0-100-generic",
        modules,
        "debian12",
    )
    (found,) = systems.choose(str(image), str(modules), "debian13")
    assert found.distribution.name == "debian13"


def test_what_is_no_kernel_is_refused(tmp_path: Path) -> None:
    """In a sentence, with what to do."""
    text = tmp_path / "text"
    text.write_text("no kernel")
    image = kernel_image(tmp_path / "boot" / "vmlinuz")
    for arguments, message in (
        (("5.10",), "KERNEL=5.10 is neither one of 6.1, 6.12, all, nor the path of a kernel image"),
        ((str(text),), "is not a Linux kernel for x86-64"),
        ((str(image),), "name the folder lib/modules/VERSION of its package with MODULES="),
    ):
        with pytest.raises(VmError, match=message):
            systems.choose(*arguments)


def test_all_kernels_are_the_distributions_own() -> None:
    """Each on its own root file system."""
    assert [(s.label, s.distribution.name, s.image) for s in systems.choose("all")] == [
        ("6.1", "debian12", None),
        ("6.12", "debian13", None),
    ]


def test_plans() -> None:
    """CI's form is a part of the whole; a command replaces all; names choose; every name is one word."""
    whole, reduced = plan(reduced=False), plan(reduced=True)
    assert set(reduced) < set(whole) == set(STEPS)
    assert len({step.name for step in whole}) == len(whole)
    assert all(step.name.isascii() and " " not in step.name for step in whole)
    assert [step.command for step in plan(False, "make doctor")] == ["make doctor"]
    assert [step.name for step in plan(False, only="echo-single,runc")] == ["echo-single", "runc"]


def test_table_and_junit_tell_what_was_not_run(tmp_path: Path) -> None:
    """A machine that died in its second step: passed, not run, and why."""
    steps = plan(reduced=False)[:2]
    (tmp_path / f"{steps[0].name}.log").write_text("all \x1b[1mwell\x1b[0m\n")
    outcome = Outcome(
        {"kernel": "6.1.0", "distribution": "Debian 12", "slow": 11.4},
        [{"name": steps[0].name, "outcome": "passed", "status": 0, "seconds": 61.5}],
        failure="it ended before its last step",
        boot_s=50,
    )
    made = results.rows(steps, outcome, tmp_path)
    assert [row.outcome for row in made] == ["passed", "not run"]
    assert not results.passed(made)
    text = results.table({"6.1": (outcome, made)})
    assert "6.1.0 (Debian 12)" in text and f"| {steps[0].name} | passed, 62 s |" in text
    suite = ET.fromstring(results.junit({"6.1": (outcome, made)}))[0]
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    failure = suite.find("testcase/failure")
    assert failure is not None and failure.get("message") == "it ended before its last step"
