"""Mirroring of working files: whatever happens between two passes, the copy is like the original."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from migration import volumes
from migration.model import Volume
from migration.volumes import Mirror, Stamp, covers

names = st.sampled_from(["a", "b", "d/a", "d/e/c", "f"])
actions = st.lists(
    st.tuples(st.sampled_from(["write", "link", "symlink", "chmod", "mkdir", "fifo", "remove"]), names, names)
)


def act(folder: Path, action: str, name: str, other: str) -> None:
    """Change something, if it can be done."""
    path = folder / name
    try:
        if action == "remove":
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if action == "write":
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NONBLOCK)  # it may be a FIFO
            os.write(fd, other.encode() * 7)
            os.close(fd)
        elif action == "link":
            os.link(folder / other, path)
        elif action == "symlink":
            path.symlink_to(other)
        elif action == "chmod":
            path.chmod(0o640)
        elif action == "mkdir":
            path.mkdir()
        else:
            os.mkfifo(path)
    except OSError:
        pass


def content(folder: Path) -> dict[str, object]:
    """Describe all that is below a folder."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        stamp = Stamp.of(status)
        what = str(path.readlink()) if path.is_symlink() else path.read_bytes() if path.is_file() else b""
        found[str(path.relative_to(folder))] = (stamp.mode, stamp.owner, stamp.size, stamp.modified, what)
    return found


@settings(deadline=None, max_examples=60)
@given(rounds=st.lists(actions, max_size=4))
def test_copy_follows(
    tmp_path_factory: pytest.TempPathFactory, rounds: list[list[tuple[str, str, str]]]
) -> None:
    """Files, links, modes, times, directories, FIFOs, and what is removed or becomes something else."""
    folder = tmp_path_factory.mktemp("mirror")
    source, copy = folder / "source", folder / "copy"
    source.mkdir()
    copy.mkdir()
    mirror = Mirror(source, copy)
    for changes in rounds:
        for change in changes:
            act(source, *change)
        mirror.sync()
        assert content(copy) == content(source)


def test_only_what_has_changed_is_copied(tmp_path: Path) -> None:
    """A second pass takes what is new, what is too young to be trusted, and what is mapped."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    copy.mkdir()
    for name, size in (("old", 1000), ("mapped", 100), ("changing", 10)):
        (source / name).write_bytes(bytes(size))
        os.utime(source / name, (1, 1))
    mirror = Mirror(source, copy, Path("/known/as"))
    assert mirror.sync() == 1110
    assert mirror.sync() == 0
    (source / "changing").write_bytes(b"changed")
    assert mirror.sync(frozenset({"/known/as/mapped"})) == 107
    assert mirror.sync() == 7  # written a moment ago: it may have changed again within one tick of the clock


def test_holes_stay_holes(tmp_path: Path) -> None:
    """A file takes no more room than it did, and has not been read."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    copy.mkdir()
    with (source / "sparse").open("wb") as file:
        for place in (1 << 20, 9 << 20):
            file.seek(place)
            file.write(b"data" * 5000)
        file.truncate(1 << 24)
    (source / "hole").touch()
    os.truncate(source / "hole", 1 << 30)
    os.utime(source / "sparse", ns=(10**18, 2 * 10**18))
    Mirror(source, copy).sync()
    for name in ("sparse", "hole"):
        assert (copy / name).stat().st_blocks == (source / name).stat().st_blocks < 200
        assert (copy / name).stat().st_size == (source / name).stat().st_size
    assert {(folder / "sparse").stat().st_atime_ns for folder in (source, copy)} == {10**18}
    assert (copy / "sparse").read_bytes() == (source / "sparse").read_bytes()


def test_what_vanishes_while_it_is_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was removed once its content was taken does not stay behind in the copy."""
    source, copy = tmp_path / "source", tmp_path / "copy"
    source.mkdir()
    copy.mkdir()
    for name in ("goes", "stays"):
        (source / name).write_text(name)
    take = volumes.copy_content

    def take_and_lose(here: Path, there: Path) -> None:
        take(here, there)
        if here.name == "goes":
            here.unlink()

    mirror = Mirror(source, copy)
    with monkeypatch.context() as patched:
        patched.setattr(volumes, "copy_content", take_and_lose)
        with pytest.raises(FileNotFoundError):
            mirror.sync()
        (source / "goes").write_text("once more")
        mirror.sync(fleeting=True)
    mirror.sync()
    assert content(copy) == content(source)
    assert [path.name for path in copy.iterdir()] == ["stays"]


def test_what_a_volume_covers() -> None:
    """The directory and what is below it."""
    volume = Volume(Path("/var/lib/app"), Path("/run"))
    assert covers([volume], "/var/lib/app")
    assert covers([volume], "/var/lib/app/data (deleted)")
    assert not covers([volume], "/var/lib/apparatus")
    assert not covers([], "/var/lib/app")
