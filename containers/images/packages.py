"""The distribution's packages as a tree of files, without what no container needs.

mmdebstrap checks the archive's signatures, chooses what the packages depend on and extracts it; no maintainer script
runs, so nothing depends on the building machine. What they would have done, as far as it matters, is in `_added`:
accounts, the folders that a runtime mounts over, busybox's names. Documentation, translations, byte code and the
package manager's own files are left out; licences (copyright files) stay.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

from ..errors import BuildFailed
from ..oci.layer import Node, link, tree
from ..oci.tarcheck import shown
from .privileges import as_root
from .recipes import BUSYBOX

VERSION = 1
"""Raised when the same packages give other files than before."""

_MERGED = ("bin", "sbin", "lib", "lib32", "lib64", "libx32")  # are links into usr/ on every current Debian
_DROPPED = re.compile(
    r"(dev|proc|sys|run|tmp|boot|home|media|mnt|etc/(apt|dpkg|cron\.\w+|systemd|init\.d|logrotate\.d"
    r"|hostname|hosts|resolv\.conf|machine-id|mtab)|var/(cache|log)|var/lib/(apt|dpkg)|usr/share/(man|info|locale|i18n|lintian|bug|doc-base|bash-completion|perl5?|applications"
    r"|pixmaps|python3/debpython|zoneinfo|debconf|adduser|initramfs-tools)|usr/lib/systemd|usr/lib/[^/]*/perl-base"
    r"|usr/bin/(perl|pydoc|pygettext|2to3)[^/]*|usr/lib/[^/]*/gconv|usr/include"
    r"|usr/lib/python3\.\d+/(test|idlelib|lib2to3|pydoc_data|ensurepip|turtledemo|tkinter|config-[^/]*))(/|\Z)"
    r"|.*(\.pyc|/__pycache__|\.a|\.la)\Z"
)
_DOC = re.compile(r"usr/share/doc/[^/]+/(?!copyright\Z).*|usr/share/doc/[^/]+\Z")
_ACCOUNTS = """\
root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin
redis:x:101:101:redis:/var/lib/redis:/usr/sbin/nologin
nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin
"""
_GROUPS = "root:x:0:\ndaemon:x:1:\ntty:x:5:\nredis:x:101:\nnogroup:x:65534:\n"


class Packages:
    """Packages of one release of the distribution."""

    def __init__(self, suite: str | None = None) -> None:
        self.suite = suite or current_suite()

    def tree(self, names: Sequence[str]) -> dict[str, Node]:
        """Download packages and all that they need, and return their files by path."""
        command = shutil.which("mmdebstrap")
        if command is None:
            raise BuildFailed("mmdebstrap is not installed (type: apt-get install mmdebstrap)")
        with tempfile.TemporaryDirectory(prefix="p4ferry-images-") as folder:
            target = Path(folder) / "rootfs.tar"
            # fmt: off
            # As root: for others mmdebstrap needs user namespaces and newuidmap, which a fresh Debian lacks.
            done = subprocess.run(
                as_root([command, "--quiet", "--variant=extract", f"--include={','.join(names)}", self.suite,
                         str(target)]),
                capture_output=True, text=True, check=False, env={**os.environ, "LC_ALL": "C"},
            )
            # fmt: on
            if done.returncode != 0:
                raise BuildFailed(
                    f"mmdebstrap cannot get {', '.join(names)} from {self.suite}: {_reason(done.stderr)}"
                )
            with target.open("rb") as source:
                return clean(nodes(source).values())


def _reason(log: str) -> str:
    """Return apt's first error; what mmdebstrap says at the end is only that there was one."""
    lines = log.strip().splitlines() or ["it ended without saying why"]
    return next((line for line in lines if line.startswith("E: ")), lines[-1]).removeprefix("E: ").strip()


def current_suite() -> str:
    """Return the code name of this machine's release."""
    found = re.search(r'^VERSION_CODENAME="?([a-z]+)"?$', Path("/etc/os-release").read_text(), re.MULTILINE)
    if found is None:
        raise BuildFailed("/etc/os-release names no release (give one with --suite)")
    return found.group(1)


def nodes(source: BinaryIO) -> dict[str, Node]:
    """Read a tar that we made ourselves, or mmdebstrap: files, links and folders; hard links become files."""
    found: dict[str, Node] = {}
    with tarfile.open(fileobj=source, mode="r:*") as tar:
        for info in tar:
            path = info.name.removeprefix("./").strip("/")
            if path in ("", ".") or info.isdev():
                continue
            if info.islnk():
                same = found.get(info.linkname.removeprefix("./"))
                if same is None:
                    raise BuildFailed(
                        f"{shown(info.name)} is a hard link to {shown(info.linkname)}, which is missing"
                    )
                found[path] = Node(path, same.mode, same.data, same.link, same.uid, same.gid)
            elif info.issym():
                found[path] = link(path, info.linkname, info.uid, info.gid)
            elif info.isdir():
                found[path] = Node(path, info.mode, uid=info.uid, gid=info.gid)
            else:
                content = tar.extractfile(info)
                assert content is not None
                found[path] = Node(path, info.mode, content.read(), uid=info.uid, gid=info.gid)
    return found


def clean(found: Iterable[Node]) -> dict[str, Node]:
    """Return what is worth keeping, with a merged /usr and what maintainer scripts would have added."""
    kept: dict[str, Node] = {}
    for node in found:
        path = _merged(node.path)
        if node.path in _MERGED or _DROPPED.match(path) or (_DOC.match(path) and not node.is_directory):
            continue
        kept[path] = Node(path, node.mode, node.data, node.link, node.uid, node.gid)
    kept |= {node.path: node for node in _added(kept)}
    return tree(_with_content(kept))


def _merged(path: str) -> str:
    top, slash, rest = path.partition("/")
    return f"usr/{path}" if top in _MERGED and slash and rest else path


def _with_content(found: Mapping[str, Node]) -> list[Node]:
    """Leave out documentation folders in which nothing is left."""
    used = {path.rsplit("/", 1)[0] for path, node in found.items() if not node.is_directory}
    return [
        node
        for path, node in found.items()
        if not (node.is_directory and path.startswith("usr/share/doc/") and path not in used)
    ]


def _added(kept: Mapping[str, Node]) -> list[Node]:
    """Return what no package contains."""
    # usr/lib64 is there only on some architectures; a link to nothing would do no harm, but is ugly.
    tops = [top for top in _MERGED if any(path.startswith(f"usr/{top}/") for path in kept)]
    added = [link(top, f"usr/{top}") for top in tops]
    added += [Node(path, 0o755) for path in ("dev", "proc", "sys", "run", "srv", "etc", "var/log")]
    added += [Node("tmp", 0o1777), Node("var/tmp", 0o1777), Node("root", 0o700)]
    added += [Node("etc/passwd", data=_ACCOUNTS.encode()), Node("etc/group", data=_GROUPS.encode())]
    if "usr/bin/busybox" in kept:
        names = (f"usr/bin/{name}" for name in BUSYBOX)
        added += [link(path, "busybox") for path in names if path not in kept]
    if "usr/bin/redis-server" in kept or "usr/bin/redis-check-rdb" in kept:
        added += [link("usr/bin/redis-server", "redis-check-rdb")]
        added += [Node("var/lib/redis", 0o755, uid=101, gid=101)]
    return added
