"""A program that has ended and is restored where its checkpoint was taken: the way back once the original is gone."""

from __future__ import annotations

import contextlib
import glob
import os
import shutil
from pathlib import Path
from typing import Any

from . import baggage, terminals, tree, uncarried
from .arrival import end_waiting
from .criu import RESTORE_LOG, Criu, Worker
from .custody import Custody
from .errors import MigrationError
from .images import FILES_IMAGE, INVENTORY_IMAGE, rewrite_files, split
from .inet import Relocation
from .journal import Note
from .memberships import Places
from .model import App, Host
from .streams import inner_streams
from .workspace import fill


def revive(
    criu: Criu,
    custody: Custody,
    app: App,
    host: Host,
    images: Path,
    parent: Path,
    note: Note,
) -> int:
    """Restore a checkpoint at the host that it was taken from; return the program's PID, noted before it runs."""
    folder = parent / "revived"
    shutil.rmtree(folder, ignore_errors=True)  # of an attempt that failed
    folder.mkdir(mode=0o700)
    stay = Relocation(host.address, host.address, {})
    if (parents := images / "parent").is_symlink():  # of the pages of pre-copy's rounds
        (folder / "parent").symlink_to(parents.readlink())
    files = (images / FILES_IMAGE).read_bytes()
    remove_ghosts(files, criu.fdinfo, baggage.root_of(app, host))
    rewritten = rewrite_files(files, stay, criu.fdinfo, app.logs)
    streams = inner_streams(images, rewritten.before, host.address, criu.tcp_stream)
    state = uncarried.read_back(parent)
    marked = state.marked(rewritten.image, images, criu.fdinfo)
    fill(images, folder, {FILES_IMAGE: marked, **streams})
    os.link(images / INVENTORY_IMAGE, folder / INVENTORY_IMAGE)
    end_waiting(rewritten.before, host)
    action = f"restore it on {host.name}"
    with baggage.reviving(app, host, files, criu.fdinfo) as (descriptors, adjust):
        log, copy_mounts = folder / RESTORE_LOG, app.container is None
        worker = Worker(
            criu,
            custody,
            host.pid,
            action,
            log,
            *descriptors,
            copy_mounts=copy_mounts,
            inherited=state.inherited,
        )
        try:
            # A container's groups may be frozen still, and its worker would be, too.
            if app.container is None:
                baggage.enter_groups(worker, baggage.noted_groups(parent))
            worker.request("RESTORE", folder, adjust=adjust)
            pid = worker.wait_for("post-restore")
            custody.announced.add(pid)
            copies = tree.processes(pid)
            state.give(copies, Places(), folder)
            with contextlib.suppress(MigrationError):  # better without what was in a terminal than not at all
                terminals.read_back(parent).give(pid, copies)
            note(pid)
            worker.answer(True)
            worker.finish()
        finally:
            worker.close()
    baggage.revived(app, host, pid)
    return pid


def remove_ghosts(files: bytes, fdinfo: Any, root: Path = Path("/")) -> None:
    """Remove the files that CRIU makes for deleted ones while it restores, and leaves when it is killed."""
    for message in split(files)[1]:
        entry = fdinfo.file_entry.FromString(message)
        if entry.HasField("reg"):
            path = root / entry.reg.name.lstrip("/")
            with contextlib.suppress(OSError, ValueError):
                for ghost in path.parent.glob(f"{glob.escape(path.name)}.cr.*.ghost"):
                    ghost.unlink()
