"""A hybrid student and rows over senones, phones and letters, on alignments of the language of tones."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lhotse import CutSet
from torch import Tensor

from retort.alignment.store import AlignmentStore
from retort.alignment.tree import SenoneTree
from retort.config.schema import Recipe
from retort.corpora.open_cuts import open_cuts
from retort.distill.objective import Objective
from retort.engine.processes import make_accelerator
from retort.students.factory import build_student
from retort.teachers.masked_lm import MaskedLMConfig
from retort.teachers.posteriors import PieceLMTeacher
from retort.text.lexicon import Lexicon
from retort.text.tokenizers import CharacterTokenizer, Tokenizer, WordTokenizer
from retort.training.batches import UtteranceDataset, epoch_batches, make_sampler
from retort.training.frames import FrameLabels, FrameReader
from retort.training.module import TrainingModule
from retort.training.trainer import Trainer
from tiny_alignments import PHONES, align_characters, save_alignments, senone_symbols
from tiny_lms import TableLM
from tiny_trainers import batch_of, update

ReadRecipe = Callable[..., Recipe]
HYBRID = (
    "student.kind=hybrid",
    "student.frontend.kind=frames",
    "student.frontend.stride=3",
    "student.encoder.kind=tdnnf",
    "student.encoder.layers=3",
    "student.encoder.dim=32",
    "student.encoder.bottleneck=8",
    "student.encoder.dropout=0",
    "student.label_smoothing=0",
    "training.clip=1e9",
)
ROWS = """
teachers:
  senones: {kind: causal_lm, model: none, topk: 5, unit: senone}
  phones: {kind: causal_lm, model: none, topk: 4, unit: phone}
  letters: {kind: causal_lm, model: none, topk: 6}
distill:
  - {tap: frames.3, teacher: senones, loss: soft_label, weight: 0.3, temperature: 2}
  - {tap: frames.2, teacher: phones, loss: soft_label, weight: 0.5}
  - {tap: frames.1, teacher: letters, loss: soft_label, weight: 0.2, renormalise: false}
"""
TREE = SenoneTree.monophone(PHONES, 3)
TOKENIZERS: dict[str, Tokenizer] = {
    "senones": WordTokenizer(senone_symbols()),
    "phones": WordTokenizer([*"abcdefgh"]),
    "letters": CharacterTokenizer([*"▁abcdefgh"]),
}
UNITS: dict[str, Any] = {"senones": "senone", "phones": "phone", "letters": "text"}


@pytest.fixture(scope="module")
def store(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> AlignmentStore:
    """Of all training cuts but one."""
    made = [
        align_characters(cut.id, cut.supervisions[0].text, round(100 * cut.duration), TREE)
        for cut in open_cuts(corpus / "train").cuts
    ]
    lexicon = Lexicon({word.symbol: [[*word.symbol]] for each in made for word in each.words})
    last = made[-1].id
    folder = tmp_path_factory.mktemp("alignments")
    return save_alignments(folder, made[:-1], TREE, lexicon, skipped={last: "it does not fit"})


def make_trainer(recipe: Recipe, folder: Path, cuts: CutSet, store: AlignmentStore) -> Trainer:
    torch.manual_seed(recipe.seed)
    student = build_student(recipe.student, TREE.count, recipe.features.bins)
    teachers = {
        name: PieceLMTeacher(config, TOKENIZERS[name], TableLM(TOKENIZERS[name], seed))
        for seed, (name, config) in enumerate(recipe.teachers.items())
    }
    objective = Objective(
        recipe.distill,
        student.tap_dims,
        {name: teacher.dim for name, teacher in teachers.items()},
        student.tap_units,
        outputs=student.outputs,
        symbols={name: TOKENIZERS[name].symbols for name in teachers},
    )
    readers = {name: FrameReader(UNITS[name], TOKENIZERS[name]) for name in teachers}
    encoder = student.encoder
    labels = FrameLabels(store, readers, encoder.subsampling)
    dataset = UtteranceDataset(recipe, None, encoder.output_lengths, None, labels)
    module, accelerator = TrainingModule(student, objective), make_accelerator(recipe.training)
    return Trainer(recipe, folder, module, teachers, dataset, cuts, lambda _: {"wer": 0.5}, accelerator)


def log_softmax(logits: list[float], temperature: float = 1.0) -> list[float]:
    norm = math.log(sum(math.exp(each / temperature) for each in logits))
    return [each / temperature - norm for each in logits]


def slow_loss(trainer: Trainer, store: AlignmentStore, cuts: list[Any]) -> tuple[float, dict[str, int]]:
    """Utterance by utterance, frame by frame, each teacher asked again; and how many frames each row has."""
    student, objective = trainer.module.student, trainer.module.objective
    total, counts = 0.0, {"hard": 0, "senones": 0, "phones": 0, "letters": 0}
    for cut in cuts:
        features = trainer.dataset.features(cut)[None]
        layers = list(student.encoder.each_layer(features, torch.tensor([features.shape[1]])))
        alignment, text = store[cut.id], cut.supervisions[0].text.lower()
        phones = [(n, each) for n, each in enumerate(alignment.phones) for _ in range(each.frames)]
        spoken = [n for n, each in enumerate(alignment.phones) if each.symbol != "SIL"]
        for place in range(layers[-1][0].shape[1]):
            source = min(3 * place + 1, len(phones) - 1)
            logits = student.output(layers[3][0][0, place]).tolist()
            total -= log_softmax(logits)[int(alignment.senones[source])]
            counts["hard"] += 1
            number, phone = phones[source]
            if phone.symbol == "SIL":
                continue
            before = [alignment.phones[n] for n in spoken if n < number]
            state = 3 * (source - phone.start) // phone.frames
            senones = [f"S{3 * PHONES.ids[each.symbol] + s}" for each in before for s in range(3)]
            senones += [f"S{3 * PHONES.ids[phone.symbol] + s}" for s in range(state)]
            # Character n of the text is phone n of the alignment.
            histories = {
                "senones": senones,
                "phones": [each.symbol for each in before],
                "letters": [letter if letter != " " else "▁" for letter in text[:number]],
            }
            for row, layer in zip(objective.rows, (3, 2, 1)):
                name, t = row.config.teacher, row.config.temperature
                symbols = TOKENIZERS[name].symbols
                after = trainer.teachers[name].lm.after([symbols.index(each) for each in histories[name]])
                top = after.exp().topk(trainer.teachers[name].dim)
                mass = float(top.values.sum()) if not row.config.renormalise else 1.0
                powers = [share ** (1 / t) for share in top.values.tolist()]
                own = log_softmax(row.projection(layers[layer][0][0, place]).tolist(), t)
                for symbol, power in zip(top.indices.tolist(), powers):
                    q = mass * power / sum(powers)
                    total += row.config.weight * t * t * q * (math.log(q) - own[symbol])
                counts[name] += 1
    return total, counts


def test_an_update_with_three_rows_is_a_sum_over_frames(
    cuts: CutSet, store: AlignmentStore, read_recipe: ReadRecipe, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    trainer = make_trainer(read_recipe(*HYBRID, extra=ROWS), tmp_path, cuts, store)
    with torch.no_grad():
        expected, counts = slow_loss(trainer, store, list(cuts)[:4])
    assert counts["senones"] == counts["phones"] == counts["letters"] < counts["hard"]
    values, gradients = update(trainer, [batch_of(trainer, cuts, 0, 4)], monkeypatch)
    assert values["loss"] == pytest.approx(expected / counts["hard"], rel=1e-5)
    assert gradients.keys() == dict(trainer.module.named_parameters()).keys()
    tallies = trainer._summed_tallies()
    assert tallies["ce"][1] == tallies["correct"][1] == counts["hard"]
    assert tallies["frames.2.soft_label"][1] == counts["phones"]
    assert tallies["frames.2.soft_label.spoken"] == (counts["phones"], counts["hard"])


def test_neither_batches_nor_accumulation_change_an_update(
    cuts: CutSet, store: AlignmentStore, read_recipe: ReadRecipe, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    extra = ROWS + "  - {tap: senones, teacher: senones, loss: soft_label, interpolate: 0.3}\n"
    results = []
    for bounds in ([(0, 6)], [(0, 1), (1, 6)]):
        trainer = make_trainer(read_recipe(*HYBRID, extra=extra), tmp_path, cuts, store)
        results.append(update(trainer, [batch_of(trainer, cuts, *each) for each in bounds], monkeypatch))
    (whole, gradients), (parts, sums) = results
    assert whole["loss"] == pytest.approx(parts["loss"], rel=1e-5)
    for name, value in gradients.items():
        torch.testing.assert_close(sums[name], value, atol=2e-5 * whole["grad_norm"], rtol=1e-3)


def test_half_precision_changes_rounding_alone(
    cuts: CutSet, store: AlignmentStore, read_recipe: ReadRecipe, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    losses = []
    for precision in ("fp32", "bf16"):
        recipe = read_recipe(*HYBRID, f"training.precision={precision}", extra=ROWS)
        trainer = make_trainer(recipe, tmp_path, cuts, store)
        values, gradients = update(trainer, [batch_of(trainer, cuts, 0, 4)], monkeypatch)
        losses.append(values["loss"])
        assert {each.dtype for each in gradients.values()} == {torch.float32}
    assert losses[1] == pytest.approx(losses[0], rel=1e-2)
    assert losses[1] != losses[0]


def test_interpolation_replaces_the_hard_label_by_its_share(
    cuts: CutSet, store: AlignmentStore, read_recipe: ReadRecipe, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    extra = (
        ROWS.split("distill:")[0]
        + "distill:\n  - {tap: senones, teacher: senones, loss: soft_label, interpolate: 0.3}\n"
    )
    trainer = make_trainer(read_recipe(*HYBRID, extra=extra), tmp_path, cuts, store)
    batch = batch_of(trainer, cuts, 0, 3)
    with torch.no_grad():
        output = trainer.module.student(batch.features, batch.feature_lengths, batch.senones)
    assert batch.senones is not None
    tap, own = output.taps["senones"], batch.frames["senones"]
    result = trainer.teachers["senones"].read(own.texts)
    total = 0.0
    for b in range(3):
        for t in range(int(tap.lengths[b])):
            log_probs, hard = tap.values[b, t].log_softmax(-1), int(batch.senones[b, t])
            target = torch.zeros(TREE.count)
            target[hard] = 1.0
            piece = int(own.segments[b, t])
            if piece >= 0:
                soft = torch.zeros(TREE.count)
                assert result[b].ids is not None
                for symbol, share in zip(
                    result[b].ids[piece + 1].tolist(), result[b].vectors[piece + 1].tolist()
                ):
                    name = TOKENIZERS["senones"].symbols[symbol]
                    if name.startswith("S"):  # the end of a text is no senone
                        soft[int(name[1:])] = share
                target = 0.7 * target + 0.3 * soft / soft.sum()
            total -= float((target * log_probs).sum())
    values, _ = update(trainer, [batch], monkeypatch)
    frames = int((batch.senones >= 0).sum())
    assert values["loss"] == pytest.approx(total / frames, rel=1e-5)


def excess(weight: Tensor) -> float:
    matrix = weight.detach().flatten(1)
    gram = matrix @ matrix.T
    return float((gram / (gram.square().sum() / gram.trace()) - torch.eye(len(gram))).norm())


def test_a_few_dozen_updates_learn_the_tones_and_the_teachers(
    cuts: CutSet, store: AlignmentStore, read_recipe: ReadRecipe, tmp_path: Path
) -> None:
    extra = ROWS + "  - {tap: frames.3, teacher: phones, loss: hard_label, weight: 0.5}\n"
    recipe = read_recipe(
        *HYBRID, "training.steps=60", "training.peak_lr=1e-2", "training.clip=5", extra=extra
    )
    trainer = make_trainer(recipe, tmp_path, cuts, store)
    lines: list[dict[str, Any]] = []
    trainer.run(lambda step, values: lines.append(dict(values)))
    logged = [line for line in lines if "loss" in line]
    assert logged[0]["correct"] < 0.3
    assert logged[-1]["correct"] > 0.6  # borders of states are guesses
    assert logged[-1]["frames.3.hard_label.correct"] > 0.8
    for row in ("frames.3.soft_label", "frames.2.soft_label", "frames.1.soft_label", "frames.3.hard_label"):
        assert logged[-1][row] < logged[0][row]
    assert [each.reason for each in trainer.rejected] == ["it does not fit"]
    for layer in trainer.module.student.encoder.layers:
        assert excess(layer.bottleneck.weight) < 0.1  # a tenth of a percent off is what one step leaves
        assert (layer.bottleneck.weight.norm() - 8**0.5).abs() > 1e-3  # it learns its length
    assert trainer.criterion == "wer"
    assert trainer.position.scores == {str(step): 0.5 for step in range(6, 61, 6)}


def test_utterances_at_other_speeds_keep_their_labels(
    corpus: Path, store: AlignmentStore, read_recipe: ReadRecipe, tmp_path: Path
) -> None:
    recipe = read_recipe(*HYBRID, "features.storage=online", extra=ROWS)
    cuts = open_cuts(corpus / "train").cuts.subset(first=4)
    fast = cuts.perturb_speed(1.1)
    trainer = make_trainer(recipe, tmp_path, cuts, store)
    batches = list(epoch_batches(trainer.dataset, make_sampler(fast, recipe, 0, 1), 0))
    assert sum(len(batch.ids) for batch in batches) == 4
    for batch in batches:
        assert not batch.rejected
        lengths = trainer.module.student.encoder.output_lengths(batch.feature_lengths)
        assert batch.senones is not None
        assert ((batch.senones >= 0).sum(1) == lengths).all()
        for b, name in enumerate(batch.ids):
            own = store[name.removesuffix("_sp1.1")].senones
            assert {*batch.senones[b].tolist()} - {-1} <= {*own.tolist()}
            assert int(lengths[b]) == pytest.approx(len(own) / 3 / 1.1, abs=1)


def test_a_batch_without_utterances_adds_nothing(
    cuts: CutSet, store: AlignmentStore, read_recipe: ReadRecipe, tmp_path: Path
) -> None:
    trainer = make_trainer(read_recipe(*HYBRID, extra=ROWS), tmp_path, cuts, store)
    last = [cut for cut in cuts if cut.id in store.skipped]
    batch = trainer.dataset[CutSet.from_cuts(last)]
    assert batch.ids == []
    assert [each.reason for each in batch.rejected] == ["it does not fit"]
    assert trainer._counts([batch]) == [0, 0]
    sums, tallies = trainer._forward(batch)
    assert sum(sums).item() == 0.0
    sum(sums).backward()
    for parameter in trainer.module.parameters():
        assert parameter.grad is not None
        assert not parameter.grad.any()
    full = batch_of(trainer, cuts, 0, 2)
    assert trainer._forward(full)[1].keys() == tallies.keys()
    assert full.to(torch.device("cpu")).frames["phones"].segments.dtype == torch.int64


def test_the_unit_is_a_teachers_own(read_recipe: ReadRecipe) -> None:
    assert MaskedLMConfig().unit == "text"
    assert read_recipe(*HYBRID, extra=ROWS).teachers["senones"].unit == "senone"
