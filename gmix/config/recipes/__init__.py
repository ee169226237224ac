"""Named settings: `gmix train --recipe NAME` starts from `NAME.yaml` in this folder."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from gmix.config.options import suggest
from gmix.config.yamlfile import parse_yaml


def recipe_names() -> list[str]:
    """List the names of all recipes.

    Examples:
        >>> recipe_names()[-2:]
        ['voc_1464_r50', 'voc_500_r50']
    """
    found = (item.name for item in files("gmix.config.recipes").iterdir())
    return sorted(name.removesuffix(".yaml") for name in found if name.endswith(".yaml"))


def read_recipe(name: str) -> dict[str, Any]:
    """Read the settings of a recipe, merged into those of the recipe it builds on.

    Raises:
        ValueError: If the recipe is unknown.

    Examples:
        >>> recipe = read_recipe("voc_1-16_r101")
        >>> recipe["labels"], recipe["encoder"]
        (662, 'resnet101')
    """
    if name not in recipe_names():
        raise ValueError(
            f"there is no recipe {name}{suggest(name, recipe_names())} (docs/recipes.md lists them)"
        )
    file = files("gmix.config.recipes") / f"{name}.yaml"
    own = parse_yaml(file.read_text(encoding="utf-8"), file.name)
    base = own.pop("recipe", None)
    return own if base is None else {**read_recipe(base), **own}
