"""The shell that Mininet's `HOST COMMAND` talks to, inside a container: started when it is first needed.

Mininet writes commands to a pseudo terminal and reads up to DEL, the prompt. The terminal is ours and outside: it is
set up from here (no echo), whatever the image has. A container without any shell answers every command with a sentence.
"""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios
from collections.abc import Sequence
from pathlib import Path

from migration.cgroups import groups_of
from migration.slowness import scaled
from topo.containers.enter import END, NOT_FOUND, PROMPT

_END_TIMEOUT = scaled(2.0)  # seconds
_ENTER = Path(__file__).with_name("enter.py")
_LOCAL_FLAGS = 3  # where termios.tcgetattr has c_lflag


def entering(pid: int) -> list[str]:
    """Return the words that run the command after them inside a container, as a process of its control groups."""
    try:
        groups = sorted({folder / "cgroup.procs" for folder in groups_of(pid).values()})
    except OSError:  # the container has ended; whoever tries to enter it is told so
        groups = []
    writable = [word for group in groups if os.access(group, os.W_OK) for word in ("--group", str(group))]
    return [sys.executable, "-I", "-S", str(_ENTER), *writable, str(pid)]


def open_terminal() -> tuple[int, int]:
    """Return both ends of a pseudo terminal that does not echo."""
    master, slave = pty.openpty()
    attributes = termios.tcgetattr(slave)
    attributes[_LOCAL_FLAGS] &= ~termios.ECHO
    termios.tcsetattr(slave, termios.TCSANOW, attributes)
    return master, slave


def start_shell(name: str, pid: int, slave: int) -> subprocess.Popen[bytes]:
    """Start a container's shell on a terminal."""
    return subprocess.Popen(
        [*entering(pid), "--shell", name],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        cwd="/",
        start_new_session=True,
    )


def end_shell(shell: subprocess.Popen[bytes]) -> None:
    """End a shell; what it runs in the background goes on."""
    if shell.poll() is None:
        shell.send_signal(END)
    try:
        shell.wait(_END_TIMEOUT)
    except subprocess.TimeoutExpired:
        shell.kill()  # the shell inside ends with its parent
        shell.wait()


def why_none(shell: subprocess.Popen[bytes], said: str) -> str | None:
    """Return why there is no shell, None while there is one."""
    status = shell.poll()
    if status is None:
        return None
    if status == NOT_FOUND and "cannot be entered" not in said:
        return "its image has no shell, so no command can be typed into it"
    return "its container has ended" if status == NOT_FOUND else f"its shell ended with status {status}"


def answer(slave: int, sentence: str) -> None:
    """Let Mininet read a sentence as a command's whole output."""
    os.write(slave, f"{sentence}\n{PROMPT}".encode())


def run_outside(pid: int, words: Sequence[str]) -> str:
    """Run the machine's own command in a container's network, and nothing else of it; returns what it prints."""
    command = ["nsenter", "--target", str(pid), "--net", "sh", "-c", " ".join(words)]
    return subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    ).stdout
