"""The program in a container, whoever has started it: its files are reached through /proc/PID/root.

What a container cannot have (no capability, a system call that is filtered, no /dev/pts) it is asked for all the same:
the program tells which entries it could not set, and why.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import pytest

from migration.cgroups import UNIFIED, groups_of
from migration.model import App
from migration.report import Outcome, Report
from migration.slowness import scaled
from tests.fidelity import plan as plans
from tests.fidelity.entries import Entry

HOME = Path("/srv/fidelity")
"""Where the program is in a root file system."""
_HERE = Path(__file__).parent
_TIMEOUT = scaled(20.0)
# How a container says that something is not to be had, and what that means.
_NOT_HAD = {
    r"FileNotFoundError\(2, '.*'\) (?P<what>\S+)": "the container has no",
    r"FileNotFoundError\(2, '(?P<what>.*)'\)$": "in the container there is",
    r"PermissionError\(\d+, '(?P<what>.*)'\)": "the container may not:",
    r"OSError\((5|6|22|38|95), '(?P<what>.*)'\)": "the container cannot:",
    r"KeyError\('(?P<what>session)'\)": "for want of a terminal there is no",
}


def add_program(root: Path) -> Path:
    """Put the program, and files to remove, into a root file system."""
    folder = root / HOME.relative_to("/")
    folder.mkdir(parents=True)
    for name in ("program.py", "ptys.py", "layers.py"):
        shutil.copy(_HERE / name, folder / name)
    for name in ("removed", "replaced"):
        (folder / name).write_text("of the image\n")
    return root


def wait_until(condition: Callable[[], Any], what: str) -> None:
    """Wait for a condition, and say what did not come."""
    deadline = time.monotonic() + _TIMEOUT
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come"
        time.sleep(0.02)


class Inside:
    """A program that tells what it finds, in a container."""

    def __init__(
        self,
        launch: Callable[[Sequence[str]], App],
        name: str,
        plan: Mapping[str, Any],
        connect: Callable[[], object] = lambda: None,
    ) -> None:
        """Start it; `connect` is called until it raises no OSError, while the program waits for its clients."""
        prefix = f"/tmp/{name}"
        self._prefix = prefix.lstrip("/")
        self.app = launch(["python3", str(HOME / "program.py"), f"{prefix}.plan", prefix])
        self._asked = 0
        self.clients: list[socket.socket] = []
        """Its peers, for whoever has made them to close."""
        self._write("plan", json.dumps(plan))
        if plan["options"]:
            wait_until(lambda: _works(connect), "a connection")
        wait_until(self.path("failed").exists, "the program")

    def path(self, suffix: str) -> Path:
        """Return where one of its files is now."""
        return Path(f"/proc/{self.app.pid}/root/{self._prefix}.{suffix}")

    def _write(self, suffix: str, text: str) -> None:
        partial = self.path(f"{suffix}.partial")
        partial.write_text(text)
        partial.rename(self.path(suffix))

    @property
    def failed(self) -> dict[str, str]:
        """What it could not have, with the reasons."""
        found: dict[str, str] = json.loads(self.path("failed").read_text())
        return found

    def ask(self) -> dict[str, Any]:
        """Ask it what it finds."""
        self._asked += 1
        self._write("ask", "")
        wait_until(self.path(str(self._asked)).exists, "its answer")
        found: dict[str, Any] = json.loads(self.path(str(self._asked)).read_text())
        return found


def _works(action: Callable[[], object]) -> bool:
    try:
        action()
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class Readings:
    """What a program has told at its first place, elsewhere, and back again."""

    first: Mapping[str, Any]
    away: Mapping[str, Any]
    back: Mapping[str, Any]
    reports: Sequence[Report]
    failed: Mapping[str, str]

    @property
    def warnings(self) -> str:
        """All that the reports warn of."""
        return "\n".join(warning for report in self.reports for warning in report.warnings)


def limit(told: Inside) -> None:
    """Change a limit of a container's control group, which was not made with it."""
    groups = groups_of(told.app.pid)
    file = groups.get("pids", groups.get(UNIFIED, Path())) / "pids.max"
    if file.exists():
        file.write_text("3210")


def there_and_back(told: Inside, move: Callable[[str], Report], hosts: Sequence[str]) -> Readings:
    """Move a program to some hosts, and ask it at each."""
    limit(told)
    told.ask()  # what changes by being read has changed
    found, reports = [told.ask()], []
    for host in hosts:
        report = move(host)
        assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
        reports.append(report)
        found.append(told.ask())
    first, away, back = found
    if keep := os.environ.get("P4FERRY_FIDELITY_READINGS"):  # for whoever wants to see them whole
        Path(keep).write_text(
            json.dumps([first, away, back, [report.warnings for report in reports]], default=list)
        )
    return Readings(first, away, back, reports, told.failed)


def skip(entry: Entry, reason: str) -> NoReturn:
    """Skip an entry that a container cannot have, for the reason that it has told itself; fail for any other one."""
    for told, means in _NOT_HAD.items():
        if found := re.match(told, reason):
            pytest.skip(f"{entry.name}: {means} {found['what']}")
    pytest.fail(f"{entry.name}: {reason}")


def skip_if_not_had(failed: Mapping[str, str], entry: Entry) -> None:
    """Skip an entry that a container cannot have."""
    if (reason := failed.get(entry.name)) is not None:
        skip(entry, reason)


def check_entry(readings: Readings, entry: Entry, lost: Mapping[str, str]) -> None:
    """See that an entry is as it was; one of `lost` is not, and the report says so."""
    skip_if_not_had(readings.failed, entry)
    first = readings.first[entry.name]
    if str(first).startswith("failed"):
        skip(entry, str(first).removeprefix("failed: "))
    after = [readings.away[entry.name], readings.back[entry.name]]
    if (words := lost.get(entry.name)) is None:
        assert after == [first, first]
        return
    assert after != [first, first], f"{entry.name} is not lost"
    assert re.search(words, readings.warnings), readings.warnings


def check_options(readings: Readings, name: str) -> None:
    """See that one of the program's sockets has the options that it had."""
    assert plans.told(name, readings.back) == plans.told(name, readings.first)
    assert plans.told(name, readings.away, local=False) == plans.told(name, readings.first, local=False)
