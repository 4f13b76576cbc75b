"""Reading the files of an experiment: output of `retort train`, `retort evaluate` and `retort release`."""

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
from retort.evaluation.reliability import Reliability
from retort.evaluation.scoring import Score, read_score
from retort.text.tokenizer_io import open_tokenizer


@dataclass(frozen=True)
class Texts:
    """One line of `hyp.jsonl`: normalised texts."""

    id: str
    speaker: str
    reference: str
    hypothesis: str


@dataclass(frozen=True)
class Scored:
    """A folder below `EXP/evaluation`: its name, the score, and reference and hypothesis by utterance id.

    Attributes:
        frames: frame accuracy of a hybrid student, if the data have alignments.
        reliability: of the confidences of words, if they were scored.
    """

    name: str
    score: Score
    texts: dict[str, Texts]
    frames: FrameAccuracy | None = None
    reliability: Reliability | None = None


@dataclass
class Experiment:
    """An experiment of `retort train`, finished or not, or a release.

    Attributes:
        home: folder of its scores and report (:func:`results_folder`).
        name: name of the recipe; made unique by :func:`open_experiments`.
        metrics: lines of `metrics.jsonl`, numbers only; each has `step`.
        scored: valid scores by name.
        started: the same for the initial model (:mod:`retort.evaluation.before`).
        missing: descriptions of missing or broken parts.
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
        """Whether the model exists."""
        return self.released or (self.folder / "model" / "config.json").is_file()

    @property
    def released(self) -> bool:
        """Whether it is a release: the model and its recipe, without files of the training."""
        return (self.folder / "config.json").is_file()

    @property
    def outputs(self) -> int:
        """Number of output classes, from the model or, while there is none, from the tokenizer.

        Raises:
            UserError: neither exists.
        """
        for path in (self.folder / "config.json", self.folder / "model" / "config.json"):
            if path.is_file():
                with opening_model(path.parent, "Export or fetch it again"):
                    return int(read_json(path)["vocabulary"])
        return open_tokenizer(self.folder / "tokenizer").size

    @property
    def last_checkpoint(self) -> Path | None:
        """Folder of the newest complete checkpoint; only this one has the objective."""
        steps = [path for path in self.folder.glob("checkpoints/step-*") if path.name[5:].isdigit()]
        return max(steps, key=lambda path: int(path.name[5:])) if steps else None

    def projections(self) -> dict[str, Tensor] | None:
        """Parameters of the rows, by names in the objective; None if they are missing."""
        return self._tensors("objective")

    def _tensors(self, name: str) -> dict[str, Tensor] | None:
        if self.last_checkpoint is None:
            return None
        try:
            return read_weights(self.last_checkpoint / f"{name}.safetensors")
        except UserError:
            return None


def results_of_release(path: Path, root: Path) -> Path:
    """Folder of the results of a release, whose own folder is not changed."""
    return root / "models" / Path(os.path.abspath(path)).name


def results_folder(path: Path, root: Path) -> Path:
    """Folder of the results of a model.

    Args:
        path: `EXP`, `EXP/model`, or a separate model folder.
        root: folder of the experiments.

    Returns:
        `EXP`; `root/models/NAME` for a separate model folder or a release.
    """
    if not (path / "config.json").is_file():
        return path
    if path.name in ("", ".."):
        path = Path(os.path.abspath(path))
    inside = path.name == "model" and (path.parent / "recipe.json").is_file()
    return path.parent if inside else results_of_release(path, root)


def open_experiments(folders: list[Path], root: Path) -> list[Experiment]:
    """Open experiments and make their names unique; `root` as in :func:`results_folder`.

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
    """Open an experiment.

    Args:
        folder: `EXP`, or `EXP/model` inside one, or a release.
        home: folder of its scores, if it is another one.

    Raises:
        UserError: it is not the folder of an experiment.
    """
    if folder.name == "model" and (folder.parent / "recipe.json").is_file():
        folder = folder.parent
    path = folder / "recipe.json"
    remedy = "Choose a folder that `retort train` or `retort release` made, such as exp/NAME"
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
        missing.append("a release has no training metrics")
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
    """The scores below `folder/evaluation`; a message is added to `missing` for a broken score."""
    scored = {}
    for score in sorted(folder.glob("evaluation/*/score.json")):
        try:
            found, texts = read_score(score), _texts(score.parent / "hyp.jsonl")
            frames = _frames(score) if recipe.student.kind == "hybrid" else None
            scored[score.parent.name] = Scored(score.parent.name, found, texts, frames, _reliability(score))
        except UserError as error:
            missing.append(str(error))
    return scored


def _frames(path: Path) -> FrameAccuracy | None:
    content = read_json(path)
    return FrameAccuracy.from_dict(content["frames"]) if "frames" in content else None


def _reliability(path: Path) -> Reliability | None:
    try:
        return Reliability.from_dict(read_json(path)["confidence"])
    except (ValueError, KeyError, TypeError):  # a score of an earlier version
        return None


def _lines(path: Path) -> Iterator[Any]:
    """The JSON objects of a file that may be missing, up to the first incomplete line."""
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


def _texts(path: Path) -> dict[str, Texts]:
    keys = ("id", "speaker", "reference", "hypothesis")
    return {
        str(item["id"]): Texts(*(str(item[key]) for key in keys))
        for item in _lines(path)
        if all(key in item for key in keys)
    }
