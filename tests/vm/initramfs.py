"""The first file system of a machine: a static busybox, the modules that the disks need, and guest/init.

Distributions' own initramfs tools are not used, since a kernel that is given by path comes without its distribution.
"""

from __future__ import annotations

import gzip
import lzma
import shutil
import stat
import subprocess
from pathlib import Path

from .errors import VmError

WANTED = ("virtio_pci", "virtio_blk", "ext4")
"""Modules without which the root disk cannot be mounted; a kernel may have them built in."""
_INIT = Path(__file__).with_name("guest") / "init"


def build(modules: Path, target: Path) -> None:
    """Write an initramfs for the kernel whose lib/modules/VERSION is given; raises VmError."""
    busybox = shutil.which("busybox", path="/bin:/usr/bin:/usr/sbin:/sbin")
    if busybox is None:
        raise VmError("busybox is not installed; type: make setup VM=1")
    loaded = [(modules / path) for path in needed(modules)]
    files = [("init", 0o755, _INIT.read_bytes()), ("bin/busybox", 0o755, Path(busybox).read_bytes())]
    files += [(f"mod/{number:02d}.ko", 0o644, unpacked(path)) for number, path in enumerate(loaded)]
    folders = ("bin", "dev", "mod", "proc", "root", "sys")
    target.write_bytes(gzip.compress(archive(folders, files), 1))


def needed(modules: Path, wanted: tuple[str, ...] = WANTED) -> list[str]:
    """Return modules' files in the order to load them in, by modules.dep and modules.builtin (depmod(8))."""
    built_in = {_name(line) for line in _lines(modules / "modules.builtin")}
    depends: dict[str, tuple[str, list[str]]] = {}
    for line in _lines(modules / "modules.dep"):
        path, _, others = line.partition(":")
        depends[_name(path)] = (path, others.split())
    found: list[str] = []
    for name in wanted:
        if name in depends:
            file, before = depends[name]
            # depmod lists what a module needs with the one to load first at the end
            found += [each for each in (*reversed(before), file) if each not in found]
        elif name not in built_in:
            raise VmError(f"the kernel of {modules} has no {name}, neither built in nor as a module")
    return found


def unpacked(path: Path) -> bytes:
    """Return a module's ELF file; distributions compress them with xz or zstd."""
    content = path.read_bytes()
    if path.suffix == ".xz":
        return lzma.decompress(content)
    if path.suffix == ".gz":
        return gzip.decompress(content)
    if path.suffix == ".zst":
        if shutil.which("zstd") is None:
            raise VmError(f"{path.name} needs zstd; type: make setup VM=1")
        return subprocess.run(["zstd", "-dcq"], input=content, stdout=subprocess.PIPE, check=True).stdout
    return content


def archive(folders: tuple[str, ...], files: list[tuple[str, int, bytes]]) -> bytes:
    """Pack folders and files (name, mode, content) as a cpio of the form newc (buffer-format.rst of the kernel)."""
    entries = [_entry(name, stat.S_IFDIR | 0o755, b"") for name in folders]
    entries += [_entry(name, stat.S_IFREG | mode, content) for name, mode, content in files]
    return b"".join([*entries, _entry("TRAILER!!!", 0, b"")])


def _entry(name: str, mode: int, content: bytes) -> bytes:
    # ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
    numbers = (0, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % number for number in numbers) + name.encode() + b"\0"
    return _aligned(head) + _aligned(content)


def _aligned(part: bytes) -> bytes:
    return part + bytes(-len(part) % 4)


def _name(path: str) -> str:
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError as ex:
        raise VmError(f"{path} cannot be read: {ex.strerror}") from ex
