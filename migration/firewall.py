"""What is left in a host's firewall by a CRIU that has locked connections itself, or by a killed controller."""

from __future__ import annotations

import subprocess

from .dropping import PREFIX
from .model import Host
from .namespaces import in_netns
from .slowness import scaled


def remove_criu_tables() -> None:
    """Delete CRIU's nftables tables in the current network namespace."""
    _remove("CRIU-")


def clean(*hosts: Host) -> None:
    """Let packets through that migrations of a killed controller have had dropped in hosts; no other is under way."""
    for host in hosts:
        in_netns(host.pid, lambda: _remove("CRIU-", PREFIX))


def _remove(*prefixes: str) -> None:
    for line in _nft("list", "tables").splitlines():
        if line.split()[-1].startswith(prefixes):
            _nft("delete", *line.split())


def _nft(*words: str) -> str:
    # A session of its own: Ctrl-C at the terminal is not for it.
    done = subprocess.run(
        ["nft", *words], capture_output=True, text=True, timeout=scaled(10.0), start_new_session=True
    )
    return done.stdout
