"""What is run in a machine: steps, each a command of a user in the clone, with its time on the reference machine.

A command finds `$RESULTS`, a folder that is kept, and `$WORK`, the work disk.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """A command; `limit` is in seconds on the reference machine, and grows with the measured slowness."""

    name: str
    command: str
    limit: float
    reduced: bool = False
    """Whether CI's short form has it, too."""


def _demo(name: str, options: str, limit: float, reduced: bool = False) -> Step:
    return Step(name, f'make run ARGS="{options} --json $RESULTS/{name}.json"', limit, reduced)


_DOCKER = """
sudo scripts/dockerd >$RESULTS/dockerd.log 2>&1 & daemon=$!
trap 'sudo kill $daemon' EXIT
for i in $(seq 300); do sudo docker version >/dev/null 2>&1 && break; sleep 1; done
"""

STEPS = (
    Step("provision", "bash vagrant/provision.sh", 120, reduced=True),
    _demo("echo-single", "--demo echo", 60, reduced=True),
    _demo("echo-triangle", "--demo echo --topology triangle", 60),
    _demo("redis-single", "--demo redis", 90),
    _demo("redis-triangle", "--demo redis --topology triangle", 90),
    _demo("runc", "--hosts runc --demo echo", 60),
    Step("podman", 'make demo-containers ENGINE=podman ARGS="--json $RESULTS/podman.json"', 120),
    Step("docker", _DOCKER + 'make demo-containers ENGINE=docker ARGS="--json $RESULTS/docker.json"', 120),
)


def plan(reduced: bool, command: str = "", only: str = "") -> list[Step]:
    """Return the steps to run: all, CI's, some by name, or one command of the user's own."""
    if command:
        return [Step("command", command, 3600)]
    if only:
        names = only.replace(",", " ").split()
        return [step for step in STEPS if step.name in names]
    return [step for step in STEPS if step.reduced or not reduced]
