"""The file for bug reports: what is in it, and what never is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from migration.slowness import scaled
from tests.topo.crash import doomed
from topo import paths, run_logs
from topo.doctor.bundle import FOLDER, pack
from topo.doctor.redaction import Machine, Redactor
from topo.errors import TestbedError
from topo.runs import clean_up, dead_runs

LB = paths.CHECKOUT / "topo" / "lb.py"
MEMORY = b"the program's memory"
OUTPUT = b"what the program printed"


def _contents(path: Path) -> dict[str, bytes]:
    with tarfile.open(path) as archive:
        files = {member.name: member for member in archive if member.isfile()}
        assert all(name.startswith(f"{FOLDER}/") for name in files)
        assert all((m.uid, m.gid, m.uname, m.gname) == (0, 0, "", "") for m in files.values())
        read = {name: archive.extractfile(member) for name, member in files.items()}
        return {
            name.removeprefix(f"{FOLDER}/"): file.read() for name, file in read.items() if file is not None
        }


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def _crashed_run(tmp_path: Path, log: bytes = b"up\n") -> dict[str, Path]:
    """Lay out what is left of a run that was killed in the middle of a migration."""
    runs, images, name = tmp_path / "runs", tmp_path / "images", "4711-99"
    run, checkpoint = runs / name, images / name / "images" / "m1"
    for own in ("controller.log", "s1.log", "keeper.log", "traces/m1.log", "journals/m1.jsonl"):
        _write(run / own, log)
    _write(run / "containers/h2/web/runc.log", log)
    for own in ("dump.log", "restore.log", "home/page-server.log"):
        _write(checkpoint / own, log)
    for image in ("pages-1.img", "core-17.img", "files.img", "inventory.img", "home/pages-2.img"):
        _write(checkpoint / image, MEMORY)
    for output in ("echo.out", "state.json", "volumes/db/server.log", "containers/volumes/web/runc.log"):
        _write(run / output, OUTPUT)
    for output in ("scratch/dump.log", "images/m1/notes.txt"):
        _write(images / name / output, OUTPUT)
    _write(tmp_path / "secret", MEMORY)
    (run / "s9.log").symlink_to(tmp_path / "secret")
    os.mkfifo(run / "s8.log")
    for number in range(5):
        _write(tmp_path / "cache" / f"verifier-{number}.log", log)
        os.utime(tmp_path / "cache" / f"verifier-{number}.log", (number, number))
    _write(tmp_path / "cache" / "0abc.c", OUTPUT)
    return {"runs": runs, "images": images, "last_run": tmp_path / "last-run", "cache": tmp_path / "cache"}


def test_our_logs_are_in_it_and_nothing_else(tmp_path: Path) -> None:
    """Neither images nor output, nor what a program has put where logs are."""
    said = pack(tmp_path / "b.tar.gz", {"version": 1}, Redactor(Machine()), **_crashed_run(tmp_path))
    found = _contents(tmp_path / "b.tar.gz")
    prefix = "run-4711-99/"
    assert {name.removeprefix(prefix) for name in found if name.startswith(prefix)} == {
        "controller.log", "s1.log", "keeper.log", "traces/m1.log", "journals/m1.jsonl", "containers/h2/web/runc.log",
        "criu/m1/dump.log", "criu/m1/restore.log", "criu/m1/home/page-server.log",
    }  # fmt: skip
    assert {name for name in found if not name.startswith(prefix)} == {
        "contents.json", "doctor.json", "versions.json",
        "verifier/verifier-4.log", "verifier/verifier-3.log", "verifier/verifier-2.log",
    }  # fmt: skip
    for content in found.values():
        assert MEMORY not in content and OUTPUT not in content
    assert f"{len(found)} files" in said and "\n" not in said


def test_what_was_left_out_is_said(tmp_path: Path) -> None:
    """The end of a long log is kept; when the bundle is full, later files are missing from it."""
    line = b"0123456789abcde\n"
    places = _crashed_run(tmp_path, line * (run_logs.TAIL // len(line) + 100) + b"the end\n")
    pack(tmp_path / "b", {}, Redactor(Machine()), **places, total=8 * run_logs.TAIL)
    found = _contents(tmp_path / "b")
    assert sum(map(len, found.values())) <= 8 * run_logs.TAIL + len(found["contents.json"])
    listed = json.loads(found["contents.json"])
    log = found["run-4711-99/controller.log"]
    assert log.endswith(b"the end\n") and log.startswith(line) and len(log) <= run_logs.TAIL
    assert "the last 1048576 of" in listed["left_out"]["run-4711-99/controller.log"]
    assert any("no room" in reason for reason in listed["left_out"].values())
    assert listed["files"] == {
        name: len(content) for name, content in found.items() if name != "contents.json"
    }


def test_addresses_and_names_are_taken_out_of_names_and_contents(tmp_path: Path) -> None:
    """A log may be called after a user's program, and the findings name paths."""
    machine = Machine(
        frozenset({"192.0.2.77"}), users=frozenset({"mallory"}), homes=frozenset({"/home/mallory"})
    )
    places = _crashed_run(tmp_path, b"192.0.2.77 mallory /home/mallory/x 10.0.1.1 198.51.100.9\n")
    _write(places["runs"] / "4711-99" / "mallory.log", b"x\n")
    pack(tmp_path / "b", {"detail": "/home/mallory/p4ferry at 192.0.2.77"}, Redactor(machine), **places)
    for name, content in _contents(tmp_path / "b").items():
        for secret in ("mallory", "192.0.2.77", "198.51.100.9"):
            assert secret not in name and secret.encode() not in content, name
    assert b"10.0.1.1" in _contents(tmp_path / "b")["run-4711-99/s1.log"]


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    """And one that cannot be made is a sentence; nothing half made is left."""
    places = _crashed_run(tmp_path)
    (tmp_path / "b").write_text("mine")
    with pytest.raises(TestbedError, match=r"--bundle .*/b: there is a file of that name already"):
        pack(tmp_path / "b", {}, Redactor(Machine()), **places)
    assert (tmp_path / "b").read_text() == "mine"
    with pytest.raises(TestbedError, match=r"--bundle .*/no/b: it cannot be written: No such file"):
        pack(tmp_path / "no" / "b", {}, Redactor(Machine()), **places)
    assert not (tmp_path / "no").exists()


def test_the_last_runs_logs_are_kept(tmp_path: Path) -> None:
    """Those of the run before are replaced; a run that wrote nothing replaces nothing."""
    places, state = _crashed_run(tmp_path), tmp_path / "state"
    run, images = places["runs"] / "4711-99", places["images"] / "4711-99"
    run_logs.keep(run, images, state / "last-run")
    assert not state.exists()  # nothing was set up there
    (state / "last-run").mkdir(parents=True)
    (state / "last-run" / "old.log").write_text("old")
    run_logs.keep(run, images, state / "last-run")
    run_logs.keep(tmp_path / "empty", tmp_path / "empty", state / "last-run")
    kept = {str(p.relative_to(state / "last-run")) for p in (state / "last-run").rglob("*") if p.is_file()}
    assert kept >= {"controller.log", "s1.log", "traces/m1.log", "criu/m1/dump.log"} and "old.log" not in kept
    assert not any(".img" in name or ".out" in name for name in kept)
    pack(
        tmp_path / "b",
        {},
        Redactor(Machine()),
        runs=tmp_path / "none",
        images=tmp_path,
        last_run=state / "last-run",
    )
    assert {
        n.removeprefix("last-run/") for n in _contents(tmp_path / "b") if n.startswith("last-run/")
    } == kept


# ---- with real runs


def _bundle(path: Path) -> dict[str, bytes]:
    """Make a bundle as a user does; it has nothing that this machine is known by."""
    done = subprocess.run(
        [sys.executable, str(LB), "--doctor", "--bundle", str(path)],
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=scaled(120),
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert path.stat().st_mode & 0o777 == 0o600
    found = _contents(path)
    machine = Machine.of_this_one()
    secrets = machine.addresses | machine.macs | machine.hosts | machine.users | {str(paths.CHECKOUT)}
    assert machine.hosts or machine.addresses
    for name, content in found.items():
        text = f"{name}\n{content.decode()}"
        for secret in secrets:
            assert not re.search(rf"(?<![A-Za-z0-9]){re.escape(secret)}(?![A-Za-z0-9])", text), (name, secret)
        # CRIU's images begin with one of three magic numbers; an image of pages with anything.
        assert ".img" not in name and "\0" not in text, name
    return found


@pytest.mark.net
@pytest.mark.usefixtures("leaves_nothing")
def test_a_finished_run_is_in_the_bundle(tmp_path: Path) -> None:
    """Its folder is gone when somebody wants to report: report, trace and logs of the switch are there all the same."""
    command = [sys.executable, str(LB), "--http-port", "5097", "--demo", "echo", "--count", "1"]
    done = subprocess.run(
        command, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=scaled(120), check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = _bundle(tmp_path / "b.tar.gz")
    (migration,) = json.loads(found["last-run/report.json"])["migrations"]
    assert (migration["outcome"], migration["source"], migration["destination"]) == ("completed", "h2", "h3")
    assert {"last-run/s1.log", "last-run/traces/m1.log"} <= set(found)
    listed = json.loads(found["contents.json"])
    assert "last-run/controller.log" in {**listed["files"], **listed["left_out"]}  # empty if all went well
    versions = json.loads(found["versions.json"])
    assert re.fullmatch(r"[0-9a-f]{40}|unknown.*", versions["commit"])
    assert versions["kernel"] == os.uname().release and "grpcio" in versions["python_packages"]
    assert json.loads(found["doctor.json"])["version"] == 1


@pytest.mark.net
@pytest.mark.usefixtures("leaves_nothing")
def test_a_killed_runs_journal_is_in_the_bundle_and_its_images_are_not(tmp_path: Path) -> None:
    """Killed in the middle of a migration: the images are on the machine, the journal says how far it came."""
    with doomed("restore", "after", "stop") as (testbed, _):
        testbed.migrate()
        (run,) = dead_runs()
        images = list((paths.IMAGES / run.name).rglob("*.img"))
        assert any(path.name.startswith("pages-") for path in images)
        found = _bundle(tmp_path / "b.tar.gz")
        clean_up()
    (journal,) = [text for name, text in found.items() if name.startswith(f"run-{run.name}/journals/")]
    assert b'"restore"' in journal and b'"10.0.2.2"' in journal and b'"10.0.3.3"' in journal
    assert f"run-{run.name}/s1.log" in found
