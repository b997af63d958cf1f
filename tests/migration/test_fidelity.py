"""A program finds nothing different in itself after a move, but for what it, or the report, has been told.

Made from the tables of tests/fidelity and of migration/sockopts.py: every row is set, read, moved and read again.
"""

from __future__ import annotations

import errno
import functools
import json
import os
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from moving import PYTHON, Stage, says, wait_until
from transferring import managed

from migration import sockopts
from migration.errors import MigrationError
from migration.model import App
from migration.namespaces import in_netns
from migration.report import Outcome, Report
from migration.transfer.modes import Mode, Via, Wish
from tests.fidelity import plan as plans
from tests.fidelity.entries import GROUPS, REFUSED, WARNED, Entry
from tests.fidelity.inside import Readings
from tests.fidelity.ledger import LEDGER, text

pytestmark = pytest.mark.net

PROGRAM = Path(plans.__file__).with_name("program.py")
PEER = ("10.77.1.2", 7100)
OWN = "10.77.2.2"
MODES = {"stop": Wish(mode=Mode.STOP, via=Via.SHARED), "lazy": Wish(mode=Mode.LAZY, via=Via.SHARED)}
if os.environ.get("P4FERRY_FIDELITY") == "full":  # half a minute each
    MODES |= {
        "stop-network": Wish(mode=Mode.STOP, via=Via.NETWORK),
        "lazy-network": Wish(mode=Mode.LAZY, via=Via.NETWORK),
        "pre-network": Wish(mode=Mode.PRE, via=Via.NETWORK),
        "group": Wish(mode=Mode.STOP, via=Via.SHARED),
    }
FIRST = ("memory-failure policy", "merging of all memory", "I/O flusher", "personality")
ENTRIES = [entry for group in GROUPS.values() for entry in group]
# What only the first process of what moves keeps, and the report says so of others.
FIRST_ONLY = {entry.name for entry in GROUPS["process"] if entry.name.startswith(FIRST)}
# Setting it needs more than this machine may give to root.
MAY_FAIL = {"merging of all memory", "I/O flusher", "memory-failure policy", "mergeable memory"}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with (
        managed(tmp_path_factory.mktemp("fidelity")) as built,
        in_netns(built.hosts["A"].pid, lambda: socket.create_server(PEER)),
    ):
        yield built


def connect(port: int) -> socket.socket:
    """Connect to the program in host B."""
    return socket.create_connection((OWN, port), timeout=5)


class Told:
    """A program that tells what it finds."""

    def __init__(
        self,
        scene: Stage,
        name: str,
        entries: list[Entry],
        *,
        options: bool = False,
        in_group: bool = False,
    ) -> None:
        self.scene, self.prefix = scene, scene.folder / name
        order = self.prefix.with_suffix(".plan")
        order.write_text(json.dumps(plans.plan(entries, PEER, OWN, options=options)))
        command = [PYTHON, str(PROGRAM), str(order), str(self.prefix)]
        log = self.prefix.with_suffix(".log")
        self.app: App
        if in_group:
            self.app = scene.runtime.launch_group(
                f"{name}s", scene.hosts["B"], self.prefix.with_suffix(".all")
            )
            scene.runtime.launch_in(self.app, name, command, log)
        else:
            self.app = scene.runtime.launch(name, scene.hosts["B"], command, log)
        self.asked = 0
        self.clients: list[socket.socket] = []
        if options:
            self._wait_for("listening")
            at = scene.hosts["A"].pid
            self.clients = [in_netns(at, functools.partial(connect, port)) for port in (7000, 7005)]
        self._wait_for("ready")

    def _wait_for(self, word: str) -> None:
        log = self.prefix.with_suffix(".log")
        wait_until(lambda: says(log, word) or not self.scene.runtime.is_running(self.app), word, timeout=20)
        assert self.scene.runtime.is_running(self.app), log.read_text()

    @property
    def failed(self) -> dict[str, str]:
        """What it could not do, with the reasons."""
        found: dict[str, str] = json.loads(Path(f"{self.prefix}.failed").read_text())
        return found

    def ask(self) -> dict[str, Any]:
        """Ask it what it finds."""
        self.asked += 1
        Path(f"{self.prefix}.ask").touch()
        answer = Path(f"{self.prefix}.{self.asked}")
        wait_until(answer.exists, "its answer")
        found: dict[str, Any] = json.loads(answer.read_text())
        return found

    def move(self, host: str, wish: Wish = MODES["stop"]) -> Report:
        """Move it."""
        report: Report = self.scene.migrator().migrate(self.app, self.scene.hosts[host], wish=wish)
        return report

    def end(self) -> None:
        """End it."""
        for client in self.clients:
            client.close()
        self.scene.runtime.terminate(self.app, 0.1)


@pytest.fixture(scope="module", params=MODES)
def readings(request: pytest.FixtureRequest, scene: Stage) -> Readings:
    told = Told(scene, f"all-{request.param}", ENTRIES, options=True, in_group=request.param == "group")
    reports: list[Report] = []
    try:
        told.ask()  # what changes by being read has changed
        found: list[dict[str, Any]] = [told.ask()]
        for host in ("C", "B"):
            report = told.move(host, MODES[request.param])
            if request.param == "pre-network" and report.outcome is Outcome.REFUSED:
                pytest.skip(f"{report.reason}")
            assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
            reports.append(report)
            found.append(told.ask())
    finally:
        told.end()
    first, away, back = found
    return Readings(first, away, back, reports, told.failed)


@pytest.mark.parametrize("group", GROUPS)
def test_state_is_the_same(readings: Readings, group: str, request: pytest.FixtureRequest) -> None:
    """What entries.py calls restored is as it was."""
    failed = set(readings.failed) - MAY_FAIL
    assert not failed, readings.failed
    is_first = "group" not in request.node.callspec.params["readings"]
    kept = [entry.name for entry in GROUPS[group] if is_first or entry.name not in FIRST_ONLY]
    names = [name for name in kept if name not in readings.failed]
    first = {name: readings.first[name] for name in names}
    assert not {name: value for name, value in first.items() if str(value).startswith("failed")}
    assert {name: readings.away[name] for name in names} == first
    assert {name: readings.back[name] for name in names} == first
    if not is_first:
        assert any("personality" in warning for warning in readings.reports[0].warnings)


@pytest.mark.parametrize("name", plans.KINDS)
def test_options_are_the_same(readings: Readings, name: str) -> None:
    """What sockopts.py calls carried is as it was."""
    options = {f"{o.level}.{o.number}": o for o in plans.carried() if plans.is_compared(name, o)}
    first = {options[key].name: readings.first[name][key] for key in options}
    back = {options[key].name: readings.back[name][key] for key in options}
    away = {
        option.name: readings.away[name][key] for key, option in options.items() if not plans.is_local(option)
    }
    assert first == back
    assert {key: first[key] for key in away} == away


def test_there_are_enough_checks(readings: Readings) -> None:
    """Hundreds of values are compared, and most of the options have been changed."""
    pairs = [
        (name, option)
        for name in plans.KINDS
        for option in plans.carried()
        if plans.is_compared(name, option)
    ]
    told = [readings.first[name][f"{option.level}.{option.number}"] for name, option in pairs]
    assert len([value for value in told if not value.startswith("error")]) + len(ENTRIES) >= 500
    assert readings.reports[0].warnings
    lost = [w for report in readings.reports for w in report.warnings if "has lost" in w]
    assert lost == []


@pytest.mark.parametrize("entry", REFUSED, ids=lambda entry: entry.name)
def test_what_would_be_lost_is_refused(scene: Stage, entry: Entry) -> None:
    """It is said by name, and the program was not touched."""
    told = Told(scene, re.sub(r"\W+", "-", entry.name), [entry])
    assert told.failed == {}
    report = told.move("C")
    assert report.outcome is Outcome.REFUSED, report.reason
    assert report.reason is not None
    assert re.search(entry.words, report.reason), report.reason
    assert report.criu.frozen_ms == 0
    told.end()


@pytest.mark.parametrize("entry", WARNED, ids=lambda entry: entry.name)
def test_what_is_lost_is_warned_of(scene: Stage, entry: Entry) -> None:
    """The report says it by name."""
    told = Told(scene, re.sub(r"\W+", "-", entry.name), [entry])
    if told.failed:
        told.end()
        pytest.skip(f"this kernel does not let it: {told.failed}")
    report = told.move("C")
    assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
    assert re.search(entry.words, "\n".join(report.warnings)), report.warnings
    told.end()


LOCK = Entry("lock", "keep['lock'] = open(f'{prefix}.lock', 'w'); fcntl.flock(keep['lock'], 2)")


def test_what_is_restored_from_its_image_is_the_same(scene: Stage) -> None:
    """A way back for which the original has ended (it had a lock) gives it what CRIU does not carry, too."""

    def fail(step: str, when: str) -> None:
        if (step, when) == ("restore", "after"):
            raise MigrationError("injected")

    told = Told(scene, "way-back", [*ENTRIES, LOCK], options=True)
    told.ask()
    first, pid = told.ask(), told.app.pid
    report = scene.migrator(fault=fail).migrate(told.app, scene.hosts["C"])
    assert (report.outcome, report.reason) == (Outcome.ROLLED_BACK, "injected")
    assert told.app.pid != pid  # which the first one has not survived
    back, failed = told.ask(), told.failed
    told.end()
    names = [entry.name for entry in ENTRIES if entry.name not in failed]
    assert {name: back[name] for name in names} == {name: first[name] for name in names}
    for name in plans.KINDS:
        keys = [f"{o.level}.{o.number}" for o in plans.carried() if plans.is_compared(name, o)]
        assert {key: back[name][key] for key in keys} == {key: first[name][key] for key in keys}, name


def some_sockets() -> dict[str, socket.socket]:
    """Make sockets of every kind."""
    made: dict[str, socket.socket] = {}
    for family, anywhere in ((socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")):
        listener = socket.create_server((anywhere, 0), family=family)
        connected = socket.create_connection(listener.getsockname()[:2])
        made |= {f"listening {family}": listener, f"connected {family}": connected}
        made |= {f"accepted {family}": listener.accept()[0], f"idle {family}": socket.socket(family)}
        made |= {f"datagram {family}": socket.socket(family, socket.SOCK_DGRAM)}
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_SEQPACKET):
        made[f"UNIX {kind}"], made[f"UNIX {kind}, too"] = socket.socketpair(socket.AF_UNIX, kind)
    made["netlink"] = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)
    return made


@pytest.mark.parametrize("level", sockopts.LEVELS)
def test_no_option_of_this_kernel_is_unknown(scene: Stage, level: int) -> None:
    """Every number that some socket answers to is in the table: a new one has to be thought about."""

    def unknown() -> list[int]:
        found = set()
        for one in some_sockets().values():
            with one:
                for number in range(1024):
                    try:
                        one.getsockopt(level, number, 256)
                    except OSError as ex:
                        if ex.errno in (errno.ENOPROTOOPT, errno.EOPNOTSUPP):
                            continue
                    if sockopts.find(level, number) is None:
                        found.add(number)
        return sorted(found)

    assert in_netns(scene.hosts["B"].pid, unknown) == []


def test_ledger_is_up_to_date() -> None:
    """docs/fidelity.md says what the tables say: `python -m tests.fidelity --ledger` writes it."""
    assert LEDGER.read_text() == text()
