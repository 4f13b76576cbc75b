"""`retort release`: writes a trained model as a compact folder and scores the released weights."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from retort.common.checksums import SUMS
from retort.common.errors import UserError
from retort.common.files import write_whole
from retort.common.progress import StageProgress
from retort.config.loading import recipe_to_dict
from retort.config.schema import Recipe
from retort.decoding.confidence import AS_DECODED
from retort.decoding.recogniser import Recogniser, load
from retort.engine.folder import save_whole
from retort.evaluation.evaluate import Evaluation, evaluate
from retort.evaluation.reliability import calibrate_confidence
from retort.evaluation.results import commit
from retort.release.card import Compared, Terms, model_card
from retort.release.lineage import shown, trace
from retort.report.experiment import Experiment, open_experiment, results_of_release

CARD, RECIPE = "README.md", "recipe.json"
FILES = {"model.safetensors", "config.json", "tokenizer", SUMS, RECIPE, CARD}
SMALL = 30_000_000
"""Maximum size of a release for a repository, in bytes."""


@dataclass(frozen=True)
class Released:
    """Result of a release.

    Attributes:
        folder: folder of the release.
        size: size of its files in bytes.
        evaluations: evaluations of the released weights, as on the card.
        absolute: absolute paths in the recipe, which do not exist on other machines.
    """

    folder: Path
    size: int
    evaluations: list[Evaluation]
    absolute: list[str]


def release(
    experiment: Path,
    out: Path,
    terms: Terms,
    tests: Sequence[str],
    root: Path,
    progress: StageProgress,
    stored: str = "float16",
    compare: Sequence[Path] = (),
) -> Released:
    """Write the model of an experiment, its recipe and a model card.

    Word confidences are calibrated on the recipe's first validation data (:func:`calibrate_confidence`), unless
    `retort tune --confidence` did it. The card has the error rates of the released weights on the recipe's
    `data.test` and on `tests`; they are decoded greedily into `root/models/NAME/evaluation`, as by `retort evaluate`
    for the release.

    Args:
        experiment: finished experiment.
        out: folder of the release; an earlier release there is replaced.
        terms: licence, language, notes on the data.
        tests: manifests or Kaldi folders.
        root: folder of the experiments.
        progress: called with the name of a stage, the amount done and the total amount.
        stored: how the weights are stored (:data:`retort.common.weights.STORED`).
        compare: experiments or releases that the card compares the release with, such as the same system trained
            without distillation. Their weights are rounded as if they were stored in the same way; they are decoded
            into `root/models/NAME/compared`.

    Raises:
        UserError: there is no model or no test data, or `out` contains something else than a release.
    """
    if out.name in ("", ".."):
        out = Path(os.path.abspath(out))
    opened = open_experiment(experiment)
    others = [open_experiment(each) for each in compare]
    trained = load(opened.folder)
    _check_free(out)
    sources = list(dict.fromkeys([*opened.recipe.data.test, *tests]))
    if not sources:
        raise UserError(
            "its recipe has no data.test to score it on", where=experiment, remedy="Add --test CUTS"
        )
    recogniser = _as_stored(trained, stored)
    _calibrate(recogniser, opened.recipe, progress)
    home = results_of_release(out, root)
    evaluations = [evaluate(recogniser, each, home, progress, reuse=True) for each in sources]
    compared = [_compared(each, sources, home, progress, stored) for each in others]
    name, lineage = shown(out.as_posix()), trace(opened, root)
    card = model_card(name, recogniser, lineage, terms, evaluations, commit(), stored, compared)
    recipe = recipe_to_dict(opened.recipe)

    def save(folder: Path) -> None:
        _save(recogniser, folder, recipe, card, stored)

    save_whole(save, Path(out.absolute()))
    size = sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
    return Released(out, size, evaluations, sorted(set(_absolute(recipe))))


def _as_stored(trained: Recogniser, stored: str) -> Recogniser:
    """The recogniser with its weights as a release will have them."""
    with tempfile.TemporaryDirectory() as scratch:
        trained.save(Path(scratch), stored=stored)
        return load(scratch)


def _compared(
    other: Experiment, sources: Sequence[str], home: Path, progress: StageProgress, stored: str
) -> Compared:
    """Score another model, stored in the same way, on the same data."""
    recogniser = _as_stored(load(other.folder), stored)
    folder = home / "compared" / other.recipe.name
    return Compared(other.recipe, [evaluate(recogniser, each, folder, progress, reuse=True) for each in sources])


def _calibrate(recogniser: Recogniser, recipe: Recipe, progress: StageProgress) -> None:
    """Calibrate confidences on the first validation data of the recipe, unless the model is calibrated.

    Data with too few words for it leave the confidences as they are.
    """
    if recogniser.calibration != AS_DECODED or not recipe.data.validation:
        return
    with suppress(UserError):
        found = calibrate_confidence(recogniser, recipe.data.validation[0], partial(progress, "confidences"))
        recogniser.calibration = found.calibration


def _save(
    recogniser: Recogniser, folder: Path, recipe: dict[str, object], card: str, stored: str
) -> None:
    recogniser.save(folder, stored=stored)
    write_whole(folder / RECIPE, json.dumps(recipe, indent=2, ensure_ascii=False) + "\n")
    write_whole(folder / CARD, card)


def _check_free(out: Path) -> None:
    """Refuse to replace a folder that is not an unchanged release."""
    if not out.exists():
        return
    names = {each.name for each in out.iterdir()} if out.is_dir() else {out.name}
    if names and (CARD not in names or names - FILES - {"graph"}):
        raise UserError(
            "the folder exists and contains other files than a release", where=out, remedy="Choose another folder"
        )


def _absolute(value: object) -> Iterator[str]:
    if isinstance(value, str) and Path(value).is_absolute():
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _absolute(each)
