"""A checkpoint archive as Podman writes it, small, for tests to damage."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from .tars import Member, member, tar

CONFIG = {"id": "0123abcd", "name": "counter", "rootfsImageName": "localhost/p4ferry/app:latest"}
SPEC = {"ociVersion": "1.0.2", "process": {"args": ["/bin/app"], "cwd": "/"}}


def members(**replaced: bytes | None) -> list[Member]:
    """Return the usual members, some with another content (None: left out); "_" stands for "." and "__" for "/"."""
    content: dict[str, bytes | None] = {
        "config.dump": json.dumps(CONFIG).encode(),
        "spec.dump": json.dumps(SPEC).encode(),
        "network.status": b"null",
        "checkpoint/": b"",
        "checkpoint/inventory.img": b"\x58\x31\x16\x54",
        "checkpoint/pages-1.img": b"secret memory" * 100,
        "rootfs-diff.tar": tar(
            [member("etc", mode=0o755), member("etc/new", b"1"), member("etc/l", link="/run/x")]
        ),
        "deleted.files": json.dumps(["/etc/old"]).encode(),
    }
    content |= {name.replace("__", "/").replace("_", "."): data for name, data in replaced.items()}
    return [
        member(name.rstrip("/")) if name.endswith("/") else member(name, data, mode=0o600)
        for name, data in content.items()
        if data is not None
    ]


def archive(path: Path, found: list[Member] | None = None) -> Path:
    """Write an archive packed with gzip."""
    path.write_bytes(gzip.compress(tar(members() if found is None else found), mtime=0))
    return path
