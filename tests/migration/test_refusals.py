"""What cannot be moved is refused before the freeze, by name; every refusal by a real program that deserves it."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path
from types import SimpleNamespace

import pytest
from moving import ECHO, PYTHON, Stage, says, stage, wait_until

from migration import refusals, tree
from migration.model import App, Host
from migration.namespaces import in_netns
from migration.neighbours import Surroundings, check_unix
from migration.report import Event, Outcome

pytestmark = pytest.mark.net

START = """
import ctypes, mmap, os, signal, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
"""
END = """
print("ready", flush=True)
time.sleep(1000)
"""
OFFENDERS = {
    "terminal": (
        "a, b = os.openpty(); os.close(a)",
        r"has the terminal /dev/pts/\d+ \(deleted\) open \(descriptor \d+\), but",
    ),
    "device": ("fd = os.open('/dev/kmsg', os.O_RDONLY)", r"has the device /dev/kmsg open \(descriptor \d+\)"),
    "packet": ("s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", "has a PACKET socket open"),
    "raw": ("s = socket.socket(socket.AF_INET, socket.SOCK_RAW, 1)", "has a RAW socket open"),
    "vsock": ("s = socket.socket(socket.AF_VSOCK)", "has a AF_VSOCK socket open"),
    "mptcp": ("s = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 262)", "has a MPTCP socket open"),
    "netlink": (
        "s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW); s.bind((0, 0))\n"
        "s.send(bytes.fromhex('14000000120001030100000000000000000000') + bytes(1))",
        "has a netlink socket with unread messages open",
    ),
    "io_uring": (
        "fd = libc.syscall(425, 4, ctypes.create_string_buffer(120)); assert fd > 0",
        "has an io_uring open",
    ),
    "packet pipe": ("r, w = os.pipe2(os.O_DIRECT)", "has a pipe in packet mode open"),
    "namespace": ("fd = os.open('/proc/self/ns/net', os.O_RDONLY)", "has a net namespace open"),
    "process file": (
        "fd = os.open('/proc/self/stat', os.O_RDONLY)",
        r"has the file /proc/\d+/stat of process",
    ),
    "no file more": (
        "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (3, 3))",
        r"can open no file more \(RLIMIT_NOFILE 3\)",
    ),
    "ghost": (
        "fd = os.open('/dev/shm', os.O_TMPFILE | os.O_RDWR); os.ftruncate(fd, 100 << 20)",
        "has the deleted file .* of 100 MiB open",
    ),
    "message queue": (
        "rt = ctypes.CDLL('librt.so.1', use_errno=True); assert rt.mq_open(b'/orders', 0o102, 0o600, None) > 0; "
        "rt.mq_unlink(b'/orders')",
        r"has the POSIX message queue /orders( \(deleted\))? open \(descriptor \d+\)",
    ),
    "own network": (
        "if os.fork() == 0: assert libc.unshare(0x40000000) == 0; print('ready', flush=True)\ntime.sleep(1000)",
        "is in a net namespace of its own",
    ),
    "own time": (
        "if os.fork() == 0:\n    assert libc.unshare(0x80) == 0\n    if os.fork() == 0: print('ready', flush=True)\n"
        "    time.sleep(1000)\ntime.sleep(1000)",
        "is in a time namespace of its own|has another time namespace for its children",
    ),
    "time for children": (
        "assert libc.unshare(0x80) == 0",
        r"process \d+ has another time namespace for its children than for itself \(CLONE_NEWTIME\)",
    ),
    "time": ("fd = os.open('/proc/self/ns/time', os.O_RDONLY)", "has a time namespace open"),
    "pending trap": (
        "signal.pthread_sigmask(signal.SIG_BLOCK, [5]); os.kill(os.getpid(), 5)",
        r"process \d+ has a pending signal SIGTRAP, with which",
    ),
    "pending trap of a thread": (
        "import threading; held = threading.Event()\n"
        "signal.pthread_sigmask(signal.SIG_BLOCK, [5])\n"
        "one = threading.Thread(target=held.wait, daemon=True); one.start(); signal.pthread_kill(one.ident, 5)",
        r"process \d+ has a pending signal SIGTRAP, with which",
    ),
    "data before accepting": (
        "s = socket.socket(socket.AF_UNIX); s.bind('\\0early'); s.listen(); c = socket.socket(socket.AF_UNIX)\n"
        "c.connect('\\0early'); c.send(b'early')",
        "a connection to its UNIX socket that it has not accepted yet has had data written to it",
    ),
    "closed before accepting": (
        "s = socket.socket(socket.AF_UNIX); s.bind('\\0gone'); s.listen(); c = socket.socket(socket.AF_UNIX)\n"
        "c.connect('\\0gone'); c.close()",
        "a connection to its UNIX socket that it has not accepted yet has been closed by its other end",
    ),
    "traced": (
        "if os.fork() == 0: libc.ptrace(0, 0, 0, 0); print('ready', flush=True)\ntime.sleep(1000)",
        r"is traced by process \d+",
    ),
    "wrong address": (
        "s = socket.create_server(('10.99.0.1', 7000))",
        "TCP 10.99.0.1:7000 is not bound to B's address 10.77.2.2",
    ),
    "IPv6": ("s = socket.create_server(('fd00::1', 7000), family=10)", "only IPv4 is carried so far"),
    "stranger": (
        "s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.connect(('203.0.113.5', 9))",
        r"UDP 10.77.2.2:\d+ to 203.0.113.5:9 has a peer outside of the testbed",
    ),
    "taken": ("s = socket.create_server(('0.0.0.0', 7100))", "TCP port 7100 is taken on C"),
}


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with stage(tmp_path_factory.mktemp("refusals")) as built:
        for command in ("ip addr add 10.99.0.1/32 dev lo", "ip addr add fd00::1/128 dev lo nodad"):
            subprocess.run(
                ["nsenter", f"--net=/proc/{built.hosts['B'].pid}/ns/net", *command.split()], check=True
            )
        with in_netns(built.hosts["C"].pid, lambda: socket.create_server(("10.77.3.2", 7100))):
            yield built


def launch(scene: Stage, name: str, script: str, host: str = "B") -> App:
    """Start a program and wait until it has done its deed."""
    log = scene.folder / f"{name.replace(' ', '-')}.log"
    log.unlink(missing_ok=True)
    app = scene.runtime.launch(name, scene.hosts[host], [PYTHON, "-c", START + script + END], log)
    wait_until(lambda: says(log, "ready") or not scene.runtime.is_running(app), "its deed")
    assert scene.runtime.is_running(app), log.read_text()
    return app


def refuse(scene: Stage, app: App, reason: str, apps: list[App] | None = None) -> None:
    """Ask for a move that must be refused, and see that nothing has happened to the program."""
    hosts = {host.address for host in scene.hosts.values()}
    surroundings = Surroundings(lambda: apps or [app], lambda: hosts)
    events: list[Event] = []
    report = scene.migrator(surroundings=surroundings).migrate(app, scene.hosts["C"], events.append)
    assert report.outcome is Outcome.REFUSED, report.reason
    assert report.reason is not None
    assert report.reason.startswith(f"{app.name} cannot be moved: ")
    assert re.search(reason, report.reason), report.reason
    assert events == []
    assert scene.runtime.is_running(app)
    assert app.host.name == "B"


@pytest.mark.parametrize("name", OFFENDERS)
def test_offender_is_refused(scene: Stage, name: str) -> None:
    """The sentence says what the program has, and where."""
    script, reason = OFFENDERS[name]
    app = launch(scene, name, script)
    refuse(scene, app, reason)
    scene.runtime.terminate(app)


HARMLESS = """
import resource
s = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW); s.bind((0, 0))
fds = [os.open('/dev/' + n, os.O_RDWR) for n in ('null', 'zero', 'full', 'random', 'urandom')]
fds += [os.open('/proc/meminfo', os.O_RDONLY), os.pidfd_open(os.getpid())]
m = mmap.mmap(os.open('/dev/zero', os.O_RDWR), 4096)
number = os.open('/dev/null', os.O_RDONLY)
os.close(number)
resource.setrlimit(resource.RLIMIT_NOFILE, (number + 4, 100))
if os.fork() == 0:
    os.setpriority(os.PRIO_PROCESS, 0, 5)
    time.sleep(1000)
"""


def test_what_looks_strange_but_can_be_moved(scene: Stage) -> None:
    """Nothing is refused that works: devices without state, an idle netlink socket, a pidfd, a file of /proc."""
    app = launch(scene, "harmless", HARMLESS)
    report = scene.migrator().migrate(app, scene.hosts["C"])
    assert (report.outcome, report.reason) == (Outcome.COMPLETED, None)
    scene.runtime.terminate(app)


PASSING = """
fd = os.open('/proc/self/stat', os.O_RDONLY)
signal.signal(signal.SIGUSR1, lambda *_: os.close(fd))
"""


def test_what_passes_is_no_obstacle(scene: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is not there at a second look does not count, as Redis's /proc/self/stat."""
    app = launch(scene, "passing", PASSING)

    def close(seconds: float) -> None:
        os.kill(app.pid, signal.SIGUSR1)
        wait_until(lambda: not any("/stat" in file.target for file in tree.open_files([app.pid])), "its end")

    monkeypatch.setattr(refusals, "time", SimpleNamespace(sleep=close))
    assert any("/stat of process" in offence for offence in refusals.offences(app, scene.hosts["C"]))
    assert refusals.find(app, scene.hosts["C"]) is None
    scene.runtime.terminate(app)


def test_peer_on_the_same_host_is_named(scene: Stage) -> None:
    """A program connected with one that would stay is refused by the other's name, and told to take it along."""
    (scene.folder / "server.log").unlink(missing_ok=True)
    server = scene.serve("B", name="server")
    for address in ("127.0.0.1", "10.77.2.2"):
        client = launch(scene, "client", f"s = socket.create_connection(({address!r}, 7000))")
        for app, other in ((client, server), (server, client)):
            reason = f"is connected with {other.name} on B: move both, {app.name} and {other.name}, in one"
            refuse(scene, app, reason, [server, client])
        scene.runtime.terminate(client)
    scene.runtime.terminate(server)


def test_peer_that_is_no_app_is_named(scene: Stage) -> None:
    """Some process of the host gets its number and its command's name."""
    enter = ["nsenter", f"--net=/proc/{scene.hosts['B'].pid}/ns/net"]
    log = scene.folder / "stranger.log"
    with (
        log.open("w") as file,
        subprocess.Popen([*enter, PYTHON, ECHO, "server"], stdout=file, stderr=file) as stranger,
    ):
        try:
            wait_until(lambda: says(log, "listening"), "the stranger listening")
            app = launch(
                scene, "client", "s = socket.create_connection(('127.0.0.1', 7000)); s.send(b'x'); s.recv(1)"
            )
            refuse(scene, app, rf"is connected with process {stranger.pid} \(python3[.\d]*\) on B$")
            scene.runtime.terminate(app)
        finally:
            stranger.kill()  # whatever fails: leaving the block waits for its end


FORKING = """
children = []
def fork():
    ends = socket.socketpair()
    if (pid := os.fork()) == 0:
        ends[0].close()
        time.sleep(0.01)
        os._exit(0)
    ends[1].close()
    children.append((pid, ends[0]))
    if len(children) > 20:
        os.waitpid(children.pop(0)[0], 0)
print("ready", flush=True)
while True:
    fork()
"""


def test_children_that_come_and_go_are_no_strangers(scene: Stage) -> None:
    """One that is born with a pair of sockets while the processes are gone through is no other program."""
    app = launch(scene, "forking", FORKING)
    for _ in range(100):
        check_unix(app, Surroundings())
    scene.runtime.terminate(app)


def test_unix_peer_is_named(scene: Stage) -> None:
    """A UNIX socket between programs that were started apart: start them together."""
    path = scene.folder / "unix"
    server = launch(
        scene,
        "unix-server",
        f"l = socket.socket(socket.AF_UNIX); l.bind({str(path)!r}); l.listen()\n"
        "import threading; threading.Thread(target=lambda: globals().update(c=l.accept()), daemon=True).start()",
    )
    client = launch(scene, "unix-client", f"s = socket.socket(socket.AF_UNIX); s.connect({str(path)!r})")
    reason = "a UNIX socket connects it with unix-server: start both with the same --group"
    refuse(scene, client, reason, [server, client])
    for app in (server, client):
        scene.runtime.terminate(app)


def test_port_taken_while_preparing(scene: Stage) -> None:
    """Somebody takes the port after the plan was made: refused still before the freeze."""
    app = scene.serve("B")
    thief: list[socket.socket] = []

    def steal(step: str, when: str) -> None:
        if (step, when) == ("prepare", "before"):
            thief.append(in_netns(scene.hosts["C"].pid, lambda: socket.create_server(("0.0.0.0", 7000))))

    report = scene.migrator(fault=steal).migrate(app, scene.hosts["C"])
    thief[0].close()
    assert (report.outcome, report.reason) == (
        Outcome.REFUSED,
        "echo cannot be moved: TCP port 7000 is taken on C",
    )
    assert "checkpoint" not in [step.name for step in report.steps]
    assert scene.migrator().migrate(app, scene.hosts["C"]).outcome is Outcome.COMPLETED
    scene.runtime.terminate(app)


@pytest.fixture
def private(scene: Stage) -> Iterator[Host]:
    """Host B with a mount of its own."""
    folder = scene.folder / "private"
    folder.mkdir(exist_ok=True)
    script = f"mount -t tmpfs tmpfs {folder} && cp -L {PYTHON} {folder}/python && exec sleep infinity"
    enter = ["nsenter", f"--net=/proc/{scene.hosts['B'].pid}/ns/net", "unshare", "-m", "sh", "-c", script]
    process = subprocess.Popen(enter)
    comm = Path(f"/proc/{process.pid}/comm")
    wait_until(lambda: comm.read_text().strip() == "sleep", "the mount")
    yield replace(scene.hosts["B"], pid=process.pid)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("f = open('{folder}/data', 'w')", "its file .*/private/data is not on C"),
        ("os.chdir('{folder}')", "its file .*/private is another one on C"),
        ("f = open('{folder}/map', 'wb+'); f.write(bytes(4096)); f.flush()\n"
         "m = mmap.mmap(f.fileno(), 4096); f.close()", "its file .*/private/map is not on C"),
        ("if sys.executable != '{folder}/python': os.execv('{folder}/python', ['{folder}/python', *sys.orig_argv[1:]])",
         "its file .*/private/python is not on C"),
        ("f = open('{folder}/gone', 'w'); os.unlink('{folder}/gone')",
         "the folder .*/private of its deleted file .*/private/gone is not on C"),
    ],
)  # fmt: skip
def test_file_that_only_the_source_has(scene: Stage, private: Host, how: str, what: str) -> None:
    """Open, deleted and mapped files, the working directory and the program itself must be the same at the target."""
    folder = scene.folder / "private"
    log = scene.folder / "owner.log"
    log.unlink(missing_ok=True)
    script = START + how.replace("{folder}", str(folder)) + END
    app = scene.runtime.launch("owner", private, [PYTHON, "-c", script], log)
    wait_until(lambda: says(log, "ready") or not scene.runtime.is_running(app), "its deed")
    assert scene.runtime.is_running(app), log.read_text()
    refuse(scene, app, what)
    scene.runtime.terminate(app)


def test_reachable_peers_are_not_refused() -> None:
    """Without a list of addresses any peer may be there; with one, only those, and multicast groups."""
    here, there = IPv4Address("10.0.0.1"), IPv4Address("10.0.0.2")
    assert Surroundings().leads_to(there)
    some = Surroundings(addresses=lambda: {here})
    assert some.leads_to(here)
    assert some.leads_to(IPv4Address("224.0.0.251"))
    assert not some.leads_to(there)
