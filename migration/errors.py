"""What can go wrong in a migration.

    MigrationError
    ├── Refused        cannot be moved; nothing was touched
    ├── Cancelled      the caller changed its mind before the point of no return
    ├── StepTimeout    a step took longer than it may
    ├── LaunchFailed   a program could not be started in its host
    ├── KeeperLost     the process that owns the programs is gone
    ├── CriuMissing    no usable CRIU
    ├── MemoryLost     post-copy broke off: part of the program's memory is nowhere
    └── CriuFailed     CRIU answered with an error; carries the lines of its log that say why

Every message is one sentence for a user: what, where, and if possible what to do.
"""

from __future__ import annotations

from .criu_log import cause


class MigrationError(Exception):
    """Something about a migration or its programs failed."""


class Refused(MigrationError):
    """The program cannot be moved as asked; it was not touched."""


class Cancelled(MigrationError):
    """The migration was cancelled before its point of no return."""


class StepTimeout(MigrationError):
    """A step of the migration took longer than it may."""


class LaunchFailed(MigrationError):
    """A program could not be started in its host."""


class KeeperLost(MigrationError):
    """The keeper process is gone, and with it every program that it owned."""


class CriuMissing(MigrationError):
    """There is no usable CRIU."""


class CriuFailed(MigrationError):
    """CRIU gave up; `lines` are the errors of its log, first one first."""

    def __init__(self, action: str, lines: list[str]) -> None:
        super().__init__(f"CRIU could not {action}: {cause(lines) or 'it ended without saying why'}")
        self.lines = lines


class MemoryLost(MigrationError):
    """Post-copy broke off after the switch-over: part of the program's memory is nowhere, for good."""
