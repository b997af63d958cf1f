"""What CRIU leaves in a host's firewall when it has locked connections itself."""

from __future__ import annotations

import subprocess


def remove_criu_tables() -> None:
    """Delete CRIU's nftables tables in the current network namespace."""
    for line in _nft("list", "tables").splitlines():
        if line.split()[-1].startswith("CRIU-"):
            _nft("delete", *line.split())


def _nft(*words: str) -> str:
    # A session of its own: Ctrl-C at the terminal is not for it.
    done = subprocess.run(["nft", *words], capture_output=True, text=True, timeout=10, start_new_session=True)
    return done.stdout
