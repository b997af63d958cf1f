"""The command as a process: start, signals, mistakes, capture files."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from finsy.proto import p4r
from scapy.utils import rdpcap

from tests.dataplane.p4runtime import process
from tests.dataplane.p4runtime.client import Client

pytestmark = pytest.mark.net

ANYWHERE = ["--", "--grpc-server-addr", "127.0.0.1:0"]


def test_serves_within_a_second_and_stops_cleanly() -> None:
    """The ready signal is true, SIGTERM ends it with status 0, and nothing is left."""
    with process.running("--no-p4", "--device-id", "5") as (switch, _):
        client = Client(switch.address, device_id=5)
        assert client.stub.Capabilities(p4r.CapabilitiesRequest(), timeout=5).p4runtime_api_version == "1.4.0"
        client.close()


def test_open_streams_do_not_delay_the_end() -> None:
    """A connected controller sees its stream end."""
    with process.running("--no-p4", "--device-id", "5") as (switch, _):
        client = Client(switch.address, device_id=5)
        stream = client.stream()
        stream.bid(1, device_id=5)
        assert stream.expect("arbitration").status.code == 0
        switch.process.send_signal(signal.SIGINT)
        assert switch.process.wait(5) == 0
        client.close()


def test_ends_with_its_parent(tmp_path: Path) -> None:
    """--exit-with-parent: no switch outlives a launcher that was killed."""
    script = (
        "import subprocess, sys, os\n"
        f"p = subprocess.Popen([sys.executable, '-m', 'dataplane.switch', '--no-p4', '--exit-with-parent', '--', "
        f"'--grpc-server-addr', 'unix:{tmp_path}/grpc'], stdout=subprocess.PIPE)\n"
        "p.stdout.readline()\n"
        "print(p.pid, flush=True)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", script], cwd=process.CHECKOUT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.wait(10)
    handle = Path(f"/proc/{pid}/stat")
    deadline = time.monotonic() + 5
    # An orphan whose new parent does not reap it stays as a zombie.
    while handle.exists() and handle.read_text().split()[2] != "Z":
        assert time.monotonic() < deadline, "the switch outlives its parent"
        time.sleep(0.02)
    parent.stdout.close()


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--no-p4", "-i", "1@nowhere0", *ANYWHERE], 1, "port 1: there is no interface nowhere0"),
        (["--no-p4", "--", "--grpc-server-addr", "203.0.113.1:9559"], 1, "cannot listen on 203.0.113.1:9559"),
        (
            ["/nowhere.json", *ANYWHERE],
            2,
            "/nowhere.json: there is no such file",
        ),
        ([__file__, *ANYWHERE], 1, "test_switch_command.py: "),
        (
            ["--no-p4", "--log-file", "/nowhere/x.log", *ANYWHERE],
            1,
            "--log-file /nowhere/x.log: No such file or directory",
        ),
        (
            ["--no-p4", "--ready-fd", "77", *ANYWHERE],
            1,
            "--ready-fd 77: Bad file",
        ),
        (["--bogus"], 2, "unrecognized arguments: --bogus"),
    ],
)
def test_mistakes_are_one_sentence(words: list[str], status: int, message: str) -> None:
    """No traceback, a status that is not zero."""
    code, _, complaint = process.run_to_end(*words)
    assert code == status
    assert complaint.startswith("p4ferry-switch: ")
    assert message in complaint
    assert len(complaint.splitlines()) == 1


def test_address_in_use() -> None:
    """A second switch on the same port is not started."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        code, _, complaint = process.run_to_end("--no-p4", "--", "--grpc-server-addr", address)
    assert (code, complaint) == (
        1,
        f"p4ferry-switch: cannot listen on {address}: in use by another program, or no such address\n",
    )


def test_needs_root(tmp_path: Path) -> None:
    """Said in one sentence."""
    done = subprocess.run(
        ["setpriv", "--reuid=65534", "--clear-groups", *process.COMMAND, "--no-p4"],
        cwd=process.CHECKOUT, capture_output=True, text=True, timeout=15, check=False,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    if "Permission denied" in done.stderr or "No module named" in done.stderr:
        pytest.skip("another user cannot read the checkout")
    assert (done.returncode, done.stderr) == (
        1,
        "p4ferry-switch: a switch in the kernel needs root: call it with sudo\n",
    )


def test_version_and_warnings() -> None:
    """--version alone; options without effect are named on standard error."""
    code, printed, _ = process.run_to_end("--version")
    assert code == 0
    assert printed.startswith("p4ferry-switch 0.")
    _, _, complaint = process.run_to_end("--no-p4", "--thrift-port", "9090", "-i", "1@nowhere0", *ANYWHERE)
    assert complaint.splitlines()[0] == "p4ferry-switch: warning: --thrift-port has no effect on this switch"


def test_capture_files(tmp_path: Path) -> None:
    """INTF_in.pcap has what came in, byte for byte, when the switch ends."""
    frames = [bytes.fromhex("0200000000020200000000010800") + bytes([number]) * 50 for number in range(5)]
    with process.running("--no-p4", f"--pcap={tmp_path}") as (_, cables):
        for frame in frames:
            cables[1].send(frame)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "sw1_in.pcap", "sw1_out.pcap", "sw2_in.pcap", "sw2_out.pcap",
    ]  # fmt: skip
    captured = rdpcap(str(tmp_path / "sw1_in.pcap"))
    assert [bytes(packet) for packet in captured] == frames
    assert abs(float(captured[0].time) - time.time()) < 60
