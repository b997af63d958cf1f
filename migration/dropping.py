"""The control arm of measurements: instead of being held, packets for a program on the move are dropped.

An nftables table in the source's namespace drops them from the step "hold" on, before the program freezes; so
what a hold is good for shows in the retransmissions. CRIU's own lock comes later, and alone would let in what
arrives while it collects the sockets.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable

from .errors import MigrationError
from .namespaces import in_netns
from .steering import Endpoint


class Dropping:
    """Drops what arrives for some endpoints of a host until closed."""

    def __init__(self, pid: int, name: str, ends: Iterable[Endpoint]) -> None:
        self._pid = pid
        self._table = "p4ferry_" + re.sub(r"\W", "_", name)
        rules = [f"ip daddr {end.address} {end.protocol.name.lower()} dport {end.port} drop" for end in ends]
        self._run(
            f"table ip {self._table} {{ chain input {{ type filter hook input priority 0;\n"
            + "\n".join(dict.fromkeys(rules))
            + "\n}\n}\n"
        )

    def _run(self, commands: str) -> None:
        def nft() -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                ["nft", "-f", "-"],
                input=commands,
                capture_output=True,
                text=True,
                timeout=10,
                start_new_session=True,  # Ctrl-C at the terminal is not for it
            )

        try:
            done = in_netns(self._pid, nft)
        except (OSError, subprocess.TimeoutExpired) as ex:
            raise MigrationError(f"nft cannot be run: {ex}") from ex
        if done.returncode != 0:
            raise MigrationError(f"nft refuses the rules that drop packets: {done.stderr.splitlines()[0]}")

    def close(self) -> None:
        """Let packets through again."""
        self._run(f"delete table ip {self._table}")

    def __enter__(self) -> Dropping:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
