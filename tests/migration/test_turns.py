"""Dumps of programs that work in one directory take turns."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from migration import turns
from migration.turns import LEFT_BY_CRIU, turn_of


@pytest.fixture
def worker(tmp_path: Path) -> Iterator[int]:
    process = subprocess.Popen(["sleep", "60"], cwd=tmp_path)
    yield process.pid
    process.kill()
    process.wait()


def test_one_at_a_time(worker: int) -> None:
    """The second one begins when the first has ended."""
    order: list[str] = []

    def second() -> None:
        with turn_of([worker]):
            order.append("second")

    with turn_of([worker]):
        thread = threading.Thread(target=second)
        thread.start()
        thread.join(0.1)
        assert thread.is_alive()
        order.append("first")
    thread.join(5)
    assert order == ["first", "second"]


def test_other_directories_do_not_wait(worker: int) -> None:
    """Two programs elsewhere are not in each other's way."""
    with turn_of([worker]), turn_of([os.getpid()]):
        pass


def test_what_a_killed_criu_left_is_removed(worker: int, tmp_path: Path) -> None:
    """The directory would make every later dump fail."""
    (tmp_path / LEFT_BY_CRIU).mkdir()
    with turn_of([worker]):
        assert not (tmp_path / LEFT_BY_CRIU).exists()


def test_waiting_ends(worker: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn that takes long is not waited for; what is in the directory then is not touched."""
    monkeypatch.setattr(turns, "TIMEOUT", 0.05)
    with turn_of([worker]):
        (tmp_path / LEFT_BY_CRIU).mkdir()
        with turn_of([worker]):
            assert (tmp_path / LEFT_BY_CRIU).exists()


def test_processes_that_are_gone_do_not_matter() -> None:
    """A program may end at any time."""
    process = subprocess.Popen(["true"])
    process.wait()
    with turn_of([process.pid]):
        pass
