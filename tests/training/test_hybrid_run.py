"""A hybrid system from a folder of recordings and a lexicon to a scored model, in one command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from retort.config import Recipe
from retort.decoding.options import DecodingOptions
from retort.decoding.recogniser import Recogniser, load
from retort.errors import UserError
from retort.evaluation.evaluate import evaluate
from retort.hybrid.store import AlignmentStore
from retort.recipe import load_recipe
from retort.training.hybrid import SCALES
from retort.training.run import Outcome, train
from retort.training.teach import teach

pytest.importorskip("kaldi_decoder")
pytest.importorskip("kaldilm")

RECIPE = """
name: tones/hierarchical
system: hierarchical
data: {{train: [{root}/train], validation: [{root}/held_out], test: [{root}/held_out]}}
normaliser: {{case: upper}}
features: {{bins: 40}}
augment: {{frequency_masks: 0, time_masks: 0}}
batches: {{seconds: 12, buckets: 2}}
hybrid:
  lexicon: [{root}/lexicon.txt]
  pronounce: false
  alignments: {root}/exp/alignments
  align:
    {{senones: 20, subsampling: 3, states: 1, monophone_passes: 6, passes: 3, mixtures: 2, monophone_mixtures: 2,
      minimum_frames: 20, processes: 1}}
  lm: {root}/words.yaml
  acoustic_scales: [0.1, 0.3, 1.0]
student:
  kind: hybrid
  frontend: {{kind: frames, stride: 3}}
  encoder: {{kind: tdnnf, layers: 3, dim: 48, bottleneck: 16, dropout: 0.0, pool_after: []}}
  label_smoothing: 0.0
teachers:
  senones:
    {{kind: causal_lm, model: {root}/exp/senones/model, recipe: {root}/senones.yaml, unit: senone, topk: 5, storage: disk}}
  phones: {{kind: causal_lm, model: {root}/exp/phones/model, recipe: {root}/phones.yaml, unit: phone, topk: 5}}
  subwords: {{kind: causal_lm, model: {root}/exp/subwords/model, recipe: {root}/subwords.yaml, topk: 5}}
distill:
  - {{tap: frames.3, teacher: senones, loss: soft_label, weight: 0.2}}
  - {{tap: frames.2, teacher: phones, loss: soft_label, weight: 0.2}}
  - {{tap: frames.2, teacher: subwords, loss: soft_label, weight: 0.2}}
training:
  {{steps: 120, peak_lr: 3.0e-3, warmup_steps: 10, precision: fp32, device: cpu, evaluate_steps: 60, log_steps: 20,
    checkpoints: 1}}
"""
LM = """
kind: {kind}
name: {name}
text: [{{source: {root}/train, repeat: 2}}]
held_out: [{root}/other.txt]
normaliser: {{case: upper}}
tokenizer: {{kind: {pieces}}}
{more}
"""
TRAINED = """model: {{kind: lstm, layers: 1, dim: 16}}
batches: {{pieces: 400, longest: 64}}
training: {{steps: 30, peak_lr: 1.0e-2, warmup_steps: 2, evaluate_steps: 15, precision: fp32, device: cpu}}
{units}"""


@pytest.fixture(scope="module")
def root(make_corpus: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("hybrid")
    make_corpus(root / "train", 40)
    make_corpus(
        root / "held_out", 8, prefix="other"
    )  # of the same words, for there are no others in the lexicon
    lines = (root / "train" / "text").read_text().splitlines()
    words = sorted({word for line in lines for word in line.split()[1:]})
    (root / "lexicon.txt").write_text("".join(f"{word} {' '.join(word.lower())}\n" for word in words))
    (root / "other.txt").write_text(f"{words[0]} {words[3]}\n{words[5]} {words[1]} {words[2]}\n")
    units = f"units: {{unit: UNIT, alignments: {root}/exp/alignments}}"
    for name, kind, pieces, more in (
        ("words", "ngram", "words", "ngram: {order: 2}"),
        ("senones", "causal", "words", TRAINED.format(units=units.replace("UNIT", "senone"))),
        ("phones", "causal", "words", TRAINED.format(units=units.replace("UNIT", "phone"))),
        ("subwords", "causal", "characters", TRAINED.format(units="")),
    ):
        text = LM.format(kind=kind, name=name, root=root, pieces=pieces, more=more)
        (root / f"{name}.yaml").write_text(text)
    (root / "hierarchical.yaml").write_text(RECIPE.format(root=root))
    return root


@pytest.fixture(scope="module")
def recipe(root: Path) -> Recipe:
    return load_recipe(str(root / "hierarchical.yaml"))


@pytest.fixture(scope="module")
def outcome(recipe: Recipe, root: Path) -> Outcome:
    return train(recipe, root / "exp", lambda *_: None, lambda *_: None)


def test_it_hears_the_words(outcome: Outcome, root: Path) -> None:
    """With one phone a letter and words that it has learned, nearly all of them."""
    found = evaluate(outcome.recogniser, str(root / "held_out"), outcome.folder, lambda *_: None)
    assert found.score.words.reference > 15
    assert found.score.words.rate < 0.2
    assert not found.rejected


def test_what_is_kept_hears_alike_wherever_it_is_moved(outcome: Outcome, tmp_path: Path, root: Path) -> None:
    moved = (outcome.folder / "model").rename(tmp_path / "moved")
    again = load(moved)
    moved.rename(outcome.folder / "model")
    path = root / "held_out" / "wav" / "other-000.wav"
    heard, expected = again.transcribe(path), outcome.recogniser.transcribe(path)
    assert heard == expected
    assert [word.text for word in heard.words] == heard.text.split()
    times = [time for word in heard.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert all(0.0 < word.confidence <= 1.0 for word in heard.words)
    assert again.fingerprint() == outcome.recogniser.fingerprint()


def test_the_scale_is_that_of_the_fewest_errors(outcome: Outcome) -> None:
    tried = {float(scale): rate for scale, rate in json.loads((outcome.folder / SCALES).read_text()).items()}
    assert tried.keys() == {0.1, 0.3, 1.0}
    assert outcome.recogniser.graph is not None
    assert tried[outcome.recogniser.graph.acoustic_scale] == min(tried.values())


def test_several_readings(recogniser: Recogniser, root: Path) -> None:
    path = root / "held_out" / "wav" / "other-001.wav"
    found = recogniser.alternatives(path, options=DecodingOptions(beam=5, nbest=5))
    assert found[0].transcript.text == recogniser.transcribe(path).text
    assert len({each.transcript.text for each in found}) == len(found) > 1
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)


def test_no_other_language_model_joins(recogniser: Recogniser) -> None:
    with pytest.raises(UserError, match="in its decoding graph"):
        recogniser.opened(DecodingOptions(beam=2, lm="lm", lm_weight=0.2))


@pytest.fixture
def recogniser(outcome: Outcome) -> Recogniser:
    return outcome.recogniser


def test_the_same_command_does_nothing_more(outcome: Outcome, recipe: Recipe, root: Path) -> None:
    def complain(*_: object) -> None:
        raise AssertionError("something was done again")

    assert train(recipe, root / "exp", complain, complain).before


def test_another_system_takes_what_is_there(
    outcome: Outcome, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alignments, language models, signals and graph are made once."""

    def complain(*_: object, **__: object) -> None:
        raise AssertionError("a language model was trained again")

    monkeypatch.setattr("retort.training.earlier.train_lm", complain)
    stages: set[str] = set()
    changes = ["name=tones/interpolation", "training.steps=2", "training.evaluate_steps=2"]
    rows = "distill=[{tap: senones, teacher: senones, loss: soft_label, interpolate: 0.2}]"
    recipe = load_recipe(str(root / "hierarchical.yaml"), [*changes, rows])
    made = train(recipe, root / "exp", lambda stage, *_: stages.add(stage), lambda *_: None)
    assert made.steps == 2
    assert {stage for stage in stages if not stage.startswith("acoustic scale")} <= {"features"}


def test_the_student_has_the_alignments_senones_and_priors(outcome: Outcome, root: Path) -> None:
    store = AlignmentStore(root / "exp" / "alignments")
    state = outcome.recogniser.student.state_dict()
    assert state["output.weight"].shape[0] == store.tree.count > 9
    assert state["log_priors"].exp().tolist() == pytest.approx(store.priors.tolist(), rel=1e-5)


def test_its_teachers_are_asked_by_training_alone(recipe: Recipe, root: Path) -> None:
    with pytest.raises(UserError, match="Run `retort train`"):
        teach(recipe, root / "exp", lambda *_: None, lambda *_: None)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("hybrid.lm=''", "hybrid.lm is empty"),
        ("hybrid.lexicon=[]", "hybrid.lexicon is empty"),
        ("hybrid.lm={root}/subwords.yaml", "n-gram model over words"),
        ("teachers.phones.unit=senone", "it is over phone"),
    ],
)
def test_what_does_not_go_is_one_line(outcome: Outcome, root: Path, override: str, reason: str) -> None:
    changed = [override.format(root=root), "name=tones/wrong"]
    recipe = load_recipe(str(root / "hierarchical.yaml"), changed)
    with pytest.raises(UserError, match=reason):
        train(recipe, root / "exp", lambda *_: None, lambda *_: None)
