"""The P4 programs of the engine's tests and of p4src/, compiled here: a machine's kernel only has to verify them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from .errors import VmError
from .rootfs import CHECKOUT

_CHECK = "dataplane.switch.engine.check"


def compile_all(scratch: Path, objects: Path) -> int:
    """Run the engine's tests on this kernel, and compile each program that they load; returns how many there are."""
    collected = scratch / "programs"
    environment = {**os.environ, "P4FERRY_COLLECT_PROGRAMS": str(collected)}
    # Which tests fail does not matter here: `make test` says that.
    _run([sys.executable, "-m", "pytest", "-q", "tests/dataplane/engine"], environment, (0, 1))
    sources = [str(path) for path in sorted((CHECKOUT / "p4src").glob("*.p4")) if path.stem != "headers"]
    if not collected.is_dir() or not any(collected.iterdir()):
        raise VmError("the engine's tests have loaded no program that a kernel could verify: see make test")
    _run(
        [sys.executable, "-m", _CHECK, "--objects", str(objects), str(collected), *sources], environment, (0,)
    )
    return len(list(objects.glob("*.o")))


def _run(command: list[str], environment: dict[str, str], good: tuple[int, ...]) -> None:
    done = subprocess.run(
        command, cwd=CHECKOUT, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    if done.returncode not in good:
        tail = "\n  ".join(done.stdout.decode(errors="replace").strip().splitlines()[-8:])
        raise VmError(f"{' '.join(command[2:4])} failed with status {done.returncode}:\n  {tail}")
