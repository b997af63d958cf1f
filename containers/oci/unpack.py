"""Make a folder out of an image: its layers one over the other, as a container's root.

Each layer is expanded into a file beside the folder first, its digests and every member are checked, and only then it
is unpacked. Whiteouts (OCI layer.md) are applied before what the same layer brings: `.wh.NAME` hides a lower layer's
NAME, `.wh..wh..opq` all that lower layers have in its folder. Owners and set-id bits are kept when root unpacks.

Left out: device nodes below /dev (a runtime mounts its own; elsewhere they are refused) and extended attributes.
"""

from __future__ import annotations

import os
import stat
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from ..errors import ImageInvalid, UnpackFailed
from . import compression, digests, tarcheck, tree
from .config import ImageConfig
from .layout import Layout, Resolved
from .tarcheck import Entry, Rules
from .tree import Escape, Tree

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
_AUFS = ".wh..wh."  # other marks of this kind are AUFS's own, and mean nothing here
MAX_LAYER = 16 << 30
"""Bytes of a layer when it is expanded."""
_DEVICES = {f"dev/{name}": numbers for name, numbers in tarcheck.USUAL_DEVICES.items()}
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def unpack(layout: Path, reference: str, rootfs: Path) -> ImageConfig:
    """Unpack an image into a new or empty folder, and return what it runs; leaves nothing behind if it fails."""
    source = Layout.open(layout)
    found = source.resolve(reference)
    try:
        rootfs.mkdir(mode=0o755, parents=True, exist_ok=True)
        if any(rootfs.iterdir()):
            raise UnpackFailed(f"{rootfs} is not empty, so no image can be unpacked there")
    except OSError as ex:
        raise UnpackFailed(f"cannot unpack an image into {rootfs}: {ex.strerror}") from ex
    root = Tree(rootfs)
    try:
        for number in range(len(found.manifest.layers)):
            _layer(source, found, number, rootfs, root)
    except BaseException:
        with root.folder(()) as opened:
            tree.empty(opened, ".")
        raise
    finally:
        root.close()
    return found.image.config


def _layer(source: Layout, found: Resolved, number: int, rootfs: Path, root: Tree) -> None:
    """Check one layer, then put it over the lower ones."""
    descriptor, diff_id = found.manifest.layers[number], found.image.diff_ids[number]
    rules = Rules(f"layer {number + 1} of the image", members=500_000, size=MAX_LAYER, devices=_DEVICES)
    with source.open_blob(descriptor) as packed, tempfile.TemporaryFile(dir=rootfs.parent) as plain:
        if compression.expand(packed, plain, MAX_LAYER, rules.what) != diff_id:
            raise ImageInvalid(f"{rules.what} has another content than the image's config says")
        for _ in tarcheck.entries(plain, rules):
            pass
        for entry in tarcheck.entries(plain, rules):
            _attempt(_hide, entry, root, rules)
        metadata: list[Entry] = []
        for entry in tarcheck.entries(plain, rules):
            _attempt(lambda entry, root: _put(entry, root, plain, metadata), entry, root, rules)
        for entry in reversed(metadata):
            _attempt(_finish_folder, entry, root, rules)


def _attempt(action: Callable[[Entry, Tree], None], entry: Entry, root: Tree, rules: Rules) -> None:
    """Do one thing; what goes wrong with it names the member."""
    name = tarcheck.shown(entry.path)
    try:
        action(entry, root)
    except Escape as ex:
        raise ImageInvalid(f"{rules.what}: {name} {ex}") from ex
    except OSError as ex:
        raise UnpackFailed(f"cannot unpack {name} of {rules.what}: {ex.strerror}") from ex


def _hide(entry: Entry, root: Tree) -> None:
    """Apply a whiteout to what lower layers have put there."""
    if not entry.parts or not entry.parts[-1].startswith(WHITEOUT):
        return
    *above, mark = entry.parts
    hidden = mark.removeprefix(WHITEOUT)
    if hidden in ("", ".", ".."):
        raise Escape("is a whiteout of no file")
    try:
        with root.folder(above) as folder:
            if mark == OPAQUE:
                tree.empty(folder, ".")
            elif not mark.startswith(_AUFS):
                tree.remove(folder, hidden)
    except FileNotFoundError:
        pass  # a whiteout of what is not there


def _put(entry: Entry, root: Tree, plain: BinaryIO, folders: list[Entry]) -> None:
    """Make one member."""
    if any(part.startswith(WHITEOUT) for part in entry.parts) or entry.is_device:
        return
    if not entry.parts:
        folders.append(entry)
        return
    *above, name = entry.parts
    with root.folder(above, make=True) as folder:
        if entry.info.type == tarfile.DIRTYPE:
            if tree.kind(folder, name) != stat.S_IFDIR:
                tree.remove(folder, name)
                os.mkdir(name, 0o700, dir_fd=folder)
            folders.append(entry)
            return
        if entry.info.type == tarfile.LNKTYPE:
            _hard_link(entry, root, folder, name)
            return
        tree.remove(folder, name)
        if entry.info.type == tarfile.SYMTYPE:
            os.symlink(entry.info.linkname, name, dir_fd=folder)
        elif entry.info.type == tarfile.FIFOTYPE:
            os.mkfifo(name, 0o600, dir_fd=folder)
        else:
            _file(entry, plain, folder, name)
        _finish(entry, folder, name)


def _file(entry: Entry, plain: BinaryIO, folder: int, name: str) -> None:
    """Copy a file's content."""
    plain.seek(entry.info.offset_data)
    left = entry.info.size
    with os.fdopen(os.open(name, _NEW_FILE, 0o600, dir_fd=folder), "wb") as target:
        while left and (piece := plain.read(min(left, digests.CHUNK))):
            target.write(piece)
            left -= len(piece)


def _hard_link(entry: Entry, root: Tree, folder: int, name: str) -> None:
    """Give a file of the tree another name; its own parents are resolved in the tree as well."""
    *above, target = tarcheck.split(entry.info.linkname) or ("",)
    shown = tarcheck.shown(entry.info.linkname)
    try:
        with root.folder(above) as other:
            if tree.kind(other, target) in (0, stat.S_IFDIR):
                raise FileNotFoundError
            if os.path.samestat(os.fstat(other), os.fstat(folder)) and target == name:
                return
            tree.remove(folder, name)
            os.link(target, name, src_dir_fd=other, dst_dir_fd=folder, follow_symlinks=False)
    except (FileNotFoundError, Escape) as ex:
        raise Escape(f"is a hard link to {shown}, which is no file of the image") from ex


def _finish(entry: Entry, folder: int, name: str) -> None:
    """Set owner, mode and time of what was just made; a link's own, never its target's."""
    info = entry.info
    if os.geteuid() == 0:
        os.chown(name, info.uid, info.gid, dir_fd=folder, follow_symlinks=False)
    if info.type != tarfile.SYMTYPE:
        os.chmod(name, info.mode & 0o7777, dir_fd=folder)
    os.utime(name, (info.mtime, info.mtime), dir_fd=folder, follow_symlinks=False)


def _finish_folder(entry: Entry, root: Tree) -> None:
    """Set what could not be set while files were still put in; one that the layer replaced later is left."""
    if not entry.parts:
        with root.folder(()) as folder:
            _finish(entry, folder, ".")
        return
    *above, name = entry.parts
    with root.folder(above) as folder:
        if tree.kind(folder, name) == stat.S_IFDIR:
            _finish(entry, folder, name)
