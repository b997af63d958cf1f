"""The command p4ferry-p4c."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from finsy.proto import p4i
from google.protobuf import json_format, text_format

from dataplane.compiler.__main__ import main

from .skeleton import source

P4SRC = Path(__file__).parents[3] / "p4src"


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """Return a program's path."""
    path = tmp_path / "demo.p4"
    path.write_text(
        source(local="table t { key = { meta.a: exact; } actions = { NoAction; } }", apply="t.apply();")
    )
    return path


def test_writes_both_outputs_in_all_formats(program: Path, tmp_path: Path) -> None:
    """-o writes JSON; P4Info comes as text, binary and JSON, all saying the same."""
    files = [tmp_path / f"info{suffix}" for suffix in (".txtpb", ".txt", ".bin", ".json")]
    status = main(
        [str(program), "-o", str(tmp_path / "demo.json"), "--p4runtime-files", ",".join(map(str, files))]
    )
    assert status == 0
    assert json.loads((tmp_path / "demo.json").read_text())["program"] == str(program)
    text, also_text, binary, as_json = p4i.P4Info(), p4i.P4Info(), p4i.P4Info(), p4i.P4Info()
    text_format.Parse(files[0].read_text(), text)
    text_format.Parse(files[1].read_text(), also_text)
    binary.ParseFromString(files[2].read_bytes())
    json_format.Parse(files[3].read_text(), as_json)
    assert text == also_text == binary == as_json
    assert text.tables[0].preamble.name == "C.t"


@pytest.mark.parametrize("form", ["text", "binary", "json"])
def test_p4runtime_file_and_format(program: Path, tmp_path: Path, form: str) -> None:
    """--p4runtime-format decides for --p4runtime-file."""
    target = tmp_path / "info"
    assert main([str(program), "--p4runtime-file", str(target), "--p4runtime-format", form]) == 0
    start = {"text": b"pkg_info {", "json": b"{"}.get(form)
    assert start is None or target.read_bytes().startswith(start)


def test_options_of_p4c(program: Path, tmp_path: Path) -> None:
    """The usual command line of p4c-bm2-ss is understood."""
    arguments = [
        "--target",
        "bmv2",
        "--arch",
        "v1model",
        "--std",
        "p4-16",
        "--p4v",
        "16",
        "--emit-externs",
        "-T",
        "x:3",
    ]
    assert (
        main(
            [
                *arguments,
                "-DFOO=1",
                "-D",
                "BAR",
                "-UFOO",
                f"-I{tmp_path}",
                "-o",
                str(tmp_path / "o.json"),
                str(program),
            ]
        )
        == 0
    )


def test_defines_and_includes(tmp_path: Path) -> None:
    """-D and -I reach the preprocessor."""
    (tmp_path / "inc").mkdir()
    (tmp_path / "inc" / "n.p4").write_text("const bit<8> N = VALUE;\n")
    path = tmp_path / "a.p4"
    path.write_text(source(top="#include <n.p4>", apply="meta.a = N;"))
    output = tmp_path / "a.json"
    assert main([str(path), "-I", str(tmp_path / "inc"), "-DVALUE=0x2a", "-o", str(output)]) == 0
    assert '"0x2a"' in output.read_text()


def test_preprocess_only(program: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """-E prints the program without macros."""
    assert main(["-E", str(program)]) == 0
    output = capsys.readouterr().out
    assert "table t {" in output and "#include" not in output


def test_version_and_help(capsys: pytest.CaptureFixture[str]) -> None:
    """--version and --help answer."""
    assert main(["--version"]) == 0
    assert "2.23" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "--p4runtime-files" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "name a P4 program to compile"),
        (["x.p4", "--p4v", "14"], "only P4_16 is supported"),
        (["x.p4", "--std", "p4-14"], "only P4_16 is supported"),
        (["x.p4", "--arch", "psa"], "architecture 'psa' is not supported"),
        (["x.p4", "--target", "dpdk"], "target 'dpdk' is not supported"),
        (["x.p4", "--toJSON", "t.json"], "--toJSON (dumping the compiler's own tree) is not supported"),
        (["x.p4", "--pp", "t.p4"], "--pp (pretty-printing the program) is not supported"),
        (["x.p4", "--p4runtime-files", "info.xml"], "'info.xml' must end in one of"),
        (["x.p4", "--nonsense"], "unrecognized arguments: --nonsense"),
        (["x.p4", "-D", "1x"], "'1x' is not a name"),
        (["nothing.p4"], "cannot read 'nothing.p4': No such file or directory"),
    ],
)
def test_mistakes(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    """A wrong command line is one sentence and status 1."""
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error


def test_unwritable_output(program: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """An output that cannot be written is one sentence."""
    assert main([str(program), "-o", str(tmp_path / "none" / "o.json")]) == 1
    assert "cannot write" in capsys.readouterr().err


def test_not_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that is no text is one sentence."""
    path = tmp_path / "b.p4"
    path.write_bytes(b"\xff\xfe\x00")
    assert main([str(path)]) == 1
    assert "it is not UTF-8 text" in capsys.readouterr().err


def test_errors_and_warnings_on_stderr(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Errors give status 1; warnings 0, unless --Werror; --Wdisable silences them."""
    path = tmp_path / "w.p4"
    path.write_text(source(apply="meta.a = 300;"))
    assert main([str(path)]) == 0
    assert "warning: 300 does not fit" in capsys.readouterr().err
    assert main([str(path), "--Wdisable=overflow"]) == 0
    assert main([str(path), "--Wdisable"]) == 0
    assert capsys.readouterr().err == ""
    assert main([str(path), "--Werror"]) == 1
    path.write_text(source(apply="meta.a = nope; meta.b = nope2;"))
    assert main([str(path)]) == 1
    assert capsys.readouterr().err.endswith("2 error(s)\n")
    assert main([str(path), "--maxErrorCount", "1"]) == 1
    assert capsys.readouterr().err.endswith("1 error(s)\n")


def test_a_new_process_writes_both_outputs(tmp_path: Path) -> None:
    """As a user calls it, from another folder (bench/ measures how long it takes)."""
    command = [
        sys.executable, "-m", "dataplane.compiler", str(P4SRC / "load_balancer.p4"), "-o", str(tmp_path / "o.json"),
        "--p4runtime-files", str(tmp_path / "o.txtpb"),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=30, cwd=P4SRC.parent)
    assert (tmp_path / "o.json").stat().st_size > 0 and (tmp_path / "o.txtpb").stat().st_size > 0
