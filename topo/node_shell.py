"""Mininet nodes whose shell may end: an error that names node, command and exit status, instead of waiting forever.

Mininet talks to a shell over a pseudo-terminal of which it keeps both ends open, so it never reads an end of file from
a shell that has ended, and polls for its next prompt without a time limit.
"""

from __future__ import annotations

import os
import select
import shlex
import signal
import subprocess
import time
from typing import Any

from mininet.node import Host, Node

from topo.containers.enter import PROMPT
from topo.errors import ShellEnded

PROMPT_TIMEOUT = 60.0
"""Seconds in which a new shell must show its prompt."""
_POLL = 100  # milliseconds
_SAID = 200  # characters of a shell's last words that go into the message
_PIECE = 1024


class GuardedShell(Node):
    """A base class to name before Mininet's own; a command whose shell ends raises ShellEnded."""

    # Mininet's own, which have no types.
    shell: Any
    stdout: Any
    decoder: Any
    readbuf: str

    _command: tuple[str, ...] = ()
    _prompt_deadline: float | None = None

    def startShell(self, mnopts: str | None = None) -> None:
        """Start Mininet's shell and wait for its prompt; raises ShellEnded."""
        self._prompt_deadline = time.monotonic() + PROMPT_TIMEOUT
        try:
            super().startShell(mnopts)
        except ShellEnded:
            self._close_shell()
            raise
        finally:
            self._prompt_deadline = None

    def _popen(self, cmd: Any, **params: Any) -> subprocess.Popen[Any]:
        """Start a process as Mininet does; the first is the shell, which is remembered for messages."""
        if not self._command:
            self._command = tuple(map(str, cmd))
        process: subprocess.Popen[Any] = super()._popen(cmd, **params)
        return process

    def read(self, size: int = 1024) -> str:
        """Read what the shell prints; raises ShellEnded if it has ended and has nothing left to say.

        While it starts: all up to its prompt, because Mininet would wait without a limit after each piece.
        """
        if self._prompt_deadline is not None:
            while not self.readbuf.endswith(PROMPT):
                self._wait_output()
                self.readbuf += self.decoder.decode(os.read(self.stdout.fileno(), _PIECE))
            size = len(self.readbuf)
        elif len(self.readbuf) < size:
            self._wait_output()
        text: str = super().read(size)
        return text

    def waitReadable(self, timeoutms: float | None = None) -> Any:
        """Wait as Mininet does; without a time limit raises ShellEnded if the shell has ended."""
        if timeoutms is None and not self.readbuf:
            self._wait_output()
        return super().waitReadable(timeoutms)

    def _wait_output(self) -> None:
        output = select.poll()  # Mininet's own poller is told of room for input, too: that is always there
        output.register(self.stdout, select.POLLIN)
        while not output.poll(_POLL):
            status = self.shell.poll()
            if status is not None and not output.poll(0):
                raise self._ended(_describe(status))
            if self._prompt_deadline is not None and time.monotonic() > self._prompt_deadline:
                raise self._ended(f"showed no prompt within {PROMPT_TIMEOUT:g} s")

    def _ended(self, how: str) -> ShellEnded:
        # PS1 is a control character, which no terminal shows.
        command = shlex.join(word for word in self._command if not word.startswith("PS1="))
        said = " ".join(self.readbuf.split())[-_SAID:]
        told = f" (it printed: {said})" if said else ""
        return ShellEnded(f"the shell of {self.name} {how}{told}; it was started as: {command}")

    def _close_shell(self) -> None:
        """Close what a shell that never worked has left, so that the node can be removed."""
        if self.shell.poll() is None:
            os.killpg(self.shell.pid, signal.SIGKILL)
            self.shell.wait()
        for nodes in (self.outToNode, self.inToNode):
            nodes.pop(self.stdout.fileno(), None)
        self.cleanup()


class GuardedHost(GuardedShell, Host):
    """Mininet's host with a guarded shell."""


def _describe(status: int) -> str:
    if status < 0:
        return f"was ended by {signal.Signals(-status).name}"
    return f"ended with exit status {status}"
