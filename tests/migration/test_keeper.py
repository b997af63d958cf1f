"""The keeper: what it owns lives as long as it should, and no longer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from moving import PROJECT, wait_until

from migration import tree
from migration.custody import Custody
from migration.errors import KeeperLost

pytestmark = pytest.mark.net

OWNER = """
import os, sys; sys.path.insert(0, {project!r})
from pathlib import Path
from migration.custody import Custody
custody = Custody(listen=Path({socket!r}))
program = custody.spawn(os.getpid(), ["sleep", "99"], {{}}, Path("/"), Path({log!r}))
print(custody.pid, program, custody.hold("x"), flush=True)
sys.stdin.readline()
"""


def test_a_listening_keeper_outlives_its_controller(tmp_path: Path) -> None:
    """What it owns runs on; the next controller takes it over, and ends it by closing."""
    path = tmp_path / "k.sock"
    code = OWNER.format(project=str(PROJECT), socket=str(path), log=str(tmp_path / "log"))
    # fmt: off
    owner = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    # fmt: on
    assert owner.stdout is not None
    keeper, program, holder = map(int, owner.stdout.readline().split())
    owner.kill()
    owner.communicate()
    assert all(tree.is_running(pid) for pid in (keeper, program, holder))
    custody = Custody.adopt(path)
    assert custody.pid == keeper
    assert (custody.children("program"), custody.children("holder")) == ([program], [holder])
    assert Path(f"/proc/{holder}/ns/net").readlink() != Path("/proc/self/ns/net").readlink()
    custody.let_go()
    with Custody.adopt(path) as again:
        assert again.is_running(program)
    wait_until(lambda: not any(tree.is_running(pid) for pid in (keeper, program, holder)), "their end")
    with pytest.raises(KeeperLost, match="no keeper answers at"):
        Custody.adopt(path)


def test_a_keeper_of_one_controller_ends_with_it(tmp_path: Path) -> None:
    """The library's default: nothing outlives the socket."""
    with Custody() as custody:
        program = custody.spawn(os.getpid(), ["sleep", "99"], {}, Path("/"), tmp_path / "log")
        assert tree.is_running(program)
    assert not tree.is_running(program)
