"""Our own images in an engine: handed to it on demand; those that need no package are even built.

A name alone is one of ours (`redis` is localhost/p4ferry/redis:latest); anything else is a reference that the engine
must have already. Nothing is pulled.
"""

from __future__ import annotations

from collections.abc import Iterable

from containers.errors import ContainersError
from containers.images import engines
from containers.images.build import Builder
from containers.images.packages import Packages
from containers.images.recipes import PREFIX, RECIPES, Recipe
from containers.oci.layout import Layout
from topo import paths
from topo.containers.engine import Engine
from topo.errors import BadApp, ContainerFailed

LAYOUT = paths.STATE / "images"
PAUSE = "pause"


def provide(engine: Engine, name: str) -> str:
    """Return the reference under which an engine has an image, given to it now if it is ours; raises TestbedError."""
    recipe = find_recipe(name)
    if recipe is None:
        return name
    if recipe.is_own:
        _build(recipe)
    else:
        check_built([name])
    try:
        engines.load(LAYOUT, recipe.reference, engines.Engine(engine.name))
    except ContainersError as ex:
        raise ContainerFailed(str(ex)) from ex
    return recipe.reference


def find_recipe(name: str) -> Recipe | None:
    """Return what one of our images is made of, None if the name is somebody else's."""
    short = name.removeprefix(f"{PREFIX}/").removesuffix(":latest") if name.startswith(PREFIX) else name
    return next((recipe for recipe in RECIPES if recipe.name == short), None)


def check_built(names: Iterable[str]) -> None:
    """See that `make images` has been typed for some of our images; raises BadApp."""
    for name in names:
        recipe = find_recipe(name)
        try:
            if recipe is not None:
                Layout.open(LAYOUT).resolve(recipe.reference)
        except ContainersError as ex:
            raise BadApp(f"there is no image {name}: type make images ({ex})") from ex


def _build(recipe: Recipe) -> None:
    """Build an image that needs no packages, which takes less than a second; nothing if it is up to date."""
    try:
        builder = Builder(LAYOUT, Packages(), paths.CHECKOUT / "apps", say=lambda text: None)
        builder.build([recipe])
    except ContainersError as ex:
        raise ContainerFailed(f"the image {recipe.name} cannot be built: {ex}") from ex
    except OSError as ex:
        raise ContainerFailed(
            f"the image {recipe.name} cannot be built: {ex.filename}: {ex.strerror}"
        ) from ex
