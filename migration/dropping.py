"""Dropping packets for some endpoints of a host, by an nftables table in its namespace.

- In the control arm of measurements packets for a program on the move are dropped, not held, from the step "hold" on,
  before the program freezes; so what a hold is good for shows in the retransmissions. CRIU's own lock comes later, and
  alone would let in what arrives while it collects the sockets.
- Connections within what moves are cut off while their ends are written down one after the other.
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from .errors import MigrationError
from .inet import Address
from .namespaces import in_netns
from .slowness import scaled
from .steering import IpProtocol

PREFIX = "p4ferry_"  # of the tables' names


@dataclass(frozen=True, slots=True)
class End:
    """Where packets are dropped."""

    protocol: IpProtocol
    address: Address
    port: int


class Dropping:
    """Drops what arrives for some endpoints of a host until closed."""

    def __init__(self, pid: int, name: str, ends: Iterable[End]) -> None:
        self._pid = pid
        self._table = PREFIX + re.sub(r"\W", "_", name)
        rules = [
            f"{'ip' if end.address.version == 4 else 'ip6'} daddr {end.address} "
            f"{end.protocol.name.lower()} dport {end.port} drop"
            for end in ends
        ]
        self._run(
            f"table inet {self._table} {{ chain input {{ type filter hook input priority 0;\n"
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
                timeout=scaled(10.0),
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
        self._run(f"delete table inet {self._table}")

    def __enter__(self) -> Dropping:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
