"""What is run in a machine: steps, each a command of a user in the clone, with its time on the reference machine.

A command finds `$RESULTS`, a folder that is kept, and `$WORK`, the work disk.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import VmError

VERIFIER = "verifier"
"""The step for which programs are compiled outside."""


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


def _tests(name: str, what: str, limit: float, reduced: bool = False) -> Step:
    return Step(name, f'make test ARGS="{what} --junitxml=$RESULTS/{name}.xml"', limit, reduced)


_DOCKER = """
sudo scripts/dockerd >$RESULTS/dockerd.log 2>&1 & daemon=$!
trap 'sudo kill $daemon; wait $daemon' EXIT
until sudo docker version >/dev/null 2>&1; do kill -0 $daemon || exit; sleep 1; done
"""
# Installed from packages that are on the disk. Debian 13's has to be taken, Debian 12's 3.17.1 to be refused.
_OWN_CRIU = """
set -e
sudo dpkg --install --force-confnew /var/cache/p4ferry-criu/*.deb
make setup PROBE=1
. /etc/os-release
grep '"source": "'$([ $VERSION_ID = 12 ] && echo private || echo distribution)'"' .p4ferry/criu/choice.json
make run ARGS="--demo echo --json $RESULTS/distribution-criu.json"
"""
_VERIFIER = "sudo python3 -m dataplane.switch.engine.check $WORK/objects --json $RESULTS/verifier.json"

STEPS = (
    Step("provision", "bash vagrant/provision.sh", 60, reduced=True),
    Step(VERIFIER, _VERIFIER, 60, reduced=True),
    _demo("echo-single", "--demo echo", 30, reduced=True),
    _demo("echo-triangle", "--demo echo --topology triangle", 30),
    _demo("redis-single", "--demo redis", 60),
    _demo("redis-triangle", "--demo redis --topology triangle", 60),
    _demo("runc", "--hosts runc --demo echo", 60),
    Step("podman", 'make demo-containers ENGINE=podman ARGS="--json $RESULTS/podman.json"', 90),
    Step("docker", _DOCKER + 'make demo-containers ENGINE=docker ARGS="--json $RESULTS/docker.json"', 90),
    _tests("precopy", "tests/migration/test_precopy.py", 60, reduced=True),
    _tests("links", "tests/topo/test_links.py", 60, reduced=True),
    _tests(
        "engine", "tests/dataplane/engine/test_load_balancer.py tests/dataplane/engine/test_packets.py", 90
    ),
    _tests("moves", "tests/migration/test_moves.py", 120),
    _tests("recovery", "tests/migration/test_recovery.py", 120),
    _tests("engines", "tests/topo/containers/test_engine_moves.py -m engines -k moves_and_ways_back", 150),
    Step("distribution-criu", _OWN_CRIU, 60),
)


def plan(reduced: bool, command: str = "", only: str = "") -> list[Step]:
    """Return the steps to run: all, CI's, some by name, or one command of the user's own; raises VmError."""
    if command:
        return [Step("command", command, 3600)]
    if only:
        names, known = only.replace(",", " ").split(), [step.name for step in STEPS]
        if not names or not set(names) <= set(known):
            raise VmError(f"STEPS={only} names what is no step; there are {' '.join(known)}")
        return [step for step in STEPS if step.name in names]
    return [step for step in STEPS if step.reduced or not reduced]
