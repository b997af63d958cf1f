"""Whether the kernel can delay and lose packets (netem): tried in a network namespace of its own."""

from __future__ import annotations

import functools
import subprocess

_TRY = "ip link set lo up && tc qdisc add dev lo root netem delay 1ms"


@functools.cache
def has_netem() -> bool:
    """Say whether links can have delay, jitter and loss here."""
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", _TRY], capture_output=True, check=False, timeout=30
    )
    return done.returncode == 0
