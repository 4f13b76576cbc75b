"""Frames whose first guess is the aligned senone, counted in passing and one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from lhotse.cut import Cut
from torch import Tensor

from retort.alignment.store import AlignmentStore
from retort.alignment.tree import SenoneTree
from retort.config.schema import Recipe
from retort.corpora.features import CutFeatures
from retort.corpora.open_cuts import open_cuts
from retort.decoding.recogniser import Recogniser
from retort.evaluation import recognise as recognising
from retort.evaluation.frame_accuracy import FrameAccuracy, FrameWatch
from retort.evaluation.recognise import recognise
from retort.students.hybrid import HybridStudent
from retort.students.student import Encoded
from retort.text.lexicon import Lexicon
from tiny_alignments import PHONES, align_characters, save_alignments

TREE = SenoneTree.monophone(PHONES, 1)


@pytest.fixture
def student(read_recipe: Callable[..., Recipe]) -> HybridStudent:
    """Of random weights, one frame every 30 ms."""
    recipe = read_recipe(
        "student.kind=hybrid",
        "student.frontend.kind=frames",
        "student.frontend.stride=3",
        "student.encoder.kind=tdnnf",
        "student.encoder.layers=1",
        "student.encoder.dim=32",
        "student.encoder.bottleneck=8",
    )
    torch.manual_seed(1)
    return HybridStudent(recipe.student, TREE.count, recipe.features.bins).eval()


@pytest.fixture
def cuts(corpus: Path) -> list[Cut]:
    return list(open_cuts(corpus / "train").cuts)[:8]


@pytest.fixture
def store(cuts: list[Cut], tmp_path: Path) -> AlignmentStore:
    """Of all but one cut; that of another is half as long as it should be."""
    made = [
        align_characters(
            cut.id, cut.supervisions[0].text, round(100 * cut.duration) // (2 if n == 1 else 1), TREE
        )
        for n, cut in enumerate(cuts[1:])
    ]
    lexicon = Lexicon({word.symbol: [[*word.symbol]] for each in made for word in each.words})
    return save_alignments(tmp_path / "store", made, TREE, lexicon, skipped={cuts[0].id: "it does not fit"})


def encoded(student: HybridStudent, features: list[Tensor]) -> Encoded:
    lengths = torch.tensor([len(each) for each in features])
    with torch.no_grad():
        return student.encode(torch.nn.utils.rnn.pad_sequence(features, batch_first=True), lengths)


@pytest.mark.parametrize("size", [1, 3, 8])
def test_it_counts_every_frame_once_however_they_are_batched(
    size: int,
    student: HybridStudent,
    cuts: list[Cut],
    store: AlignmentStore,
    read_recipe: Callable[..., Recipe],
) -> None:
    features = CutFeatures(read_recipe().features)
    correct = frames = 0
    for cut in (cuts[1], *cuts[3:]):
        made, senones = features(cut), store[cut.id].senones.tolist()
        alone = encoded(student, [made])
        with torch.no_grad():
            scores = student.output(alone.hidden)[0]
        for place in range(int(alone.lengths)):
            guess = max(range(TREE.count), key=lambda senone: float(scores[place, senone]))
            correct += guess == senones[min(3 * place + 1, len(senones) - 1)]
            frames += 1
    watch = FrameWatch(student, store)
    assert watch.found is None
    for start in range(0, len(cuts), size):
        group = cuts[start : start + size]
        tensors = [features(cut) for cut in group]
        with torch.no_grad():
            watch(group, tensors, encoded(student, tensors))
    assert watch.found == FrameAccuracy(correct, frames, 6)
    assert 0 < watch.found.rate == correct / frames < 1
    assert FrameAccuracy.from_dict(asdict(watch.found)) == watch.found


def test_without_any_alignment_nothing_is_found(
    student: HybridStudent, cuts: list[Cut], store: AlignmentStore, read_recipe: Callable[..., Recipe]
) -> None:
    watch, made = FrameWatch(student, store), CutFeatures(read_recipe().features)(cuts[0])
    with torch.no_grad():
        watch(cuts[:1], [made], encoded(student, [made]))
    assert watch.found is None


def test_other_senones_are_refused(student: HybridStudent, cuts: list[Cut], tmp_path: Path) -> None:
    tree = SenoneTree.monophone(PHONES, 3)
    made = align_characters("u", "AB", 40, tree)
    store = save_alignments(tmp_path / "other", [made], tree, Lexicon({"ab": [["a", "b"]]}))
    with pytest.raises(ValueError, match="alignments of 27 senones, a student of 9"):
        FrameWatch(student, store)


def test_a_watch_sees_every_batch_and_changes_nothing(
    recogniser: Recogniser, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = open_cuts(corpus / "test").cuts
    monkeypatch.setattr(recognising, "BATCH_SECONDS", 5.0)
    seen: dict[str, tuple[int, int]] = {}

    def watch(group: list[Cut], features: list[Tensor], encoded: Encoded) -> None:
        for cut, made, length in zip(group, features, encoded.lengths.tolist(), strict=True):
            seen[cut.id] = (len(made), length)

    found = recognise(recogniser, cuts, watch=watch)
    assert found.hypotheses == recognise(recogniser, cuts).hypotheses
    assert seen.keys() == set(cuts.ids)
    for frames, length in seen.values():
        assert length == int(recogniser.student.encoder.output_lengths(torch.tensor([frames])))
