"""Set-up says what it will do, installs without starting services, and writes down what it has installed.

And what removes that; as-root, which leaves nothing of root's in another user's checkout; and the lock file.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).resolve().parents[1] / "scripts"
ALL_INSTALLED = '#!/bin/bash\nshift 2; for name; do printf "$name=installed "; done\n'
"""A dpkg-query."""


def scratch(folder: Path, apt_get: str) -> tuple[list[str], dict[str, str], Path]:
    """Copy the script for a machine that lacks every package; its apt-get is a given shell script."""
    policy = folder / "policy-rc.d"
    script = folder / "scripts" / "setup"
    script.parent.mkdir()
    script.write_text((SCRIPTS / "setup").read_text().replace("/usr/sbin/policy-rc.d", f"'{policy}'"))
    # Nor has it a Python: to make an environment takes seconds.
    common = (SCRIPTS / "common.sh").read_text().replace("/usr/bin/python3", f"'{folder / 'python'}'")
    (script.parent / "common.sh").write_text(common)
    commands = folder / "bin"
    commands.mkdir()
    fakes = {
        "dpkg-query": "exit 1",
        "systemctl": f'echo "systemctl $*" >>{folder}/called',
        "update-rc.d": f'echo "update-rc.d $*" >>{folder}/called',
        "sha256sum": f'echo "python" >>{folder}/called; exit 1',  # the script's next part begins with it
        "apt-get": f'case " $* " in *" update "*|*" -s "*|*" --print-uris "*) exit 0 ;; esac\n'
        f'echo "$*" >{folder}/installed\n{apt_get}',
    }
    for name, text in fakes.items():
        (commands / name).write_text(f"#!/bin/bash\n{text}\n")
        (commands / name).chmod(0o755)
    return ["bash", str(script)], {**os.environ, "PATH": f"{commands}:{os.environ['PATH']}"}, policy


@pytest.mark.skipif(os.geteuid() != 0, reason="the script calls sudo for anybody but root")
@pytest.mark.parametrize("status", [0, 100])
def test_no_service_starts_while_packages_are_installed(tmp_path: Path, status: int) -> None:
    """policy-rc.d forbids it during apt-get, and is gone after it, whether that worked or not."""
    policy = tmp_path / "policy-rc.d"
    command, env, policy = scratch(
        tmp_path, f"cp {policy} {tmp_path}/seen; {policy}; echo $? >{tmp_path}/said; exit {status}"
    )
    subprocess.run(command, env=env, capture_output=True, timeout=30, check=False)
    assert (tmp_path / "said").read_text().strip() == "101"
    assert not policy.exists()
    assert "redis-server python3-redis" in (tmp_path / "installed").read_text()
    called = (tmp_path / "called").read_text() if (tmp_path / "called").exists() else ""
    assert ("systemctl disable --quiet --now redis-server.service" in called) == (status == 0)


@pytest.mark.skipif(os.geteuid() != 0, reason="the script calls sudo for anybody but root")
def test_container_engines_are_installed_when_asked(tmp_path: Path) -> None:
    """They alone with --containers-only; their services neither start now nor with the next boot."""
    command, env, policy = scratch(tmp_path, f"{tmp_path}/policy-rc.d; echo $? >{tmp_path}/said; exit 0")
    (tmp_path / "bin" / "apt-cache").write_text("#!/bin/sh\nexit 0\n")
    (tmp_path / "bin" / "apt-cache").chmod(0o755)
    done = subprocess.run([*command, "--containers-only"], env=env, timeout=30, check=False)
    assert done.returncode == 0
    assert (tmp_path / "said").read_text().strip() == "101" and not policy.exists()
    installed = (tmp_path / "installed").read_text()
    assert "docker.io containerd podman runc apparmor docker-cli" in installed and "redis" not in installed
    called = (tmp_path / "called").read_text()
    for unit in ("docker.service docker.socket", "containerd.service", "podman.socket"):
        assert f"systemctl disable --quiet --now {unit}" in called
    assert "python" not in called


@pytest.mark.skipif(os.geteuid() != 0, reason="the script calls sudo for anybody but root")
def test_an_interrupted_set_up_takes_its_policy_along(tmp_path: Path) -> None:
    """Ctrl-C during apt-get."""
    ready = tmp_path / "ready"
    command, env, policy = scratch(tmp_path, f"echo >{ready}; read <{ready}")
    os.mkfifo(ready)
    with subprocess.Popen(
        command, env=env, start_new_session=True, stderr=subprocess.PIPE, text=True
    ) as process:
        ready.read_text()
        was_there = policy.exists()
        os.killpg(process.pid, signal.SIGINT)
        try:
            _, said = process.communicate(timeout=10)
        finally:
            process.kill()
    assert process.returncode == 130 and said.endswith("setup: interrupted; the next one goes on from here\n")
    assert was_there
    assert not policy.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="the script calls sudo for anybody but root")
def test_an_administrators_policy_stays(tmp_path: Path) -> None:
    """It is neither replaced nor removed."""
    command, env, policy = scratch(tmp_path, "exit 100")
    policy.write_text("#!/bin/sh\nexit 0\n")
    subprocess.run(command, env=env, capture_output=True, timeout=30, check=False)
    assert policy.read_text() == "#!/bin/sh\nexit 0\n"


@pytest.mark.skipif(os.geteuid() != 0, reason="the script calls sudo for anybody but root")
def test_manifest(tmp_path: Path) -> None:
    """What was installed is written down, also by the next set-up after one that was killed, and nothing else."""
    command, env, _ = scratch(tmp_path, "exit 100")
    here = tmp_path / "here"  # packages that are installed
    fakes = {
        "dpkg-query": "format=$2; shift 2\n"
        f'for name; do grep -qx "$name" {here} || continue\n'
        "case $format in *Version*) echo 1.0-1 ;; "
        '*=*=*) printf "$name=installed " ;; *) printf installed ;; esac; done',
        "apt-get": 'case " $* " in '
        '*" -s "*) printf "Inst alpha (1.0)\\nInst libalpha (1.0)\\nInst old [0.9] (1.0)\\n" ;;'
        f' *" install "*) printf "alpha\\nlibalpha\\n" >>{here} ;; esac',
    }
    for name, text in fakes.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
    here.write_text("old\n")
    manifest = tmp_path / ".p4ferry" / "manifest"
    expected = "package\talpha\t1.0-1\tasked\npackage\tlibalpha\t1.0-1\tdependency\n"
    subprocess.run([*command, "--packages", "alpha"], env=env, timeout=30, check=True)
    assert manifest.read_text() == expected
    subprocess.run([*command, "--packages", "alpha"], env=env, timeout=30, check=True)
    assert manifest.read_text() == expected
    # Killed when apt-get had done its work.
    here.write_text("old\n")
    apt = tmp_path / "bin" / "apt-get"
    apt.write_text(apt.read_text().replace(f">>{here} ;;", f">>{here}; kill -9 $PPID; sleep 1 ;;"))
    subprocess.run([*command, "--packages", "alpha"], env=env, timeout=30, check=False)
    manifest.unlink()
    subprocess.run([*command, "--packages", "alpha"], env=env, timeout=30, check=True)
    assert manifest.read_text() == expected


def test_plan_changes_nothing(tmp_path: Path) -> None:
    """It needs no root, and makes no file."""
    command, env, _ = scratch(tmp_path, "exit 100")
    shutil.copy(SCRIPTS.parent / "requirements.lock", tmp_path)
    (tmp_path / "pyproject.toml").write_text("")
    before = sorted(tmp_path.rglob("*"))
    done = subprocess.run(
        command, env={**env, "PLAN": "1"}, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    for word in ("mininet", "redis-server", "requirements.lock", "CRIU, for Linux", "make distclean"):
        assert word in done.stdout
    assert sorted(path for path in tmp_path.rglob("*") if path.name != "called") == before


@pytest.mark.skipif(os.geteuid() != 0, reason="the script calls sudo for anybody but root")
def test_without_a_network(tmp_path: Path) -> None:
    """One sentence says what cannot be fetched, and what helps."""
    command, env, _ = scratch(
        tmp_path, "echo \"E: Failed to fetch x  Temporary failure resolving 'y'\" >&2; exit 100"
    )
    done = subprocess.run(
        [*command, "--packages", "alpha"], env=env, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("setup: the packages alpha cannot be fetched from the distribution's mirror (")
    assert "http_proxy and https_proxy" in line


@pytest.mark.skipif(os.geteuid() != 0, reason="the script calls sudo for anybody but root")
@pytest.mark.parametrize(
    ("proxy", "advice"),
    [
        ({}, "name it in http_proxy and https_proxy"),
        ({"all_proxy": "http://x:1"}, "mend or unset all_proxy"),
    ],
)
def test_without_lists_of_packages(tmp_path: Path, proxy: dict[str, str], advice: str) -> None:
    """The same, where apt-get knows of no package; a proxy that was named is not asked for."""
    command, env, _ = scratch(tmp_path, "exit 100")
    text = (
        "#!/bin/bash\n"
        '[ $1 != -s ] || { echo "E: Unable to locate package $5" >&2; exit 100; }\n'
        'case " $* " in *" update "*) echo "W: Failed to fetch x" ;; esac\n'
    )
    (tmp_path / "bin" / "apt-get").write_text(text)
    plain = {name: value for name, value in env.items() if not name.lower().endswith("_proxy")}
    done = subprocess.run(
        [*command, "--packages", "alpha"],
        env={**plain, **proxy},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert (
        line.startswith("setup: the packages alpha cannot be fetched from the distribution's mirror (")
        and advice in line
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="the script calls sudo for anybody but root")
def test_accounts_of_others_are_not_claimed(tmp_path: Path) -> None:
    """Only one for services, made while packages were installed, that a script of theirs names."""
    command, env, _ = scratch(tmp_path, "exit 0")
    accounts, scripts = tmp_path / "passwd", tmp_path / "info"
    scripts.mkdir()
    (scripts / "alpha.postinst").write_text("adduser --system alphad\nadduser person\n")
    common = tmp_path / "scripts" / "common.sh"
    for path in (common, tmp_path / "scripts" / "setup"):
        text = (
            path.read_text().replace("/etc/passwd", str(accounts)).replace("/var/lib/dpkg/info", str(scripts))
        )
        path.write_text(text)
    accounts.write_text("root:x:0:0::/root:/bin/sh\n")
    made = "alphad:x:101:101::/:/bin/false\nother:x:102:102::/:/bin/false\nperson:x:1001:1001::/:/bin/sh\n"
    fakes = {
        "dpkg-query": f"[ -e {tmp_path}/here ] || exit 1\n"
        "case $1 in -L) ;; *) case $2 in *Version*) echo 1 ;; *) printf installed ;; esac ;; esac",
        "apt-get": f'case " $* " in *" -s "*) echo "Inst alpha (1.0)" ;;\n'
        f' *" install "*) touch {tmp_path}/here; printf "{made}" >>{accounts} ;; esac',
    }
    for name, text in fakes.items():
        (tmp_path / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
    subprocess.run([*command, "--packages", "alpha"], env=env, timeout=30, check=True)
    lines = (tmp_path / ".p4ferry" / "manifest").read_text().splitlines()
    assert lines == ["package\talpha\t1\tasked", "user\talphad"]


PYTHON = r"""#!/bin/bash
case "$*" in
--version) echo Python 3.99 ;;
"-m venv "*) mkdir -p .venv/bin; cp "$0" .venv/bin/python; echo "VIRTUAL_ENV=$PWD/.venv" >.venv/bin/activate ;;
"-m pip "*" download "*) [ ! -e offline ] || { echo "Failed to establish a new connection"; exit 1; }
    mkdir .p4ferry/wheels; cp requirements.lock .p4ferry/wheels ;;
"-m pip "*" --find-links "*) [ ! -e killed ] || kill -9 $PPID; cp .p4ferry/wheels/requirements.lock .venv/has ;;
esac
"""


def test_an_environment_works_until_there_is_a_new_one(tmp_path: Path) -> None:
    """Without a network the old one stays; what was fetched for a new one is put in, whenever set-up was killed."""
    command, env, _ = scratch(tmp_path, "exit 100")
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "bin" / "sha256sum").unlink()
    (tmp_path / "bin" / "dpkg-query").write_text(ALL_INSTALLED)
    lock, offline, killed = (tmp_path / name for name in ("requirements.lock", "offline", "killed"))
    (tmp_path / "pyproject.toml").touch()

    def set_up() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)

    def has() -> str:
        return (tmp_path / ".venv" / "has").read_text()

    lock.write_text("first")
    offline.touch()
    done = set_up()
    assert done.returncode == 1 and "cannot be fetched from the package index" in done.stderr
    offline.unlink()
    assert set_up().returncode == 0 and has() == "first"
    lock.write_text("second")
    offline.touch()
    done = set_up()
    assert done.returncode == 0 and "going on with those of .venv" in done.stdout and has() == "first"
    (tmp_path / "pyproject.toml").write_text("# other packages are not needed for this\n")
    lock.write_text("first")
    done = set_up()
    assert done.returncode == 0 and "cannot be fetched" not in done.stdout
    lock.write_text("third")
    offline.unlink()
    killed.touch()
    assert set_up().returncode != 0
    offline.touch()
    killed.unlink()
    assert set_up().returncode == 0 and has() == "third"
    assert "making the Python environment" not in set_up().stdout


LISTING = "".join(
    f"{status}\t{name}\t{provides}\t{depends}\n"
    for status, name, provides, depends in (
        ("installed", "base", "", ", "),
        ("installed", "alpha", "", ", libalpha (>= 1), base"),
        ("installed", "libalpha", "", ", "),
        ("installed", "choice", "", ", libalpha | libother:any"),
        ("installed", "libother", "", ", "),
        ("installed", "user", "", "pre-needed, virtual [amd64]"),
        ("installed", "provider", "virtual (= 2)", ", "),
        ("installed", "pre-needed", "", ", deep"),
        ("installed", "deep", "", ", "),
        ("config-files", "gone", "", ", alpha"),
    )
)


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        ("alpha libalpha", "alpha libalpha"),
        ("alpha", "alpha"),
        ("libalpha", ""),  # alpha stays
        (
            "alpha libalpha libother",
            "alpha",
        ),  # choice needs one of the libraries; which one apt would keep is not ours
        ("alpha libalpha choice libother", "alpha libalpha choice libother"),
        ("provider deep pre-needed alpha", "alpha"),  # user stays, and what it needs
        ("alpha:amd64 libalpha:amd64", "alpha:amd64 libalpha:amd64"),
    ],
)
def test_what_can_be_removed(wanted: str, expected: str) -> None:
    """Nothing that something else needs by now."""
    done = subprocess.run(
        [sys.executable, SCRIPTS / "removable.py", *wanted.split()],
        input=LISTING, capture_output=True, text=True, check=True, timeout=30,
    )  # fmt: skip
    assert done.stdout.split() == expected.split()


def others_checkout(folder: Path) -> list[str]:
    """Make a checkout that belongs to another user; returns how its as-root is called."""
    (folder / "scripts").mkdir()
    shutil.copy(SCRIPTS / "as-root", folder / "scripts")
    for path in (folder, *folder.rglob("*")):
        os.chown(path, 65534, 65534)
    return [sys.executable, str(folder / "scripts" / "as-root")]


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_roots_files_are_given_back(tmp_path: Path) -> None:
    """All that is in the checkout and nothing outside; no bytecode is written; the status is the command's."""
    outside, checkout = tmp_path / "outside", tmp_path / "checkout"
    checkout.mkdir()
    outside.mkdir()
    command = others_checkout(checkout)
    (checkout / "module.py").write_text("x = 1\n")
    script = f"mkdir -p a/b; echo >a/b/c; ln -s {outside} link; echo >{outside}/d; "
    script += f"{sys.executable} -c 'import module'; exit 7"
    done = subprocess.run([*command, "sh", "-c", script], cwd=checkout, check=False, timeout=30)
    assert done.returncode == 7
    assert {path.lstat().st_uid for path in checkout.rglob("*")} == {65534}
    assert outside.stat().st_uid == (outside / "d").stat().st_uid == 0
    assert not (checkout / "__pycache__").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_reach_the_command(tmp_path: Path, number: signal.Signals) -> None:
    """It ends in its own way, and then its files are given back."""
    command = others_checkout(tmp_path)
    script = "trap 'echo >ended; exit 3' TERM HUP; echo >ready; while :; do sleep 0.05; done"
    with subprocess.Popen([*command, "sh", "-c", script], cwd=tmp_path) as process:
        deadline = time.monotonic() + 10
        while not (tmp_path / "ready").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(10) == 3
    assert (tmp_path / "ended").stat().st_uid == 65534


@pytest.mark.skipif(os.geteuid() != 0, reason="runs the scripts as another user")
def test_every_proxy_is_named_to_root() -> None:
    """By both scripts that call sudo, which would drop them; by as-root what is ours, too; nothing else is."""
    variables = {
        "http_proxy": "http://a b",
        "ALL_PROXY": "socks5://c",
        "all_proxy": "x",
        "no_proxy": "d,e",
        "FTP_PROXY": "f",
        "P4FERRY_SLOW": "2",
    }
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "scripts").mkdir()
        for script in ("as-root", "common.sh"):
            shutil.copy(SCRIPTS / script, folder / "scripts")
        (folder / "sudo").write_text("#!/bin/bash\nprintf '%s\\n' \"$@\"\n")
        (folder / "sudo").chmod(0o755)
        for command in (
            [sys.executable, "scripts/as-root", "true"],
            ["bash", "-euo", "pipefail", "-c", ". scripts/common.sh; as_root true"],
        ):
            done = subprocess.run(
                command, cwd=folder, env={**variables, "HOME": "/", "PATH": f"{folder}:{os.environ['PATH']}"},
                user=65534, capture_output=True, text=True, timeout=30, check=True,
            )  # fmt: skip
            lines = done.stdout.splitlines()
            named = {f"{name}={value}" for name, value in variables.items()}
            assert set(lines) >= {
                line for line in named if "_proxy" in line.lower() or "as-root" in command[1]
            }
            assert not any(line.startswith("HOME=") for line in lines) and lines[-1] == "true"


@pytest.mark.parametrize(
    ("path", "pip", "sentence"),
    [
        (
            "with space",
            "true",
            "FOLDER has a space, a colon or a dollar sign in its path, so no program could move: ",
        ),
        (
            "full",
            "echo 'No space left on device'",
            "no space is left on the disk of FOLDER: the environment .venv needs",
        ),
    ],
)
def test_a_place_that_is_unfit(tmp_path: Path, path: str, pip: str, sentence: str) -> None:
    """A sentence says what is wrong with it."""
    folder = tmp_path / path
    folder.mkdir()
    command, env, _ = scratch(folder, "exit 0")
    (folder / "bin" / "dpkg-query").write_text(ALL_INSTALLED)
    (folder / "bin" / "sha256sum").unlink()
    (folder / "python").write_text(f"#!/bin/bash\n{pip}\nexit 1\n")
    (folder / "python").chmod(0o755)
    for name in ("pyproject.toml", "requirements.lock"):
        (folder / name).touch()
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("setup: " + sentence.replace("FOLDER", str(folder)))


def remove_users(folder: Path) -> list[str]:
    """Run what distclean does about the accounts of a manifest; return what it would remove."""
    function = re.findall(r"^remove_users\(\) \{.*?^\}", (SCRIPTS / "distclean").read_text(), re.M | re.S)[0]
    lines = "root:x:0:0::/root:/bin/sh\nold:x:101:101::/:/bin/false\nused:x:102:102::/:/bin/false\n"
    (folder / "passwd").write_text(lines + "person:x:1001:1001::/:/bin/sh\n")
    (folder / "info").mkdir()
    (folder / "info" / "still.postinst").write_text("adduser --system used\n")
    (folder / "manifest").write_text("user\told\nuser\tused\nuser\tperson\nuser\tgone\n")
    script = "\n".join(((SCRIPTS / "common.sh").read_text(), function, f"manifest={folder}/manifest"))
    script = script.replace("/etc/passwd", f"{folder}/passwd").replace("/var/lib/dpkg/info", f"{folder}/info")
    script += f"\nas_root() {{ [ $1 != userdel ] || echo $2 >>{folder}/removed; }}\nremove_users"
    subprocess.run(["bash", "-euo", "pipefail", "-c", script], check=True, timeout=30)
    return (folder / "removed").read_text().split()


def test_accounts_that_are_removed(tmp_path: Path) -> None:
    """Not a person's, nor one that a package that is still there names."""
    assert remove_users(tmp_path) == ["old"]


@pytest.mark.skipif(os.geteuid() != 0, reason="runs the script as another user")
@pytest.mark.parametrize(
    ("owner", "sentence"),
    [
        (65534, "setup: needs root for: trying CRIU (run it as root, or install sudo)"),
        (0, "setup: FOLDER cannot be written; it belongs to root: run this as that user, or as root"),
    ],
)
def test_others_are_told_first_what_is_missing(owner: int, sentence: str) -> None:
    """Before anything is fetched."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        command, env, _ = scratch(folder, "exit 0")
        (folder / "bin" / "dpkg-query").write_text(ALL_INSTALLED)
        (folder / "requirements.lock").touch()
        for command_name in (
            "bash",
            "readlink",
            "dirname",
            "id",
            "stat",
            "grep",
            "find",
            "cat",
            "uname",
            "sed",
            "mkdir",
        ):
            (folder / "bin" / command_name).symlink_to(shutil.which(command_name) or "")
        os.chown(folder, owner, owner)
        done = subprocess.run(
            command, env={**env, "PATH": str(folder / "bin")}, user=65534,
            capture_output=True, text=True, timeout=30, check=False,
        )  # fmt: skip
        assert (done.returncode, done.stderr) == (1, sentence.replace("FOLDER", name) + "\n")


def test_a_command_that_is_not_there(tmp_path: Path) -> None:
    """One sentence."""
    done = subprocess.run(
        [SCRIPTS / "as-root", "no-such-command"], capture_output=True, text=True, check=False, timeout=30
    )
    if os.geteuid() == 0:
        assert done.stderr == "as-root: no-such-command: No such file or directory\n"
    assert done.returncode != 0


def test_lock_file() -> None:
    """Every package at one version with hashes, from no place of its own; all that pyproject.toml names."""
    lock = (SCRIPTS.parent / "requirements.lock").read_text()
    entries = re.split(r"\n(?=\S)", lock.strip())[1:]
    names = set()
    for entry in entries:
        head, *hashes = [line.strip(" \\") for line in entry.splitlines()]
        match = re.fullmatch(r"([a-z0-9.-]+)==[^ ;]+( ; .+)?", head)
        assert match, head
        names.add(match[1])
        assert hashes and all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line) for line in hashes), head
    assert "://" not in lock and "index" not in lock
    project = (SCRIPTS.parent / "pyproject.toml").read_text()
    wanted = re.findall(r'"([a-z][a-z0-9-]+)(?:>=[^"]*)?"', "".join(
        re.findall(r"^(?:requires|dependencies|dev) = \[(.*?)\]", project, re.M | re.S)
    ))  # fmt: skip
    assert {"setuptools", "finsy", "mypy"} <= set(wanted) <= names


@pytest.mark.parametrize("script", ["setup", "distclean", "lock", "images", "common.sh"])
def test_scripts_parse(script: str) -> None:
    """By bash."""
    subprocess.run(["bash", "-n", SCRIPTS / script], check=True, timeout=30)
