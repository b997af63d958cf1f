"""Run a command inside a container: in its namespaces and control groups, with its environment and privileges.

    python enter.py [--group CGROUP.PROCS]… PID COMMAND…
    python enter.py [--group CGROUP.PROCS]… PID --shell NAME

PID is the container's first process. `--shell` runs the first of bash and sh that the container has, as Mininet talks
to shells: interactive, prompt DEL; if there is none the exit status is 127. Standard input becomes the controlling
terminal if it is one, so that Ctrl-C reaches the command. Unlike `docker exec` this needs no engine, costs 20 ms, and
works for any container; a command gets at most the privileges that the container's first process has (capabilities,
no_new_privs), but not its seccomp filter.

Used as a script, in an interpreter without the project: nothing can be imported once it is inside.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import sys
import termios
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn

NOT_FOUND = 127
DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
PROMPT = chr(127)  # what Mininet takes for the end of a command's output
SHELLS = (["/bin/bash", "--norc", "--noediting", "-is"], ["/bin/sh", "-is"])
END = signal.SIGUSR1
"""Ends the command at once. Killing this process would leave the command's remains to the machine's first process; a
container cannot end before they are gone, and some of those take their time."""
# In the order of setns(2): the user namespace gives the right to enter the others, the mount namespace hides /proc.
NAMESPACES = ("user", "cgroup", "ipc", "uts", "net", "pid", "mnt")
_PR_SET_PDEATHSIG, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 1, 24, 38
_CAP_VERSION_3 = 0x20080522
_libc = ctypes.CDLL(None, use_errno=True)


class Privileges:
    """What a process may do, as /proc/PID/status says it."""

    def __init__(self, pid: int) -> None:
        """Read it."""
        fields = _status(pid)
        self.bounding = int(fields["CapBnd"][0], 16) & int(_status(os.getpid())["CapPrm"][0], 16)
        self.no_new_privileges = fields["NoNewPrivs"] == ["1"]
        self.uid, self.gid = int(fields["Uid"][0]), int(fields["Gid"][0])
        self.groups = [int(group) for group in fields["Groups"]]

    def take(self) -> None:
        """Become no more privileged than that."""
        for capability in range(64):
            if not self.bounding >> capability & 1:
                _libc.prctl(_PR_CAPBSET_DROP, capability, 0, 0, 0)
        os.setgroups(self.groups)
        os.setresgid(self.gid, self.gid, self.gid)
        if self.uid == 0:
            _set_capabilities(self.bounding)
        os.setresuid(self.uid, self.uid, self.uid)  # for anybody but root the capabilities end here
        if self.no_new_privileges:
            _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)


def _status(pid: int) -> dict[str, list[str]]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return {name: value.split() for name, _, value in (line.partition(":") for line in lines)}


def _set_capabilities(mask: int) -> None:
    """Set the permitted and effective capabilities (capset(2)); none is inheritable, as in the engines."""
    low, high = mask & 0xFFFFFFFF, mask >> 32
    header = (ctypes.c_uint32 * 2)(_CAP_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)(low, low, 0, high, high, 0)
    if _libc.capset(ctypes.byref(header), ctypes.byref(data)) != 0:
        raise OSError(ctypes.get_errno(), "capset")


def _foreign_namespaces(pid: int) -> list[int]:
    """Open the namespaces of a process that are not ours."""
    opened = []
    for name in NAMESPACES:
        theirs, ours = Path(f"/proc/{pid}/ns/{name}"), Path(f"/proc/self/ns/{name}")
        if theirs.exists() and theirs.readlink() != ours.readlink():
            opened.append(os.open(theirs, os.O_RDONLY | os.O_CLOEXEC))
    return opened


def environment(pid: int) -> dict[str, str]:
    """Return what a process was started with."""
    words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    pairs = (os.fsdecode(word).partition("=") for word in words)
    found = {
        name: value for name, equals, value in pairs if equals
    }  # some programs write their title over it
    return {"PATH": DEFAULT_PATH, **found}


def enter(pid: int, groups: Sequence[Path]) -> None:
    """Join a container's groups and namespaces; its process namespace is that of children from now on."""
    for group in groups:
        group.write_text(str(os.getpid()))
    for fd in _foreign_namespaces(pid):
        if _libc.setns(fd, 0) != 0:
            raise OSError(ctypes.get_errno(), "setns")
        os.close(fd)


def _commands(words: Sequence[str]) -> Iterator[list[str]]:
    """Yield what to try, in this order."""
    if words[0] != "--shell":
        yield list(words)
        return
    for shell in SHELLS:
        yield [*shell, *(f"mininet:{name}" for name in words[1:])]


def _run(words: Sequence[str], env: dict[str, str]) -> NoReturn:
    """Become the command; exits with status 127 if there is none."""
    for command in _commands(words):
        try:
            os.execvpe(command[0], command, env)
        except OSError as ex:
            failure = f"{command[0]}: {ex.strerror}"
    print(failure, file=sys.stderr, flush=True)
    os._exit(NOT_FOUND)


def _become(words: Sequence[str], env: dict[str, str], privileges: Privileges, directory: str) -> NoReturn:
    """Turn the child process, which is inside, into the command."""
    os.setsid()
    if os.isatty(0):
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    privileges.take()
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # after the change of user, which clears it
    try:
        os.chdir(directory)
    except OSError:
        os.chdir("/")
    for number in (signal.SIGINT, signal.SIGPIPE):
        signal.signal(number, signal.SIG_DFL)
    _run(words, env)


def main(arguments: Sequence[str]) -> int:
    """Enter and run; returns the command's exit status."""
    words, groups = list(arguments), []
    while words[0] == "--group":
        groups.append(Path(words[1]))
        del words[:2]
    pid = int(words.pop(0))
    try:
        env, privileges = environment(pid), Privileges(pid)
        directory = os.readlink(f"/proc/{pid}/cwd")  # noqa: PTH115 - as it is written inside
        if words[0] == "--shell":
            env["PS1"] = PROMPT
        enter(pid, groups)
    except OSError as ex:
        print(f"process {pid} cannot be entered: {ex.strerror}", file=sys.stderr, flush=True)
        return NOT_FOUND
    child = os.fork()
    if child == 0:
        try:
            _become(words, env, privileges, directory)
        finally:
            os._exit(NOT_FOUND)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the command's matter
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda signum, _: os.kill(child, signum))
    signal.signal(END, lambda *_: os.kill(child, signal.SIGKILL))
    _, status = os.waitpid(child, 0)
    code = os.waitstatus_to_exitcode(status)
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
