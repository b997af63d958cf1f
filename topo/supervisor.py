"""Starts a switch process again that ended by itself.

The P4 program that a dead switch had loaded goes on forwarding in the kernel, so connections do not notice; what
nobody answers meanwhile is the controller. A new process with the same arguments takes the ports over, and the
controller, whose link reconnects by itself, writes the tables again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable

from topo.errors import SwitchFailed
from topo.switches import P4RuntimeSwitch

LOG = logging.getLogger(__name__)
_POLL_S = 0.05
_MAX_RESTARTS = (
    5  # in a row after less than _SHORT_S each: no accident, and starting again would go on for ever
)
_SHORT_S = 0.2


class Supervisor:
    """A thread that watches switch processes; a context manager that ends it before the switches are stopped."""

    def __init__(self, switches: Iterable[P4RuntimeSwitch], on_restart: Callable[[], None]) -> None:
        """Take the switches, running, and whom to tell when one has a new process."""
        self._switches = list(switches)
        self._on_restart = on_restart
        self._restarts = dict.fromkeys((switch.name for switch in self._switches), 0)
        self._started = dict.fromkeys((switch.name for switch in self._switches), 0.0)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="supervisor", daemon=True)

    def __enter__(self) -> Supervisor:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Watch no more; the switches stay as they are."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(_POLL_S):
            for switch in list(self._switches):
                if switch.process is not None and switch.process.poll() is not None:
                    self._restart(switch)

    def _restart(self, switch: P4RuntimeSwitch) -> None:
        """Start a switch again, unless it ends again and again."""
        has_lived = time.monotonic() - self._started[switch.name] > _SHORT_S
        self._restarts[switch.name] = 1 if has_lived else self._restarts[switch.name] + 1
        if self._restarts[switch.name] > _MAX_RESTARTS:
            LOG.error("switch %s ended %d times in a row, at once: it stays down", switch.name, _MAX_RESTARTS)
            self._switches.remove(switch)
            return
        LOG.warning("switch %s ended; starting it again", switch.name)
        self._started[switch.name] = time.monotonic()
        try:
            switch.start([])
            self._on_restart()
            switch.wait_ready()
            self._started[switch.name] = time.monotonic()
        except (SwitchFailed, OSError) as ex:
            LOG.error("%s", ex)
