"""`p4ferry checkpoint …` and what it gives to Podman."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from containers.archive import commands, image, restore
from containers.errors import ArchiveInvalid, ContainersError, EngineFailed, ImageInvalid
from controllers import cli

from .checkpoints import archive, members
from .tars import member

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="checkpoints are root's")


def built(folder: Path) -> Path:
    """Build an image."""
    image.build(archive(folder / "archive"), folder / "image")
    return folder / "image"


def test_podman_gets_a_checked_archive_that_is_removed(tmp_path: Path) -> None:
    """The file is private while Podman reads it, and gone after it."""
    path = built(tmp_path)
    seen: list[str] = []

    def podman(command: Sequence[str]) -> CompletedProcess[str]:
        seen.extend(command)
        given = Path(command[4])
        assert command[:4] == ["podman", "container", "restore", "--import"]
        assert stat.S_IMODE(given.stat().st_mode) == 0o600
        with tarfile.open(given) as tar:
            assert "spec.dump" in tar.getnames()
        return CompletedProcess(command, 0, "0123\n", "")

    assert restore.restore(path, ["--pod", "p1"], podman) == "0123"
    assert seen[5:] == ["--tcp-established", "--pod", "p1"]
    assert not Path(seen[4]).exists()
    assert sorted(item.name for item in tmp_path.iterdir()) == ["archive", "image"]


def test_podman_says_no(tmp_path: Path) -> None:
    """Its last line is passed on; the archive is removed all the same."""
    path = built(tmp_path)
    with pytest.raises(EngineFailed, match="podman does not restore counter: name is in use"):
        restore.restore(
            path, run=lambda command: CompletedProcess(command, 125, "", "warning\nname is in use\n")
        )
    assert sorted(item.name for item in tmp_path.iterdir()) == ["archive", "image"]


def test_without_podman_the_archive_stays(tmp_path: Path) -> None:
    """And what to type is said."""

    def podman(command: Sequence[str]) -> CompletedProcess[str]:
        raise FileNotFoundError(command[0])

    path = built(tmp_path)
    with pytest.raises(EngineFailed) as caught:
        restore.restore(path, run=podman)
    kept = tmp_path / "image.checkpoint.tar"
    assert f"podman container restore --import {kept} --tcp-established" in str(caught.value)
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600


def test_a_bad_archive_never_reaches_podman(tmp_path: Path) -> None:
    """It is checked first."""
    path = built(tmp_path)
    bad = archive(tmp_path / "bad", [*members(), member("/x", b"")])
    stored = image.stored(path)
    stored.layout.blob(stored.layer.digest).write_bytes(bad.read_bytes())
    with pytest.raises(ImageInvalid, match="instead of"):
        restore.restore(path, run=lambda command: pytest.fail("was called"))
    with pytest.raises(ArchiveInvalid):
        image.build(bad, tmp_path / "other")


@ROOT
def test_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is one command; what goes wrong is one sentence."""
    source = archive(tmp_path / "archive")
    assert cli.main(["checkpoint", "build", str(source), str(tmp_path / "image")]) == 0
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'image'}: checkpoint of counter, ")
    assert cli.main(["checkpoint", "import", str(tmp_path / "image"), str(tmp_path / "again")]) == 0
    assert (tmp_path / "again").read_bytes() == source.read_bytes()
    capsys.readouterr()
    for command, said in (
        (["build", "/missing", str(tmp_path / "x")], "/missing: no such file or directory"),
        (["build", str(source), "/missing/x"], "No such file or directory"),
        (["build", str(source), str(tmp_path / "image")], "image exists already; it is not overwritten"),
        (
            ["push", str(tmp_path / "image"), "registry.example/a:b"],
            "registry.example is not on this machine",
        ),
        (["push", str(tmp_path / "image"), "127.0.0.1:1/a:b"], "no registry answers at http://127.0.0.1:1"),
        (["import", str(tmp_path), str(tmp_path / "x")], "is no OCI image layout"),
    ):
        assert cli.main(["checkpoint", *command]) == 1
        error = capsys.readouterr().err
        assert error.startswith("p4ferry: ")
        assert said in error
        assert len(error.splitlines()) == 1


def test_options_for_podman_stand_behind_two_dashes() -> None:
    """As the usage says."""
    arguments = cli.make_parser().parse_args(["checkpoint", "restore", "image", "--", "--pod", "p1"])
    assert arguments.option == ["--pod", "p1"]


def test_only_root() -> None:
    """Checkpoints hold a program's memory."""
    arguments = cli.make_parser().parse_args(["checkpoint", "build", "a", "b"])
    with pytest.raises(ContainersError, match="only root may handle them"):
        commands.run(arguments, user=1000)
