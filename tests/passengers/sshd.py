"""OpenSSH: sessions over a pseudoterminal, each with a shell or a program behind it."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from .passenger import Client, Passenger, Wrong, content, expect, give

_USER = "postgres"  # of Debian's system users the one with a shell
_RUN = Path("/run/sshd")
# As Debian's, with a port, keys and accounts of our own.
_CONFIG = """
ListenAddress 0.0.0.0
Port {port}
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM yes
StrictModes no
X11Forwarding yes
PrintMotd no
Subsystem sftp /usr/lib/openssh/sftp-server
"""


def _prepare(folder: Path) -> Sequence[str]:
    for name in ("host_key", "key"):
        make = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(make, check=True)
    (folder / "authorized_keys").write_text((folder / "key.pub").read_text())
    give(folder / "authorized_keys", _USER)
    (folder / "sshd_config").write_text(_CONFIG.format(port=2222, folder=folder))
    return ["/usr/sbin/sshd", "-D", "-e", "-f", str(folder / "sshd_config")]


def _session(client: Client, command: str) -> tuple[IO[bytes], IO[bytes], subprocess.Popen[bytes]]:
    """Log in, with a terminal there; return what goes to it, what comes from it, and the client."""
    host, port = client.address
    options = ["-F", "/dev/null", "-i", str(client.folder / "key"), "-p", str(port), "-tt", "-e", "none"]
    for option in (
        "BatchMode=yes",
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "LogLevel=ERROR",
    ):
        options += ["-o", option]
    made = client.start_raw("ssh", *options, f"{_USER}@{host}", command)
    assert made.stdin is not None
    assert made.stdout is not None
    return made.stdin, made.stdout, made


def _line(source: IO[bytes]) -> bytes:
    return source.readline().rstrip(b"\r\n")


def _leave(made: subprocess.Popen[bytes], status: int) -> None:
    out, _ = made.communicate(timeout=60)
    expect(made.returncode, status, f"ssh says {out[-300:]!r}, and its status")


def shell(client: Client) -> None:
    """A shell that counts: what it is told by lines comes back by lines, one higher each time."""
    to, source, made = _session(client, "bash --norc --noediting -i")
    to.write(b"PS1=; PS2=; stty -echo; n=0; echo begun $((40+2))\n")
    to.flush()
    while not _line(source).endswith(b"begun 42"):  # behind the echo of this very line, and a prompt
        if made.poll() is not None:
            raise Wrong(f"ssh ended with {made.returncode}")
    number = 0
    while client.goes_on():
        number += 1
        to.write(b"n=$((n+1)); echo $n $(tty) $(stty size | tr ' ' x)\n")
        to.flush()
        if number == 1:
            first = _line(source).partition(b" ")[2]
            expect(first[:9], b"/dev/pts/", "the terminal")
        else:
            expect(_line(source), b"%d %s" % (number, first), "a shell's answer")
    to.write(b"exit 7\n")
    to.flush()
    _leave(made, 7)


def echo(client: Client) -> None:
    """Any bytes, through a terminal that changes nothing, to a program that sends them back."""
    to, source, made = _session(client, "stty raw -echo; echo begun; exec cat")
    expect(source.readline(), b"begun\n", "the begin")
    while client.goes_on():
        sent = content(2_000 + client.rounds % 7 * 300, client.rounds)
        to.write(sent)
        to.flush()
        expect(source.read(len(sent)), sent, "what was sent")
    made.terminate()
    made.communicate(timeout=60)


def answers(client: Client) -> None:
    """A program that asks at /dev/tty, whatever its input and output are."""
    loop = "while read word <&3; do echo heard $word >&3; done"
    asking = f"{{ stty -echo </dev/tty; exec 3<>/dev/tty; echo begun; {loop}; }} </dev/null | cat"
    to, source, made = _session(client, asking)
    expect(_line(source), b"begun", "the begin")
    while client.goes_on():
        to.write(b"word%d\n" % client.rounds)
        to.flush()
        expect(_line(source), b"heard word%d" % client.rounds, "an answer")
    to.write(b"\x04")
    to.flush()
    _leave(made, 0)


def interrupts(client: Client) -> None:
    """The interrupt character ends what is in the foreground, which says so, and the shell goes on with the next."""
    job = "sh -c 'trap \"echo interrupted \\$0; exit\" INT; echo started $0; while :; do sleep 0.05; done' "
    script = (
        f"stty -echo; echo begun; n=0; trap : INT; while read line; do n=$((n+1)); {job} $n; done; exit 5"
    )
    to, source, made = _session(client, script)
    expect(_line(source), b"begun", "the begin")
    number = 0
    while client.goes_on():
        number += 1
        to.write(b"next\n")
        to.flush()
        expect(_line(source), b"started %d" % number, "a job")
        to.write(b"\x03")
        to.flush()
        while not (said := _line(source).removeprefix(b"^C")):
            pass
        expect(said, b"interrupted %d" % number, "an interrupted job")
    to.write(b"\x04")
    to.flush()
    _leave(made, 5)


def logins(client: Client) -> None:
    """New sessions, one after another, each with a terminal of its own, and gone behind it."""
    while client.goes_on():
        _, source, made = _session(client, "tty; exit 3")
        said = _line(source)
        _leave(made, 3)
        expect(said[:9], b"/dev/pts/", "the terminal")
        time.sleep(0.3)  # it costs a key exchange


SSHD = Passenger(
    "sshd",
    "openssh-server",
    "sshd",
    2222,
    _prepare,
    (shell, echo, answers, interrupts, logins),
    places=(_RUN,),
    # The process that talks with somebody who has not logged in yet is not let open anything (RLIMIT_NOFILE 1); one
    # that comes between the look at the program and its being stopped lets CRIU give up.
    passing="can open no file more|Too many open files",
)
