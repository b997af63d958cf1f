"""A program's working files move with it, and with nobody else."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from migration.errors import MigrationError
from topo.errors import BadApp
from topo.testbed import LoadBalancerNetwork, Testbed
from topo.waiting import wait_until

pytestmark = pytest.mark.net

# Writes a journal through one descriptor, a table through a shared mapping, and files that come and go.
WRITER = """
import mmap, os, socket, sys, time
listener = socket.create_server(("0.0.0.0", 7000))
os.chdir(sys.argv[1])
assert open("given").read() == "from the start"
journal = open("journal", "w+")
table = open("table", "w+b")
table.write(bytes(4096))
table.flush()
table = mmap.mmap(table.fileno(), 4096)
gone = open("gone", "w+")
gone.write("deleted, still open")
gone.flush()
os.unlink("gone")
os.makedirs("sub", exist_ok=True)
for number in range(1, 1 << 30):
    journal.write(f"{number}\\n")
    journal.flush()
    table[:8] = number.to_bytes(8, "little")
    with open(f"sub/{number}", "w") as file:
        file.write("x" * number)
    if number > 3:
        os.unlink(f"sub/{number - 3}")
    assert [int(line) for line in open("journal")] == list(range(1, number + 1))
    with open("table", "rb") as file:
        assert int.from_bytes(file.read(8), "little") == number
    assert sorted(map(int, os.listdir("sub"))) == list(range(max(1, number - 2), number + 1))
    assert all(os.path.getsize(f"sub/{n}") == n for n in range(max(1, number - 2), number + 1))
    gone.seek(0)
    assert gone.read() == "deleted, still open"
    print(number, flush=True)
    time.sleep(0.02)
"""


class Fault:
    """Fails where it is told to."""

    where: tuple[str, str] | None = None

    def __call__(self, step: str, when: str) -> None:
        if (step, when) == self.where:
            raise MigrationError("injected")


@pytest.fixture(scope="module")
def fault() -> Fault:
    return Fault()


@pytest.fixture(scope="module")
def net(fault: Callable[[str, str], None]) -> Iterator[Testbed]:
    with Testbed(LoadBalancerNetwork(hosts=4), fault=fault) as built:
        yield built


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory with something in it."""
    path = tmp_path / "data"
    path.mkdir()
    (path / "given").write_text("from the start")
    return path


def wait_for_more(net: Testbed, name: str) -> None:
    """Wait until the writer has gone on, and found everything in order."""
    before = len(net.output(name).splitlines())
    assert wait_until(lambda: len(net.output(name).splitlines()) > before + 5, 10), net.output(name)[-800:]
    assert [int(line) for line in net.output(name).splitlines()][:3] == [1, 2, 3]


def stores(net: Testbed) -> list[str]:
    """List the hosts that have files of a volume."""
    return sorted(path.parent.name for path in (net.folder / "volumes").glob("*/*"))


@pytest.mark.parametrize("group", [None, "team"])
def test_working_files_move(net: Testbed, fault: Fault, folder: Path, group: str | None) -> None:
    """Open, mapped, deleted and changing files are there and go on; the directory itself is never touched."""
    name = "writer"
    net.run(name, "h2", [sys.executable, "-c", WRITER, str(folder)], volumes=[folder], group=group)
    wait_for_more(net, name)
    for host in ("h3", "h4", "h2"):
        report = net.migrate(group or name, to=host)
        assert (report.outcome, report.reason) == ("completed", None)
        wait_for_more(net, name)
        assert stores(net) == [host]
    for step in ("prepare", "checkpoint", "restore", "release"):
        fault.where = (step, "after")
        report = net.migrate(group or name, to="h3")
        fault.where = None
        assert (report.outcome, report.reason) == ("rolled_back", "injected")
        wait_for_more(net, name)
        assert stores(net) == ["h2"]
    net.stop(name)
    assert stores(net) == []
    assert [path.name for path in folder.iterdir()] == ["given"]
    assert net.host("h2").cmd("mount").count(str(folder)) == 0


def test_volumes_that_cannot_be(net: Testbed, folder: Path) -> None:
    """Two programs of one volume cannot be on one host; what is no directory is none."""
    net.run("one", "h2", ["sleep", "100"], volumes=[folder])
    net.run("two", "h3", ["sleep", "100"], volumes=[folder])
    with pytest.raises(BadApp, match=r"the volume .*/data is in use on h2 by another program"):
        net.run("three", "h2", ["sleep", "100"], volumes=[folder])
    with pytest.raises(BadApp, match=r"the volume .*/given is not a directory"):
        net.run("three", "h4", ["sleep", "100"], volumes=[folder / "given"])
    with pytest.raises(BadApp, match="could not be started on h4: /no/such"):
        net.run("three", "h4", ["/no/such"], volumes=[folder])
    report = net.migrate("one", to="h3")
    assert report.outcome == "refused"
    assert report.reason == f"one cannot be moved: the volume {folder} is in use on h3"
    assert stores(net) == ["h2", "h3"]
    for name in ("one", "two"):
        net.stop(name)
    assert stores(net) == []
