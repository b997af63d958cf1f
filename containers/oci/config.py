"""What an image runs, and on which layers (OCI image specification, config.md).

`ImageConfig` is what a runtime needs to start a container; `Image` is the whole document as far as it is used here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ..errors import ImageInvalid
from . import digests, fields
from .digests import Digest

DEFAULT_CWD = "/"


@dataclass(frozen=True)
class ImageConfig:
    """What is started in a container of this image, and how."""

    entrypoint: tuple[str, ...] = ()
    cmd: tuple[str, ...] = ()
    env: dict[str, str] = field(default_factory=dict)
    cwd: str = DEFAULT_CWD
    user: str = ""
    """A name or number, with or without `:group`; empty is root."""

    @property
    def argv(self) -> tuple[str, ...]:
        """The whole command line, unless the user gives another `cmd`."""
        return self.entrypoint + self.cmd


@dataclass(frozen=True)
class Image:
    """A configuration document."""

    config: ImageConfig
    diff_ids: tuple[Digest, ...]
    """Digests of the layers' uncompressed tars, from the lowest to the highest."""
    architecture: str = "amd64"
    os: str = "linux"
    created: str | None = None
    labels: Mapping[str, str] = field(default_factory=dict)


def parse(data: bytes, what: str = "the image's config") -> Image:
    """Read a configuration document."""
    document = fields.parse(data, what)
    rootfs = fields.section(document, "rootfs", what)
    if rootfs.get("type") != "layers":
        raise ImageInvalid(f"{what} has no rootfs of layers")
    section = fields.section(document, "config", what)
    return Image(
        _parse_config(section, what),
        tuple(digests.parse(text, what) for text in fields.texts(rootfs, "diff_ids", what)),
        fields.text(document, "architecture", what),
        fields.text(document, "os", what),
        fields.text(document, "created", what, default="") or None,
        fields.labels(section, "Labels", what),
    )


def render(image: Image) -> bytes:
    """Write a configuration document."""
    config = image.config
    section: dict[str, Any] = {
        "Entrypoint": list(config.entrypoint),
        "Cmd": list(config.cmd),
        "Env": [f"{name}={value}" for name, value in config.env.items()],
        "WorkingDir": config.cwd,
        "User": config.user,
        "Labels": dict(image.labels),
    }
    written: dict[str, Any] = {
        "architecture": image.architecture,
        "os": image.os,
        "config": {name: value for name, value in section.items() if value},
        "rootfs": {"type": "layers", "diff_ids": [str(digest) for digest in image.diff_ids]},
    }
    if image.created:
        written["created"] = image.created
    return fields.render(written)


def _parse_config(section: Mapping[str, Any], what: str) -> ImageConfig:
    cwd = fields.text(section, "WorkingDir", what, default="") or DEFAULT_CWD
    if not cwd.startswith("/"):
        raise ImageInvalid(f"{what} has the working directory {cwd!r}, which is not absolute")
    return ImageConfig(
        fields.texts(section, "Entrypoint", what),
        fields.texts(section, "Cmd", what),
        _parse_env(fields.texts(section, "Env", what), what),
        cwd,
        fields.text(section, "User", what, default=""),
    )


def _parse_env(assignments: tuple[str, ...], what: str) -> dict[str, str]:
    found = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not name or not equals or "\0" in assignment:
            raise ImageInvalid(f"{what} has {assignment[:100]!r} in Env, which is not NAME=VALUE")
        found[name] = value
    return found
