"""A run whose files were damaged since: noticed, told in a line, and gone on with from what is whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retort.common.errors import UserError
from retort.config.schema import Recipe
from retort.training.run import finished, train

ReadRecipe = Callable[..., Recipe]
STEPS = ("training.steps=3", "training.evaluate_steps=1", "training.log_steps=1", "training.keep=last")


@pytest.fixture
def run(read_recipe: ReadRecipe, tmp_path: Path) -> Callable[[], tuple[Path, list[str]]]:
    """Train the same recipe, and the warnings that it gave."""
    recipe = read_recipe(*STEPS, "training.checkpoints=1", "features.storage=online")

    def train_it() -> tuple[Path, list[str]]:
        warnings: list[str] = []
        outcome = train(
            recipe,
            tmp_path / "exp",
            lambda *_: None,
            lambda _, values: warnings.extend([values["warning"]] if "warning" in values else []),
        )
        assert finished(recipe, tmp_path / "exp") is not None
        return outcome.folder, warnings

    return train_it


Change = Callable[[dict[str, Any]], object]
STATES: list[Change] = [
    lambda state: state["health"].pop("told"),
    lambda state: state.update(later=1, tallies={"ce": ["x", 1]}),
    lambda state: state.update(scores=[]),
]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def test_damage_of_a_run(run: Callable[[], tuple[Path, list[str]]], tmp_path: Path) -> None:
    folder, _ = run()
    model = folder / "model" / "model.safetensors"
    clean = model.read_bytes()
    kept = shutil.copytree(folder, tmp_path / "kept")
    last = folder / "checkpoints" / "step-00000003"

    def again() -> None:
        shutil.rmtree(folder)
        shutil.copytree(kept, folder)

    flip(model)  # of a finished run: made again from its checkpoints
    assert run()[1] == []
    assert model.read_bytes() == clean

    def change(edit: Change, sums: bool) -> None:
        state = json.loads((last / "state.json").read_text())
        edit(state)
        (last / "state.json").write_text(json.dumps(state))
        if not sums:
            (last / "checksums.json").unlink()

    damages: list[Callable[[], object]] = [lambda: flip(last / "student.safetensors")]
    damages += [lambda edit=edit: change(edit, sums=False) for edit in STATES]
    damages += [lambda: change(STATES[0], sums=True), lambda: (last / "optimizer.safetensors").unlink()]
    for damage in damages:
        again()
        shutil.rmtree(folder / "model")
        damage()
        _, warnings = run()
        assert len(warnings) == 1
        assert "incomplete" in warnings[0]
        assert model.read_bytes() == clean  # the step is trained again


def test_a_log_that_is_no_table_is_cut_there(
    run: Callable[[], tuple[Path, list[str]]], tmp_path: Path
) -> None:
    folder, _ = run()
    shutil.rmtree(folder / "model")
    shutil.rmtree(folder / "checkpoints" / "step-00000003")
    log = folder / "metrics.jsonl"
    for content in (b"5\n", b'{"step": "x"}\n', b"\xff\xfe\n", b"[]\n"):
        log.write_bytes(content + log.read_bytes())
        run()
        shutil.rmtree(folder / "model")
        shutil.rmtree(folder / "checkpoints" / "step-00000003")


def test_no_whole_checkpoint_is_one_line(run: Callable[[], tuple[Path, list[str]]]) -> None:
    folder, _ = run()
    shutil.rmtree(folder / "model")
    for step in (folder / "checkpoints").iterdir():
        for path in step.iterdir():
            path.write_bytes(bytes(10))
    with pytest.raises(UserError) as caught:
        run()
    assert "\n" not in str(caught.value)
