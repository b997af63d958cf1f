"""pycriu comes from one folder, whatever else is installed, and fits the CRIU in use."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from migration import messages
from migration.criu_version import parse_version, why_unfit
from migration.errors import CriuMissing

PROJECT = Path(messages.__file__).resolve().parent.parent


def run(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    """Run a program in a new interpreter, with folders first on its path."""
    first = "".join(f"sys.path.insert(0, {str(folder)!r}); " for folder in path)
    text = f"import sys; {first}from migration import messages\n{code}"
    return subprocess.run(
        [sys.executable, "-c", text], cwd=PROJECT, capture_output=True, text=True, timeout=30, check=False
    )


def other_pycriu(folder: Path) -> Path:
    """Make a pycriu that has no messages, as an old one has not those that are needed."""
    package = folder / "dist-packages" / "pycriu"
    (package / "images").mkdir(parents=True)
    for file in ("__init__.py", "rpc_pb2.py", "images/__init__.py", "images/fdinfo_pb2.py"):
        (package / file).write_text("")
    return package.parent


def test_another_one_on_the_path_is_passed_over(tmp_path: Path) -> None:
    """A distribution's pycriu, first on the path, is not what is imported."""
    done = run(
        "m = messages.load(messages.RPC)\n"
        "print(m.__file__, m.criu_opts.DESCRIPTOR.fields_by_name['images_dir'].number)",
        other_pycriu(tmp_path),
    )
    assert done.stderr == ""
    assert done.stdout.startswith(f"{messages.FOLDER}/pycriu/rpc_pb2.py ")


def test_another_one_that_was_imported_is_an_error(tmp_path: Path) -> None:
    """Two of a name cannot be loaded, so whoever was first is named."""
    there = other_pycriu(tmp_path)
    done = run(
        "import pycriu\ntry: messages.load(messages.RPC)\nexcept messages.CriuMissing as ex: print(ex)", there
    )
    assert f"another pycriu was imported before ({there}/pycriu/__init__.py)" in done.stdout


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "the Python package pycriu is missing in "),
        (
            "raise TypeError('Descriptors cannot be created directly.\\nmore')",
            "cannot be imported (Descriptors",
        ),
        ("import no_such_module", "cannot be imported (No module named 'no_such_module'): run `make setup`"),
    ],
)
def test_one_that_cannot_be_imported(tmp_path: Path, content: str | None, expected: str) -> None:
    """One sentence; and nothing half-imported stays."""
    if content is not None:
        (tmp_path / "pycriu").mkdir()
        (tmp_path / "pycriu" / "__init__.py").write_text(content)
    done = run(
        "from pathlib import Path\n"
        f"try: messages.load(messages.RPC, Path({str(tmp_path)!r}))\n"
        "except messages.CriuMissing as ex: print(ex)\n"
        "assert messages.load(messages.RPC).criu_req"
    )
    assert done.returncode == 0, done.stderr
    assert expected in done.stdout and len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize(
    ("ours", "criu", "fits"),
    [
        ("4.2.1", "4.2.1", True),
        ("4.2.1", "3.17.1", True),  # messages only grow
        ("4.2", "4.2.1", True),
        ("4.2.1", "4.3", False),
        ("3.17.1", "4.2.1", False),
        ("4.10", "4.9", True),
        ("garbage", "4.2", False),
    ],
)
def test_it_must_be_as_new_as_the_criu(tmp_path: Path, ours: str, criu: str, fits: bool) -> None:
    """By the version that set-up wrote down."""
    (tmp_path / messages.VERSION).write_text(f"{ours}\n")
    if fits:
        messages.check(criu, tmp_path)
        return
    with pytest.raises(CriuMissing, match=rf"pycriu {ours} in .* is older than the CRIU in use, {criu}"):
        messages.check(criu, tmp_path)


def test_nothing_says_its_version(tmp_path: Path) -> None:
    """What an older set-up has left is told to be set up again."""
    shutil.copytree(messages.FOLDER / "pycriu", tmp_path / "pycriu")
    with pytest.raises(CriuMissing, match="nothing says which version"):
        messages.check("4.2.1", tmp_path)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("4.2.1", (4, 2, 1)),
        ("1:4.2.1-1", (4, 2, 1)),
        ("3.17.1-dirty", (3, 17, 1)),
        ("v4.2-15-g12ab", (4, 2)),
        ("", ()),
        ("x", ()),
    ],
)
def test_versions(text: str, numbers: tuple[int, ...]) -> None:
    """CRIU built from its repository says more than numbers."""
    assert parse_version(text) == numbers


@pytest.mark.parametrize(
    ("criu", "kernel", "fits"),
    [
        ("3.17.1-2+deb12u2", "6.1.0-40-amd64", False),
        ("4.1.1-1", "6.12.57+deb13-cloud-amd64", True),
        ("4.1.1-1", "6.16.3", False),
        ("4.2.1-1", "6.18.44", True),
        ("3.16.1-2", "5.15.0-100-generic", False),
        ("", "6.1", False),
    ],
)
def test_what_is_worth_trying(criu: str, kernel: str, fits: bool) -> None:
    """By what is known of versions; whether it works is tried."""
    assert (why_unfit(criu, kernel) is None) == fits
