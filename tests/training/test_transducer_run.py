"""A transducer through `retort train`, with and without teachers, and what becomes of its model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retort.common.errors import UserError
from retort.config.schema import Recipe
from retort.decoding.options import DecodingOptions
from retort.decoding.recogniser import load
from retort.engine.log import read_metrics
from retort.evaluation.evaluate import evaluate
from retort.students.transducer import TransducerStudent
from retort.training.run import Outcome, train
from tiny_lms import masked_bert

ReadRecipe = Callable[..., Recipe]
TRANSDUCER = ("student.kind=transducer", "student.transducer.dim=24", "student.transducer.joiner_dim=24")
SPECIAL, LETTERS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "abcdefgh"


def trained(recipe: Recipe, root: Path, reports: list[Mapping[str, Any]] | None = None) -> Outcome:
    kept = [] if reports is None else reports
    return train(recipe, root, lambda *_: None, lambda step, values: kept.append(values))


def logged(folder: Path) -> list[dict[str, Any]]:
    return [line for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]


@pytest.mark.parametrize(("predictor", "monotonic"), [("stateless", "false"), ("lstm", "true")])
def test_from_a_cif_model_to_scores_and_texts(
    read_recipe: ReadRecipe, tmp_path: Path, corpus: Path, predictor: str, monotonic: str
) -> None:
    cif = trained(read_recipe("training.steps=2", name="cif"), tmp_path)
    reports: list[Mapping[str, Any]] = []
    recipe = read_recipe(
        *TRANSDUCER, f"student.transducer.predictor={predictor}", f"student.transducer.monotonic={monotonic}",
        f"training.init={cif.folder}", "tokenizer.kind=init", "training.rates={encoder: 0.5, ctc: 0.5}",
        "training.steps=60", "training.evaluate_steps=30", name="transducer",
    )  # fmt: skip
    outcome = trained(recipe, tmp_path, reports)
    (start,) = [each for each in reports if "init.taken" in each]
    own = outcome.recogniser.student.state_dict()
    before = cif.recogniser.student.state_dict()
    assert start["init.taken"] == sum(name.startswith(("encoder.", "ctc.")) for name in before)
    assert start["init.fresh"] == sum(name.startswith(("predictor.", "joiner.")) for name in own)
    lines = logged(outcome.folder)
    assert all({"transducer", "ctc", "correct"} <= line.keys() for line in lines)
    early, late = (float(np.mean([line["transducer"] for line in part])) for part in (lines[:4], lines[-4:]))
    assert late < 0.9 * early
    scores = [line for line in read_metrics(outcome.folder / "metrics.jsonl") if "validation.cer" in line]
    assert len(scores) == 2
    assert all("validation.ctc_cer" in line for line in scores)

    recogniser = load(outcome.folder)
    assert isinstance(recogniser.student, TransducerStudent)
    assert all(torch.equal(value, own[name]) for name, value in recogniser.student.state_dict().items())
    for options in (DecodingOptions(), DecodingOptions(beam=4, nbest=3)):
        result = evaluate(recogniser, str(corpus / "test"), outcome.folder, lambda *_: None, options)
        assert len(result.score.utterances) == 6
        assert 0.0 < result.score.characters.rate < 1.5
        assert (result.folder / "score.json").is_file()
    audio = next((corpus / "test" / "wav").glob("*.wav"))
    transcript = recogniser.transcribe(audio, options=DecodingOptions(beam=4))
    ends = [token.end for token in transcript.tokens]
    assert ends == sorted(ends)
    readings = recogniser.alternatives(audio, options=DecodingOptions(beam=4, nbest=3))
    assert len({each.transcript.text for each in readings}) == len(readings)


def test_rows_of_every_tap(read_recipe: ReadRecipe, tmp_path: Path, tone_bert: Path) -> None:
    soft = masked_bert(tmp_path / "masked", [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS)])
    extra = (
        f'teachers:\n  bert: {{model: "{tone_bert}", case: lower, dim: 16}}\n'
        f'  lm: {{kind: masked_lm, model: "{soft}", topk: 4, case: lower, storage: disk}}\n'
        "distill:\n  - {tap: tokens, teacher: lm, loss: soft_label, weight: 0.5, temperature: 2}\n"
        "  - {tap: acoustic, teacher: bert, loss: contrastive}\n"
        "  - {tap: linguistic, teacher: bert, loss: regression, weight: 0.01}\n"
        "  - {tap: utterance, teacher: bert, loss: cosine}\n"
        "  - {tap: frames.1, teacher: bert, loss: cosine, pool: attention, pool_heads: 2}\n"
    )
    recipe = read_recipe(
        *TRANSDUCER, "tokenizer.kind=teacher", "tokenizer.teacher=lm", "training.steps=8", extra=extra, name="rows"
    )  # fmt: skip
    outcome = trained(recipe, tmp_path)
    for line in logged(outcome.folder):
        assert line["tokens.soft_label.spoken"] == 1.0
        assert 0.1 < line["tokens.soft_label.mass"] < 1.0
        rows = {"acoustic.contrastive", "linguistic.regression", "utterance.cosine", "frames.1.cosine"}
        assert rows <= line.keys()
    parts = {name.split(".")[0] for name in outcome.recogniser.student.state_dict()}
    assert parts == {"encoder", "ctc", "predictor", "joiner"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["student.transducer.context=0"], r"student\.transducer\.context is 0.*from 1"),
        (["student.transducer.symbols=0"], r"student\.transducer\.symbols is 0"),
        (
            ["student.transducer.monotonic=true", "student.transducer.symbols=2"],
            "monotonic allows one token per frame",
        ),
        (["student.decoder.init=bert"], "unknown key 'student.decoder' of kind transducer"),
        (["student.faithful=true"], "of kind transducer"),
        (["student.transducer.dropout=1"], r"student\.transducer\.dropout"),
        (["student.transducer.predictor=gru"], "stateless, lstm"),
    ],
)
def test_what_cannot_be_is_one_line(read_recipe: ReadRecipe, overrides: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        read_recipe(*TRANSDUCER, *overrides)


def test_interpolation_needs_a_hard_loss_of_every_token(read_recipe: ReadRecipe) -> None:
    extra = (
        "teachers: {lm: {kind: causal_lm, model: x, topk: 4}}\n"
        "distill:\n  - {tap: tokens, teacher: lm, loss: soft_label, interpolate: 0.3}\n"
    )
    assert read_recipe(extra=extra).distill[0].interpolate == 0.3
    with pytest.raises(UserError, match=r"distill\[0\]: interpolate is 0\.3, but the loss of a transducer student .*weight"):
        read_recipe(*TRANSDUCER, extra=extra)
