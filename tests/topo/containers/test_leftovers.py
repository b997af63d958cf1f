"""What is known of a dead run's containers when their engine does not answer."""

from __future__ import annotations

from pathlib import Path

from topo.containers.leftovers import ENGINES, remove_containers
from topo.runs import clean_up


def dead_run(root: Path, address: str) -> Path:
    """Make the folder of a run that ended long ago, and used Docker."""
    run = root / "runs" / "999999999-1"
    (run / ENGINES).mkdir(parents=True)
    (run / ENGINES / "docker").write_text(address)
    (run / "s1.log").write_text("…")
    return run


def test_an_engine_that_may_come_back_is_asked_again(tmp_path: Path) -> None:
    """Its socket is there: what the run had in it is not forgotten, everything else is removed."""
    (tmp_path / "docker.sock").touch()
    run = dead_run(tmp_path, f"unix://{tmp_path}/docker.sock")
    for _ in range(2):
        (left,) = clean_up(tmp_path / "runs", tmp_path / "images")
        assert (left.containers, left.silent_engines) == (0, ("docker",))
        assert [entry.name for entry in run.iterdir()] == [ENGINES]


def test_an_engine_that_is_gone_is_forgotten(tmp_path: Path) -> None:
    """Without a socket there is no daemon, and with a daemon its containers end."""
    run = dead_run(tmp_path, f"unix://{tmp_path}/docker.sock")
    assert remove_containers(run) == (0, [])
    (left,) = clean_up(tmp_path / "runs", tmp_path / "images")
    assert left.silent_engines == () and not run.exists()


def test_a_run_without_containers_asks_nobody(tmp_path: Path) -> None:
    """No engine need be installed."""
    (tmp_path / "1-1").mkdir()
    assert remove_containers(tmp_path / "1-1") == (0, [])
