"""The demos' images: packages in layers, a layer of programs from apps/, and what is started.

A list of packages is one layer; a second list goes on top of it as a layer of its own, so that the Python images share
what they have in common. `busybox` is the shell and the small tools (BUSYBOX) of all of them.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..oci.config import ImageConfig

PREFIX = "localhost/p4ferry"
"""Names begin with it: an engine looks for `localhost/` nowhere but on this machine."""
PROGRAMS = "srv/p4ferry/apps"
"""Where apps/ is in an image."""
_TOOLS = """
sh ash awk basename cat chmod chown cp cut date dd df dirname du echo egrep env false find free grep
head hostname id ifconfig ip kill killall ln ls mkdir mktemp more mount mv nc netstat nslookup ping
ping6 printf ps pwd readlink rm rmdir route sed seq sleep sort stat stty sync tail tar tee telnet
test timeout top touch tr traceroute true umount uname uniq uptime vi watch wc wget which xargs
"""
BUSYBOX = tuple(_TOOLS.split())

_ENV = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
}
_PYTHON_ENV = {**_ENV, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONUNBUFFERED": "1"}
_PYTHON = ("busybox", "python3")
_WITH_REDIS = ("python3-redis",)
_REDIS = ("busybox", "redis-tools")  # has the server as well, under the name redis-check-rdb


@dataclass(frozen=True)
class Recipe:
    """One image."""

    name: str
    packages: tuple[tuple[str, ...], ...]
    """For each layer of packages, from the lowest to the highest."""
    runs: ImageConfig
    has_programs: bool = True
    """Whether apps/ is in it."""
    is_own: bool = False
    """Whether it is made without a package (own.py); then nothing is downloaded."""

    @property
    def reference(self) -> str:
        """Return the image's name."""
        return f"{PREFIX}/{self.name}:latest"


def _program(name: str, file: str, packages: tuple[tuple[str, ...], ...], *cmd: str) -> Recipe:
    entrypoint = ("python3", f"/{PROGRAMS}/{file}")
    return Recipe(name, packages, ImageConfig(entrypoint, cmd, _PYTHON_ENV))


RECIPES = (
    _program("tcp-echo", "tcp_echo.py", (_PYTHON,), "server"),
    _program("http-server", "http_server.py", (_PYTHON,)),
    _program("producer", "producer.py", (_PYTHON, _WITH_REDIS), "--connect", "127.0.0.1:6379"),
    _program("app", "app.py", (_PYTHON, _WITH_REDIS), "--redis", "127.0.0.1:6379"),
    Recipe(
        "redis",
        (_REDIS,),
        ImageConfig(
            ("redis-server",),
            ("--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--appendonly", "no"),
            _ENV,
            "/var/lib/redis",
        ),
        has_programs=False,
    ),
    Recipe("pause", (), ImageConfig(("/pause",)), has_programs=False, is_own=True),
    Recipe("host", (), ImageConfig(env=_ENV), has_programs=False, is_own=True),
)
"""All images, by the names that the issue and the documentation give them."""
