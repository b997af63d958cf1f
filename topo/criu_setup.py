"""Choose the CRIU that is used here, and install it. Standard library only: the system's Python runs it in set-up.

    python3 -m topo.criu_setup [--plan] [--probe]

Tried by a real dump and restore (criu_probe.py), in this order: the one in use, if the kernel is another than that it
was chosen on; the distribution's, if it is installed; a private one that is there already; the distribution's from its
package; a private one from Debian's unstable. The last two alone need a network. `--probe` begins with the
distribution's, whatever is in use.

.p4ferry/criu links to the one in use, below .p4ferry/criu.d; .p4ferry/bin and .p4ferry/python lead into it. Each has

    bin/criu                a link to the distribution's, or a wrapper that runs the private one with its C library
    python/pycriu           the only pycriu that migrations import; its version is in python/pycriu.version
    root/, packages.txt     of a private one: its packages' files, and their hashes
    choice.json             what it is and why it was taken

A new one is built beside the old one, which is used until the new one has been seen to work.
"""

from __future__ import annotations

import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Protocol

from migration.criu_version import parse_version, why_unfit
from topo.criu_probe import Verdict, version_of

CHECKOUT = Path(__file__).resolve().parent.parent
STATE = CHECKOUT / ".p4ferry"
DISTRIBUTION, PRIVATE = "distribution", "private"
SYSTEM_PYCRIU = Path("/usr/lib/python3/dist-packages/pycriu")
CHOICE = "choice.json"
_FETCH_TIMEOUT = 900  # seconds for the private one's packages, whatever the network does
_PROBE_TIMEOUT = 300
_NO_PROXY = "it needs a network, or a proxy named in http_proxy and https_proxy"
_WRAPPER = """#!/bin/sh
# Written by set-up: a private CRIU with the C library that it was built for.
root=$(dirname "$(dirname "$(readlink -f "$0")")")/root
lib=$(echo "$root"/usr/lib/*-linux-gnu*)
exec "$lib"/ld-linux-*.so.* --library-path "$lib" "$root/usr/sbin/criu" "$@"
"""
_CHECK_PYCRIU = """
import sys
from pathlib import Path
from migration import messages
folder = Path(sys.argv[1])
try:
    messages.check(sys.argv[2], folder)
    for module in (messages.RPC, messages.FDINFO, messages.TCP_STREAM, messages.CORE):
        messages.load(module, folder)
except messages.CriuMissing as ex:
    sys.exit(str(ex))
"""


class SetupFailed(Exception):
    """No CRIU can be used; the message is what the user reads."""


@dataclass(frozen=True)
class Choice:
    """A CRIU and why it was taken."""

    source: str
    version: str
    binary: str
    reason: str
    kernel: str
    pycriu: str
    package: str = ""
    """The distribution's package and its version."""
    tried: list[str] = field(default_factory=list)
    """What was passed over, and why."""
    probed: str = ""

    def describe(self) -> str:
        """Return it in a line."""
        what = f"the distribution's, {self.package}" if self.source == DISTRIBUTION else "private"
        return f"CRIU {self.version} ({what}): {self.reason}"


class Machine(Protocol):
    """What is asked of, and done to, the machine."""

    kernel: str

    def distribution_binary(self) -> str | None:
        """Return where the distribution's CRIU is installed."""

    def package_version(self, package: str) -> str:
        """Return which version of a package is installed, or ""."""

    def candidate(self, package: str) -> str:
        """Return which version of a package could be installed, or ""."""

    def probe(self, binary: Path) -> Verdict:
        """Try a CRIU by a dump and a restore."""

    def install(self, *packages: str) -> None:
        """Install packages; raises SetupFailed."""

    def fetch_private(self, folder: Path) -> None:
        """Put a private CRIU's packages into folder/root, their hashes into folder/packages.txt; raises SetupFailed."""

    def fetch_pycriu(self, folder: Path) -> str:
        """Put the distribution's pycriu into a folder, not installing it; return its version, or "" if it has none."""

    def check_pycriu(self, folder: Path, criu: str) -> str | None:
        """Return why the environment cannot use the pycriu in a folder for a CRIU, None if it can."""


def read_choice(state: Path = STATE) -> Choice | None:
    """Return which CRIU is in use, None if there is none or it is incomplete."""
    folder = state / "criu"
    try:
        choice = Choice(**json.loads((folder / CHOICE).read_text()))
    except (OSError, ValueError, TypeError):
        return None
    complete = (folder / "bin" / "criu").exists() and (folder / "python" / "pycriu").is_dir()
    return choice if complete else None


class Chooser:
    """Finds one that works; see the head of this file."""

    def __init__(self, machine: Machine, state: Path = STATE) -> None:
        self.machine, self.state = machine, state
        self.store = state / "criu.d"
        self.tried: list[str] = []

    def plan(self, probe: bool = False) -> str:
        """Say what `settle` would do, as far as that is known without trying."""
        current, kernel = read_choice(self.state), self.machine.kernel
        if current is not None and not probe:
            if current.kernel == kernel:
                return f"stays: {current.describe()}"
            return (
                f"{current.version}, in use so far, is tried on Linux {kernel}; it stays if it works there, "
                "otherwise another one is looked for"
            )
        steps = []
        if (binary := self.machine.distribution_binary()) is not None:
            steps.append(f"the distribution's at {binary}, which is installed")
        if self._privates():
            steps.append("the private one that is here")
        candidate = self.machine.candidate("criu")
        if binary is None and candidate:
            unfit = why_unfit(candidate, kernel)
            if unfit is None:
                steps.append(f"the distribution's package criu {candidate}, to be installed")
            else:
                steps.append(f"not the distribution's package criu {candidate} ({unfit})")
        steps.append("a private one from Debian's unstable, into .p4ferry (25 MB to download, 60 MB on disk)")
        return "the first that works: " + "; ".join(steps)

    def settle(self, probe: bool = False) -> tuple[Choice, bool]:
        """Return the CRIU to use, and whether that is news; raises SetupFailed and leaves what was there."""
        self._adopt_old_layout()
        current = read_choice(self.state)
        if current is not None and not probe:
            if current.kernel == self.machine.kernel:
                return current, False
            if (kept := self._keep(current)) is not None:
                return kept, True
        for attempt in (self._installed, self._present, self._package, self._fetched):
            choice = attempt()
            if choice is not None:
                self._remove_unused()
                return choice, True
        raise SetupFailed("no CRIU works here:\n  " + "\n  ".join(self.tried))

    # ---- the candidates

    def _keep(self, current: Choice) -> Choice | None:
        folder = (self.state / "criu").resolve()
        verdict = self.machine.probe(folder / "bin" / "criu")
        if verdict.works and current.source == DISTRIBUTION and verdict.version != current.version:
            verdict = replace(verdict, works=False, reason=f"it was {current.version} when it was chosen")
        if not verdict.works:
            self.tried.append(f"{current.version}, in use so far: {verdict.reason}")
            return None
        reason = f"it was in use and works on Linux {self.machine.kernel}, too"
        return self._take(folder, replace(current, reason=reason, tried=self.tried))

    def _installed(self) -> Choice | None:
        binary = self.machine.distribution_binary()
        if binary is None:
            return None
        return self._distribution(Path(binary), "it is installed and works")

    def _distribution(self, binary: Path, reason: str) -> Choice | None:
        package = f"criu {self.machine.package_version('criu')}".strip()
        unfit = why_unfit(version_of(str(binary)), "")
        verdict = Verdict(False, version_of(str(binary)), unfit) if unfit else self.machine.probe(binary)
        if not verdict.works:
            self.tried.append(f"the distribution's {package}: {verdict.reason}")
            return None
        folder = self._new_folder()
        (folder / "bin" / "criu").symlink_to(binary)
        pycriu = self._pycriu_for(verdict.version, folder / "python")
        if pycriu is None:
            shutil.rmtree(folder)
            self.tried.append(f"the distribution's {package}: it works, but there is no pycriu for it")
            return None
        choice = Choice(DISTRIBUTION, verdict.version, str(binary), reason, "", pycriu, package, self.tried)
        return self._take(folder, choice)

    def _present(self) -> Choice | None:
        for folder in self._privates():
            verdict = self.machine.probe(folder / "bin" / "criu")
            if verdict.works:
                choice = Choice(PRIVATE, verdict.version, "", "", "", _pycriu_version(folder / "python"))
                reason = "it was here already and works"
                return self._take(folder, replace(choice, reason=reason, tried=self.tried))
            self.tried.append(f"the private {verdict.version}: {verdict.reason}")
        return None

    def _package(self) -> Choice | None:
        candidate = self.machine.candidate("criu")
        if self.machine.distribution_binary() is not None or not candidate:
            return None
        unfit = why_unfit(candidate, self.machine.kernel)
        if unfit is None:
            try:
                self.machine.install("criu")
            except SetupFailed as ex:
                unfit = str(ex)
        binary = self.machine.distribution_binary()
        if unfit is None and binary is None:
            unfit = "it was installed, but criu is not where programs are"
        if unfit is not None or binary is None:
            self.tried.append(f"the distribution's package criu {candidate}: {unfit}")
            return None
        return self._distribution(Path(binary), "its package works here")

    def _fetched(self) -> Choice | None:
        folder = self._new_folder()
        try:
            self.machine.fetch_private(folder)
            _finish_private(folder)
            verdict = self.machine.probe(folder / "bin" / "criu")
            unfit = None if verdict.works else verdict.reason
            if verdict.works:
                unfit = self.machine.check_pycriu(folder / "python", verdict.version)
        except SetupFailed as ex:
            verdict, unfit = Verdict(False, ""), str(ex)
        if unfit is not None:
            shutil.rmtree(folder)
            self.tried.append(f"a private one: {unfit}")
            return None
        reason = "nothing else works here (" + "; ".join(self.tried) + ")" if self.tried else "it works"
        pycriu = _pycriu_version(folder / "python")
        return self._take(folder, Choice(PRIVATE, verdict.version, "", reason, "", pycriu, tried=self.tried))

    # ---- pycriu

    def _pycriu_for(self, criu: str, folder: Path) -> str | None:
        """Put a pycriu that fits into a folder: the distribution's, one that is here, or from its package."""
        sources: list[Callable[[Path], str]] = [
            self._copy_system_pycriu,
            *(partial(_copy_pycriu, it / "python") for it in self._privates()),
            self.machine.fetch_pycriu,
        ]
        for source in sources:
            version = source(folder)
            if version:
                (folder / "pycriu.version").write_text(f"{version}\n")
                if self.machine.check_pycriu(folder, criu) is None:
                    return version
            shutil.rmtree(folder)
            folder.mkdir()
        return None

    def _copy_system_pycriu(self, folder: Path) -> str:
        if not (SYSTEM_PYCRIU / "__init__.py").exists():
            return ""
        # Only this folder: its neighbour google/ in the same place would hide the environment's protobuf.
        shutil.copytree(SYSTEM_PYCRIU, folder / "pycriu", ignore=shutil.ignore_patterns("__pycache__"))
        package = self.machine.package_version("python3-pycriu") or self.machine.package_version("criu")
        return _upstream(package)

    # ---- folders

    def _privates(self) -> list[Path]:
        found = [path for path in self.store.glob("*") if (path / "root" / "usr" / "sbin" / "criu").exists()]
        complete = [path for path in found if (path / "python" / "pycriu").is_dir()]
        return sorted(complete, key=lambda path: path.stat().st_mtime, reverse=True)

    def _new_folder(self) -> Path:
        self.store.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix="criu-", dir=self.store))
        folder.chmod(0o755)
        for name in ("bin", "python"):
            (folder / name).mkdir()
        return folder

    def _take(self, folder: Path, choice: Choice) -> Choice:
        """Write down a choice and let it be the one in use, at once or not at all."""
        choice = replace(
            choice,
            binary=choice.binary or ".p4ferry/bin/criu",
            kernel=self.machine.kernel,
            probed=datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        _write_atomically(folder / CHOICE, json.dumps(asdict(choice), indent=2) + "\n")
        link_atomically(self.state / "criu", Path("criu.d") / folder.name)
        for name in ("bin", "python"):
            link_atomically(self.state / name, Path("criu") / name)
        return choice

    def _remove_unused(self) -> None:
        """Remove all but the one in use and the newest private one."""
        keep = [(self.state / "criu").resolve(), *(path.resolve() for path in self._privates()[:1])]
        for path in self.store.iterdir():
            if path.resolve() not in keep:
                shutil.rmtree(path, ignore_errors=True)

    def _adopt_old_layout(self) -> None:
        """Take over what an older set-up has left: .p4ferry/bin, python and criu-root as folders."""
        if (self.state / "bin").is_symlink() or not (self.state / "bin").is_dir():
            return
        old, pycriu = self.state / "criu-root", self.state / "python" / "pycriu"
        if old.is_dir() and pycriu.is_dir() and os.access(old, os.W_OK):
            folder = self._new_folder()
            old.rename(folder / "root")
            _finish_private(folder)
        for name in ("bin", "python"):
            shutil.rmtree(self.state / name, ignore_errors=True)
            if (self.state / name).exists():
                raise SetupFailed(
                    f"{self.state / name} belongs to root; type: sudo rm -r {self.state / name}"
                )


def _finish_private(folder: Path) -> None:
    """Make a private CRIU of its packages' files: the wrapper, pycriu, and nothing that is not needed."""
    (folder / "bin" / "criu").write_text(_WRAPPER)
    (folder / "bin" / "criu").chmod(0o755)
    packages = folder / "root" / "usr" / "lib" / "python3" / "dist-packages" / "pycriu"
    if not packages.is_dir():
        raise SetupFailed("its packages have no pycriu")
    shutil.copytree(packages, folder / "python" / "pycriu", ignore=shutil.ignore_patterns("__pycache__"))
    version = re.search(r"__version__ = ['\"](.+?)['\"]", (packages / "version.py").read_text())
    if version is None:
        raise SetupFailed("its pycriu does not say its version")
    (folder / "python" / "pycriu.version").write_text(f"{version[1]}\n")
    for path in (folder / "root").iterdir():
        if path.name != "usr":
            _remove(path)
    for path in (folder / "root" / "usr").iterdir():
        if path.name not in ("lib", "lib64", "sbin", "bin"):
            _remove(path)
    for path in (folder / "root" / "usr" / "lib").iterdir():
        if "-linux-gnu" not in path.name:
            _remove(path)


def _remove(path: Path) -> None:
    if path.is_symlink() or not path.is_dir():
        path.unlink()
    else:
        shutil.rmtree(path)


def _copy_pycriu(source: Path, folder: Path) -> str:
    shutil.copytree(source / "pycriu", folder / "pycriu", ignore=shutil.ignore_patterns("__pycache__"))
    return _pycriu_version(source)


def _pycriu_version(folder: Path) -> str:
    try:
        return (folder / "pycriu.version").read_text().strip()
    except OSError:
        return ""


def _upstream(package: str) -> str:
    return ".".join(map(str, parse_version(package)))


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text)
    partial.replace(path)


def link_atomically(link: Path, target: Path) -> None:
    """Make a symbolic link, or let an existing one lead elsewhere without a moment in which it is not there."""
    if link.is_symlink() and link.readlink() == target:
        return
    partial = link.with_name(f".{link.name}.partial")
    partial.unlink(missing_ok=True)
    partial.symlink_to(target)
    partial.replace(link)


class ThisMachine:
    """The real one."""

    def __init__(self) -> None:
        self.kernel = platform.release()

    def distribution_binary(self) -> str | None:
        """Look where packages put it; a CRIU elsewhere on PATH is named in P4FERRY_CRIU by who wants it."""
        return shutil.which("criu", path="/usr/sbin:/usr/bin:/sbin")

    def package_version(self, package: str) -> str:
        """Ask dpkg."""
        done = _run(["dpkg-query", "-W", "-f=${db:Status-Status} ${Version}", package])
        status, _, version = done.stdout.partition(" ")
        return version.strip() if status == "installed" else ""

    def candidate(self, package: str) -> str:
        """Ask apt, which may know nothing before its first update."""
        for line in _run(["apt-cache", "policy", package]).stdout.splitlines():
            name, _, value = line.strip().partition(": ")
            if name == "Candidate" and value != "(none)":
                return value
        return ""

    def probe(self, binary: Path) -> Verdict:
        """Run criu_probe.py as root."""
        command = as_root([sys.executable, "-B", "-m", "topo.criu_probe", str(binary)])
        done = _run(command, timeout=_PROBE_TIMEOUT)
        text = done.stdout.strip().splitlines()[-1:] or [done.stderr.strip() or "the probe said nothing"]
        head, _, reason = text[0].partition(": ")
        return Verdict(done.returncode == 0, head.removeprefix("CRIU "), reason or head)

    def install(self, *packages: str) -> None:
        """Let scripts/setup do it, which writes down what it installs."""
        command = [str(CHECKOUT / "scripts" / "setup"), "--packages", *packages]
        done = _run(command, timeout=_FETCH_TIMEOUT)
        if done.returncode != 0:
            raise SetupFailed(_last(done))

    def fetch_private(self, folder: Path) -> None:
        """Unpack packages of Debian's unstable and what they need, without installing anything."""
        self.install("mmdebstrap", "debian-archive-keyring")
        hashes = folder / "packages.txt"
        hook = f'cd "$1"/var/cache/apt/archives && sha256sum *.deb >{shlex.quote(str(hashes))}'
        # The mirror's Release file may be past its Valid-Until; its signature is checked all the same.
        options = (
            'Acquire::Check-Valid-Until "false"',
            'Acquire::http::Timeout "20"',
            'Acquire::Retries "2"',
        )
        # Nothing is installed, no package's script runs. Whoever is not root needs no namespaces for that.
        mode = "root" if os.geteuid() == 0 else "chrootless"
        command = ["mmdebstrap", f"--mode={mode}", "--variant=extract"]
        command += ["--include=criu,python3-pycriu", f"--extract-hook={hook}"]
        command += ["--keyring=/usr/share/keyrings/debian-archive-keyring.gpg"]
        command += [f"--aptopt={option}" for option in options]
        print("==> fetching a private CRIU (Debian's unstable)", flush=True)
        log = STATE / "criu.log"
        with log.open("w") as output:
            try:
                done = subprocess.run(
                    [*command, "sid", str(folder / "root")],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    timeout=_FETCH_TIMEOUT,
                    check=False,
                )
            except subprocess.TimeoutExpired:
                raise SetupFailed(f"it was not fetched within {_FETCH_TIMEOUT} s; the log is {log}") from None
        if done.returncode != 0:
            text = log.read_text(errors="replace")
            raise SetupFailed(f"it cannot be fetched: {why_not_fetched(text)}; the log is {log}")
        manifest = [
            f"private\t{name}\tsha256:{digest}\n"
            for digest, name in (line.split() for line in hashes.read_text().splitlines())
        ]
        with (STATE / "manifest").open("a") as file:
            file.writelines(manifest)

    def fetch_pycriu(self, folder: Path) -> str:
        """Take it out of its package, which is not installed: another's Python has no use for it."""
        version = self.candidate("python3-pycriu")
        if not version:
            return ""
        with tempfile.TemporaryDirectory() as name:
            options = ["-o", "Acquire::http::Timeout=20", "-o", "Acquire::Retries=2"]
            _run(["apt-get", "-qq", *options, "download", "python3-pycriu"], cwd=Path(name), timeout=120)
            for package in Path(name).glob("*.deb"):
                _run(["dpkg-deb", "-x", str(package), name])
            unpacked = Path(name, *SYSTEM_PYCRIU.parts[1:])
            if not unpacked.is_dir():
                return ""
            shutil.copytree(unpacked, folder / "pycriu")
        return _upstream(version)

    def check_pycriu(self, folder: Path, criu: str) -> str | None:
        """Import it as migrations do."""
        python = CHECKOUT / ".venv" / "bin" / "python"
        done = _run([str(python), "-B", "-c", _CHECK_PYCRIU, str(folder), criu])
        return None if done.returncode == 0 else _last(done)


def why_not_fetched(log: str) -> str:
    """Return apt's reason in one sentence."""
    errors = [line.strip() for line in log.splitlines() if line.startswith(("E: ", "Err:", "W: Failed"))]
    words = (
        "Could not resolve",
        "Temporary failure",
        "Could not connect",
        "Connection timed out",
        "Cannot initiate",
    )
    if any(word in log for word in words):
        named = " and ".join(sorted(set(proxies()) - {"no_proxy", "NO_PROXY"}))
        why = f"see that the proxy that {named} names works, or unset it" if named else _NO_PROXY
        return f"Debian's mirror cannot be reached; {why}"
    return errors[0] if errors else (log.strip().splitlines() or ["it said nothing"])[-1]


def as_root(command: list[str]) -> list[str]:
    """Return a command as root's; sudo would drop the names of proxies."""
    if os.geteuid() == 0:
        return command
    if shutil.which("sudo") is None:
        raise SetupFailed(f"root is needed for: {shlex.join(command)} (run it as root, or install sudo)")
    return ["sudo", "env", *(f"{name}={value}" for name, value in proxies().items()), *command]


def proxies() -> dict[str, str]:
    """Return what names proxies: http_proxy, ALL_PROXY, no_proxy, …."""
    return {name: value for name, value in os.environ.items() if value and name.lower().endswith("_proxy")}


def _run(command: list[str], timeout: float = 60, cwd: Path = CHECKOUT) -> subprocess.CompletedProcess[str]:
    try:
        # Not its own session: sudo may have to ask for a password.
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, cwd=cwd)
    except subprocess.TimeoutExpired:
        return subprocess.CompletedProcess(command, 124, "", f"{command[0]} did not end within {timeout:g} s")
    except OSError as ex:
        return subprocess.CompletedProcess(command, 127, "", str(ex))


def _last(done: subprocess.CompletedProcess[str]) -> str:
    lines = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return lines[-1] if lines else f"exit status {done.returncode}"


def main(arguments: list[str]) -> int:
    """Settle, or say what would be done; returns the exit status."""
    probe = "--probe" in arguments
    chooser = Chooser(ThisMachine())
    try:
        if "--plan" in arguments:
            print(chooser.plan(probe))
            return 0
        choice, is_news = chooser.settle(probe)
    except SetupFailed as ex:
        print(f"setup: {ex}", file=sys.stderr)
        if (current := read_choice()) is not None:
            print(f"setup: what was in use is still there: {current.describe()}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:  # scripts/setup says so
        return 130
    if is_news:
        print(f"==> {choice.describe()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
