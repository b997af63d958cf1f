"""scripts/images: build the demos' images, list them, hand them to engines.

scripts/images                       build what is not up to date, in .p4ferry/images
scripts/images --only redis          one of them (again for several)
scripts/images --load docker         … and give them to an engine
scripts/images --archive redis.tar --only redis --format docker      … or write one as a tar
scripts/images --refresh             look for newer packages
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from ..errors import ContainersError
from ..oci.layout import Layout
from . import archives, engines
from .archives import Format
from .build import Builder
from .engines import Engine
from .packages import Packages
from .recipes import RECIPES, Recipe

_CHECKOUT = Path(__file__).resolve().parents[2]


def make_parser() -> argparse.ArgumentParser:
    """Return the command line's grammar."""
    parser = argparse.ArgumentParser(
        prog="images", description="Build the demos' container images from the distribution's packages."
    )
    names = [recipe.name for recipe in RECIPES]
    parser.add_argument("--only", action="append", choices=names, metavar="NAME", help=", ".join(names))
    parser.add_argument("--output", type=Path, default=_CHECKOUT / ".p4ferry" / "images", metavar="DIR")
    parser.add_argument("--suite", help="a release by its code name (this machine's)")
    parser.add_argument("--refresh", action="store_true", help="build anew, from the newest packages")
    parser.add_argument(
        "--load",
        action="append",
        choices=[e.value for e in Engine],
        default=[],
        help="give them to an engine",
    )
    parser.add_argument("--archive", type=Path, metavar="FILE", help="write one image as a tar")
    parser.add_argument("--format", choices=[f.value for f in Format], default=Format.OCI.value)
    parser.add_argument("--list", action="store_true", help="only say what is there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the command line asks."""
    parser = make_parser()
    arguments = parser.parse_args(argv)
    recipes = [recipe for recipe in RECIPES if arguments.only is None or recipe.name in arguments.only]
    if arguments.archive is not None and len(recipes) != 1:
        parser.error("--archive writes one image: name it with --only")
    try:
        run(arguments, recipes)
    except ContainersError as ex:
        print(f"images: {ex}", file=sys.stderr)
        return 1
    except OSError as ex:
        print(f"images: {ex.filename or arguments.output}: {ex.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def run(arguments: argparse.Namespace, recipes: Sequence[Recipe]) -> None:
    """Build, then list, load or write."""
    if not arguments.list:
        source = Packages(arguments.suite)
        builder = Builder(arguments.output, source, _CHECKOUT / "apps", refresh=arguments.refresh)
        builder.build(recipes)
    layout = Layout.open(arguments.output)
    for recipe in recipes:
        found = layout.resolve(recipe.reference)
        size = sum(item.size for item in found.manifest.layers) / 1e6
        print(f"{recipe.reference}  {str(found.descriptor.digest)[:19]}  {size:.1f} MB")
    for name in arguments.load:
        for recipe in recipes:
            new = engines.load(arguments.output, recipe.reference, Engine(name))
            print(f"{name}: {recipe.reference} {'loaded' if new else 'was there'}")
    if arguments.archive is not None:
        with arguments.archive.open("wb") as target:
            archives.write(layout, recipes[0].reference, Format(arguments.format), target)


if __name__ == "__main__":
    sys.exit(main())
