"""The VM lab's description is valid."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "vagrant"


@pytest.mark.skipif(
    shutil.which("vagrant") is None, reason="vagrant is not installed (apt-get install vagrant)"
)
def test_vagrantfile_is_valid(tmp_path: Path) -> None:
    """Vagrant accepts the file; providers are left out, since a machine in CI has none."""
    env = {
        **os.environ,
        "VAGRANT_HOME": str(tmp_path / "home"),
        "VAGRANT_DOTFILE_PATH": str(tmp_path / "dot"),
    }
    # fmt: off
    done = subprocess.run(["vagrant", "validate", "--ignore-provider"], cwd=FOLDER, env=env,
                          capture_output=True, text=True, timeout=60, check=False)
    # fmt: on
    assert done.returncode == 0, done.stdout + done.stderr


def test_provisioning_is_valid_shell() -> None:
    """The script that `vagrant provision` runs parses."""
    subprocess.run(["bash", "-n", str(FOLDER / "provision.sh")], check=True)
