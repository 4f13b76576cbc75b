"""Students with a CTC head, and with attention, from data to a score: the tiny recipe with another `student.kind`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from retort.config.schema import Recipe
from retort.decoding.options import DecodingOptions, read_options
from retort.decoding.recogniser import load
from retort.engine.log import read_metrics
from retort.evaluation.evaluate import evaluate
from retort.text.tokenizer_io import open_tokenizer
from retort.text.tokenizers import BLANK
from retort.training.run import Outcome, train
from retort.tuning.lm_weights import tune
from tiny_lms import TableLM, masked_bert

ReadRecipe = Callable[..., Recipe]
SPECIAL, LETTERS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "abcdefgh"
ROWS = {
    "ctc": ("acoustic", "utterance"),
    "attention": ("acoustic", "linguistic", "utterance"),
}
LOSSES = {"ctc": {"ctc"}, "attention": {"ce", "ctc", "correct"}}


def silent(*_: object) -> None:
    return None


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return masked_bert(
        tmp_path_factory.mktemp("masked"), [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    )


def taught(kind: str, bert: Path, tone_bert: Path) -> str:
    rows = "".join(
        f"  - {{tap: {tap}, teacher: vectors, loss: regression, weight: 0.1}}\n" for tap in ROWS[kind]
    )
    return (
        f'teachers: {{lm: {{kind: masked_lm, model: "{bert}", topk: 4}}, vectors: {{model: "{tone_bert}", case: lower}}}}\n'
        "distill:\n  - {tap: tokens, teacher: lm, loss: soft_label, weight: 0.5}\n"
        "  - {tap: frames.1, teacher: vectors, loss: cosine, pool: cif, weight: 0.1}\n"
        f"  - {{tap: acoustic, teacher: vectors, loss: contrastive, weight: 0.1}}\n{rows}"
    )


def trained(
    kind: str,
    read_recipe: ReadRecipe,
    root: Path,
    *overrides: str,
    extra: str = "",
    name: str = "",
    report: Any = silent,
) -> Outcome:
    recipe = read_recipe(f"student.kind={kind}", *overrides, extra=extra, name=name or kind)
    return train(recipe, root, silent, report)


@pytest.mark.parametrize("kind", ["ctc", "attention"])
def test_from_data_to_a_score(
    kind: str, read_recipe: ReadRecipe, tmp_path: Path, bert: Path, tone_bert: Path, corpus: Path
) -> None:
    extra = taught(kind, bert, tone_bert)
    tokens = ("tokenizer.kind=teacher", "tokenizer.teacher=lm")
    warned: list[str] = []

    def report(step: int, values: Mapping[str, Any]) -> None:
        warned.extend(str(value) for name, value in values.items() if name == "warning")

    outcome = trained(kind, read_recipe, tmp_path, *tokens, "training.steps=24", extra=extra, report=report)
    lines = [line for line in read_metrics(outcome.folder / "metrics.jsonl") if "loss" in line]
    rows = {
        "tokens.soft_label",
        "tokens.soft_label.mass",
        "frames.1.cosine.quantity",
        "acoustic.contrastive.accuracy",
    }
    named = rows | LOSSES[kind]
    assert all(named <= line.keys() for line in lines)
    assert lines[-1]["ctc"] < lines[0]["ctc"]
    assert lines[-1]["tokens.soft_label.spoken"] == 1.0
    assert not [each for each in warned if "accuracy has not improved" in each and kind == "ctc"]
    validated = [line for line in read_metrics(outcome.folder / "metrics.jsonl") if "validation.cer" in line]
    assert {"validation.cer", "validation.wer", "validation.ctc_cer"} <= validated[-1].keys()

    recogniser = load(outcome.folder)
    plain = sum(each.numel() for each in recogniser.student.parameters())
    assert outcome.params == plain  # rows ship nothing
    moved = load(shutil.copytree(outcome.folder / "model", tmp_path / "moved"))
    assert moved.fingerprint() == outcome.recogniser.fingerprint()
    file = str(next((corpus / "test" / "wav").glob("*.wav")))
    for options in (DecodingOptions(), DecodingOptions(beam=3, nbest=2)):
        assert recogniser.transcribe(file, options=options) == moved.transcribe(file, options=options)
        found = evaluate(recogniser, str(corpus / "test"), tmp_path / "scores", silent, options)
        assert 0.0 < found.score.characters.rate <= 2.0
        assert not found.rejected


@pytest.mark.parametrize("kind", ["ctc", "attention"])
def test_it_starts_from_what_cif_has_learned_and_cif_from_it(
    kind: str, read_recipe: ReadRecipe, tmp_path: Path, finished: Outcome
) -> None:
    started: dict[str, Any] = {}

    def report(step: int, values: Mapping[str, Any]) -> None:
        started.update({name: value for name, value in values.items() if name.startswith("init.")})

    start = (f"training.init={finished.folder}", "tokenizer.kind=init", "training.steps=4")
    outcome = trained(kind, read_recipe, tmp_path, *start, report=report)
    hearing = [
        name for name in outcome.recogniser.student.state_dict() if name.startswith(("encoder.", "ctc."))
    ]
    assert started["init.taken"] >= len(hearing)
    if kind == "attention":
        return
    again = (f"training.init={outcome.folder}", "tokenizer.kind=init", "training.steps=4")
    trained("cif", read_recipe, tmp_path, *again, report=report, name="back")
    assert started["init.taken"] >= len(hearing)


def test_tuning_a_language_model_with_ctc_finds_a_weight_of_length(
    read_recipe: ReadRecipe, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = trained("ctc", read_recipe, tmp_path, "training.steps=4")
    recogniser = load(outcome.folder)
    recogniser.student.ctc.bias.data[BLANK] -= 1.0  # type: ignore[operator,union-attr]  # so that it says something
    lm = TableLM(open_tokenizer(outcome.folder / "tokenizer"))
    (tmp_path / "lm").mkdir()
    (tmp_path / "lm" / "config.json").write_text("{}")
    monkeypatch.setattr("retort.decoding.fusion.open_causal_lm", lambda folder, device: lm)
    options = DecodingOptions(beam=4, lm=str(tmp_path / "lm"))
    found = tune(recogniser, str(corpus / "validation"), tmp_path, options, silent, "cer")
    assert found.best.rate < found.alone
    assert len({each.lm_weight for each in found.tried}) >= 6
    assert found.options.length_weight == found.best.length_weight > 0.0  # without it the model deletes
    assert read_options(found.file) == found.options
