"""`retort recipes` and `retort config`: which recipes there are, and what one of them says."""

from __future__ import annotations

from typing import Annotated

import typer

from retort.common.errors import UserError
from retort.verbs.console import Overrides, print_line


def recipes(
    part: Annotated[
        str, typer.Argument(metavar="[PART]", help="Only recipes whose name contains PART.")
    ] = "",
) -> None:
    """List the packaged recipes and overlays, each with the first sentence of its description.

    `+NAME` is an overlay: `retort train RECIPE +NAME` applies it to a recipe.
    """
    from retort.config.layers import overlay_names, packaged, summary

    names = [
        name for name in [*packaged(), *(f"+{overlay}" for overlay in overlay_names())] if part in name
    ]
    if not names:
        raise UserError(
            f"no packaged recipe has '{part}' in its name", remedy="Leave PART out to list them all"
        )
    width = max(map(len, names))
    for name in names:
        print_line(f"{name:<{width}}  {summary(name)}".rstrip())


def config(
    recipe: Annotated[
        str, typer.Argument(metavar="[RECIPE]", help="Name of a packaged recipe, or the path of a YAML file.")
    ] = "",
    overrides: Overrides = None,
    changed: Annotated[
        bool, typer.Option("--changed", help="Print only the keys whose values are not the defaults.")
    ] = False,
    texts: Annotated[bool, typer.Option(help="Print the documentation of each key above it.")] = True,
    all_keys: Annotated[
        bool,
        typer.Option(
            "--all-keys", help="Print the documentation of all keys as Markdown; no recipe is needed."
        ),
    ] = False,
    decoding: Annotated[
        bool,
        typer.Option(
            "--decoding-options", help="Print the documentation of all decoding options as Markdown instead."
        ),
    ] = False,
) -> None:
    """Print a recipe with everything that it inherits, as YAML.

    A comment after each value names the file, stage, variant or overlay that sets it, or says that it is the default, comes
    from the path of the recipe, or from the command line. The stages that are trained before the recipe follow as comments.
    """
    from retort.config.keys import keys_page, recipe_lines
    from retort.decoding.options import options_page

    if all_keys or decoding:
        for line in (keys_page() if all_keys else options_page()).splitlines():
            print_line(line)
        return
    if not recipe:
        raise UserError("no recipe is given", remedy="Name one; `retort recipes` lists them")
    for line in recipe_lines(recipe, overrides or [], changed=changed, texts=texts):
        print_line(line)
