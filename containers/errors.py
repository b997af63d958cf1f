"""What can go wrong with images and checkpoint archives.

    ContainersError
    ├── Invalid            a file breaks its format's rules, or is not safe to unpack
    │   ├── ImageInvalid       an OCI image or its layer
    │   └── ArchiveInvalid     a checkpoint archive
    ├── ImageMissing       a layout has no image of that name
    ├── UnpackFailed       the system refused a file of a valid layer (no room, no permission)
    ├── BuildFailed        an image could not be built
    ├── EngineFailed       a container engine refused what it was given
    └── RegistryFailed     a registry is not on this machine, does not answer, or refused

Every message is one sentence for a user: what, where, and if possible what to do.
"""

from __future__ import annotations


class ContainersError(Exception):
    """Something about an image or a checkpoint archive failed."""


class Invalid(ContainersError):
    """A file breaks the rules of its format, or is not safe to unpack."""


class ImageInvalid(Invalid):
    """An OCI image or one of its layers is not what it has to be."""


class ArchiveInvalid(Invalid):
    """A checkpoint archive is not what it has to be."""


class ImageMissing(ContainersError):
    """A layout has no image of that name."""


class UnpackFailed(ContainersError):
    """The system refused to make a file of a valid layer."""


class BuildFailed(ContainersError):
    """An image could not be built."""


class EngineFailed(ContainersError):
    """A container engine refused what it was given."""


class RegistryFailed(ContainersError):
    """A registry is not on this machine, does not answer, or refused."""
