"""The control arm "plain order": dump, edit, restore, table update, one command-line tool after the other.

What a shell script around CRIU does: `criu dump` (its own network lock, nftables), a Python program that changes the
addresses in files.img, `criu restore` in the other host, and a call of the load balancer's HTTP API with a
command-line client. Nothing is prepared, nothing overlaps, no packet is held.

One thing is done for it that such scripts lack (`deafen`): the client's host ignores what comes under the servers' own
addresses. Without it the acknowledgement that every restored socket sends at once, before the table is updated, meets
no socket there, and the client's RST ends the connection (every time, on this machine).

The CRIU processes are started by the keeper, so that the restored program has a parent that reaps; that costs the arm
nothing. The program must be started by `setpriv --pdeathsig clear`, or it dies with the `criu restore` that made it.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from migration import messages
from migration.criu import Criu
from migration.errors import MigrationError
from migration.firewall import remove_criu_tables
from migration.images import INVENTORY_IMAGE, rewrite_files
from migration.inet import Relocation
from migration.model import App, Host
from migration.namespaces import in_netns
from migration.process import ProcessRuntime
from topo import paths

TIMEOUT = 30.0
COMMON = ["--tcp-established", "--file-locks", "--link-remap", "--network-lock", "nftables", "-v2"]


@dataclass(frozen=True)
class CriuTimes:
    """CRIU's own statistics of one dump and restore, in milliseconds."""

    frozen_ms: float
    restore_ms: float


def migrate_plainly(
    runtime: ProcessRuntime, url: str, app: App, destination: Host, node: Mapping[str, str], folder: Path
) -> CriuTimes:
    """Carry a program to another host, in the plain order; raises MigrationError if CRIU gives up.

    `node` has the destination's "dmac" and "eport", as the load balancer's API wants them.
    """
    source = app.host
    images = folder / "plain"
    images.mkdir(mode=0o700)
    criu = str(runtime.criu.binary)
    where = ["-D", str(images), "-o", "criu.log", *COMMON]
    _run(runtime, app.pid, [criu, "dump", "-t", str(app.pid), *where], images)
    edit = [
        sys.executable,
        "-m",
        "bench.baseline.plain",
        str(images),
        str(source.address),
        str(destination.address),
    ]
    subprocess.run([*edit, str(app.log)], check=True, cwd=paths.CHECKOUT, timeout=TIMEOUT)
    pidfile = images / "pid"
    restore = [criu, "restore", "-d", "--pidfile", str(pidfile), *where]
    _run(runtime, destination.pid, restore, images, copy_mounts=True)
    body = {"old_ipv4": str(source.address), "new_ipv4": str(destination.address), **node}
    subprocess.run(
        [sys.executable, "-m", "bench.baseline.plain", "--update", url, json.dumps(body)],
        check=True,
        cwd=paths.CHECKOUT,
        timeout=TIMEOUT,
    )
    app.host, app.pid = destination, int(pidfile.read_text())
    for host in (source, destination):
        in_netns(host.pid, remove_criu_tables)
    return _statistics(images)


def _run(
    runtime: ProcessRuntime, place: int, argv: list[str], images: Path, *, copy_mounts: bool = False
) -> None:
    ours, its = socket.socketpair()
    with ours, its:
        pid = runtime.custody.start_criu(place, argv, its, copy=copy_mounts)
        ended = runtime.custody.wait(pid, TIMEOUT)
        # The keeper may reap the dumped program before CRIU has detached from it: CRIU then fails, its image is whole.
        is_whole = argv[1] == "dump" and (images / INVENTORY_IMAGE).exists()
        if not ended or (runtime.custody.exit_status(pid) != 0 and not is_whole):
            words = (images / "criu.log").read_text(errors="replace").splitlines()[-3:]
            raise MigrationError(f"{' '.join(argv[:2])} failed: {' '.join(words)}")


def deafen(client: Host, servers: Iterable[Host]) -> None:
    """Let a client's host ignore what comes under the servers' own addresses; see above."""
    rules = "".join(f"ip saddr {host.address} drop; " for host in servers)
    table = f"table ip p4ferry_plain {{ chain input {{ type filter hook input priority 0; {rules} }}; }}"
    enter = ["nsenter", "--target", str(client.pid), "--net", "nft", "-f", "-"]
    subprocess.run(enter, input=table, text=True, check=True, timeout=TIMEOUT)


def _statistics(images: Path) -> CriuTimes:
    stats = messages.load("images.stats_pb2")

    def entry(name: str) -> Any:
        data = (images / name).read_bytes()
        return stats.stats_entry.FromString(data[12 : 12 + int.from_bytes(data[8:12], "little")])

    frozen = entry("stats-dump").dump.frozen_time
    restore = entry("stats-restore").restore.restore_time
    return CriuTimes(frozen / 1000, restore / 1000)


def _edit(images: Path, old: str, new: str, log: str) -> None:
    """Do what a script with CRIU's image tool does: decode, replace, encode."""
    from ipaddress import IPv4Address

    relocation = Relocation(IPv4Address(old), IPv4Address(new), {})
    path = images / "files.img"
    path.write_bytes(
        rewrite_files(path.read_bytes(), relocation, Criu.find().fdinfo, frozenset({Path(log)})).image
    )


def _update(url: str, body: str) -> None:
    request = urllib.request.Request(
        f"{url}/update_node", body.encode(), {"Content-Type": "application/json"}, method="POST"
    )
    urllib.request.urlopen(request, timeout=TIMEOUT).read()


if __name__ == "__main__":
    if sys.argv[1] == "--update":
        _update(*sys.argv[2:])
    else:
        _edit(Path(sys.argv[1]), *sys.argv[2:])
