"""`p4ferry checkpoint …`: the command line of checkpoint archives.

    p4ferry checkpoint build ARCHIVE IMAGE              check an archive, and make an OCI image of it (a folder)
    p4ferry checkpoint push IMAGE HOST:PORT/NAME:TAG    to a registry on this machine
    p4ferry checkpoint pull HOST:PORT/NAME:TAG IMAGE    from there
    p4ferry checkpoint import IMAGE ARCHIVE             check an image, and write its archive
    p4ferry checkpoint restore IMAGE [-- OPTION…]       … and let Podman restore it

All need root, since what they read and write holds a program's memory.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import ContainersError
from . import image, reference, restore
from .registry import Registry

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add(commands: Commands) -> None:
    """Add `checkpoint` to a command line."""
    parser = commands.add_parser("checkpoint", help="checkpoint archives: as images, to and from a registry")
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, what, operands in (
        ("build", "check an archive, and make an image of it", ("archive", "image")),
        ("push", "send an image to a registry on this machine", ("image", "reference")),
        ("pull", "fetch an image from there", ("reference", "image")),
        ("import", "check an image, and write its archive", ("image", "archive")),
        ("restore", "check an image, and let Podman restore it", ("image",)),
    ):
        action = actions.add_parser(name, help=what)
        for operand in operands:
            if operand == "reference":
                action.add_argument(operand, metavar="HOST:PORT/NAME:TAG")
            else:
                action.add_argument(operand, metavar=operand.upper(), type=Path)
        if name == "restore":
            action.add_argument("option", nargs="*", help="for podman, behind --")


def run(arguments: argparse.Namespace, user: int | None = None) -> int:
    """Do it, and say what was done."""
    if (os.geteuid() if user is None else user) != 0:
        raise ContainersError("checkpoints hold a program's memory: only root may handle them (type: sudo …)")
    try:
        print(_done(arguments))
    except OSError as ex:
        raise ContainersError(f"{ex.filename or arguments.image}: {ex.strerror}") from ex
    return 0


def _done(arguments: argparse.Namespace) -> str:
    if arguments.action == "build":
        found = image.build(arguments.archive, arguments.image)
        return f"{arguments.image}: checkpoint of {found.name}, {found.size / 1e6:.1f} MB"
    if arguments.action == "import":
        found = image.extract(arguments.image, arguments.archive)
        return f"{arguments.archive}: checkpoint of {found.name}, {found.size / 1e6:.1f} MB"
    if arguments.action == "restore":
        return restore.restore(arguments.image, arguments.option)
    with Registry(reference.parse(arguments.reference)) as registry:
        if arguments.action == "push":
            return f"{arguments.reference}: {registry.push(arguments.image)}"
        return f"{arguments.image}: {registry.pull(arguments.image)}"
