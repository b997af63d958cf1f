"""A run's belongings, and cleaning up after one that crashed."""

from __future__ import annotations

import json
import os
import subprocess
import uuid
from pathlib import Path

import pytest

from topo.errors import AlreadyRunning
from topo.runs import MARKER, Run, clean_up, processes_of


@pytest.fixture(autouse=True)
def _keep_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(MARKER, raising=False)


def test_a_run_leaves_nothing(tmp_path: Path) -> None:
    """Its folders and its mark are gone at the end."""
    with Run(tmp_path / "runs", tmp_path / "images") as run:
        assert os.environ[MARKER] == run.name
        assert run.images.stat().st_mode & 0o777 == 0o700
    assert MARKER not in os.environ
    assert not list((tmp_path / "runs").iterdir()) and not list((tmp_path / "images").iterdir())


def test_only_one_run_at_a_time(tmp_path: Path) -> None:
    """Switch names and ports belong to the machine; the message says whose they are."""
    other = subprocess.Popen(["sleep", "60"])
    try:
        started = Path(f"/proc/{other.pid}/stat").read_text().rpartition(")")[2].split()[19]
        (tmp_path / f"{other.pid}-{started}").mkdir()
        with pytest.raises(AlreadyRunning, match=rf"process {other.pid}\)"):
            Run(tmp_path, tmp_path / "images")
        assert clean_up(tmp_path, tmp_path / "images") == []
    finally:
        other.kill()
        other.wait()


def test_a_dead_runs_processes_and_folders_are_removed(tmp_path: Path) -> None:
    """Exactly the processes with its mark are ended."""
    name = f"999999999-{uuid.uuid4().hex}"
    folder, images = tmp_path / "runs" / name, tmp_path / "images" / name
    folder.mkdir(parents=True)
    images.mkdir(parents=True)
    marked = subprocess.Popen(["sleep", "60"], env={MARKER: name})
    bystander = subprocess.Popen(["sleep", "60"], env={MARKER: name + "x"})
    try:
        assert processes_of(name) == [marked.pid]
        (left,) = clean_up(tmp_path / "runs", tmp_path / "images")
        assert (left.run, left.processes) == (name, 1)
        assert marked.wait(5) == -9 and bystander.poll() is None
        assert not folder.exists() and not images.exists()
    finally:
        bystander.kill()
        bystander.wait()
        if marked.poll() is None:
            marked.kill()
            marked.wait()


@pytest.mark.net
def test_a_dead_runs_links_are_removed(tmp_path: Path) -> None:
    """Only those that it wrote down."""
    link = f"p4f{uuid.uuid4().hex[:8]}"
    folder = tmp_path / "999999999-1"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({"links": [link, "p4fnotthere"]}))
    subprocess.run(["ip", "link", "add", link, "type", "veth", "peer", "name", f"{link}p"], check=True)
    try:
        (left,) = clean_up(tmp_path, tmp_path / "images")
        assert left.links == (link,)
    finally:
        gone = subprocess.run(["ip", "link", "del", link], capture_output=True, check=False)
    assert gone.returncode != 0
