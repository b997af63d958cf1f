"""What goes along with a program besides its image, and what CRIU has to be told of it.

    baggage_of(app, destination, custody)
    ├── Baggage            a plain process: its volumes
    └── ContainerBaggage   a container: its writable layer, volumes, log, control group, and runc's knowledge of it

Files are copied in "prepare" while the program runs, and once more, what has changed, while it is frozen. Then the
overlay is mounted at the destination: the kernel forbids changes below one that is in use.

A container's log is open in it, though no file of it: CRIU calls it an external file, by mount and inode, and takes the
one to go on with as a descriptor of the restore worker's.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from . import containers, ownaddress, runc, tree
from .cgroups import PROCESSES
from .containers import place_of
from .criu import Worker, remove_mount_roots
from .custody import Custody
from .errors import MigrationError, Refused
from .images import split
from .model import App, Host
from .volumes import COPIES, Mirror, VolumeCopy, detach, folder_of, in_use

GROUPS = "control-groups"  # the file in a migration's folder
LOG_FD = 4  # of a restore worker; 3 is its RPC socket


class Baggage:
    """A plain process's volumes on their way."""

    def __init__(self, app: App, destination: Host) -> None:
        self._app = app
        self._volumes = VolumeCopy(app, destination)
        self.restorer_files: list[Any] = []
        """The restore worker's descriptors from 4 on."""

    def first_pass(self) -> None:
        """While the program runs: copy everything."""
        self._volumes.first_pass()

    def adjust_dump(self, options: Any) -> None:
        """Tell a dump what is not the program's own."""

    def adjust_restore(self, options: Any) -> None:
        """Tell a restore where that is now."""

    @property
    def warnings(self) -> list[str]:
        """What a copy finds otherwise."""
        return [COPIES] if self._app.volumes or self._app.container else []

    @property
    def groups(self) -> list[Path]:
        """The control groups that a copy is to be in, its own one (v2) of a plain process."""
        group = ownaddress.group_of(self._app.pid)
        return [] if group is None else [group]

    def final_pass(self) -> int:
        """While the program is frozen: copy what has changed; return its bytes."""
        return self._volumes.final_pass()

    def close(self, copy: int) -> None:
        """Take the files away at the source if the program lives on as `copy`; if that is 0, at the destination."""
        self._volumes.close(has_moved=copy != 0)


class ContainerBaggage(Baggage):
    """A container's files on their way, and its name."""

    def __init__(self, app: App, destination: Host, custody: Custody) -> None:
        super().__init__(app, destination)
        self._source, self._destination, self._pid = app.host, destination, app.pid
        self._custody = custody
        self._mirrors: list[Mirror] = []
        self._has_begun = False
        self._began = time.time()
        self._keys = log_keys(app)
        self._log = _open_log(app)
        self.restorer_files = [self._log]

    def first_pass(self) -> None:
        """Copy the writable layer and the volumes, and make the rest of the container's place."""
        here, there = place_of(self._app, self._source), place_of(self._app, self._destination)
        containers.make_folders(there)
        self._has_begun = True
        # For `runc` and for people: CRIU needs no bundle.
        (there.folder / "config.json").write_bytes((here.folder / "config.json").read_bytes())
        self._mirrors.append(Mirror(here.upper, there.upper, Path("/")))
        for volume in self._app.volumes:
            folder = folder_of(volume, self._destination)
            folder.mkdir(parents=True)
            self._mirrors.append(Mirror(folder_of(volume, self._source), folder, volume.directory))
        for mirror in self._mirrors:
            mirror.sync(fleeting=True)

    def adjust_dump(self, options: Any) -> None:
        """Name what is mounted or open in the container and not its own."""
        adjust_dump(options, self._app, self._keys)

    def adjust_restore(self, options: Any) -> None:
        """Name root file system, volumes and log at the destination."""
        adjust_restore(options, self._app, self._destination, self._keys)

    @property
    def groups(self) -> list[Path]:
        """Those of the container."""
        return runc.cgroups(place_of(self._app, self._source))

    def final_pass(self) -> int:
        """Copy what has changed, and mount the result."""
        mapped = frozenset(tree.shared_maps(tree.processes(self._pid)))
        copied = sum(mirror.sync(mapped) for mirror in self._mirrors)
        containers.mount(self._custody, self._app, self._destination)
        return copied

    def close(self, copy: int) -> None:
        """Let runc know the container where it is now, and take it away where it is not."""
        self._log.close()
        if not self._has_begun:
            return
        self._has_begun = False
        if copy:
            arrive(self._custody, self._app, copy, self._source, self._destination)
        else:
            containers.remove(self._custody, self._app, self._destination, is_over=False)
            remove_mount_roots(self._began)


def enter_groups(worker: Worker, groups: Iterable[Path]) -> None:
    """Put a restore worker into control groups, where its children are born; raises CriuFailed if it has ended."""
    for group in groups:
        try:
            (group / PROCESSES).write_text(str(worker.pid))
        except FileNotFoundError:  # there is no such hierarchy any more
            continue
        except ProcessLookupError as ex:
            raise worker.failure() from ex


def note_groups(folder: Path, groups: Iterable[Path]) -> None:
    """Write down, for a way back from the image, which groups a program is in; nobody knows once it has ended."""
    (folder / GROUPS).write_text("\n".join(map(str, groups)))


def noted_groups(folder: Path) -> list[Path]:
    """Read what note_groups wrote."""
    with contextlib.suppress(FileNotFoundError):
        return [Path(line) for line in (folder / GROUPS).read_text().splitlines()]
    return []


def baggage_of(app: App, destination: Host, custody: Custody) -> Baggage:
    """Return what goes along with a program."""
    if app.container is None:
        return Baggage(app, destination)
    return ContainerBaggage(app, destination, custody)


def check(app: App, destination: Host) -> None:
    """Refuse a program whose files have no place at the destination."""
    if app.container is not None:
        place = place_of(app, destination)
        if place.folder.exists():
            raise Refused(f"{app.name} cannot be moved: {destination.name} has a container of that name")
        if Path(f"/proc/{destination.pid}/ns/mnt").readlink() == Path("/proc/self/ns/mnt").readlink():
            raise Refused(f"{app.name} cannot be moved: {destination.name} has no mounts of its own")
        return
    for volume in app.volumes:
        if in_use(volume, destination):
            raise Refused(
                f"{app.name} cannot be moved: the volume {volume.directory} is in use on {destination.name}"
            )


def throw_away(app: App, custody: Custody) -> None:
    """Remove the files of a program that has ended."""
    if app.container is not None:
        containers.remove(custody, app, app.host)
    else:
        for volume in app.volumes:
            detach(volume, app.host)


def tidy(app: App, other: Host, custody: Custody) -> None:
    """After a crash: remove what a migration has left on the host that a program is not on."""
    if app.container is not None:
        arrive(custody, app, app.pid, other, app.host)
    else:
        for volume in app.volumes:
            detach(volume, other)


def arrive(custody: Custody, app: App, pid: int, source: Host, destination: Host) -> None:
    """Let runc know a container at its destination, and nothing be left of it at its source."""
    here, there = place_of(app, source), place_of(app, destination)
    moved = {str(here.folder): str(there.folder), str(here.state): str(there.state)}
    moved |= {str(folder_of(v, source)): str(folder_of(v, destination)) for v in app.volumes}
    if (here.state / here.name).exists():
        runc.note(there, pid, here, moved)
    containers.remove(custody, app, source, is_over=False)


def adjust_dump(options: Any, app: App, keys: Iterable[str]) -> None:
    """Tell a dump what is mounted or open in a container and not its own."""
    for volume in app.volumes:
        options.ext_mnt.add(key=str(volume.directory), val=str(volume.directory))
    options.external.extend(keys)
    options.orphan_pts_master = True


def adjust_restore(options: Any, app: App, host: Host, keys: Iterable[str]) -> None:
    """Tell a restore on a host what a container's outside is there; the log is its descriptor 4."""
    options.root = str(place_of(app, host).rootfs)
    for volume in app.volumes:
        options.ext_mnt.add(key=str(volume.directory), val=str(folder_of(volume, host)))
    for key in keys:
        options.inherit_fd.add(key=key, fd=LOG_FD)
    options.orphan_pts_master = True


@contextlib.contextmanager
def reviving(app: App, host: Host, files: bytes, fdinfo: Any) -> Iterator[tuple[list[Any], Any]]:
    """Get ready for a restore from an image at its source: the worker's descriptors, and what to tell it."""
    if app.container is None:
        yield [], lambda options: None
        return
    keys = _keys_of(files, fdinfo)
    with _open_log(app) as log:
        yield [log], lambda options: adjust_restore(options, app, host, keys)


def revived(app: App, host: Host, pid: int) -> None:
    """Let runc know a container that has been restored at its source."""
    if app.container is not None:
        runc.note(place_of(app, host), pid)


def root_of(app: App, host: Host) -> Path:
    """Return the folder in which the files lie that a program calls by absolute paths and may create."""
    return place_of(app, host).upper if app.container is not None else Path("/")


def log_keys(app: App) -> list[str]:
    """Return what CRIU calls a container's log where it is open in it: usually one name."""
    log = app.log.stat()
    keys = set()
    for file in tree.open_files(tree.processes(app.pid)):
        with contextlib.suppress(OSError):  # closed meanwhile
            if file.target.startswith("/") and os.path.samestat(_stat(file), log):
                keys.add(f"file[{mount_of(file):x}:{log.st_ino:x}]")
    return sorted(keys)


def mount_of(file: tree.OpenFile) -> int:
    """Return the id of the mount that an open file is on."""
    return int(tree.fdinfo(file, "mnt_id") or -1)


def _keys_of(files: bytes, fdinfo: Any) -> list[str]:
    """Return the names of the external files in a files.img."""
    entries = [fdinfo.file_entry.FromString(message) for message in split(files)[1]]
    return sorted({entry.reg.name for entry in entries if entry.HasField("reg") and entry.reg.ext})


def _stat(file: tree.OpenFile) -> os.stat_result:
    return Path(f"/proc/{file.pid}/fd/{file.fd}").stat()


def _open_log(app: App) -> Any:
    try:
        return app.log.open("ab", buffering=0)
    except OSError as ex:
        raise MigrationError(f"the log of {app.name} cannot be opened: {ex}") from ex
