"""A virtual machine: qemu with a kernel, a root disk whose changes are thrown away, and a work disk."""

from __future__ import annotations

import functools
import json
import os
import selectors
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from .errors import VmError
from .rootfs import Boot

QEMU = "qemu-system-x86_64"
KVM = ("-accel", "kvm", "-cpu", "host")
# la57: Debian's 6.1 does not boot with five-level page tables under emulation
EMULATION = ("-accel", "tcg,thread=multi", "-cpu", "max,la57=off")
_MARK = "p4ferry-vm: "
_PROBE_S = 20
_WORK_DISK = "6G"
_GUEST = Path(__file__).with_name("guest")


@dataclass
class Outcome:
    """What came of a machine: the rows of its steps, and why it ended early."""

    machine: dict[str, object] = field(default_factory=dict)
    steps: list[dict[str, object]] = field(default_factory=list)
    failure: str = ""
    boot_s: float = 0.0
    seconds: float = 0.0
    restarts: int = 0
    is_emulators_fault: bool = False
    """It ended by an int3 of the kernel's own text patching, which an emulator with several threads does not carry."""

    def followed_by(self, later: Outcome) -> Outcome:
        """Return what came of both, the later one having gone on where this one ended."""
        # fmt: off
        return Outcome(later.machine or self.machine, self.steps + later.steps, later.failure, self.boot_s,
                       self.seconds + later.seconds, self.restarts + 1, later.is_emulators_fault)
        # fmt: on


@functools.cache
def accelerator(kernel: Path, initramfs: Path) -> tuple[str, ...]:
    """Return qemu's options for KVM if a kernel really comes up with it (/dev/kvm may be there and not work)."""
    if shutil.which(QEMU) is None:
        raise VmError(f"{QEMU} is not installed; type: make setup VM=1")
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return EMULATION
    command = [*_command(kernel, initramfs, KVM, 512), "-append", "console=ttyS0 quiet p4ferry.probe"]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=_PROBE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return EMULATION
    return KVM if f"{_MARK}kernel".encode() in done.stdout else EMULATION


def run(boot: Boot, work: Path, memory_mb: int, limit_s: float, say: Callable[[str], None]) -> Outcome:
    """Boot a machine, wait until it has switched itself off, and read what it has left on its work disk."""
    options = accelerator(boot.kernel, boot.initramfs)
    say("machine: " + ("KVM" if options is KVM else "emulated (slow): KVM does not work here"))
    command = _command(boot.kernel, boot.initramfs, options, memory_mb)
    command += ["-append", "console=ttyS0 quiet panic=1 net.ifnames=0 systemd.show_status=false"]
    for disk, keep in ((boot.root, "on"), (work, "off")):
        command += ["-drive", f"file={disk},if=virtio,format=raw,cache=unsafe,snapshot={keep}"]
    outcome, begin = Outcome(), time.monotonic()
    environment = {**os.environ, "TMPDIR": str(work.parent)}  # where qemu keeps the root disk's changes
    with subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment
    ) as process:
        try:
            _follow(process, begin + limit_s, work.with_name("console.log"), outcome, begin, say)
        finally:
            process.kill()
    outcome.seconds = time.monotonic() - begin
    return outcome


def _command(kernel: Path, initramfs: Path, options: tuple[str, ...], memory_mb: int) -> list[str]:
    # fmt: off
    return [QEMU, "-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio", "-no-reboot",
            "-nic", "none", "-smp", "2", "-m", str(memory_mb), *options,
            "-kernel", str(kernel), "-initrd", str(initramfs)]
    # fmt: on


def _follow(
    process: subprocess.Popen[bytes],
    deadline: float,
    log: Path,
    outcome: Outcome,
    begin: float,
    say: Callable[[str], None],
) -> None:
    """Keep the console, and pass on what the inside says, until the machine is off or its time is over."""
    assert process.stdout is not None
    is_done, pending = False, b""
    with selectors.DefaultSelector() as selector, log.open("wb") as file:
        selector.register(process.stdout, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                outcome.failure = f"it was still running after {time.monotonic() - begin:.0f} s"
                return
            part = os.read(process.stdout.fileno(), 65536)
            if not part:
                break
            file.write(part)
            *lines, pending = (pending + part).split(b"\n")
            for line in lines:
                text = line.decode(errors="replace").strip()
                if _MARK not in text:
                    continue
                what = text.partition(_MARK)[2]
                if what.startswith("begin ") and not outcome.boot_s:
                    outcome.boot_s = time.monotonic() - begin
                if what.startswith("the agent failed"):
                    outcome.failure = what
                is_done |= what == "done"
                say(what)
    if not is_done and not outcome.failure:
        outcome.failure = "it ended before its last step"
        outcome.is_emulators_fault = b"Oops: int3" in log.read_bytes()


def make_work_disk(folder: Path, target: Path) -> None:
    """Make the disk that a machine gets its work by."""
    shutil.copy(_GUEST / "agent.py", folder / "agent.py")
    (folder / "results").mkdir(exist_ok=True)
    command = ["mke2fs", "-q", "-t", "ext4", "-m", "0", "-d", str(folder), str(target), _WORK_DISK]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise VmError(f"mke2fs failed: {done.stderr.strip()}")


def read_results(work: Path, folder: Path, outcome: Outcome) -> None:
    """Copy results/ from a work disk into a folder, and the rows into the outcome."""
    # A machine that was ended leaves its journal to be replayed; status 1: errors corrected.
    subprocess.run(["e2fsck", "-fy", str(work)], capture_output=True, check=False)
    with tempfile.TemporaryDirectory(dir=work.parent) as name:
        command = ["debugfs", "-R", f"rdump /results {name}", str(work)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        new = Path(name) / "results"
        if new.is_dir():  # beside those of a machine that was started before, if any
            shutil.copytree(new, folder / "results", dirs_exist_ok=True)
    found = folder / "results"
    if done.returncode != 0 or not found.is_dir():
        outcome.failure = outcome.failure or f"its results cannot be read: {done.stderr.strip()}"
        return
    if (found / "machine.json").exists():
        outcome.machine = json.loads((found / "machine.json").read_text())
    if (found / "steps.jsonl").exists():
        outcome.steps = [json.loads(line) for line in (found / "steps.jsonl").read_text().splitlines()]
