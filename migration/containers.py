"""Containers without an engine: runc starts them in a host, and they move as any process tree does.

A container's parts are in one folder for each host, its *place*: the bundle that runc is given, the writable layer, and
the overlay that joins it with the image, mounted in the host's mount namespace. runc's own state is beside it, one root
for each host, so that a container keeps its name wherever it is:

    STORE/h2/runc/NAME/state.json     what `runc --root STORE/h2/runc list`, exec, kill and delete go by
    STORE/h2/NAME/config.json         the bundle
    STORE/h2/NAME/rootfs              overlay of the image (below) and upper (above, with work)
    STORE/volumes/NAME/h2/…           declared volumes, see volumes.py

runc is run in the host's network and mount namespaces and ends; its container becomes the keeper's child. What goes
along on a migration is baggage.py's business.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from . import runc
from .bundle import Program, configuration, ids_of
from .custody import Custody
from .errors import LaunchFailed, MigrationError
from .model import App, Container, Host, Volume
from .volumes import Mirror, folder_of

# The first three let a layer be a plain folder, which can be copied; the last costs no sync when the mount goes.
OPTIONS = "redirect_dir=off,index=off,metacopy=off,volatile"
_NAME = re.compile(r"[A-Za-z0-9_][\w.+-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Image:
    """What a container is made of: an unpacked root file system, and what its image says is to run there."""

    rootfs: Path
    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    """What follows the entrypoint where the user gives nothing else."""
    env: Mapping[str, str] = field(default_factory=dict)
    cwd: str = "/"
    user: str = ""

    def argv(self, given: Sequence[str] = ()) -> tuple[str, ...]:
        """Return the whole command."""
        return (*self.entrypoint, *(given or self.cmd))


@dataclass(frozen=True, slots=True)
class Place:
    """Where the parts of one container are on one host."""

    name: str
    folder: Path
    state: Path
    """runc's root."""

    @property
    def rootfs(self) -> Path:
        """Where the overlay is mounted, for whoever is in the host's mount namespace."""
        return self.folder / "rootfs"

    @property
    def upper(self) -> Path:
        """The writable layer."""
        return self.folder / "upper"

    @property
    def work(self) -> Path:
        """What the overlay needs besides."""
        return self.folder / "work"


def place_of(app: App, host: Host) -> Place:
    """Return where a container's parts are on a host, or would be."""
    assert app.container is not None
    store = app.container.store / host.name
    return Place(app.name, store / app.name, store / "runc")


def launch(
    custody: Custody,
    name: str,
    host: Host,
    image: Image,
    log: Path,
    *,
    store: Path,
    cgroup: str,
    argv: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    volumes: Sequence[Path] = (),
) -> App:
    """Start a container in a host; raises LaunchFailed.

    `argv` comes after the image's entrypoint, `env` on top of its environment. `volumes` are directories inside, each
    filled at first with what the image has there.
    """
    container = Container(store, image.rootfs, cgroup)
    own = [Volume(volume, store / "volumes" / name) for volume in volumes]
    app = App(name, host, 0, log.absolute(), volumes=own, container=container)
    has_begun = False
    try:
        program = check_launch(app, image, argv, env or {})
        has_begun = True
        _make(app, program)
        mount(custody, app, host)
        app.pid = runc.run(custody, place_of(app, host), host, app.log)
    except (MigrationError, OSError) as ex:
        if has_begun:
            remove(custody, app, host)
        raise LaunchFailed(f"{name} could not be started on {host.name}: {ex}") from ex
    # So that no migration that goes back takes it for what it has half built.
    custody.announced.add(app.pid)
    return app


def check_launch(app: App, image: Image, argv: Sequence[str], env: Mapping[str, str]) -> Program:
    """Refuse what cannot become a container before anything is made; raises LaunchFailed."""
    runc.find()
    if not _NAME.fullmatch(app.name):
        raise LaunchFailed("a container's name has letters, digits and _ . + - only")
    if not image.rootfs.is_dir():
        raise LaunchFailed(f"there is no root file system at {image.rootfs}")
    if not image.argv(argv):
        raise LaunchFailed("neither was a command given, nor has its image one")
    for volume in app.volumes:
        if not volume.directory.is_absolute():
            raise LaunchFailed(f"the volume {volume.directory} is not an absolute path in the container")
    if Path(f"/proc/{app.host.pid}/ns/mnt").readlink() == Path("/proc/self/ns/mnt").readlink():
        raise LaunchFailed(f"{app.host.name} has no mounts of its own")
    if place_of(app, app.host).folder.exists():
        raise LaunchFailed("there is a container of that name already")
    return _program(image, argv, env)


def _program(image: Image, argv: Sequence[str], env: Mapping[str, str]) -> Program:
    def read(name: str) -> str:
        try:
            return (image.rootfs / "etc" / name).read_text(errors="replace")
        except OSError:
            return ""

    try:
        user = ids_of(image.user, read("passwd"), read("group"))
    except LookupError as ex:
        raise LaunchFailed(f"{ex.args[0]} in the image") from ex
    return Program(image.argv(argv), {**image.env, **env}, image.cwd or "/", user)


def _make(app: App, program: Program) -> None:
    """Make the bundle, and fill the volumes with what the image has there."""
    assert app.container is not None
    place = place_of(app, app.host)
    make_folders(place)
    shared_memory = place.upper / "dev" / "shm"
    shared_memory.mkdir(parents=True)
    shared_memory.chmod(0o1777)
    binds = []
    for volume in app.volumes:
        folder = folder_of(volume, app.host)
        folder.mkdir(parents=True)
        binds.append((str(volume.directory), folder))
        original = app.container.image / volume.directory.relative_to("/")
        if original.is_dir():
            Mirror(original, folder).sync()
    config = configuration(app.name, program, place.rootfs, app.container.cgroup, binds)
    (place.folder / "config.json").write_text(json.dumps(config, indent=1))


def make_folders(place: Place) -> None:
    """Make what a container needs on a host; raises FileExistsError if it is there already."""
    place.folder.mkdir(parents=True)
    place.state.mkdir(mode=0o700, exist_ok=True)
    for folder in (place.rootfs, place.upper, place.work):
        folder.mkdir()


def mount(custody: Custody, app: App, host: Host) -> None:
    """Join image and writable layer, in the host's mount namespace."""
    assert app.container is not None
    place = place_of(app, host)
    folders = {"lowerdir": app.container.image, "upperdir": place.upper, "workdir": place.work}
    for folder in folders.values():
        if set(str(folder)) & set(",:\\"):
            raise MigrationError(f"{folder} cannot be part of an overlay: its name has one of , : and \\")
    options = ",".join(f"{key}={folder}" for key, folder in folders.items())
    custody.mount(host.pid, "overlay", place.rootfs, "overlay", f"{options},{OPTIONS}")


def remove(custody: Custody, app: App, host: Host, *, is_over: bool = True) -> None:
    """Take away all that a container has on a host; its control group, too, if it is over."""
    place = place_of(app, host)
    if is_over:
        runc.delete(place)
    runc.forget(place)
    if place.folder.exists():
        with contextlib.suppress(MigrationError):  # the host may have gone, and its mounts with it
            custody.unmount(host.pid, place.rootfs)
        shutil.rmtree(place.folder, ignore_errors=True)
    for volume in app.volumes:
        shutil.rmtree(folder_of(volume, host), ignore_errors=True)
