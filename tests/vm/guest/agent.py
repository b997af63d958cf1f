#!/usr/bin/python3
"""Run a plan's steps inside a machine, as the user of the lab; a service of the root file system starts this.

On the work disk: plan.json (steps: name, command, limit in seconds on the reference machine), checkout/ (what the user
has cloned); written there: results/steps.jsonl, results/NAME.log and what the commands put into results/. The console
gets a line at each step's begin and end. Standard library only: it runs under the distribution's python3.
"""

from __future__ import annotations

import ctypes
import json
import os
import platform
import pwd
import signal
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

WORK = Path("/media/p4ferry")
RESULTS = WORK / "results"
USER = "vagrant"
REFERENCE_LOOP_S = 0.034  # a million empty turns on the reference machine


def say(text: str) -> None:
    """Write a line to the console, which the outside reads."""
    with open("/dev/ttyS0", "w") as console:  # noqa: PTH123 - a device
        console.write(f"p4ferry-vm: {text}\n")


def keep_scheduler_hooks() -> int:
    """Open a perf event that stays, and return its descriptor, or -1.

    CRIU sets hardware breakpoints, upon which the kernel patches its scheduler (static key perf_sched_events), again
    and again. An emulator with a thread for each processor runs into the half-written instruction now and then ("Oops:
    int3 … RIP: __schedule"). With an event that stays it is patched once, while nothing else goes on.
    """
    # struct perf_event_attr: type PERF_TYPE_SOFTWARE, size PERF_ATTR_SIZE_VER0, config PERF_COUNT_SW_DUMMY
    attributes = struct.pack("=IIQ", 1, 64, 9) + bytes(48)
    return int(ctypes.CDLL(None).syscall(298, attributes, 0, -1, -1, 0))  # perf_event_open(2)


def slowness() -> float:
    """Return how many times as long as on the reference machine a calculation takes here: the median of five."""
    times = []
    for _ in range(5):
        start = time.perf_counter()
        for _ in range(1_000_000):
            pass
        times.append(time.perf_counter() - start)
    return max(1.0, sorted(times)[2] / REFERENCE_LOOP_S)


def install_checkout(home: Path) -> Path:
    """Put the clone where Vagrant's rsync would, and leave what set-up has made there."""
    target = home / "p4ferry"
    subprocess.run(
        ["rsync", "-a", "--delete", "--exclude=.venv/", "--exclude=.p4ferry/", "--exclude=*.egg-info/",
         f"--chown={USER}:{USER}", f"{WORK}/checkout/", f"{target}/"],
        check=True,
    )  # fmt: skip
    return target


def run(step: dict[str, Any], folder: Path, home: Path, slow: float) -> dict[str, Any]:
    """Run a step within its time; returns its row."""
    limit = step["limit"] * slow
    environment = {
        "HOME": str(home), "USER": USER, "LOGNAME": USER, "SHELL": "/bin/bash", "LANG": "C.UTF-8", "TERM": "dumb",
        "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/local/games:/usr/games",
        "P4FERRY_SLOW": f"{min(slow, 100):.1f}", "RESULTS": str(RESULTS), "WORK": str(WORK),
    }  # fmt: skip
    begin = time.monotonic()
    with (RESULTS / f"{step['name']}.log").open("wb") as log:
        process = subprocess.Popen(
            ["/usr/sbin/runuser", "-u", USER, "--", "bash", "-c", step["command"]],
            cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(limit)
            outcome = "passed" if status == 0 else "failed"
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGTERM)
            try:
                process.wait(20 * slow)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            status, outcome = None, "timed out"
    seconds = time.monotonic() - begin
    return {
        "name": step["name"],
        "outcome": outcome,
        "status": status,
        "seconds": round(seconds, 1),
        "limit": limit,
    }


def main() -> None:
    """Run all steps, and switch the machine off whatever happens."""
    try:
        RESULTS.mkdir(exist_ok=True)
        os.chmod(RESULTS, 0o1777)  # noqa: PTH101
        plan = json.loads((WORK / "plan.json").read_text())
        keep_scheduler_hooks()
        home = Path(pwd.getpwnam(USER).pw_dir)
        slow = slowness()
        pretty = dict(
            line.split("=", 1) for line in Path("/etc/os-release").read_text().splitlines() if "=" in line
        )
        facts = {
            "kernel": platform.release(),
            "distribution": pretty["PRETTY_NAME"].strip('"'),
            "slow": round(slow, 1),
        }
        (RESULTS / "machine.json").write_text(json.dumps(facts))
        folder = install_checkout(home)
        with (RESULTS / "steps.jsonl").open("a", buffering=1) as rows:
            for step in plan["steps"]:
                say(f"begin {step['name']}")
                row = run(step, folder, home, slow)
                rows.write(json.dumps(row) + "\n")
                os.sync()
                say(f"end {step['name']}: {row['outcome']} after {row['seconds']} s")
        say("done")
    except BaseException as ex:  # the outside must hear of it, and the machine must end
        say(f"the agent failed: {ex!r}")
        raise
    finally:
        os.sync()
        subprocess.run(["systemctl", "poweroff", "--force", "--force"], check=False)


if __name__ == "__main__":
    main()
