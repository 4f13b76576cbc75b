"""What `retort train`, `retort evaluate` and `retort release` left in a folder, opened for reading."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor

from retort.common.errors import UserError
from retort.common.files import opening_model
from retort.common.json_reader import parse_json, read_json
from retort.common.weights import read_weights
from retort.config.loading import recipe_from_dict
from retort.config.schema import Recipe
from retort.evaluation.before import BEFORE
from retort.evaluation.frame_accuracy import FrameAccuracy
from retort.evaluation.scoring import Score, read_score
from retort.nn.lora import merge_lora
from retort.text.tokenizer_io import open_tokenizer


@dataclass(frozen=True)
class Said:
    """One line of `hyp.jsonl`: normalised texts."""

    id: str
    speaker: str
    reference: str
    hypothesis: str


@dataclass(frozen=True)
class Scored:
    """A folder below `EXP/evaluation`: its name, the score, and what was said and recognised, by id.

    Attributes:
        frames: of a hybrid student, where the data has alignments.
    """

    name: str
    score: Score
    said: dict[str, Said]
    frames: FrameAccuracy | None = None


@dataclass
class Experiment:
    """A folder that `retort train` made, finished or not, or a release of one.

    Attributes:
        home: where its scores are, and a report of it is written (:func:`results_folder`).
        name: of the recipe; told apart from others by :func:`open_experiments`.
        metrics: lines of `metrics.jsonl`, numbers only; each has `step`.
        scored: by name, those whose files are whole.
        started: the same of the model that training started from (:mod:`retort.evaluation.before`).
        missing: what is not there or broken, in words.
    """

    folder: Path
    home: Path
    name: str
    recipe: Recipe
    metrics: list[dict[str, float]]
    scored: dict[str, Scored]
    missing: list[str] = field(default_factory=list)
    started: dict[str, Scored] = field(default_factory=dict)

    @property
    def finished(self) -> bool:
        """Whether there is a model."""
        return self.released or (self.folder / "model" / "config.json").is_file()

    @property
    def released(self) -> bool:
        """Whether it is a release: the model and its recipe, nothing of how it was trained."""
        return (self.folder / "config.json").is_file()

    @property
    def outputs(self) -> int:
        """Classes of the student's output, as its model says, or, while there is none, its tokenizer.

        Raises:
            UserError: neither is there.
        """
        for path in (self.folder / "config.json", self.folder / "model" / "config.json"):
            if path.is_file():
                with opening_model(path.parent, "Export or fetch it again"):
                    return int(read_json(path)["vocabulary"])
        return open_tokenizer(self.folder / "tokenizer").size

    @property
    def last_checkpoint(self) -> Path | None:
        """Folder of the newest whole checkpoint; it alone keeps what was trained beside the student."""
        steps = [path for path in self.folder.glob("checkpoints/step-*") if path.name[5:].isdigit()]
        return max(steps, key=lambda path: int(path.name[5:])) if steps else None

    def projections(self) -> dict[str, Tensor] | None:
        """The trained parts of the rows, as the objective names them; None where they are gone."""
        return self._tensors("objective")

    def last_student(self) -> dict[str, Tensor] | None:
        """Weights of the student that these projections were trained with."""
        weights, lora = self._tensors("student"), self.recipe.training.lora
        return merge_lora(weights, lora) if weights is not None and lora.parts else weights

    def _tensors(self, name: str) -> dict[str, Tensor] | None:
        if self.last_checkpoint is None:
            return None
        try:
            return read_weights(self.last_checkpoint / f"{name}.safetensors")
        except UserError:
            return None


def results_of_release(path: Path, root: Path) -> Path:
    """Where what is measured of a release is written, so that its folder stays as it was released."""
    return root / "models" / Path(os.path.abspath(path)).name


def results_folder(path: Path, root: Path) -> Path:
    """Where what is measured of a model is written.

    Args:
        path: `EXP`, `EXP/model`, or a model folder that stands alone.
        root: of the experiments.

    Returns:
        `EXP`; of a model folder that stands alone, as of a release, `root/models/NAME`.
    """
    if not (path / "config.json").is_file():
        return path
    if path.name in ("", ".."):
        path = Path(os.path.abspath(path))
    inside = path.name == "model" and (path.parent / "recipe.json").is_file()
    return path.parent if inside else results_of_release(path, root)


def open_experiments(folders: list[Path], root: Path) -> list[Experiment]:
    """All of them, with names that tell them apart; `root` as in :func:`results_folder`.

    Raises:
        UserError: as :func:`open_experiment`.
    """
    experiments = [open_experiment(each, results_folder(each, root)) for each in dict.fromkeys(folders)]
    names = [each.name for each in experiments]
    for each in experiments:
        if names.count(each.name) > 1:
            each.name = f"{each.name} ({each.folder})"
    return experiments


def open_experiment(folder: Path, home: Path | None = None) -> Experiment:
    """Read what is there.

    Args:
        folder: `EXP`, or `EXP/model` inside one, or a release.
        home: where its scores are, if not there.

    Raises:
        UserError: it is no experiment's folder.
    """
    if folder.name == "model" and (folder.parent / "recipe.json").is_file():
        folder = folder.parent
    path = folder / "recipe.json"
    remedy = "Give a folder that `retort train` or `retort release` made, such as exp/NAME"
    try:
        content = read_json(path)
        if not isinstance(content, dict):
            raise ValueError("not a table of values")
    except OSError:
        raise UserError("no experiment here (it has no recipe.json)", where=folder, remedy=remedy) from None
    except ValueError as error:
        raise UserError(f"not a recipe ({error})", where=path, remedy=remedy) from None
    recipe = recipe_from_dict(content, str(path))
    metrics = _metrics(folder / "metrics.jsonl")
    result = Experiment(folder, home or folder, recipe.name, recipe, metrics, {})
    missing = result.missing
    if result.released:
        missing.append("a release, which does not tell how training went")
    elif not metrics:
        missing.append("no metrics yet (metrics.jsonl)")
    result.scored = _scores(result.home, recipe, missing)
    result.started = _scores(result.home / BEFORE, recipe, missing)
    if not result.scored:
        missing.append("not scored yet (`retort evaluate` does it)")
    if not result.finished:
        missing.append("no model yet: training has not finished")
    return result


def _scores(folder: Path, recipe: Recipe, missing: list[str]) -> dict[str, Scored]:
    """What is below `folder/evaluation`; a line is added to `missing` for a score that is broken."""
    scored = {}
    for score in sorted(folder.glob("evaluation/*/score.json")):
        try:
            found, said = read_score(score), _said(score.parent / "hyp.jsonl")
            frames = _frames(score) if recipe.student.kind == "hybrid" else None
            scored[score.parent.name] = Scored(score.parent.name, found, said, frames)
        except UserError as error:
            missing.append(str(error))
    return scored


def _frames(path: Path) -> FrameAccuracy | None:
    content = read_json(path)
    return FrameAccuracy.from_dict(content["frames"]) if "frames" in content else None


def _lines(path: Path) -> Iterator[Any]:
    """The JSON objects of a file that may be missing; ends before a line that was cut short."""
    if not path.is_file():
        return
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            item = parse_json(line)
        except ValueError:
            return
        if isinstance(item, dict):
            yield item


def _metrics(path: Path) -> list[dict[str, float]]:
    lines = []
    for item in _lines(path):
        numbers = {
            key: float(value)
            for key, value in item.items()
            if type(value) in (int, float) and math.isfinite(value)
        }
        if "step" in numbers:
            lines.append(numbers)
    return lines


def _said(path: Path) -> dict[str, Said]:
    keys = ("id", "speaker", "reference", "hypothesis")
    return {
        str(item["id"]): Said(*(str(item[key]) for key in keys))
        for item in _lines(path)
        if all(key in item for key in keys)
    }
