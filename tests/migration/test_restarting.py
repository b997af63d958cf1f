"""System calls that were under way: no move makes one return, and their time-outs end when they are due."""

from __future__ import annotations

import re
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from moving import PYTHON, Stage, stage, wait_until

from migration import messages, restarting
from migration.images import join
from migration.report import Outcome
from migration.restarting import NANOSLEEP, POLL, Call
from migration.transfer.modes import Mode, Via, Wish

PROGRAM = str(Path(__file__).parent / "programs" / "calls.py")
SECONDS = 6
TIMED, ENDLESS, ANEW = 13, 8, "recv with SO_RCVTIMEO"
EINTR = 4


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("restarting")) as built:
        yield built


@pytest.mark.net
@pytest.mark.parametrize("mode", [Mode.STOP, Mode.LAZY])
def test_calls_go_on(scene: Stage, mode: Mode) -> None:
    """In every call there is; each is moved three times."""
    log = scene.folder / f"{mode}.log"
    app = scene.runtime.launch(str(mode), scene.hosts["B"], [PYTHON, PROGRAM, str(SECONDS)], log)
    wait_until(lambda: "up" in log.read_text(), "its start")
    for number in range(3):
        time.sleep(0.7)
        report = scene.migrator().migrate(app, scene.hosts["CB"[number % 2]], wish=Wish(mode, Via.SHARED))
        assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
    assert log.read_text() == "up\n"
    wait_until(lambda: log.read_text().count("ended") == TIMED + 1, "the time-outs", 3 * SECONDS)
    ended = re.findall(r"ended ([^:]*): (True|False) (.*) ([0-9.]+)\n", log.read_text())
    assert [one for one in ended if one[1] == "False"] == []
    wrong = [one for one in ended if one[0] != ANEW and not SECONDS - 0.01 <= float(one[3]) <= SECONDS + 0.5]
    assert wrong == []
    assert "returned" not in log.read_text()
    scene.runtime.terminate(app)


def core_image(number: int, answer: int, *, signal: int = 0, blocked: int = 0, stack: int = 0x7000) -> bytes:
    """Return a core image of a thread that stands behind a system call."""
    entry = messages.load(messages.CORE).core_entry()
    entry.mtype = 1
    registers = entry.thread_info.gpregs
    for field in registers.DESCRIPTOR.fields:
        if field.name != "mode":
            setattr(registers, field.name, 0)
    registers.ax, registers.orig_ax, registers.ip, registers.sp = answer % (1 << 64), number, 0x1002, stack
    registers.dx = 5000
    entry.thread_info.clear_tid_addr = 0
    entry.thread_core.futex_rla, entry.thread_core.futex_rla_len = 0, 0
    entry.thread_core.blk_sigset = blocked
    if signal:
        entry.thread_core.signals_p.signals.add(siginfo=struct.pack("<i", signal) + bytes(124))
    return join(b"12345678", [entry.SerializePartialToString()])


@pytest.mark.parametrize(
    ("image", "is_made_again"),
    [
        (core_image(POLL, -EINTR), True),
        (core_image(POLL, 1), False),  # it has come to its end
        (core_image(POLL, -EINTR, signal=10), False),  # a true interruption
        (core_image(POLL, -EINTR, signal=10, blocked=1 << 9), True),
        (core_image(42, -EINTR), False),  # connect(2)
        (core_image((1 << 64) - 1, -EINTR), False),  # a signal handler has just returned
    ],
)
def test_only_what_the_stop_has_interrupted(image: bytes, is_made_again: bool) -> None:
    """The thread stands before its call again, with the same arguments."""
    found = restarting.restarted(image, messages.load(messages.CORE))
    assert (found is not None) == is_made_again
    if found is not None:
        registers = found[1].thread_info.gpregs
        assert (registers.ip, registers.ax, found[2].milliseconds) == (0x1000, POLL, 5000)


def test_new_time_outs_are_out_of_the_way() -> None:
    """Below the red zone, or at the far end of an alternate signal stack that is not in use."""
    entry = messages.load(messages.CORE).core_entry()
    entry.thread_info.gpregs.sp = 0x7FFF0009
    assert restarting._free_place(entry) == 0x7FFF0000 - 192
    sas = entry.thread_core.sas
    sas.ss_sp, sas.ss_size, sas.ss_flags = 0x1008, 0x4000, 0
    assert restarting._free_place(entry) == 0x1040
    entry.thread_info.gpregs.sp = 0x2000
    assert restarting._free_place(entry) == (0x2000 - 192)


def test_calls_with_time_outs() -> None:
    """Endless ones have none, and what the kernel has written as left counts."""
    assert Call(POLL, (1, 1, 0xFFFFFFFF, 0, 0, 0)).milliseconds is None
    assert not Call(POLL, (1, 1, 0xFFFFFFFF, 0, 0, 0)).ends
    assert Call(NANOSLEEP, (0x10, 0, 0, 0, 0, 0)).ends
    assert not Call(NANOSLEEP, (0x10, 0x10, 0, 0, 0, 0)).ends
    assert Call(NANOSLEEP, (0x10, 0x20, 0, 0, 0, 0)).remainder_at == 0x20
