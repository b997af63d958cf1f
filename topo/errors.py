"""What can go wrong while building or using a testbed.

TestbedError            anything below; its message is one sentence for the user
  +-- MissingTool       a program or package that the asked-for target needs
  +-- CompileFailed     the P4 compiler refused a program; the message is the compiler's own
  +-- SwitchFailed      a switch process ended or did not become ready
  +-- BadNetwork        a name, link, port or address that does not fit the network
  +-- BadApp            an app or host that is not there, or there already
  +-- ShellEnded        the shell in which a node's commands run ended, or never showed its prompt
  +-- AlreadyRunning    another testbed owns the machine's switch names and ports
  +-- ContainerFailed   a container engine refused something, or a container ended
  +-- CannotRecover     there is no run to take over, or too little is left of it
"""

from __future__ import annotations


class TestbedError(Exception):
    """Anything that a testbed refuses or fails at; the message is one sentence for the user."""

    __test__ = False  # pytest: not a test class, in spite of its name


class Terminated(BaseException):
    """Somebody asked the program to end (SIGTERM, SIGHUP): unlike Ctrl-C, not a matter for a prompt."""


class MissingTool(TestbedError):
    """A program or package that the asked-for target needs is not there."""


class CompileFailed(TestbedError):
    """The P4 compiler refused a program."""


class SwitchFailed(TestbedError):
    """A switch process ended or did not become ready."""


class BadNetwork(TestbedError):
    """A name, link, port or address does not fit the network."""


class BadApp(TestbedError):
    """An app or host is not there, or is there already."""


class ShellEnded(TestbedError):
    """The shell in which a node's commands run ended, or never showed its prompt."""


class AlreadyRunning(TestbedError):
    """Another testbed owns the machine's switch names and ports."""


class ContainerFailed(TestbedError):
    """A container engine refused something, or a container ended."""


class CannotRecover(TestbedError):
    """There is no dead run that could be taken over, or too little is left of it."""
