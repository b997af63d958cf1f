"""A CRIU source tree's tests: found, copied into a temporary folder, built there one by one, and started.

All by their own Makefiles: `make NAME` builds a test, `make NAME.pid` starts it with the arguments that it takes, and
comes back when the test has gone into the background and written its PID into the file NAME.pid.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
import subprocess
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from migration.slowness import scaled

from .descriptions import Description, parse
from .errors import ZdtmError

FOLDERS = ("static", "transition", "streaming")
_BUILD_LIMIT_S = 180.0
_CHECK_LIMIT_S = 20.0
_MADE = ("*.o", "*.d", "*.a", "*.so", "*.pid", "*.out", "*.inprogress", "*.test", "*.state", ".gitignore")


@dataclass(frozen=True)
class Case:
    """A test: its folder in the copy, and its name."""

    place: Path
    name: str
    description: Description

    @property
    def label(self) -> str:
        """What the user calls it."""
        return f"{self.place.name}/{self.name}"

    @property
    def is_still(self) -> bool:
        """Say whether it only waits once it is ready; the others of CRIU's tests are always at work."""
        return self.place.name == "static"

    @property
    def pidfile(self) -> Path:
        """Where its PID is, as it knows it itself, from when it is ready until it ends."""
        return self.place / f"{self.name}.pid"

    @property
    def outfile(self) -> Path:
        """What it has to say; it gets this name when the test ends."""
        return self.place / f"{self.name}.out"

    @property
    def unfinished(self) -> Path:
        """The same while it runs."""
        return self.place / f"{self.name}.out.inprogress"

    @property
    def has_hook(self) -> bool:
        """Say whether CRIU's zdtm.py would do something of its own on the test's way."""
        return (self.place / f"{self.name}.hook").exists()


def find(path: Path) -> Path:
    """Return the folder test/zdtm of what the user has named: a source tree, its folder test, or this itself."""
    for folder in (path, path / "test" / "zdtm", path / "zdtm"):
        if any((folder / name / "Makefile").is_file() for name in FOLDERS):
            return folder.absolute()
    raise ZdtmError(
        f"there is no folder test/zdtm with tests at {path}: ZDTM= names the folder of CRIU's source tree"
    )


def copy(source: Path, target: Path) -> Path:
    """Copy the tests without what was built of them, for any user to write in; return the copy."""

    def unwanted(folder: str, names: list[str]) -> Collection[str]:
        built = {name for name in names if f"{name}.c" in names}
        return built.union(*(fnmatch.filter(names, pattern) for pattern in _MADE))

    made = target / "test" / "zdtm"
    made.parent.mkdir(parents=True)
    shutil.copytree(source, made, symlinks=True, ignore=unwanted)
    for name in FOLDERS:
        if (made / name).is_dir():
            (made / name).chmod(0o777)
    return made


def cases(root: Path) -> list[Case]:
    """List the tests of a folder test/zdtm."""
    return [
        Case(root / folder, source.stem, _described(source.with_suffix(".desc")))
        for folder in FOLDERS
        for source in sorted((root / folder).glob("*.c"))
    ]


def _described(path: Path) -> Description:
    return parse(path.read_text()) if path.is_file() else Description()


def choose(found: Iterable[Case], wanted: str) -> dict[Case, bool]:
    """Return the tests that are wanted, all if none is, and whether each was asked for by its very name."""
    every, words = list(found), wanted.replace(",", " ").split()
    if not words:
        return dict.fromkeys(every, False)
    chosen: dict[Case, bool] = {}
    for word in words:
        fits = [case for case in every if fnmatch.fnmatch(case.label if "/" in word else case.name, word)]
        if not fits:
            raise ZdtmError(f"TESTS={word} names no test; there are {len(every)}, env00 and others")
        for case in fits:
            chosen[case] = chosen.get(case, False) or word in (case.name, case.label)
    return chosen


def environment(case: Case) -> dict[str, str]:
    """Return a test's environment: users, groups and what else it looks for there."""
    made = {"PATH": os.defpath + ":/usr/sbin:/sbin", "TMPDIR": str(case.place.parent.parent.parent / "tmp")}
    made["ZDTM_THREAD_BOMB"] = "5"  # as many threads as CRIU can stop by signals, without a freezer
    if not case.description.is_of_root:
        made |= {"ZDTM_UID": "61001", "ZDTM_GID": "61002", "ZDTM_GROUPS": "61003 61004"}
    return made


def make(case: Case, *words: str, limit_s: float = _BUILD_LIMIT_S) -> subprocess.CompletedProcess[str]:
    """Run make in a test's folder; raises subprocess.TimeoutExpired."""
    return subprocess.run(
        ["make", "--no-print-directory", "-C", str(case.place), *words],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=scaled(limit_s),
        env=_plain(),
    )


def _plain() -> Mapping[str, str]:
    """Return our environment without what a make that runs us has put there."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}


def build(case: Case, has_feature: Callable[[str], bool]) -> str | None:
    """Build a test; say why it cannot be built or run here, None if it can."""
    for feature in case.description.features:
        if not has_feature(feature):
            return f"CRIU finds no {feature} here (criu check --feature {feature})"
    try:
        if "no rule" in make(case, "-n", case.pidfile.name).stdout.lower():
            return "its Makefile has no rule that starts it"
        done = make(case, case.name)
        if done.returncode != 0:
            return f"it cannot be built: {_first_error(done.stdout)}"
        return _skips_itself(case)
    except subprocess.TimeoutExpired as ex:
        return f"{ex.cmd[-1]} takes more than {ex.timeout:.0f} s"


def _skips_itself(case: Case) -> str | None:
    """Ask a test's own program that says whether it can run here."""
    program = case.place / f"{case.name}.checkskip"
    if not os.access(program, os.X_OK):
        return None
    done = subprocess.run(
        [str(program)],
        cwd=case.place,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=scaled(_CHECK_LIMIT_S),
    )
    return None if done.returncode == 0 else f"its {program.name} says that it cannot run here"


def _first_error(output: str) -> str:
    lines = output.splitlines()
    return next(
        (line.strip() for line in lines if "error" in line.lower()), lines[-1] if lines else "no word"
    )
