"""Which CRIU is taken, and that the one in use stays until another one works."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from topo import criu_setup, paths
from topo.criu_probe import Verdict
from topo.criu_setup import DISTRIBUTION, PRIVATE, Chooser, SetupFailed, read_choice, why_not_fetched


@dataclass
class Stand:
    """A machine of another distribution and kernel: its CRIUs are scripts, which work on the kernels that are named."""

    folder: Path
    kernel: str = "6.12.57"
    installed: str = ""
    package: str = ""
    works: tuple[str, ...] = ("4.2.1",)
    has_network: bool = True
    has_pycriu: bool = True
    done: list[str] = field(default_factory=list)

    def binary(self, version: str) -> Path:
        """Make a CRIU of a version."""
        path = self.folder / f"criu-{version}"
        path.write_text(f"#!/bin/sh\necho Version: {version}\n")
        path.chmod(0o755)
        return path

    def distribution_binary(self) -> str | None:
        return str(self.binary(self.installed)) if self.installed else None

    def package_version(self, package: str) -> str:
        return f"{self.installed}-1" if self.installed and package == "criu" else ""

    def candidate(self, package: str) -> str:
        return f"{self.package}-1" if self.package else ""

    def probe(self, binary: Path) -> Verdict:
        version = criu_setup.version_of(str(binary))
        self.done.append(f"probe {version}")
        return Verdict(version in self.works, version, "" if version in self.works else "a dump fails")

    def install(self, *packages: str) -> None:
        self.done.append("install")
        if not self.has_network:
            raise SetupFailed("the mirror cannot be reached")
        self.installed = self.package

    def fetch_private(self, folder: Path) -> None:
        self.done.append("fetch")
        if not self.has_network:
            raise SetupFailed("the mirror cannot be reached")
        package = folder / "root" / "usr" / "lib" / "python3" / "dist-packages" / "pycriu"
        package.mkdir(parents=True)
        (package / "__init__.py").write_text("")
        (package / "version.py").write_text("__version__ = '4.2.1'\n")
        library = folder / "root" / "usr" / "lib" / "x86_64-linux-gnu"
        library.mkdir()
        loader = library / "ld-linux-x86-64.so.2"  # runs what it is given, as the real one does
        loader.write_text('#!/bin/sh\nshift 2; exec "$@"\n')
        loader.chmod(0o755)
        (folder / "root" / "usr" / "sbin").mkdir()
        shutil.copy(self.binary("4.2.1"), folder / "root" / "usr" / "sbin" / "criu")

    def fetch_pycriu(self, folder: Path) -> str:
        self.done.append("fetch pycriu")
        if not self.has_network or not self.has_pycriu:
            return ""
        (folder / "pycriu").mkdir()
        return self.installed

    def check_pycriu(self, folder: Path, criu: str) -> str | None:
        return None if (folder / "pycriu").is_dir() else "it is missing"


@pytest.fixture(autouse=True)
def no_system_pycriu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criu_setup, "SYSTEM_PYCRIU", tmp_path / "none")


@pytest.fixture
def state(tmp_path: Path) -> Path:
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


@pytest.mark.parametrize(
    ("machine", "source", "version", "done"),
    [
        # Installed, and it works: as Debian 13 on its own kernel.
        ({"installed": "4.1.1", "works": ("4.1.1",)}, DISTRIBUTION, "4.1.1", ["probe 4.1.1", "fetch pycriu"]),
        # Not installed, but its package can work.
        ({"package": "4.1.1", "works": ("4.1.1",)}, DISTRIBUTION, "4.1.1", ["install", "probe 4.1.1", "fetch pycriu"]),
        # Debian 12 on its own kernel: its CRIU passes the probe, but not migrations.
        ({"kernel": "6.1.0-40-amd64", "package": "3.17.1", "works": ("3.17.1", "4.2.1")}, PRIVATE, "4.2.1",
         ["fetch", "probe 4.2.1"]),
        # Its package cannot work, so it is not installed.
        ({"kernel": "6.18.44", "package": "4.1.1"}, PRIVATE, "4.2.1", ["fetch", "probe 4.2.1"]),
        # It is installed and does not work.
        ({"installed": "4.1.1"}, PRIVATE, "4.2.1", ["probe 4.1.1", "fetch", "probe 4.2.1"]),
        # Too old for migrations, whatever the probe would say.
        ({"installed": "3.16.1", "works": ("3.16.1", "4.2.1")}, PRIVATE, "4.2.1", ["fetch", "probe 4.2.1"]),
        # It works, but there is no pycriu for it.
        ({"installed": "4.1.1", "works": ("4.1.1", "4.2.1"), "has_pycriu": False}, PRIVATE, "4.2.1",
         ["probe 4.1.1", "fetch pycriu", "fetch", "probe 4.2.1"]),
    ],
)  # fmt: skip
def test_order(
    tmp_path: Path, state: Path, machine: dict[str, object], source: str, version: str, done: list[str]
) -> None:
    """What is there goes before what must be fetched; nothing is installed that cannot work."""
    stand = Stand(tmp_path, **machine)  # type: ignore[arg-type]
    choice, is_news = Chooser(stand, state).settle()
    assert (choice.source, choice.version, is_news) == (source, version, True)
    assert [word for word in stand.done if word != "install" or stand.package] == done
    assert criu_setup.version_of(str(state / "bin" / "criu")) == version
    assert (state / "python" / "pycriu.version").read_text().strip() in ("4.2.1", version)
    assert read_choice(state) == choice
    stand.done.clear()
    assert Chooser(stand, state).settle() == (choice, False)
    assert stand.done == []


def test_another_kernel(tmp_path: Path, state: Path) -> None:
    """The one in use is only tried; without a network, too."""
    stand = Stand(tmp_path)
    before, _ = Chooser(stand, state).settle()
    target = (state / "criu").readlink()
    stand.kernel, stand.has_network, stand.done = "6.19.1", False, []
    choice, _ = Chooser(stand, state).settle()
    assert stand.done == ["probe 4.2.1"]
    assert (state / "criu").readlink() == target
    assert (before.kernel, choice.kernel) == ("6.12.57", "6.19.1")
    assert choice.reason == "it was in use and works on Linux 6.19.1, too"


def test_nothing_works_on_another_kernel(tmp_path: Path, state: Path) -> None:
    """The one in use is still there, complete, and each one's reason is said; back on the old kernel it is used."""
    stand = Stand(tmp_path)
    before, _ = Chooser(stand, state).settle()
    files = sorted(path.relative_to(state) for path in state.rglob("*"))
    stand.kernel, stand.has_network, stand.works = "6.19.1", False, ()
    with pytest.raises(SetupFailed) as caught:
        Chooser(stand, state).settle()
    assert "4.2.1, in use so far: a dump fails" in str(caught.value)
    assert "a private one: the mirror cannot be reached" in str(caught.value)
    assert sorted(path.relative_to(state) for path in state.rglob("*")) == files
    stand.kernel = "6.12.57"
    assert Chooser(stand, state).settle() == (before, False)


def test_a_private_one_stays_beside_the_distributions(tmp_path: Path, state: Path) -> None:
    """And is taken again when that does not work any more, without fetching anything."""
    stand = Stand(tmp_path)
    Chooser(stand, state).settle()
    stand.installed, stand.works = "4.3", ("4.2.1", "4.3")
    choice, _ = Chooser(stand, state).settle(probe=True)
    assert (choice.source, choice.package) == (DISTRIBUTION, "criu 4.3-1")
    stand.kernel, stand.works, stand.has_network, stand.done = "7.0", ("4.2.1",), False, []
    choice, _ = Chooser(stand, state).settle()
    assert (choice.source, choice.reason) == (PRIVATE, "it was here already and works")
    assert "fetch" not in stand.done
    assert criu_setup.version_of(str(state / "bin" / "criu")) == "4.2.1"


def test_what_an_older_set_up_has_left(tmp_path: Path, state: Path) -> None:
    """Its private CRIU goes on being used; its folders give way to links."""
    stand = Stand(tmp_path, has_network=False)
    Stand(tmp_path).fetch_private(state)
    (state / "root").rename(state / "criu-root")
    (state / "bin").mkdir()
    (state / "bin" / "criu").write_text("")
    (state / "python" / "pycriu").mkdir(parents=True)
    choice, _ = Chooser(stand, state).settle()
    assert (choice.source, stand.done) == (PRIVATE, ["probe 4.2.1"])
    assert (state / "bin").is_symlink() and not (state / "criu-root").exists()


def test_an_incomplete_one_is_none(tmp_path: Path, state: Path) -> None:
    """Whatever is missing of it."""
    stand = Stand(tmp_path)
    Chooser(stand, state).settle()
    (state / "criu" / "choice.json").write_text(json.dumps({"version": "4.2.1"}))
    assert read_choice(state) is None
    stand.done.clear()
    Chooser(stand, state).settle()
    assert stand.done == ["probe 4.2.1"] and read_choice(state) is not None


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("I: running\nE: Some index files failed.\nE: apt-get failed", "E: Some index files failed."),
        ("Err: Temporary failure resolving 'mirror'\nE: x", "Debian's mirror cannot be reached; it needs a network"),
        ("", "it said nothing"),
    ],
)  # fmt: skip
def test_why_it_was_not_fetched(log: str, expected: str) -> None:
    """One sentence."""
    assert why_not_fetched(log).startswith(expected)


@pytest.mark.net
def test_the_one_of_this_checkout() -> None:
    """It is complete, says why it was taken, and works."""
    choice = read_choice()
    assert choice is not None and choice.reason and choice.version in choice.describe()
    binary = paths.criu_binary()
    assert binary is not None
    verdict = criu_setup.ThisMachine().probe(binary)
    assert verdict.works and verdict.version == choice.version
