"""Big memory: each mode and transfer with real programs, and what happens when a part of the way breaks."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest
from moving import PYTHON, Stage, wait_until
from transferring import (
    Memory,
    Untracked,
    helpers,
    interface_bytes,
    killing,
    managed,
    remember,
)

from migration.migrator import Migrator
from migration.namespaces import URGENT
from migration.report import Outcome
from migration.transfer.carrier import Carrier
from migration.transfer.modes import Kernel, Mode, Via, Wish

pytestmark = pytest.mark.net

FAMILY = str(Path(__file__).parent / "programs" / "family.py")

SIZE = 60 << 20
WAYS = [(mode, via) for mode in (Mode.STOP, Mode.LAZY) for via in Via]
STEPS = ("prepare", "hold", "checkpoint", "rewrite", "transfer", "restore", "switch over", "release", "pages")


@pytest.fixture
def scene(tmp_path: Path) -> Iterator[Stage]:
    with managed(tmp_path) as built:
        yield built


@pytest.mark.parametrize("mode", [Mode.STOP, Mode.LAZY])
def test_a_mover_with_many_descriptors(scene: Stage, mode: Mode) -> None:
    """Above 1023, which select(2) does not know: a thousand clients of the event stream have one each."""
    program = remember(scene, 30)
    with ExitStack() as stack:
        for _ in range(1100):
            stack.callback(os.close, os.open("/dev/null", os.O_RDONLY))
        report = program.migrate("C", mode, Via.NETWORK)
    assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)


@pytest.mark.parametrize(("mode", "via"), WAYS)
def test_memory_and_connection_arrive(scene: Stage, mode: Mode, via: Via) -> None:
    """There and back: every byte of memory is what it was, the connection stays, and bytes take the way asked for."""
    program = remember(scene)
    before = program.ask()
    for source, to in (("B", "C"), ("C", "B")):
        sent = interface_bytes(scene.hosts[source])
        report = program.migrate(to, mode, via)
        assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
        assert report.connections.kept == 1
        transfer = report.to_json()["transfer"]
        assert (transfer["mode"], transfer["via"], transfer["rounds"]) == (mode.value, via.value, 0)
        assert (transfer["pages_done_ms"] is not None) == (mode is Mode.LAZY)
        passed = interface_bytes(scene.hosts[source]) - sent
        if via is Via.NETWORK:
            assert SIZE < transfer["bytes"] <= passed
        else:
            assert passed < 100_000  # a few packets of the kernel's own
        assert program.ask() == before
        assert program.ask("write 100") == "written"
        assert program.ask() != before
        before = program.ask()
    assert json.loads(json.dumps(report.to_json()))["transfer"] == transfer


def test_auto_takes_what_suits(tmp_path: Path) -> None:
    """Programs are stopped and copied as long as that is short; what takes longer, by size or by rate, goes lazily."""
    with managed(tmp_path, rate=200_000_000) as scene:
        autos(scene)


def autos(scene: Stage) -> None:
    """Move a small program, and a large one with pause budgets to either side of some 2.5 s."""
    echo = scene.serve("C", "--port", "7009")
    report = scene.migrator().migrate(echo, scene.hosts["D"])
    assert report.transfer is not None
    assert (report.transfer["mode"], report.transfer["via"]) == ("stop", "network")
    program = remember(scene)
    for budget, mode, to in ((None, "lazy", "C"), (10.0, "stop", "B")):
        wish = Wish(Mode.AUTO, pause_budget=budget)
        report = scene.migrator().migrate(program.app, scene.hosts[to], wish=wish)
        assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
        assert report.transfer is not None
        kernel = scene.runtime.kernel
        assert kernel is not None
        assert report.transfer["mode"] == ("pre" if kernel.tracks_dirty else mode)
        if not kernel.tracks_dirty:
            assert f"the pause budget of {budget or 1:g} s" in report.transfer["why"]


def test_pre_is_refused_where_nothing_tracks(scene: Stage) -> None:
    """Mode pre says why it cannot be, before anything is touched."""
    program = remember(scene, 1)
    report = program.migrate("C", Mode.PRE)
    kernel = scene.runtime.kernel
    assert kernel is not None
    if kernel.tracks_dirty:
        assert report.outcome is Outcome.COMPLETED
        return
    assert report.outcome is Outcome.REFUSED
    assert "this kernel does not track which pages are written" in str(report.reason)
    assert report.steps == []
    assert program.ask()


@pytest.fixture
def untracked(scene: Stage, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A stage where pre-copy's way can be gone on every kernel."""
    monkeypatch.setattr(Carrier, "pre_copy", Untracked)
    scene.runtime.kernel = Kernel(tracks_dirty=True, has_userfault=True)
    return scene


@pytest.mark.parametrize("via", list(Via))
def test_pre_copy_goes_in_rounds(untracked: Stage, via: Via) -> None:
    """Pre-copy's rounds and their parents carry a program; without tracking each moves all of it."""
    program = remember(untracked)
    before = program.ask()
    report = program.migrate("C", Mode.PRE, via)
    assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
    assert report.transfer is not None
    assert report.transfer["rounds"] == 2  # the second moved as much as the first: it was no help
    assert report.transfer["bytes"] > 3 * SIZE
    assert program.ask() == before


@pytest.mark.parametrize("via", list(Via))
def test_pre_copy_leads_back(untracked: Stage, via: Via) -> None:
    """When the original dies frozen, what the rounds have moved is fetched home, and it is restored there."""
    original_dies(remember(untracked), Mode.PRE, via)


@pytest.mark.parametrize("via", list(Via))
def test_pages_are_fetched_home(scene: Stage, via: Via) -> None:
    """The same for a cold copy: over the network only the destination has its pages."""
    original_dies(remember(scene), Mode.STOP, via)


def original_dies(program: Memory, mode: Mode, via: Via) -> None:
    """Kill the frozen original, and see it restored at its source."""
    before = program.ask()
    original = program.app.pid

    def kill(step: str, when: str) -> None:
        if (step, when) == ("transfer", "after"):
            os.kill(original, signal.SIGKILL)
            assert program.scene.runtime.custody.wait_for_death(original, 5)
            raise OSError("the original is dead")

    report = program.migrate("C", mode, via, fault=kill)
    assert (report.outcome, report.reason) == (Outcome.ROLLED_BACK, "the original is dead")
    assert (program.app.host.name, program.is_running) == ("B", True)
    assert program.app.pid != original
    assert program.ask() == before


@pytest.mark.parametrize(("step", "when"), [*((step, "after") for step in STEPS), ("restore", "before")])
def test_lazy_leads_back(scene: Stage, step: str, when: str) -> None:
    """Whatever step of a post-copy fails, the program is at its source again, with its memory and its connection."""
    program = remember(scene, 30)
    before = program.ask()

    def fail(now: str, phase: str) -> None:
        if (now, phase) == (step, when):
            raise OSError("a fault")

    report = program.migrate("C", Mode.LAZY, Via.NETWORK, fault=fail)
    assert (report.outcome, report.reason) == (Outcome.ROLLED_BACK, "a fault")
    assert program.app.host.name == "B"
    assert program.ask() == before


@pytest.mark.parametrize("word", ["lazy-pages", "dump --rpc"])
@pytest.mark.parametrize("step", ["transfer", "restore"])
def test_helper_lost_before_the_commit(scene: Stage, word: str, step: str) -> None:
    """A page server or daemon that is killed before the switch-over costs nothing."""
    program = remember(scene, 30)
    before = program.ask()
    fault = killing(scene.runtime, word, step, "after")
    report = program.migrate("C", Mode.LAZY, Via.NETWORK, fault=fault)
    assert report.outcome is Outcome.ROLLED_BACK, report.reason
    assert program.app.host.name == "B"
    assert program.ask() == before
    assert program.migrate("C", Mode.LAZY, Via.NETWORK).outcome is Outcome.COMPLETED
    assert program.ask() == before


@pytest.mark.parametrize("word", ["lazy-pages", "dump --rpc", "transfer.relay"])
def test_helper_lost_after_the_commit(tmp_path: Path, word: str) -> None:
    """After the switch-over it is the one failure with no way back: said so, and nobody is left hanging."""
    with managed(tmp_path, rate=100_000_000) as scene:
        program = remember(scene)
        program.ask()
        original = program.app.pid
        fault = killing(scene.runtime, word, "pages", "before")
        report = program.migrate("C", Mode.LAZY, Via.NETWORK, fault=fault)
        assert report.outcome is Outcome.FAILED
        assert "part of the program's memory was still at the source and is lost, so it was ended" in str(
            report.reason
        )
        assert not program.is_running
        assert not scene.runtime.custody.is_running(original)
        assert helpers(scene.runtime, "criu") == []


def test_post_copy_outlives_its_controller(tmp_path: Path) -> None:
    """What a successor ends of a dead controller's workers is not a daemon with pages under way."""
    with managed(tmp_path, rate=400_000_000) as scene:
        program = remember(scene)
        before = program.ask()

        def succeed(step: str, when: str) -> None:
            if (step, when) == ("pages", "before"):
                assert len(helpers(scene.runtime, "lazy-pages")) == 1
                scene.runtime.end_leftovers()
                assert helpers(scene.runtime, "criu") == []

        report = program.migrate("C", Mode.LAZY, Via.NETWORK, fault=succeed)
        assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
        assert program.ask() == before


@pytest.mark.parametrize("fails", [False, True])
def test_family_moves_lazily(scene: Stage, fails: bool) -> None:
    """Every process of a tree has its memory after a post-copy, and after one that turned back."""
    notes = scene.folder / "notes"
    notes.mkdir()
    command = [PYTHON, FAMILY, str(notes)]
    app = scene.runtime.launch("family", scene.hosts["B"], command, scene.folder / "family.log")
    names = ("parent", "older", "younger")
    wait_until(lambda: all((notes / name).exists() for name in names), "all three at work")

    def fail(step: str, when: str) -> None:
        if fails and (step, when) == ("restore", "after"):
            raise OSError("a fault")

    before = {name: (notes / name).read_text().split() for name in names}
    report = scene.migrator(fault=fail).migrate(app, scene.hosts["C"], wish=Wish(Mode.LAZY, Via.NETWORK))
    assert report.outcome is (Outcome.ROLLED_BACK if fails else Outcome.COMPLETED), report.reason
    moved = {name: (notes / name).read_text().split() for name in names}
    for name in names:
        wait_until(lambda: (notes / name).read_text().split()[0] != moved[name][0], name)  # noqa: B023
        count, checksum = (notes / name).read_text().split()
        assert checksum == before[name][1]
        assert int(count) > int(before[name][0])


def test_page_server_lost(scene: Stage) -> None:
    """Without its page server a dump fails, and the program runs on."""
    program = remember(scene, 30)
    before = program.ask()
    fault = killing(scene.runtime, "page-server", "hold", "after")
    report = program.migrate("C", Mode.STOP, Via.NETWORK, fault=fault)
    assert report.outcome is Outcome.ROLLED_BACK
    assert program.ask() == before
    assert program.migrate("C", Mode.STOP, Via.NETWORK).outcome is Outcome.COMPLETED


def test_page_server_goes_ahead_while_it_is_waited_for(scene: Stage) -> None:
    """The program stands still until it has every page: busy processes must not keep it from a processor."""
    program = remember(scene)
    seen: dict[str, set[int]] = {"before": set(), "during": set(), "after": set()}
    phase = ["before"]
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.0005):
            now = phase[0]
            for pid in helpers(scene.runtime, "page-server"):
                with suppress(ProcessLookupError):
                    seen[now].add(os.getpriority(os.PRIO_PROCESS, pid))

    def fault(step: str, when: str) -> None:
        if step == "checkpoint":
            phase[0] = {"before": "during", "after": "after"}[when]

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert program.migrate("C", Mode.STOP, Via.NETWORK, fault=fault).outcome is Outcome.COMPLETED
    finally:
        over.set()
        watcher.join()
    assert URGENT in seen["during"]
    assert URGENT not in seen["after"]


def test_rate_of_the_link_holds(tmp_path: Path) -> None:
    """Pages take as long as the link's bandwidth says, in the freeze or after it."""
    rate = 400_000_000
    with managed(tmp_path, rate) as scene:
        program = remember(scene)
        before = program.ask()
        least = SIZE * 8 / rate * 0.9
        for mode, to in ((Mode.STOP, "C"), (Mode.LAZY, "B")):
            began = time.monotonic()
            report = program.migrate(to, mode, Via.NETWORK)
            assert report.outcome is Outcome.COMPLETED
            assert time.monotonic() - began > least
            assert program.ask() == before
        assert report.transfer is not None
        assert report.transfer["pages_done_ms"] > least * 1000


def test_redis_moves_lazily_under_writes(scene: Stage) -> None:
    """Redis with data: every key is there afterwards, and what is written meanwhile counts."""
    host, to = scene.hosts["B"], scene.hosts["C"]
    options = ["--save", "", "--protected-mode", "no", "--enable-debug-command", "yes"]
    log = scene.folder / "redis.log"
    app = scene.runtime.launch("redis", host, ["redis-server", "--port", "6379", *options], log)

    def ask(*words: str) -> str:
        enter = ["nsenter", f"--net=/proc/{scene.hosts['A'].pid}/ns/net"]
        command = [*enter, "redis-cli", "-h", str(host.address), *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=30).stdout.strip()

    wait_until(lambda: ask("ping") == "PONG", "Redis answering")
    ask("debug", "populate", "10000", "key", "4000")
    digest = ask("debug", "digest")
    report = Migrator(
        scene.net.steering,
        scene.runtime,
        images=scene.migrator().images,
        journals=scene.folder / "journals",
    ).migrate(app, to, wish=Wish(Mode.LAZY, Via.NETWORK))
    assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
    assert ask("debug", "digest") == digest
    assert ask("incr", "counter") == "1"
    assert ask("dbsize") == "10001"
