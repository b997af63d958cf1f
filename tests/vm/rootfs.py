"""A distribution's root file system as a disk image: its packages, prepared by vagrant/provision.sh, kept in a cache.

What a student's box gets by `vagrant up` is what is in here. The image is made anew when something changes that it is
made from (`_INGREDIENTS`); a checkout's other files are taken along at each start.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from topo.criu_setup import proxies
from topo.waiting import wait_until

from . import initramfs
from .errors import VmError
from .systems import DISTRIBUTIONS, Distribution, System, version_of

CHECKOUT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("P4FERRY_VM_CACHE", "/var/cache/p4ferry/vm"))
NEEDED_MB = 6000
"""Free disk space to build an image: the root's folder and the image are there at the same time."""
_DISK = "8G"
"""Size of the root disk; the file is sparse."""
_USER = "vagrant"
_PACKAGES = (
    *("systemd", "systemd-sysv", "udev", "dbus", "kmod", "sudo", "procps", "ca-certificates", "make", "git"),
    *("iproute2", "rsync", "less", "curl", "bash-completion", "linux-image-cloud-amd64"),
    "busybox-static",  # of which the tests of the engines make their images
)
_INGREDIENTS = (
    *("pyproject.toml", "requirements.lock", "vagrant/provision.sh", "containers/images"),
    *("tests/vm/rootfs.py", "tests/vm/initramfs.py", "tests/vm/guest/init"),
)
_CRIU_PACKAGES = "/var/cache/p4ferry-criu"
"""In the machine: the distribution's own CRIU and what it needs, for a step that installs it without a network."""
_SERVICE = """[Unit]
Description=p4ferry: run the steps on the work disk
ConditionPathExists=/media/p4ferry/plan.json
After=multi-user.target

[Service]
Type=oneshot
ExecStart=/usr/bin/python3 /media/p4ferry/agent.py

[Install]
WantedBy=multi-user.target
"""
_PATIENCE_S = 10.0
Say = Callable[[str], None]


@dataclass(frozen=True)
class Boot:
    """What qemu starts a machine from."""

    root: Path
    kernel: Path
    initramfs: Path


def prepare(system: System, scratch: Path, say: Say) -> Boot:
    """Return a system's files, built if they are not in the cache; raises VmError."""
    folder = cached(system.distribution, say)
    if system.image is None or system.modules is None:
        return Boot(folder / "root.img", folder / "vmlinuz", folder / "initramfs.gz")
    made = scratch / "initramfs.gz"
    initramfs.build(system.modules, made)
    return Boot(folder / "root.img", system.image, made)


def cached(distribution: Distribution, say: Say) -> Path:
    """Return the cache's folder of a distribution, which holds root.img, vmlinuz and initramfs.gz; raises VmError."""
    folder, key = CACHE / distribution.name, _key(distribution)
    if _is_cached(distribution):
        return folder
    CACHE.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(CACHE).free // 10**6
    if free < NEEDED_MB:
        raise VmError(
            f"{CACHE} has {free} MB left, and an image needs {NEEDED_MB}: free some, or set P4FERRY_VM_CACHE"
        )
    with _alone(say), _scratch(distribution) as scratch:
        if _is_cached(distribution):  # by whoever was waited for
            return folder
        say(f"building the image of {distribution.name} in {CACHE} (some minutes, once)")
        partial = scratch / "files"
        partial.mkdir()
        _build(distribution, scratch / "root", partial, say)
        (partial / "key").write_text(key)
        if folder.exists():  # another checkout may go on with it until this one is there
            folder.rename(scratch / "old")
        partial.rename(folder)
    return folder


@contextmanager
def _alone(say: Say) -> Iterator[None]:
    """Wait until nobody else builds in the cache."""
    with (CACHE / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for another build in {CACHE}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


@contextmanager
def _scratch(distribution: Distribution) -> Iterator[Path]:
    """Make a folder in the cache, and remove it, and those of builds that were killed."""
    for left in CACHE.glob(f"{distribution.name}-*"):
        _remove(left)
    folder = Path(tempfile.mkdtemp(prefix=f"{distribution.name}-", dir=CACHE))
    try:
        folder.chmod(0o755)
        (folder / "tmp").mkdir()
        (folder / "tmp").chmod(0o1777)
        yield folder
    finally:
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove a folder, in which what was killed may write for a moment. Nothing is mounted there: see `_run_apart`."""

    def is_gone() -> bool:
        shutil.rmtree(folder, ignore_errors=True)
        return not folder.exists()

    # The first time may take longer than there is patience for the others.
    if not (is_gone() or wait_until(is_gone, _PATIENCE_S, 0.1)):
        raise VmError(f"{folder} cannot be removed: see what uses it, and remove it")


def print_plan() -> None:
    """Say which images are not in the cache, or not of this checkout's state: part of set-up's plan."""
    missing = [found.name for found in DISTRIBUTIONS if not _is_cached(found)]
    if missing:
        print(f"images of virtual machines, with mmdebstrap and vagrant/provision.sh, in {CACHE}:")
        print(f"  {', '.join(missing)} (4 minutes and 2 GB each)")


def _is_cached(distribution: Distribution) -> bool:
    stamp = CACHE / distribution.name / "key"
    return stamp.exists() and stamp.read_text() == _key(distribution)


def _key(distribution: Distribution) -> str:
    """Return a digest of everything that an image is made from, but for the packages' versions."""
    digest = hashlib.sha256(repr(distribution).encode())
    # What it installs, not how: a machine runs set-up of its own, which must then find everything there.
    digest.update(
        subprocess.run([CHECKOUT / "scripts" / "setup", "--list"], stdout=subprocess.PIPE, check=True).stdout
    )
    for name in _INGREDIENTS:
        path = CHECKOUT / name
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file() and file.suffix != ".pyc":
                digest.update(f"{file.relative_to(CHECKOUT)}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def _build(distribution: Distribution, root: Path, files: Path, say: Say) -> None:
    """Make the root file system in a folder, then the files that machines are started from."""
    log = files / "build.log"
    say(f"{distribution.name}: packages")
    include = ",".join((*_PACKAGES, *distribution.packages))
    # The mirror's Release file may be past its Valid-Until; its signature is checked all the same.
    # fmt: off
    _run_apart(["env", f"TMPDIR={root.parent / 'tmp'}",
          "mmdebstrap", "--quiet", "--mode=root", "--variant=minbase", f"--include={include}",
          "--keyring=/usr/share/keyrings/debian-archive-keyring.gpg", "--components=main",
          "--aptopt=Acquire::Check-Valid-Until \"false\"", "--aptopt=Acquire::http::Timeout \"30\"",
          distribution.suite, str(root)], log, "--mount-proc")
    # fmt: on
    _configure(distribution, root)
    say(f"{distribution.name}: vagrant/provision.sh")
    clone(root / "home" / _USER / "p4ferry")
    _run(["chown", "-R", "1000:1000", str(root / "home" / _USER)], log)
    _inside(root, _provision(), log)
    say(f"{distribution.name}: the distribution's CRIU")
    (root / _CRIU_PACKAGES.lstrip("/") / "partial").mkdir(parents=True)
    options = "-qq -y --no-install-recommends --download-only"
    _inside(root, f"apt-get install {options} -o Dir::Cache::archives={_CRIU_PACKAGES} criu", log)
    say(f"{distribution.name}: disk image")
    kernels = sorted((root / "boot").glob("vmlinuz-*"))
    if not kernels:
        raise VmError(f"{distribution.name} came without a kernel; see {log}")
    shutil.copy(kernels[-1], files / "vmlinuz")
    initramfs.build(root / "lib/modules" / version_of(kernels[-1]), files / "initramfs.gz")
    shutil.rmtree(root / "var/cache/apt/archives", ignore_errors=True)
    disk = files / "root.img"
    _run(["mke2fs", "-q", "-t", "ext4", "-m", "0", "-d", str(root), str(disk), _DISK], log)


def _configure(distribution: Distribution, root: Path) -> None:
    """Add the lab's user, who has sudo without a password as in Vagrant's boxes, and the service that runs steps."""
    _run(["chroot", str(root), "useradd", "--create-home", "--shell", "/bin/bash", "--uid", "1000", _USER])
    sudoers = root / "etc/sudoers.d/vagrant"
    sudoers.write_text(f"{_USER} ALL=(ALL) NOPASSWD: ALL\n")
    sudoers.chmod(0o440)
    (root / "etc/hostname").write_text("p4ferry\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost p4ferry\n::1 localhost\n")
    (root / "etc/fstab").write_text("/dev/vda / ext4 defaults 0 0\n")
    (root / "etc/systemd/system/p4ferry-vm.service").write_text(_SERVICE)
    wants = root / "etc/systemd/system/multi-user.target.wants"
    wants.mkdir(parents=True, exist_ok=True)
    (wants / "p4ferry-vm.service").symlink_to("/etc/systemd/system/p4ferry-vm.service")
    (root / "media/p4ferry").mkdir(parents=True, exist_ok=True)
    # What a machine of an hour does not need, and emulation takes long for.
    for unit in (
        "apt-daily.timer",
        "apt-daily-upgrade.timer",
        "e2scrub_all.timer",
        "fstrim.timer",
        "man-db.timer",
    ):
        (root / "etc/systemd/system" / unit).symlink_to("/dev/null")


def clone(target: Path) -> None:
    """Clone the checkout as a user would, and put on top what is changed and not committed; raises VmError."""
    git = ["git", "-C", str(CHECKOUT), "-c", f"safe.directory={CHECKOUT}"]
    _run(
        [
            "git",
            "-c",
            f"safe.directory={CHECKOUT}/.git",
            "clone",
            "--quiet",
            "--no-hardlinks",
            str(CHECKOUT),
            str(target),
        ]
    )
    listed = subprocess.run(
        [*git, "ls-files", "--modified", "--others", "--deleted", "--exclude-standard", "-z"],
        stdout=subprocess.PIPE, check=True,
    ).stdout.decode()  # fmt: skip
    for name in {name for name in listed.split("\0") if name}:
        source, copy = CHECKOUT / name, target / name
        if source.is_file():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, copy)
        else:
            copy.unlink(missing_ok=True)


def _provision() -> str:
    """Return the shell command that provisions: a doctor would examine the machine that builds."""
    handed = proxies()
    handed["P4FERRY_DOCTOR"] = "0"
    handed["PIP_CERT"] = "/etc/ssl/certs/ca-certificates.crt"
    words = " ".join(f"{name}='{value}'" for name, value in handed.items())
    return f'su - {_USER} -c "cd p4ferry && env {words} bash vagrant/provision.sh"'


def _inside(root: Path, command: str, log: Path) -> None:
    """Run a command with the folder as its root: a root mount of its own, which CRIU's probe asks for."""
    with _borrowed(root):
        script = f"""set -e
hostname p4ferry
mount --bind {root} {root}
cd {root}
mount --rbind /dev dev
mount -t proc proc proc
mount -t sysfs sys sys
mount -t tmpfs tmp tmp
mount -t tmpfs run run
mkdir -p outside
pivot_root . outside
cd /
umount -l outside
rmdir outside
{command}
"""
        _run_apart(["sh", "-c", script], log, "--uts")


@contextmanager
def _borrowed(root: Path) -> Iterator[None]:
    """Lend the new root this machine's name servers and certificate authorities while it fetches packages."""
    names = ("etc/resolv.conf", "etc/ssl/certs/ca-certificates.crt")
    kept: dict[Path, bytes | None] = {}
    for name in names:
        inside, outside = root / name, Path("/") / name
        if not outside.is_file():
            continue
        kept[inside] = inside.read_bytes() if inside.is_file() else None
        inside.unlink(missing_ok=True)  # it may be a link
        shutil.copy(outside, inside)
    try:
        yield
    finally:
        for inside, content in kept.items():
            inside.unlink(missing_ok=True)
            if content is not None:
                inside.write_bytes(content)


def _run_apart(command: list[str], log: Path, *namespaces: str) -> None:
    """Run a command whose mounts nobody else sees, and all of whose processes end with it; raises VmError."""
    _run(
        [
            "unshare",
            "--mount",
            "--pid",
            "--fork",
            "--kill-child",
            "--propagation",
            "private",
            *namespaces,
            *command,
        ],
        log,
    )


def _run(command: list[str], log: Path | None = None) -> None:
    """Run a command of the build; raises VmError with its last line."""
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
    )
    text = done.stdout.decode(errors="replace")
    if log is not None:
        with log.open("a") as file:
            file.write(f"$ {' '.join(command)}\n{text}\n")
    if done.returncode != 0:
        tail = "\n  ".join(text.strip().splitlines()[-8:])
        raise VmError(f"{command[0]} failed with status {done.returncode}:\n  {tail}")
