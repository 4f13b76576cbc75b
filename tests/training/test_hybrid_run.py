"""A hybrid system from a folder of recordings and a lexicon to a scored model, in one command."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from retort.alignment.store import AlignmentStore
from retort.common.errors import UserError
from retort.config.loading import load_recipe
from retort.config.schema import Recipe
from retort.corpora.open_cuts import open_cuts
from retort.decoding.options import DecodingOptions
from retort.decoding.recogniser import Recogniser, load
from retort.evaluation.aligned import open_aligned
from retort.evaluation.evaluate import evaluate, evaluated
from retort.evaluation.recognise import recognise
from retort.evaluation.results import add_result, read_results
from retort.evaluation.scalar_search import Tried
from retort.graph.pool import DecoderPool
from retort.report.experiment import open_experiment
from retort.report.frame_view import compute_frame_view
from retort.report.report import write_report
from retort.students.factory import build_student
from retort.training.aligning import align_held_out
from retort.training.hybrid_run import SCALES
from retort.training.run import Outcome, train
from retort.training.teach import teach
from tiny_students import start_from

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
def reported() -> list[str]:
    """What the first run tells before its updates."""
    return []


@pytest.fixture(scope="module")
def outcome(recipe: Recipe, root: Path, reported: list[str]) -> Outcome:
    def report(step: int, values: dict[str, object]) -> None:
        if "note" in values:
            assert step == 0
            reported.append(str(values["note"]))

    return train(recipe, root / "exp", lambda *_: None, report)


def test_it_recognises_the_words(outcome: Outcome, root: Path) -> None:
    """With one phone a letter and words that it has learned, nearly all of them."""
    found = evaluate(outcome.recogniser, str(root / "held_out"), outcome.folder, lambda *_: None)
    assert found.score.words.reference > 15
    assert found.score.words.rate < 0.2
    assert not found.rejected


def test_held_out_frames_are_counted(outcome: Outcome, recipe: Recipe, root: Path, tmp_path: Path) -> None:
    held_out, student = str(root / "held_out"), outcome.recogniser.student
    store = open_aligned(outcome.folder / "model", held_out, student)
    assert store is not None
    assert store.folder == root / "exp" / "alignments" / "others" / f"{root.name}-held_out" / "alignments"
    assert store.keys() == {f"other-{number:03d}" for number in range(8)}
    assert not store.keys() & AlignmentStore(root / "exp" / "alignments").keys()
    found = evaluate(outcome.recogniser, held_out, tmp_path, lambda *_: None, alignments=store)
    assert found.frames is not None
    assert found.frames.utterances == 8
    assert found.frames.frames == pytest.approx(sum(len(each.senones) for each in store.values()), abs=8)
    assert 0.5 < found.frames.rate < 1
    assert evaluated(outcome.recogniser, held_out, tmp_path) == found
    add_result(tmp_path / "r.json", recipe, found, steps=120, params=1, train_seconds=1.0)
    assert read_results(tmp_path / "r.json")[0]["frames"] == found.frames.rate
    logged = [
        line["validation.frames"]
        for line in open_experiment(outcome.folder).metrics
        if "validation.frames" in line
    ]
    assert len(logged) == 2
    assert logged[0] < logged[1]
    # One checkpoint of them is the model.
    assert found.frames.rate in [pytest.approx(each) for each in logged]


def test_a_training_on_stored_layers_equals_one_that_computes_them(outcome: Outcome, root: Path) -> None:
    """Labels are those of the same frames, although the stored frames are three times as long as feature frames."""
    parts = ["encoder.frontend", "encoder.layers.0"]
    base = [
        f"training.init={outcome.folder}",
        "training.steps=4",
        "training.evaluate_steps=4",
        "training.log_steps=1",
    ]
    runs = [
        train(
            load_recipe(str(root / "hierarchical.yaml"), [*base, f"name={name}", setting]),
            root / "exp",
            lambda *_: None,
            lambda *_: None,
        )
        for name, setting in (
            ("stored", "training.stored_layers=1"),
            ("frozen", f"training.freeze=[{','.join(parts)}]"),
        )
    ]
    assert not runs[0].rejected
    logged = [
        [line["loss"] for line in open_experiment(each.folder).metrics if "loss" in line] for each in runs
    ]
    assert len(logged[0]) == 4
    assert logged[0] == pytest.approx(logged[1], rel=2e-3)
    weights = [each.recogniser.student.state_dict() for each in (outcome, *runs)]
    for name, before in weights[0].items():
        assert torch.equal(weights[1][name], before) or not name.startswith(tuple(parts))
        torch.testing.assert_close(weights[1][name], weights[2][name], atol=2e-3, rtol=0.0)


def test_frames_of_another_aligner_are_not_counted(outcome: Outcome, root: Path) -> None:
    held_out, student = str(root / "held_out"), outcome.recogniser.student
    assert open_aligned(outcome.folder, str(root / "train"), student) is None
    assert open_aligned(outcome.folder, "nowhere", student) is None
    assert open_aligned(root, held_out, student) is None
    priors = student.log_priors.clone()
    student.log_priors += 0.1
    try:
        assert open_aligned(outcome.folder, held_out, student) is None
    finally:
        student.log_priors.copy_(priors)
    assert open_aligned(outcome.folder, held_out, student) is not None


def test_what_is_kept_recognises_the_same_wherever_it_is_moved(outcome: Outcome, tmp_path: Path, root: Path) -> None:
    moved = (outcome.folder / "model").rename(tmp_path / "moved")
    again = load(moved)
    moved.rename(outcome.folder / "model")
    path = root / "held_out" / "wav" / "other-000.wav"
    transcript, expected = again.transcribe(path), outcome.recogniser.transcribe(path)
    assert transcript == expected
    assert [word.text for word in transcript.words] == transcript.text.split()
    times = [time for word in transcript.words for time in (word.start, word.end)]
    assert times == sorted(times)
    assert all(0.0 < word.confidence <= 1.0 for word in transcript.words)
    assert again.fingerprint() == outcome.recogniser.fingerprint()


def test_the_scale_is_about_that_of_the_fewest_errors(outcome: Outcome) -> None:
    tried = {float(scale): rate for scale, rate in json.loads((outcome.folder / SCALES).read_text()).items()}
    scales, first = sorted(tried), {0.1, 0.3, 1.0}
    assert tried.keys() >= first
    best = min(tried, key=lambda scale: (tried[scale], scale))
    # Further ones lie beyond one of the edges, all but the last of them the best when it was tried.
    assert not any(0.1 < scale < 1.0 for scale in tried.keys() - first)
    assert len(tried) == 3 or best in {*scales[:2], *scales[-2:]}
    assert outcome.recogniser.graph is not None
    chosen = outcome.recogniser.graph.acoustic_scale
    # Between the neighbours of the best, whose parabola it is the lowest point of; at an edge it is the best.
    place = scales.index(best)
    inside = 0 < place < len(scales) - 1
    assert scales[place - 1] < chosen < scales[place + 1] if inside else chosen == best
    assert chosen == Tried(tried).smoothed


def test_the_graph_lies_there_once(outcome: Outcome, root: Path, tmp_path: Path) -> None:
    """The experiment shares the bytes of its arcs with the graph next to the alignments; a copy of it has its own."""
    (made,) = (root / "exp" / "alignments" / "graphs").glob("*/graph.fst")
    kept = outcome.folder / "model" / "graph" / "graph.fst"
    assert made.samefile(kept)
    load(outcome.folder).save(tmp_path / "release", stored="float16")
    assert not made.samefile(tmp_path / "release" / "graph" / "graph.fst")
    assert made.read_bytes() == (tmp_path / "release" / "graph" / "graph.fst").read_bytes()


@pytest.mark.parametrize("most", [1, 3])
def test_several_processes_give_the_same_result(outcome: Outcome, root: Path, most: int) -> None:
    cuts = open_cuts(root / "held_out").cuts
    options = DecodingOptions(beam=most, nbest=most)
    alone = recognise(outcome.recogniser, cuts, options=options)
    reported: list[tuple[int, int]] = []
    with DecoderPool(2) as pool:
        recogniser = load(outcome.folder).use_pool(pool)
        crowd = recognise(recogniser, cuts, lambda *counts: reported.append(counts), options)
    assert crowd.lines == alone.lines
    assert crowd.workers == 2
    assert reported[-1] == (8, 8)


def test_several_transcripts(recogniser: Recogniser, root: Path) -> None:
    path = root / "held_out" / "wav" / "other-001.wav"
    found = recogniser.alternatives(path, options=DecodingOptions(beam=5, nbest=5))
    assert found[0].transcript.text == recogniser.transcribe(path).text
    assert len({each.transcript.text for each in found}) == len(found) > 1
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)


def test_no_other_language_model_joins(recogniser: Recogniser) -> None:
    with pytest.raises(UserError):
        recogniser.opened(DecodingOptions(beam=2, lm="lm", lm_weight=0.2))


@pytest.fixture
def recogniser(outcome: Outcome) -> Recogniser:
    return outcome.recogniser


def test_the_same_command_does_nothing_more(outcome: Outcome, recipe: Recipe, root: Path) -> None:
    def complain(*_: object) -> None:
        raise AssertionError("something was done again")

    assert train(recipe, root / "exp", complain, complain).before


def test_a_look_at_an_utterance(outcome: Outcome, root: Path) -> None:
    recogniser, held_out = outcome.recogniser, root / "held_out"
    store = open_aligned(outcome.folder, str(held_out), recogniser.student)
    assert store is not None
    letters = sorted({phone for found in store.lexicon.values() for way in found for phone in way})
    guessed = aligned = 0
    for cut in open_cuts(held_out).cuts:
        view, alignment = compute_frame_view(recogniser, cut, store), store[cut.id]
        assert [word.text for word in view.words] == [word.symbol for word in alignment.words]
        assert [round(word.start / 0.03) for word in view.words] == [word.start for word in alignment.words]
        assert "".join(each.text for each in view.phones) == "".join(w.text.lower() for w in view.words)
        transcript = recogniser.transcribe(held_out / "wav" / f"{cut.id}.wav").words
        assert [(word.text, word.start, word.end) for word in transcript] == [each[:3] for each in view.recognised]
        # Frame by frame, the phone of the guess is the one that the alignment has, or the span says that it is not.
        for each in view.guesses:
            assert each.text in letters
            places = range(round(each.start / 0.03), round(each.end / 0.03))
            own = [phone for phone in alignment.phones for _ in range(phone.frames)]
            same = [own[min(place, len(own) - 1)].symbol == each.text for place in places]
            assert each.right == (sum(same) >= len(same) / 2)
            guessed += sum(same)
        aligned += sum(phone.frames for phone in alignment.phones if phone.symbol != "SIL")
        assert view.guesses == sorted(view.guesses, key=lambda each: each.start)
    assert 0.6 * aligned < guessed <= aligned
    nothing = compute_frame_view(recogniser, cut, None)
    assert (nothing.words, nothing.phones, nothing.guesses, nothing.recognised) == ([], [], [], view.recognised)
    unseen = next(iter(open_cuts(root / "train").cuts))
    view = compute_frame_view(recogniser, unseen, store)
    assert not view.words
    assert view.guesses
    assert {each.right for each in view.guesses} == {None}


def test_the_report_has_pictures_of_alignments(outcome: Outcome, root: Path, tmp_path: Path) -> None:
    held_out = str(root / "held_out")
    store = open_aligned(outcome.folder, held_out, outcome.recogniser.student)
    found = evaluate(outcome.recogniser, held_out, outcome.folder, lambda *_: None, alignments=store)
    assert found.frames is not None
    report = write_report([outcome.folder], tmp_path, lambda *_: None, root / "exp")
    text = report.markdown.read_text()
    part = text.split("## Alignments\n")[1].split("\n## ")[0]
    frames = found.frames
    assert f"| {frames.rate:.2%} | {frames.frames:,} | 8 |" in part
    assert part.count("*Picture: ") == 2
    assert "Weights and fires" not in text
    assert "does not fire tokens" not in text
    assert not [line for line in report.missing if "alignment" in line]
    page = report.html.read_text()
    assert ">recognised</text>" in page
    assert "frame accuracy, validation" in page


def test_a_report_without_alignments_says_so(
    outcome: Outcome, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("retort.report.model_sections.open_aligned", lambda *_: None)
    report = write_report([outcome.folder], tmp_path, lambda *_: None, root / "exp")
    assert any("there is no alignment of its test data" in line for line in report.missing)
    assert ">recognised</text>" in report.html.read_text()


def test_data_that_cannot_be_aligned_keeps_nobody_from_training(
    outcome: Outcome, recipe: Recipe, root: Path, make_corpus: Callable[..., Path], tmp_path: Path
) -> None:
    odd = make_corpus(tmp_path / "odd", 2)
    (odd / "text").write_text("odd-000 ZZZ\nodd-001 QQQ\n")
    lines: list[str] = []
    first = AlignmentStore(root / "exp" / "alignments")
    for source in (str(odd), str(tmp_path / "nowhere")):
        found = align_held_out(
            recipe, root / "exp", [source], first, lambda *_: None, lambda _, reported: lines.append(reported["note"])
        )
        assert found is None
    assert all(line.startswith("no alignment of ") for line in lines)
    assert "lexicon has no word" in lines[0]
    assert len(lines) == 2


def test_another_system_takes_what_is_there(
    outcome: Outcome, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alignments, language models, targets and graph are made once."""

    def complain(*_: object, **__: object) -> None:
        raise AssertionError("a language model was trained or asked again")

    monkeypatch.setattr("retort.training.prerequisites.train_lm_here", complain)
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


def test_who_starts_from_it_takes_its_senones_if_the_graph_is_the_same(
    outcome: Outcome, recipe: Recipe, root: Path
) -> None:
    theirs, folder = outcome.recogniser.student, str(root / "exp" / recipe.name)
    senones = int(theirs.log_priors.shape[0])  # type: ignore[union-attr]
    key = outcome.recogniser.graph.graph.about.key  # type: ignore[union-attr]
    for graph, same in ((key, True), ("of other senones", False), ("", False)):
        student = build_student(recipe.student, senones, recipe.features.bins)
        counts = start_from(student, None, folder, graph)
        for name, value in student.state_dict().items():
            output = name.startswith(student.vocabulary_parts)
            assert torch.equal(value, theirs.state_dict()[name]) is (same or not output), name
        assert counts["fresh"] == (0 if same else 3)


def test_its_teachers_are_asked_by_training_alone(recipe: Recipe, root: Path) -> None:
    with pytest.raises(UserError, match="Run `retort train`"):
        teach(recipe, root / "exp", lambda *_: None, lambda *_: None)


@pytest.mark.parametrize(
    ("override", "reason"),
    [
        ("hybrid.lm=''", "hybrid.lm is empty"),
        ("hybrid.lexicon=[]", "hybrid.lexicon is empty"),
        ("hybrid.lm={root}/subwords.yaml", "n-gram model over words"),
        ("teachers.phones.unit=senone", "is over phone"),
    ],
)
def test_what_does_not_go_is_one_line(outcome: Outcome, root: Path, override: str, reason: str) -> None:
    changed = [override.format(root=root), "name=tones/wrong"]
    recipe = load_recipe(str(root / "hierarchical.yaml"), changed)
    with pytest.raises(UserError, match=reason):
        train(recipe, root / "exp", lambda *_: None, lambda *_: None)
