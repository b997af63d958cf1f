"""What runc is told and what it knows, as values."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from migration import runc
from migration.bundle import NAMESPACES, Program, configuration, ids_of
from migration.containers import Image, Place

PASSWD = "root:x:0:0::/root:/bin/sh\nredis:x:100:101::/:/bin/false\n1000:x:7:8::/:/bin/sh\nbroken\n"
GROUP = "root:x:0:\nredis:x:101:\nlog:x:4:\n"


def test_configuration() -> None:
    """A container of its host's network, its environment over the usual one, volumes as bind mounts."""
    program = Program(("redis-server", "--port", "1"), {"PATH": "/bin", "A": "b=c"}, "/data", (100, 101))
    config = configuration("redis", program, Path("/store/rootfs"), "p4-redis", [("/data", Path("/v/data"))])
    assert config["process"]["args"] == ["redis-server", "--port", "1"]
    assert config["process"]["env"] == ["PATH=/bin", "HOME=/", "HOSTNAME=redis", "A=b=c"]
    assert (config["process"]["cwd"], config["process"]["user"]) == ("/data", {"uid": 100, "gid": 101})
    assert [one["type"] for one in config["linux"]["namespaces"]] == list(NAMESPACES)
    assert config["mounts"][-1] == {
        "destination": "/data",
        "type": "bind",
        "source": "/v/data",
        "options": ["rbind", "rw"],
    }
    # CRIU would pack each with tar, in the freeze.
    assert "tmpfs" not in [one["type"] for one in config["mounts"]]
    assert json.loads(json.dumps(config)) == config


@pytest.mark.parametrize(
    ("user", "ids"),
    [
        ("", (0, 0)),
        ("redis", (100, 101)),
        ("100", (100, 101)),
        ("1000", (7, 8)),  # a name of digits is a name first
        ("4711", (4711, 0)),
        ("redis:log", (100, 4)),
        ("redis:77", (100, 77)),
        (":log", (0, 4)),
    ],
)
def test_users(user: str, ids: tuple[int, int]) -> None:
    assert ids_of(user, PASSWD, GROUP) == ids


def test_unknown_users() -> None:
    with pytest.raises(LookupError, match="there is no user 'her'"):
        ids_of("her", PASSWD, GROUP)
    with pytest.raises(LookupError, match="there is no group 'hers'"):
        ids_of("redis:hers", PASSWD, GROUP)


def test_command() -> None:
    """What the user gives replaces what follows the entrypoint."""
    image = Image(Path("/"), ("python3", "a.py"), ("server",))
    assert image.argv() == ("python3", "a.py", "server")
    assert image.argv(["client", "--x"]) == ("python3", "a.py", "client", "--x")


def place(folder: Path, host: str) -> Place:
    return Place("echo", folder / host / "echo", folder / host / "runc")


def test_runc_knows_a_restored_container(tmp_path: Path) -> None:
    """Its state is that of the original with another process and other paths; whatever else is in it stays."""
    here, there = place(tmp_path, "h2"), place(tmp_path, "h20")
    state = {
        "id": "echo",
        "init_process_pid": 77,
        "init_process_start": 5,
        "cgroup_paths": {
            "cpu": "/sys/fs/cgroup/cpu/p4ferry-echo",
            "memory": "/sys/fs/cgroup/memory/p4ferry-echo",
        },
        "namespace_paths": {"NEWPID": "/proc/77/ns/pid", "NEWNET": "/proc/77/ns/net"},
        "config": {
            "rootfs": f"{here.folder}/rootfs",
            "labels": [f"bundle={here.folder}", "other=1"],
            "mounts": [{"source": "/v/h2/data", "destination": "/data"}, {"source": "/v/h2/database"}],
            "unknown": [None, 7, {"x": f"{here.folder}er"}],
        },
    }
    (here.state / "echo").mkdir(parents=True)
    (here.state / "echo" / "state.json").write_text(json.dumps(state))
    pid = os.getpid()
    runc.note(there, pid, here, {str(here.folder): str(there.folder), "/v/h2/data": "/v/h20/data"})
    found = json.loads((there.state / "echo" / "state.json").read_text())
    assert found["init_process_pid"] == pid
    assert found["init_process_start"] > 5
    assert found["namespace_paths"] == {"NEWPID": f"/proc/{pid}/ns/pid", "NEWNET": f"/proc/{pid}/ns/net"}
    assert found["config"] == {
        "rootfs": f"{there.folder}/rootfs",
        "labels": [f"bundle={there.folder}", "other=1"],
        "mounts": [{"source": "/v/h20/data", "destination": "/data"}, {"source": "/v/h2/database"}],
        "unknown": [None, 7, {"x": f"{here.folder}er"}],
    }
    assert runc.cgroups(there) == [
        Path("/sys/fs/cgroup/cpu/p4ferry-echo"),
        Path("/sys/fs/cgroup/memory/p4ferry-echo"),
    ]
    runc.forget(here)
    assert not (here.state / "echo").exists()
    runc.note(here, pid)  # what runc does not know is nobody's error
    assert runc.cgroups(here) == []
