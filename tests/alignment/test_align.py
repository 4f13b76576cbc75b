"""A corpus drawn from known Gaussians is aligned from nothing: borders found, bad utterances named, runs resumed."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_systems import LEXICON, SpokenCorpus

from retort.alignment.align import align_corpus, growing_passes
from retort.alignment.store import AlignmentStore
from retort.common.errors import UserError
from retort.config.schema import AlignConfig

CONFIG = AlignConfig(
    senones=30,
    monophone_passes=5,
    monophone_mixtures=2,
    passes=2,
    mixtures=2,
    minimum_frames=40,
    processes=1,
)
BAD = {
    "unknown": "no pronunciation of zebra",
    "broken": "its audio cannot be read",
    "short": "too short: 20 frames, but its phones need 27",
    "empty": "its transcript is empty",
    "nan": "its features are not finite",
}


def corpus_with_bad_ones() -> SpokenCorpus:
    corpus = SpokenCorpus(40)
    noise = np.random.default_rng(9).normal(size=(100, 13)).astype(np.float32)
    corpus.add("unknown", "ab zebra", noise)
    corpus.add("broken", "ab", None)
    corpus.add("short", "bad bad dac", noise[:20])
    corpus.add("empty", " ", noise)
    corpus.add("nan", "ab", noise * np.nan)
    # Another utterance's sound: long enough, but none of its phones.
    corpus.add("wrong", "d d d d d d", noise * 9 + 30, "s9")
    return corpus


@pytest.fixture(scope="module")
def corpus() -> SpokenCorpus:
    return corpus_with_bad_ones()


@pytest.fixture(scope="module")
def aligned(
    corpus: SpokenCorpus, tmp_path_factory: pytest.TempPathFactory
) -> tuple[AlignmentStore, list[str]]:
    lines: list[str] = []
    folder = tmp_path_factory.mktemp("aligned")
    return align_corpus(corpus.cuts, LEXICON, corpus.features, folder, CONFIG, report=lines.append), lines


Aligned = tuple[AlignmentStore, list[str]]


def test_borders_are_found(corpus: SpokenCorpus, aligned: Aligned) -> None:
    store, _ = aligned
    assert store.keys() == corpus.truth.keys()
    same, off = 0, []
    for name, truth in corpus.truth.items():
        phones = store[name].phones
        if [phone.symbol for phone in phones] == [symbol for symbol, _, _ in truth]:
            same += 1
            off += [phone.start - start for phone, (_, start, _) in zip(phones, truth)]
    # Silences and pronunciations are chosen as they were drawn.
    assert same >= 0.95 * len(corpus.truth)
    # Differences look four frames to each side, so a border's own sound may begin a little before it.
    assert np.median(np.abs(off)) <= 1
    assert np.mean(np.abs(off) <= 2) > 0.95


def test_alignments_hang_together(corpus: SpokenCorpus, aligned: Aligned) -> None:
    store, _ = aligned
    for cut in corpus.cuts[:40]:
        alignment = store[cut.id]
        assert [word.symbol for word in alignment.words] == cut.supervisions[0].text.split()
        assert (
            len(alignment.senones)
            == len(corpus.features(cut))
            == sum(each.frames for each in alignment.phones)
        )
        starts = [phone.start for phone in alignment.phones]
        for word in alignment.words:
            inside = [
                each for each in alignment.phones if word.start <= each.start < word.start + word.frames
            ]
            assert tuple(each.symbol for each in inside) in LEXICON[word.symbol]
            assert word.start in starts
    assert 5 * 3 < store.tree.count <= 30
    assert store.frames.sum() == sum(len(store[name].senones) for name in store)


def test_bad_utterances_are_named(aligned: Aligned) -> None:
    store, lines = aligned
    assert {name: reason for name, reason in store.skipped.items() if name in BAD} == BAD
    assert set(store.skipped) == {*BAD, "wrong"}
    assert store.skipped["wrong"].startswith("its transcript does not fit its audio")
    assert any(
        line.startswith("5 of 46 utterances left out (unknown: no pronunciation of zebra; ") for line in lines
    )
    assert re.match(r"40 utterances aligned to \d+ senones, 6 left out. An hour of speech took", lines[-1])


def test_training_raises_the_likelihood(aligned: Aligned) -> None:
    _, lines = aligned
    found = [re.match(r"(\w+), pass (\d+) of \d+: (-?[\d.]+) nats", line) for line in lines]
    values: dict[str, list[float]] = {}
    for match in found:
        if match:
            values.setdefault(match[1], []).append(float(match[3]))
    assert list(map(len, values.values())) == [5, 2]
    assert values["monophones"][0] < values["monophones"][1] < values["monophones"][-1]
    assert values["monophones"][-1] - values["monophones"][0] > 5
    assert values["triphones"][-1] > values["triphones"][0]


@pytest.fixture(scope="module")
def few() -> SpokenCorpus:
    return SpokenCorpus(12)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retort.alignment.features.SHARD_SECONDS", 4.0)


@pytest.fixture(scope="module")
def whole(few: SpokenCorpus, tmp_path_factory: pytest.TempPathFactory) -> AlignmentStore:
    """In one go, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("retort.alignment.features.SHARD_SECONDS", 4.0)
        return align(few, tmp_path_factory.mktemp("whole"))


def are_equal(one: AlignmentStore, other: AlignmentStore) -> None:
    assert list(one) == list(other)
    assert one.tree.roots == other.tree.roots
    for name in one:
        np.testing.assert_array_equal(one[name].senones, other[name].senones)


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("place", ["features", "monophones", "alignment"])
def test_a_run_that_was_stopped_goes_on(
    place: str, few: SpokenCorpus, whole: AlignmentStore, tmp_path: Path
) -> None:
    visits: list[tuple[str, int]] = []

    def stop(stage: str, done: int, total: int) -> None:
        visits.append((stage, done))
        if stage == place and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        align(few, tmp_path, stop)
    before, visits[:] = list(visits), []
    read: list[str] = []

    def features(cut: Any) -> Any:
        read.append(cut.id)
        return few.features(cut)

    store = align(few, tmp_path, lambda stage, done, total: visits.append((stage, done)), features)
    assert (len(read) > 0) == (place == "features")
    assert len(read) < len(few.cuts)
    if place == "alignment":  # nothing is trained again
        assert not {"flat start", "monophones", "triphones"} & {stage for stage, _ in visits}
        assert {"flat start", "monophones", "triphones"} < {stage for stage, _ in before}
    are_equal(store, whole)


def align(
    corpus: SpokenCorpus,
    folder: Path,
    progress: Callable[[str, int, int], None] | None = None,
    features: Callable[[Any], Any] | None = None,
    config: AlignConfig = CONFIG,
    report: Callable[[str], None] | None = None,
) -> AlignmentStore:
    small = replace(config, monophone_passes=2, passes=1, mixtures=1)
    read = features or corpus.features
    return align_corpus(corpus.cuts, LEXICON, read, folder, small, progress=progress, report=report)


def test_only_what_changed_is_made_again(few: SpokenCorpus, tmp_path: Path) -> None:
    align(few, tmp_path)
    stages: list[str] = []
    align(few, tmp_path, lambda stage, done, total: stages.append(stage))
    assert stages == []

    def none(cut: Any) -> Any:
        raise AssertionError("features were made again")

    store = align(few, tmp_path, lambda stage, *_: stages.append(stage), none, replace(CONFIG, senones=17))
    assert 15 < store.tree.count <= 17
    assert "triphones" in stages
    assert "monophones" not in stages


def test_frames_of_30_ms(corpus: SpokenCorpus, tmp_path: Path) -> None:
    store = align(corpus, tmp_path, config=replace(CONFIG, subsampling=3, states=1, minimum_frames=15))
    assert store.frame_shift == pytest.approx(0.03)
    assert store.tree.states == 1
    assert len(store) == 40
    off = []
    for name, truth in corpus.truth.items():
        alignment = store[name]
        assert len(alignment.senones) == -(-sum(frames for _, _, frames in truth) // 3)
        if [phone.symbol for phone in alignment.phones] == [symbol for symbol, _, _ in truth]:
            off += [3 * phone.start - start for phone, (_, start, _) in zip(alignment.phones, truth)]
    assert len(off) > 200
    assert np.mean(np.abs(off) <= 3) > 0.9


@pytest.mark.usefixtures("small_shards")
def test_processes_change_nothing(few: SpokenCorpus, whole: AlignmentStore, tmp_path: Path) -> None:
    are_equal(align(few, tmp_path, config=replace(CONFIG, processes=2)), whole)


def test_nothing_to_align_is_one_line(tmp_path: Path) -> None:
    corpus = SpokenCorpus(0)
    corpus.add("u", "ab", None)
    with pytest.raises(UserError, match=r"no utterance can be aligned \(u: its audio cannot be read\)"):
        align(corpus, tmp_path)
    corpus = SpokenCorpus(0)
    corpus.add("u", "ZEBRA", None)
    with pytest.raises(UserError, match="none of the words of 1 utterances is in the lexicon"):
        align(corpus, tmp_path)


def test_growth_is_spread() -> None:
    assert growing_passes(14, 4) == {3, 8}
    assert growing_passes(10, 8) == {1, 4, 6}
    assert growing_passes(10, 1) == set()
    assert max(growing_passes(10, 5)) < 9


@pytest.mark.parametrize(
    ("key", "value", "what"),
    [
        ("senones", 0, "senones is 0"),
        ("subsampling", 5, "subsampling is 5"),
        ("subsampling", 3, "3 states a phone and subsampling 3 do not go together"),
        ("states", 1, "do not go together"),
        ("silence_probability", 1.0, "above 0, below 1"),
    ],
)
def test_bad_settings_are_one_line(key: str, value: Any, what: str) -> None:
    with pytest.raises(UserError, match=what):
        AlignConfig(**{key: value})
