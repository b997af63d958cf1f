"""Whether programs can be started in what was asked for, seen before anything is built."""

from __future__ import annotations

from collections.abc import Iterable

from topo import images
from topo.containers import engine as engines
from topo.containers.provision import check_built
from topo.errors import MissingTool
from topo.kinds import HostKind


def check(kind: HostKind, demo_images: Iterable[str]) -> None:
    """See that runc, or an engine that can move containers, and some of our images are there; raises TestbedError."""
    if kind is HostKind.RUNC:
        images.check(demo_images)
    elif kind.engine is not None:
        if (reason := engines.connect(kind.engine).why_no_checkpoints()) is not None:
            raise MissingTool(reason)
        check_built(demo_images)
