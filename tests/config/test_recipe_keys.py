"""The documentation of recipes: every key has a text, the page is current, and `retort config` names the origins."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from retort.cli import app
from retort.common.errors import UserError
from retort.config.keys import keys_of, keys_page, recipe_lines
from retort.config.layers import overlay_names, packaged, summary
from retort.config.loading import load_recipe, recipe_to_dict

PAGE = Path(__file__).parents[2] / "docs" / "recipe_keys.md"


def test_every_key_has_a_text_that_ends() -> None:
    for key in keys_of():
        assert key.text.endswith((".", ")")), f"{key.name} needs a sentence: '{key.text}'"


def test_the_page_of_keys_is_current() -> None:
    """Write it with `retort config --all-keys > docs/recipe_keys.md`."""
    assert PAGE.read_text(encoding="utf-8") == keys_page()


def test_the_page_names_every_key() -> None:
    page, keys = keys_page(), [(key.name, key.of) for key in keys_of()]
    assert len(keys) == len(set(keys)) > 150
    assert all(f"`{name}`" in page for name, _ in keys)
    assert ("student.encoder.blocks", "kind zipformer") in keys


def write(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_a_printed_recipe_is_the_recipe(tmp_path: Path) -> None:
    write(
        tmp_path,
        "base.yaml",
        "name: x\ntraining: {steps: 7, betas: [0.8, 0.9]}\nteachers: {b: {layers: [3]}}\n",
    )
    text = "base: base.yaml\nname: y\ndistill: [{tap: acoustic, teacher: b, loss: cosine, weight: 2.0}]\n"
    path = write(tmp_path, "mine.yaml", text)
    lines = list(recipe_lines(path, ["training.peak_lr=0.5"], changed=False, texts=True))
    printed = yaml.safe_load("\n".join(lines))
    assert printed == recipe_to_dict(load_recipe(path, ["training.peak_lr=0.5"]))


def test_where_values_come_from(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "name: x\ntraining: {steps: 7, betas: [0.8, 0.9]}\n")
    path = write(tmp_path, "mine.yaml", "base: base.yaml\nname: y\ntraining: {steps: 8}\n")
    lines = list(recipe_lines(path, ["seed=5"], changed=True, texts=False))
    origins = {line.partition(":")[0].strip(): line.rpartition("# ")[2] for line in lines if "# " in line}
    assert origins.pop("seed") == "command line"
    assert {key: Path(origin).name for key, origin in origins.items()} == {
        "name": "mine.yaml",
        "system": "path",
        "steps": "mine.yaml",
        "betas": "base.yaml",
    }


@pytest.mark.parametrize("name", ["english/hkd", "aishell1/hybrid_hierarchical"])
def test_packaged_recipes_can_be_printed(name: str) -> None:
    assert yaml.safe_load("\n".join(recipe_lines(name, changed=True, texts=False)))["name"] == name


def test_every_packaged_recipe_has_a_summary() -> None:
    for name in [*packaged(), *(f"+{overlay}" for overlay in overlay_names())]:
        assert summary(name), f"{name}: write a comment at the top of its file, or above the stage or variant"


def test_what_is_not_there_is_one_line() -> None:
    with pytest.raises(UserError):
        list(recipe_lines("english/none", changed=False, texts=False))
    for arguments in (["recipes", "nothing-like-it"], ["config"]):
        assert isinstance(CliRunner().invoke(app, arguments).exception, UserError)


def test_the_verbs_print() -> None:
    listed = CliRunner().invoke(app, ["recipes"])
    assert {"english/hkd", "speechocean762/warm", "+encoder/zipformer"} <= set(listed.stdout.split())
    assert CliRunner().invoke(app, ["config", "--all-keys"]).stdout == keys_page()
