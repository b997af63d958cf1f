"""The command line: what simple_switch_grpc takes, and one sentence for each mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

from dataplane.switch.options import SwitchOptions, UsageError, parse_options

TARGET = ["--", "--grpc-server-addr", "127.0.0.1:50051", "--cpu-port", "255"]


def test_a_full_command_line(tmp_path: Path) -> None:
    """As p4-utils and our own launcher write it."""
    log = tmp_path / "s1.log"
    words = ["-i", "1@s1-eth1", "-i", "2@s1-eth2", "--device-id", "3", "--log-file", str(log), "-L", "debug",
             "--pcap", str(tmp_path), "--no-p4", *TARGET]  # fmt: skip
    assert parse_options(words) == SwitchOptions(
        interfaces=((1, "s1-eth1"), (2, "s1-eth2")),
        device_id=3,
        address="127.0.0.1:50051",
        log_file=log,
        log_level="debug",
        pcap_dir=tmp_path,
    )


def test_defaults() -> None:
    """As BMv2's, but for a CPU port."""
    options = parse_options(["--no-p4"])
    assert options == SwitchOptions()
    assert (options.address, options.device_id, options.drop_port, options.cpu_port) == (
        "0.0.0.0:9559",
        0,
        511,
        255,
    )


def test_program_and_pcap(tmp_path: Path) -> None:
    """`--pcap` before the program takes no directory."""
    program = tmp_path / "program.json"
    program.write_text("{}")
    assert parse_options([str(program)]).program == program
    options = parse_options(["--pcap", str(program)])
    assert (options.program, options.pcap_dir) == (program, Path())
    assert "ignored because of --no-p4" in parse_options(["--no-p4", str(program)]).warnings[0]


def test_options_without_effect_are_warned_of() -> None:
    """Each by name."""
    words = ["--no-p4", "--thrift-port", "9090", "--nanolog", "ipc:///x", "--debugger", "--log-flush",
             "--notifications-addr", "ipc:///y", "--max-port-count", "16", "--", "--priority-queues", "8"]  # fmt: skip
    warned = [warning.split()[0] for warning in parse_options(words).warnings]
    assert sorted(warned) == sorted(word for word in words[1:] if word.startswith("--") and word != "--")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "give a BMv2 JSON file"),
        (["/nowhere/x.json"], "/nowhere/x.json: there is no such file"),
        (["--no-p4", "-i", "eth1"], "--interface eth1: write PORT@INTF"),
        (["--no-p4", "-i", "x@eth1"], "write PORT@INTF"),
        (["--no-p4", "-i", "512@eth1"], "ports are 0..511"),
        (["--no-p4", "-i", "1@a", "-i", "1@b"], "twice"),
        (["--no-p4", "-i", "1@a", "-i", "2@a"], "twice"),
        (["--no-p4", "-i", "255@a"], "255 is the CPU port"),
        (["--no-p4", "-i", "511@a"], "511 is the drop port"),
        (["--no-p4", "--", "--cpu-port", "511"], "are both 511"),
        (["--no-p4", "--", "--cpu-port", "0"], "0 is not in 1..511"),
        (["--no-p4", "--", "--cpu-port", "many"], "'many' is not a number"),
        (["--no-p4", "--device-id", "-1"], "not in 0.."),
        (["--no-p4", "-L", "loud"], "invalid choice: 'loud'"),
        (["--no-p4", "--log-console", "--log-file", "x"], "exclude each other"),
        (["--no-p4", "--pcap", "/nowhere"], "--pcap /nowhere: there is no such directory"),
        (["--no-p4", "--what"], "unrecognized arguments: --what"),
        (["--no-p4", "--", "--what"], "unrecognized arguments: --what"),
        (["--no-p4", "--use-files", "3"], "--use-files is not possible here"),
        (["--no-p4", "--", "--grpc-server-ssl"], "TLS is not offered"),
        (["--no-p4", "--", "--grpc-server-cert", "x.pem"], "TLS is not offered"),
        (["--no-p4", "--", "--grpc-server-addr", "9559"], "write ADDRESS:PORT"),
        (["--no-p4", "--cpu-port", "255"], "unrecognized arguments: --cpu-port"),
    ],
)
def test_mistakes(words: list[str], message: str) -> None:
    """One sentence says what and where."""
    with pytest.raises(UsageError) as caught:
        parse_options(words)
    assert message in str(caught.value)


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    """Both halves."""
    with pytest.raises(SystemExit) as caught:
        parse_options(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    for option in (
        "--interface",
        "--device-id",
        "--no-p4",
        "--pcap",
        "--ready-fd",
        "--port-socket",
        "--grpc-server-addr",
        "--cpu-port",
    ):
        assert option in text
