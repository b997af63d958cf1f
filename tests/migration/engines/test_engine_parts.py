"""What needs no engine: a twin's command, an image that is restored stopped, runc.conf, the freezer's place."""

from __future__ import annotations

import json
import os
import signal
import struct
import subprocess
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from typing import cast

import pytest

from migration import messages, tree
from migration.cgroups import UNIFIED, groups_of
from migration.engines import cgroup, criuconf, gate
from migration.engines.driver import Contained, Driver
from migration.engines.image import (
    DESCRIPTORS,
    KEPT_DESCRIPTORS,
    KEPT_INVENTORY,
    STOPPED,
    as_stopped,
    copy,
    regrouped,
    stop_all,
)
from migration.engines.podman import as_create
from migration.engines.revival import wait_until_over
from migration.errors import MigrationError
from migration.groups import Party
from migration.images import BadImage, join, split
from migration.journal import app_from_json, app_to_json
from migration.model import App, EngineContainer, Host
from topo.waiting import wait_until

OWN = {"--name": "new", "--pod": "there"}


@pytest.mark.parametrize(
    ("made", "command", "twin"),
    [
        (["podman", "run", "-d", "--name", "a", "--pod", "p", "img"], [], ["img"]),
        (["podman", "--runtime", "runc", "run", "--name=a", "--pod=p", "img", "sh"], ["sh"], ["img", "sh"]),
        (
            [
                "podman",
                "create",
                "--detach",
                "-e",
                "A=b",
                "--network",
                "container:x",
                "img",
                "x",
                "--name",
                "a",
            ],
            ["x", "--name", "a"],
            ["-e", "A=b", "img", "x", "--name", "a"],
        ),
        (
            ["podman", "run", "--replace", "--cidfile", "/x", "--volume", "/a:/b", "img"],
            [],
            ["--volume", "/a:/b", "img"],
        ),
    ],
)
def test_a_twin_is_made_as_its_original_was(made: list[str], command: list[str], twin: list[str]) -> None:
    """With another name and another pod; the command after the image is left alone."""
    assert as_create(made, command, OWN) == ["create", "--name", "new", "--pod", "there", *twin]


def core_image(state: int | None) -> bytes:
    """Make a core-*.img of a process, or of a thread."""
    core = messages.load(messages.CORE)
    entry = core.core_entry(mtype=1)
    entry.thread_core.futex_rla = entry.thread_core.futex_rla_len = 0
    if state is not None:
        entry.tc.task_state, entry.tc.exit_code, entry.tc.personality = state, 0, 0
        entry.tc.flags, entry.tc.blk_sigset, entry.tc.comm = 0, 0, "sh"
    message = entry.SerializeToString()
    return b"magic..." + struct.pack("<I", len(message)) + message


def state_of(image: bytes) -> int:
    """Return the state that a core image gives its process."""
    core = messages.load(messages.CORE)
    return int(core.core_entry.FromString(image[12:]).tc.task_state)


def test_only_what_lives_is_stopped() -> None:
    """Threads and zombies stay what they are, and the rest of the message does."""
    core = messages.load(messages.CORE) if core_image(1) else None
    stopped = as_stopped(core_image(1), core)
    assert state_of(stopped) == STOPPED
    assert stopped == core_image(STOPPED)
    for state in (None, 2, 6):
        assert as_stopped(core_image(state), core) == core_image(state)
    with pytest.raises(BadImage, match="cut off"):
        as_stopped(b"short", core)


def test_an_image_behind_a_gate(tmp_path: Path) -> None:
    """Links, but for what is changed; the engine's own files do not change, and what was read is not overwritten."""
    images, behind = tmp_path / "images", tmp_path / "behind"
    images.mkdir()
    contents = {
        "files.img": b"old",
        "pages-1.img": b"pages",
        "core-1.img": core_image(1),
        "inventory.img": b"inventory",
    }
    for name, content in contents.items():
        (images / name).write_bytes(content)
    (images / DESCRIPTORS).write_text("[]")
    gate.Gate(behind, "m1", ["/dev/null", "pipe:[1]", "pipe:[2]"])
    copy(images, behind)
    core = messages.load(messages.CORE)
    assert stop_all(behind, {"files.img": b"new"}, core) == sum(
        len(contents[n]) for n in contents if n != "inventory.img"
    )
    assert (behind / "files.img").read_bytes() == b"new"
    assert state_of((behind / "core-1.img").read_bytes()) == STOPPED
    assert (behind / "pages-1.img").stat().st_ino == (images / "pages-1.img").stat().st_ino
    assert (behind / "inventory.img").is_fifo()
    assert json.loads((behind / DESCRIPTORS).read_text()) == ["/dev/null", "pipe:[1]", "pipe:[2]"]
    assert (behind / KEPT_INVENTORY).read_bytes() == b"inventory"
    assert (behind / KEPT_DESCRIPTORS).read_text() == "[]"
    assert {name: (images / name).read_bytes() for name in contents} == contents


@pytest.mark.parametrize("before", [None, "log-level 4\n"])
def test_runc_conf_is_put_back(before: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the last of those who need it, and after one that was killed."""
    conf, note = tmp_path / "criu" / "runc.conf", tmp_path / "note"
    monkeypatch.setattr(criuconf, "CONF", conf)
    monkeypatch.setattr(criuconf, "NOTE", note)
    if before is not None:
        conf.parent.mkdir()
        conf.write_text(before)
    with criuconf.in_force():
        with criuconf.in_force():
            pass
        lines = conf.read_text().splitlines()
        assert lines[-len(criuconf.OPTIONS) :] == list(criuconf.OPTIONS)
        assert lines[: -len(criuconf.OPTIONS)] == (before or "").splitlines()
        assert note.exists()
    assert (conf.read_text() if conf.exists() else None) == before
    note.write_text(criuconf.ABSENT if before is None else before)
    conf.parent.mkdir(exist_ok=True)
    conf.write_text("left by somebody who was killed")
    criuconf.put_back()
    assert (conf.read_text() if conf.exists() else None) == before
    assert not note.exists() and conf.parent.exists() == (before is not None)


def test_engine_and_sandbox_are_in_a_journal() -> None:
    """A recovery has to find the container again."""
    host = Host("h2", 7, IPv4Address("10.0.2.2"), sandbox="abc")
    app = App("redis", host, 8, Path("/log"), engine=EngineContainer("docker", "123"))
    again = app_from_json(json.loads(json.dumps(app_to_json(app))))
    assert again == app and again.host.sandbox == "abc"
    party = app_from_json(app_to_json(Party([app])))
    assert isinstance(party, Party) and party.members == [app]


@pytest.mark.net
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_a_control_group_is_frozen() -> None:
    """A process in a group of its own stands still, and runs on."""
    groups = groups_of(os.getpid())
    parent = groups.get("freezer") or groups.get(UNIFIED)
    assert parent is not None
    group = parent / f"p4ferry-test-{os.getpid()}"
    group.mkdir()
    process = subprocess.Popen(["sleep", "60"])
    try:
        (group / "cgroup.procs").write_text(str(process.pid))
        freezer = cgroup.freezer_of(process.pid)
        assert freezer.switch.parent == group and not freezer.is_frozen()
        assert cgroup.processes_of(group) == [process.pid]
        freezer.freeze()
        assert freezer.is_frozen()
        freezer.thaw()
        assert not freezer.is_frozen()
    finally:
        process.kill()
        process.wait()
        group.rmdir()


def test_what_stands_still() -> None:
    """A stopped tree does; one that runs, was killed a moment ago, or is gone does not."""
    command = ["sh", "-c", "sleep 60 & wait"]
    with subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL) as shell:
        try:
            assert wait_until(lambda: len(tree.processes(shell.pid)) == 2, 5.0)
            assert not gate.is_stopped(shell.pid)
            os.killpg(shell.pid, signal.SIGSTOP)
            assert wait_until(lambda: gate.is_stopped(shell.pid), 5.0)
        finally:
            os.killpg(shell.pid, signal.SIGKILL)
        assert not gate.is_stopped(shell.pid)  # the moment after the signal, when it may not have ended yet
        shell.wait()
        assert not gate.is_stopped(shell.pid)


@pytest.mark.parametrize("last", ["exited", "dead", None])
def test_an_original_is_restored_when_it_has_been_taken_apart(last: str | None) -> None:
    """Podman's "stopped" is not enough; a container that was removed meanwhile is none that can be restored."""
    said = ["running", "stopped", "stopped", last]
    found = Contained("id", "echo", 1, "running", Path("/upper"), None, {})

    class Reluctant:
        name = "podman"

        def find(self, container: str) -> Contained | None:
            status = said.pop(0)
            return None if status is None else replace(found, status=status)

    driver = cast(Driver, Reluctant())
    if last is None:
        with pytest.raises(MigrationError, match="podman has removed echo"):
            wait_until_over(driver, found)
    else:
        wait_until_over(driver, found)
    assert said == []


def test_control_groups_in_an_image_are_the_twins() -> None:
    """Also those below, and the length of what a namespace hides; what only begins alike is another group."""
    cgroup_pb2 = messages.load(messages.CGROUP)
    old, new = "/machine.slice/libpod-aa.scope", "/machine.slice/pod/libpod-bbb.scope"
    entry = cgroup_pb2.cgroup_entry()
    for number, path in enumerate((old, f"{old}/worker", f"{old}x", "/"), 1):
        found = entry.sets.add(id=number)
        found.ctls.add(name="", path=path, cgns_prefix=len(old))
        entry.controllers.add(cnames=[""]).dirs.add(dir_name=path).children.add(dir_name="worker")
    magics = b"12345678"
    image = regrouped(join(magics, [entry.SerializeToString()]), {old: new}, cgroup_pb2)
    assert split(image)[0] == magics
    changed = cgroup_pb2.cgroup_entry.FromString(split(image)[1][0])
    expected = [new, f"{new}/worker", f"{old}x", "/"]
    assert [found.ctls[0].path for found in changed.sets] == expected
    assert [found.ctls[0].cgns_prefix for found in changed.sets] == [len(new), len(new), len(old), len(old)]
    assert [one.dirs[0].dir_name for one in changed.controllers] == expected
    assert {one.dirs[0].children[0].dir_name for one in changed.controllers} == {"worker"}


def test_groups_that_differ_are_moved(monkeypatch: pytest.MonkeyPatch) -> None:
    """The root, in which everything is, is not, and neither is what both share."""
    paths = {
        1: {"": "/a/x", "cpu,cpuacct": "/a/x", "name=systemd": "/a/x", "pids": "/same", "freezer": "/"},
        2: {"": "/b/y", "cpu,cpuacct": "/b/y", "name=systemd": "/b/y", "pids": "/same", "freezer": "/f"},
    }
    monkeypatch.setattr(cgroup, "paths_of", paths.__getitem__)
    assert cgroup.moved_paths(1, 2) == {"/a/x": "/b/y"}
