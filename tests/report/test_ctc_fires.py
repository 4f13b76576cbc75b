"""What looks at a CIF student takes one that estimates no weights: fires are at the peaks of its CTC head."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from retort.config.loading import load_recipe
from retort.config.schema import Recipe
from retort.corpora.open_cuts import open_cuts
from retort.decoding.recogniser import load
from retort.evaluation.evaluate import evaluate
from retort.release.card import Terms
from retort.release.release import release
from retort.report.firing import compute_firing, length_errors
from retort.report.report import write_report
from retort.training.run import train

FIRES = ("student.cif.fires=ctc", "student.decoder.window=2", "training.steps=2", "training.evaluate_steps=2")


@pytest.fixture(scope="module")
def experiment(recipe_text: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("peaks")
    (root / "peaks.yaml").write_text(recipe_text("peaks"))
    recipe: Recipe = load_recipe(str(root / "peaks.yaml"), FIRES)
    outcome = train(recipe, root, lambda *_: None, lambda *_: None)
    evaluate(outcome.recogniser, recipe.data.test[0], outcome.folder, lambda *_: None)
    return outcome.folder


def test_fires_and_lengths(experiment: Path, corpus: Path) -> None:
    recogniser, cuts = load(experiment), list(open_cuts(corpus / "test").cuts)
    errors = length_errors(recogniser, cuts)
    for cut in cuts:
        found = compute_firing(recogniser, cut)
        frames = len(found.alphas)
        assert ((found.alphas >= 0) & (found.alphas <= 1)).all()
        assert found.fire_times[-1] == frames  # the end of the sentence, in the last frame
        assert len(found.labels) == len(found.fire_times)
        output = len(recogniser.tokenizer.encode(recogniser.normalise(cut.supervisions[0].text))) + 1
        assert errors[cut.id] == len(found.fire_times) - output


def test_report_and_release(experiment: Path, tmp_path: Path) -> None:
    written = write_report([experiment], tmp_path / "report", lambda *_: None, tmp_path)
    assert "Weights and fires" in written.markdown.read_text()
    release(experiment, tmp_path / "released", Terms("CC0-1.0", "en"), [], tmp_path / "exp", lambda *_: None)
    assert load(tmp_path / "released").student.config.cif.fires == "ctc"
