"""The names that archives and their images have in common with Podman, CRI-O, kubelet and checkpointctl."""

from __future__ import annotations

import re

CONFIG = "config.dump"
"""The engine's own description of the container."""
SPEC = "spec.dump"
"""The OCI runtime specification that it ran with."""
CHECKPOINT = "checkpoint"
"""The folder of CRIU's images."""
INVENTORY = "checkpoint/inventory.img"
"""Every set of CRIU's images has it."""
NETWORK = "network.status"
"""The networks that it was in."""
ROOTFS_DIFF = "rootfs-diff.tar"
"""The files that differ from its image's; other archives in the archive are volumes and /dev/shm."""
DELETED = "deleted.files"
"""A list of the paths that it has deleted from its image."""

TMPFS = re.compile(r"checkpoint/tmpfs-dev-[0-9]+\.tar\.gz\.img\Z")
"""What was in a tmpfs of the container; CRIU unpacks it with tar. That of /dev has device nodes."""

ANNOTATION = "io.kubernetes.cri-o.annotations.checkpoint.name"
"""Marks an image as a checkpoint; its value is the container's name."""
