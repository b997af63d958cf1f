"""scripts/setup installs packages without starting their services, and leaves no policy behind."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

SETUP = Path(__file__).resolve().parents[1] / "scripts" / "setup"


def scratch(folder: Path, apt_get: str) -> tuple[list[str], dict[str, str], Path]:
    """Copy the script for a machine that lacks every package; its apt-get is a given shell script."""
    policy = folder / "policy-rc.d"
    script = folder / "scripts" / "setup"
    script.parent.mkdir()
    script.write_text(SETUP.read_text().replace("/usr/sbin/policy-rc.d", str(policy)))
    commands = folder / "bin"
    commands.mkdir()
    fakes = {
        "dpkg-query": "exit 1",
        "systemctl": f'echo "systemctl $*" >>{folder}/called',
        "update-rc.d": f'echo "update-rc.d $*" >>{folder}/called',
        "sha256sum": f'echo "python" >>{folder}/called; exit 1',  # the script's next part begins with it
        "apt-get": f'[ "$1" = update ] && exit 0\necho "$*" >{folder}/installed\n{apt_get}',
    }
    for name, text in fakes.items():
        (commands / name).write_text(f"#!/bin/bash\n{text}\n")
        (commands / name).chmod(0o755)
    return ["bash", str(script)], {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}"}, policy


@pytest.mark.skipif(os.geteuid() != 0, reason="the script calls sudo for anybody but root")
@pytest.mark.parametrize("status", [0, 100])
def test_no_service_starts_while_packages_are_installed(tmp_path: Path, status: int) -> None:
    """policy-rc.d forbids it during apt-get, and is gone after it, whether that worked or not."""
    policy = tmp_path / "policy-rc.d"
    command, env, policy = scratch(
        tmp_path, f"cp {policy} {tmp_path}/seen; {policy}; echo $? >{tmp_path}/said; exit {status}"
    )
    subprocess.run(command, env=env, capture_output=True, timeout=30, check=False)
    assert (tmp_path / "said").read_text().strip() == "101"
    assert not policy.exists()
    assert "redis-server python3-redis" in (tmp_path / "installed").read_text()
    called = (tmp_path / "called").read_text() if (tmp_path / "called").exists() else ""
    assert ("systemctl disable --quiet --now redis-server.service" in called) == (status == 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="the script calls sudo for anybody but root")
def test_container_engines_are_installed_when_asked(tmp_path: Path) -> None:
    """They alone with --containers-only; their services neither start now nor with the next boot."""
    command, env, policy = scratch(tmp_path, f"{tmp_path}/policy-rc.d; echo $? >{tmp_path}/said; exit 0")
    (tmp_path / "bin" / "apt-cache").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "bin" / "apt-cache").chmod(0o755)
    done = subprocess.run([*command, "--containers-only"], env=env, timeout=30, check=False)
    assert done.returncode == 0
    assert (tmp_path / "said").read_text().strip() == "101" and not policy.exists()
    installed = (tmp_path / "installed").read_text()
    assert "docker.io containerd podman runc docker-cli" in installed and "redis" not in installed
    called = (tmp_path / "called").read_text()
    for unit in ("docker.service docker.socket", "containerd.service", "podman.socket"):
        assert f"systemctl disable --quiet --now {unit}" in called
    assert "python" not in called


@pytest.mark.skipif(os.geteuid() != 0, reason="the script calls sudo for anybody but root")
def test_an_interrupted_set_up_takes_its_policy_along(tmp_path: Path) -> None:
    """Ctrl-C during apt-get."""
    ready = tmp_path / "ready"
    command, env, policy = scratch(tmp_path, f"echo >{ready}; read <{ready}")
    os.mkfifo(ready)
    with subprocess.Popen(command, env=env, start_new_session=True, stderr=subprocess.DEVNULL) as process:
        ready.read_text()
        was_there = policy.exists()
        os.killpg(process.pid, signal.SIGINT)
        try:
            assert process.wait(10) != 0
        finally:
            process.kill()
    assert was_there
    assert not policy.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="the script calls sudo for anybody but root")
def test_an_administrators_policy_stays(tmp_path: Path) -> None:
    """It is neither replaced nor removed."""
    command, env, policy = scratch(tmp_path, "exit 100")
    policy.write_text("#!/bin/sh\nexit 0\n")
    subprocess.run(command, env=env, capture_output=True, timeout=30, check=False)
    assert policy.read_text() == "#!/bin/sh\nexit 0\n"
