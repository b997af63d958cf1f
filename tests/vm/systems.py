"""Which systems are tested: a distribution's root file system, and the kernel that is booted on it."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path

from .errors import VmError


@dataclass(frozen=True)
class Distribution:
    """A distribution that a root file system is made of."""

    name: str
    suite: str
    kernel: str
    """Version of its own kernel, as `KERNEL=` takes it."""
    packages: tuple[str, ...] = ()
    """What it gets besides the common ones."""


DISTRIBUTIONS = (
    Distribution("debian12", "bookworm", "6.1"),
    Distribution("debian13", "trixie", "6.12", ("crun",)),
)


@dataclass(frozen=True)
class System:
    """A kernel to boot on a distribution's root file system."""

    label: str
    distribution: Distribution
    image: Path | None = None
    """A kernel given by path; None: the distribution's own."""
    modules: Path | None = None
    """Its folder lib/modules/VERSION."""


def choose(kernel: str, modules: str = "", root: str = "") -> list[System]:
    """Return what KERNEL=, MODULES= and ROOT= ask for; raises VmError."""
    named = [found.kernel for found in DISTRIBUTIONS]
    if (modules or root) and kernel in ("all", *named):
        raise VmError(f"KERNEL={kernel}: MODULES= and ROOT= are for a kernel that is given by its path")
    if kernel == "all":
        return [System(found.kernel, found) for found in DISTRIBUTIONS]
    for found in DISTRIBUTIONS:
        if kernel == found.kernel:
            return [System(found.kernel, found)]
    image = Path(kernel)
    if not image.is_file():
        raise VmError(
            f"KERNEL={kernel} is neither one of {', '.join(named)}, all, nor the path of a kernel image"
        )
    return [_given(image, modules, root)]


def _given(image: Path, modules: str, root: str) -> System:
    names = [found.name for found in DISTRIBUTIONS]
    if root and root not in names:
        raise VmError(f"ROOT={root} is not one of {', '.join(names)}")
    version = version_of(image)
    folder = Path(modules) if modules else _modules_beside(image, version)
    if not (folder / "modules.dep").is_file():
        raise VmError(
            f"{image} is Linux {version}, and its modules are not at {folder} (no modules.dep there): name the folder "
            f"lib/modules/VERSION of its package with MODULES=, and call depmod -b FOLDER {version} if it is new"
        )
    distribution = DISTRIBUTIONS[names.index(root)] if root else DISTRIBUTIONS[0]
    return System(version, distribution, image, folder)


def _modules_beside(image: Path, version: str) -> Path:
    """Guess the place: a package that was unpacked has boot/ and lib/ (or usr/lib/) in one folder."""
    top = image.resolve().parent.parent
    places = [top / lib / "modules" / version for lib in ("lib", "usr/lib")]
    return next((place for place in places if place.is_dir()), places[0])


def version_of(image: Path) -> str:
    """Read the version out of a bzImage (Documentation/arch/x86/boot.rst: magic at 0x202, kernel_version at 0x20e)."""
    with image.open("rb") as file:
        head = file.read(0x200 + 0x10000)
    if head[0x202:0x206] != b"HdrS" or len(head) < 0x210:
        raise VmError(f"{image} is not a Linux kernel for x86-64 (a bzImage)")
    (offset,) = struct.unpack_from("<H", head, 0x20E)
    text = head[0x200 + offset :].split(b"\0", 1)[0].decode(errors="replace")
    if not offset or not text:
        raise VmError(f"{image} does not say its version")
    return text.split()[0]
