"""Pseudoterminals move with a program that has both ends; what is in them stays where the program goes on.

What each has, one by one, is in tests/fidelity (test_fidelity.py).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from moving import PROJECT, PYTHON, Stage, says, stage, wait_until

from migration.criu import Aside, Worker
from migration.custody import Custody
from migration.errors import MigrationError
from migration.model import App
from migration.process import ProcessRuntime
from migration.pseudoterminal import FOLDER, Terminal
from migration.recovery import Verdict
from migration.report import Outcome
from migration.termios2 import Settings
from migration.transfer.modes import Mode, Wish

pytestmark = pytest.mark.net

# A terminal with a line, an unfinished one and output that nobody has read; when a file is there it says what there is.
FULL = """
import fcntl, os, sys, termios, time
master, slave = os.openpty()
os.write(slave, b"output\\n")
os.write(master, b"line\\nunfin")
while fcntl.ioctl(master, termios.FIONREAD, bytes(4))[0] < 19:  # until all is echoed
    time.sleep(0.01)
print("ready", os.ttyname(slave), flush=True)
while not os.path.exists(sys.argv[1]):
    time.sleep(0.02)
for fd in (master, slave):
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    assert not flags & os.O_NONBLOCK, flags
said = os.read(master, 1000)
os.write(master, b"ished\\n")
print([said, os.read(slave, 1000), os.read(slave, 1000)], flush=True)
time.sleep(1000)
"""
TOLD = r"[b'output\r\nline\r\nunfin', b'line\n', b'unfinished\n']"
# A shell in a session of its own, to which is typed what the files PREFIX.0, PREFIX.1, … have; what it says is told.
SHELL = """
import os, pty, sys, threading, time
pid, master = pty.fork()
if pid == 0:
    os.execvp("bash", ["bash", "--norc", "--noediting", "-i"])
os.write(master, b"PS1=; stty -echo; sleep 1000 & echo here $((6*7))\\n")
def copy():
    while True:
        os.write(1, os.read(master, 1000))
threading.Thread(target=copy, daemon=True).start()
asked = 0
while True:
    if os.path.exists(f"{sys.argv[1]}.{asked}"):
        with open(f"{sys.argv[1]}.{asked}", "rb") as file:
            os.write(master, file.read())
        asked += 1
    time.sleep(0.02)
"""


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("terminals")) as built:
        yield built


def launch(scene: Stage, name: str, script: str, *arguments: str, ready: str = "ready") -> App:
    """Start a program and wait until it is ready."""
    log = scene.folder / f"{name}.log"
    command = [PYTHON, "-c", script, *(arguments or [str(log.with_suffix(".ask"))])]
    app = scene.runtime.launch(name, scene.hosts["B"], command, log)
    wait_until(lambda: says(log, ready), "the program's being ready")
    return app


def see_told(app: App) -> None:
    """See that a program finds in its terminal what it has left there, and in its descriptors what they were."""
    app.log.with_suffix(".ask").touch()
    wait_until(lambda: says(app.log, "\n["), "its answer")
    assert app.log.read_text().splitlines()[-1:] == [TOLD]


class Shell:
    """An interactive shell to which lines are typed."""

    def __init__(self, scene: Stage) -> None:
        self.prefix, self.count = Path(tempfile.mkdtemp(dir=scene.folder)) / "typed", 0
        self.app = launch(scene, f"shell-{self.prefix.parent.name}", SHELL, str(self.prefix), ready="here 42")

    def type(self, text: str, answer: str) -> None:
        """Type something, and wait for an answer that there has not been before."""
        before = self.app.log.read_text().count(answer)
        new = self.prefix.with_suffix(".new")
        new.write_text(text)
        new.rename(f"{self.prefix}.{self.count}")
        self.count += 1
        wait_until(lambda: self.app.log.read_text().count(answer) > before, f"{answer!r} after {text!r}")


def test_shell_goes_on(scene: Stage) -> None:
    """An interactive shell in a session with a terminal: what it runs in the foreground, and behind, goes along."""
    shell = Shell(scene)
    for host, mode in (("C", Mode.STOP), ("B", Mode.LAZY), ("C", Mode.STOP), ("B", Mode.STOP)):
        shell.type("sh -c \"trap 'echo interrupted' INT; echo started; cat\"\n", "started\n")
        shell.type("to and fro\n", "to and fro\n")
        report = scene.migrator().migrate(shell.app, scene.hosts[host], wish=Wish(mode=mode))
        assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
        shell.type("again\n", "again\n")
        shell.type("\x03", "interrupted\n")  # which is for the foreground alone
        shell.type("jobs; tty\n", "/dev/pts/0\n")
        assert "Running" in shell.app.log.read_text().rpartition("interrupted")[2]
    scene.runtime.terminate(shell.app, 0.1)


def test_controlling_terminal_is_open_by_that_name(scene: Stage) -> None:
    """What has opened /dev/tty, as pagers and whatever asks for a password do, goes on with the same terminal."""
    shell = Shell(scene)
    for host in ("C", "B"):
        shell.type("{ echo reading; read word <&3; echo read $word >&3; } 3<>/dev/tty\n", "reading\n")
        report = scene.migrator().migrate(shell.app, scene.hosts[host])
        assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
        assert any("opened as /dev/tty" in warning for warning in report.warnings)
        shell.type(f"word{host}\n", f"read word{host}\n")
    scene.runtime.terminate(shell.app, 0.1)


@pytest.mark.parametrize("step", ["checkpoint", "rewrite", "transfer", "restore"])
def test_nothing_is_taken_from_one_that_stays(scene: Stage, step: str) -> None:
    """Whatever fails, what was in the terminal is there again, once, and descriptors block as they did."""

    def fail(at: str, when: str) -> None:
        if (at, when) == (step, "after"):
            raise MigrationError("injected")

    app = launch(scene, f"stays-{step}", FULL)
    for _ in range(2):
        report = scene.migrator(fault=fail).migrate(app, scene.hosts["C"])
        assert (report.outcome, report.reason) == (Outcome.ROLLED_BACK, "injected")
    see_told(app)
    scene.runtime.terminate(app, 0.1)


@pytest.mark.parametrize("script", ["query-ext-files", "post-dump"])
def test_nothing_is_lost_with_criu(scene: Stage, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """CRIU is killed before it writes the image, and while it does."""
    wait_for = Worker.wait_for

    def kill_then_wait(self: Worker, awaited: str, aside: Aside | None = None) -> int:
        if awaited == "post-dump" == script:
            self.kill()
        found = wait_for(self, awaited, aside)
        if awaited == script:
            self.kill()
        return found

    app = launch(scene, f"killed-{script}", FULL)
    with monkeypatch.context() as patched:
        patched.setattr(Worker, "wait_for", kill_then_wait)
        report = scene.migrator().migrate(app, scene.hosts["C"])
    assert report.outcome is Outcome.ROLLED_BACK, report.reason
    see_told(app)
    report = scene.migrator().migrate(app, scene.hosts["C"])
    assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
    scene.runtime.terminate(app, 0.1)


CRASH = """
import os, signal, sys, time
sys.path[:0] = [{project!r}]
from pathlib import Path
from ipaddress import IPv4Address
from migration.custody import Custody
from migration.migrator import Migrator
from migration.model import Host
from migration.process import ProcessRuntime
from migration.steering import NullSteering
def crash(step, when):
    if (step, when) == ("transfer", "before"):
        os.kill({victim}, signal.SIGKILL)
        os.kill(os.getpid(), signal.SIGKILL)
hosts = [Host(n, p, IPv4Address(a)) for n, p, a in {hosts!r}]
runtime = ProcessRuntime(custody=Custody(Path({keeper!r})))
log = Path({log!r})
app = runtime.launch("crash", hosts[0], ["/usr/bin/python3", "-c", {script!r}, str(log.with_suffix(".ask"))], log)
while not log.exists() or "ready" not in log.read_text():
    time.sleep(0.01)
folders = dict(images=Path({images!r}), journals=Path({journals!r}))
Migrator(NullSteering(), runtime, **folders, fault=crash).migrate(app, hosts[1])
"""


@pytest.mark.parametrize(
    ("victim", "verdict"),
    [("os.getpid()", Verdict.UNDONE), ("app.pid", Verdict.REVIVED)],
    ids=["undone", "revived"],
)
def test_controller_is_killed_while_it_has_it(
    scene: Stage, tmp_path: Path, victim: str, verdict: Verdict
) -> None:
    """The next controller puts back what is in no image, whether the original lives or is restored from its image."""
    code = CRASH.format(
        project=str(PROJECT),
        victim=victim,
        hosts=[(h.name, h.pid, str(h.address)) for h in (scene.hosts["B"], scene.hosts["C"])],
        keeper=str(tmp_path / "keeper"),
        log=str(tmp_path / "crash.log"),
        script=FULL,
        images=str(Path("/dev/shm") / f"p4ferry-test-{os.getpid()}"),
        journals=str(scene.folder / "journals"),
    )
    done = subprocess.run([sys.executable, "-c", code], timeout=60)
    assert done.returncode == -signal.SIGKILL
    with ProcessRuntime(custody=Custody.adopt(tmp_path / "keeper")) as runtime:
        scene.runtime, ours = runtime, scene.runtime
        [recovered] = scene.migrator().recover()
        assert recovered.verdict is verdict, recovered.reason
        see_told(recovered.app)
        scene.runtime = ours


def test_every_program_has_terminals_of_its_own(scene: Stage) -> None:
    """The numbers begin at 0 in each; what it sees is as the machine has it, but for that."""
    script = (
        "import os; s = os.statvfs('/dev/pts').f_flag; print(sorted(os.listdir('/dev/pts')), s, flush=True)\n"
        + FULL
    )
    apps = [launch(scene, f"own-{number}", script) for number in range(2)]
    for app in apps:
        listed, ready = app.log.read_text().splitlines()
        assert listed == f"['ptmx'] {os.statvfs(FOLDER).f_flag}"
        assert ready == f"ready {FOLDER}/0"
        place = Path(f"/proc/{app.pid}/root{FOLDER}")
        machines = Path(FOLDER, "ptmx").stat()
        assert (place / "ptmx").stat().st_mode == machines.st_mode
        assert options(app.pid) == options(os.getpid())
    for app in apps:
        report = scene.migrator().migrate(app, scene.hosts["C"])
        assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
        see_told(app)
        scene.runtime.terminate(app, 0.1)


def options(pid: int) -> list[str]:
    """Return how the devpts is mounted that a process sees."""
    lines = Path(f"/proc/{pid}/mountinfo").read_text().splitlines()
    found = [line for line in lines if line.split()[4] == FOLDER]
    return [found[-1].split()[5], found[-1].split()[-1]]


def test_members_of_a_group_share_theirs(scene: Stage) -> None:
    """A terminal's ends in two programs that move together, handed over by a socket."""
    path = scene.folder / "handed.sock"
    first = f"""
import os, socket, time
l = socket.socket(socket.AF_UNIX); l.bind({str(path)!r}); l.listen()
master, slave = os.openpty()
print("bound", flush=True)
c, _ = l.accept()
socket.send_fds(c, [b"x"], [slave]); os.close(slave); c.recv(1)
while True:
    os.write(master, b"tick\\n"); print(os.read(master, 100), flush=True); time.sleep(0.02)
"""
    second = f"""
import os, socket, tty
s = socket.socket(socket.AF_UNIX); s.connect({str(path)!r})
fd = socket.recv_fds(s, 10, 1)[1][0]; tty.setraw(fd); s.send(b"x")
while True:
    os.write(fd, b"<" + os.read(fd, 100) + b">"); print("beat", flush=True)
"""
    group = scene.runtime.launch_group("pair", scene.hosts["B"], scene.folder / "pair.log")
    logs = [scene.folder / f"{name}.log" for name in ("first", "second")]
    scene.runtime.launch_in(group, "first", [PYTHON, "-c", first], logs[0])
    wait_until(lambda: says(logs[0], "bound"), "the socket")
    scene.runtime.launch_in(group, "second", [PYTHON, "-c", second], logs[1])
    for host in ("C", "B"):
        report = scene.migrator().migrate(group, scene.hosts[host])
        assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
        for log in logs:
            before = len(log.read_text())
            wait_until(lambda: len(log.read_text()) > before + 100, "more")  # noqa: B023
    scene.runtime.terminate(group, 0.1)
    said = logs[0].read_text().splitlines()[1:]
    assert set(said) == {r"b'<tick\n>'"}


@pytest.mark.parametrize("is_only_end", [True, False], ids=["slave", "master"])
def test_terminal_from_outside_is_refused(scene: Stage, is_only_end: bool) -> None:
    """A user's terminal, as any whose other end would stay, is named."""
    path = scene.folder / "outside.sock"
    path.unlink(missing_ok=True)
    receive = f"import os, socket, time\ns = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)\ns.bind({str(path)!r})\n"
    receive += "print('bound', flush=True); fds = socket.recv_fds(s, 10, 2)[1]; s.close(); print('ready', flush=True)\n"
    app = launch(scene, f"outside-{is_only_end}", receive + "time.sleep(1000)", ready="bound")
    ends = os.openpty()
    with_it = ends[1:] if is_only_end else ends
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.connect(str(path))
        socket.send_fds(sender, [b"x"], with_it)
    wait_until(lambda: says(app.log, "ready"), "the terminal's arrival")
    report = scene.migrator().migrate(app, scene.hosts["C"])
    assert report.outcome is Outcome.REFUSED
    assert report.reason is not None
    name = os.ttyname(ends[1])
    assert f"has the terminal {name} open (descriptor " in report.reason
    assert "but it comes from outside, where its other end would stay" in report.reason
    scene.runtime.terminate(app, 0.1)
    for end in ends:
        os.close(end)


def test_what_is_taken_can_be_written_down() -> None:
    """The file beside the image has everything, for the next controller."""
    settings = Settings(1, 2, 3, 4, 0, bytes(range(19)), (38400, 12345))
    one = Terminal(
        3, settings, (1, 2), (3, 4), (b"a\n", b"", b"\xff"), b"x", b"y", "tcflow", (True, False), False, True
    )
    assert Terminal.from_json(one.to_json()) == one
    assert len(settings.pack()) == 44
    assert Settings.unpack(settings.pack()) == settings
