"""Utterances that an aligner has not seen get the paths that its own model gives; nothing of it changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_systems import LEXICON, SpokenCorpus

from retort.alignment.align import align_corpus, align_others
from retort.alignment.store import AlignmentStore
from retort.common.errors import UserError
from retort.config.schema import AlignConfig
from retort.text.lexicon import Lexicon
from tiny_alignments import save_alignments

CONFIG = AlignConfig(
    senones=30,
    monophone_passes=4,
    monophone_mixtures=1,
    passes=2,
    mixtures=1,
    minimum_frames=40,
    processes=1,
)
MORE = LEXICON.extended({"dab": [["D", "A", "B"]], "fad": [["F", "A", "D"]]})
"""With a word that training does not have, and one of a phone that it does not have."""
SILENCE = 0.5


@pytest.fixture(scope="module")
def aligner(tmp_path_factory: pytest.TempPathFactory) -> Path:
    corpus = SpokenCorpus(40)
    folder = tmp_path_factory.mktemp("aligner")
    align_corpus(corpus.cuts, LEXICON, corpus.features, folder, CONFIG)
    return folder


@pytest.fixture(scope="module")
def others() -> SpokenCorpus:
    return SpokenCorpus(12, seed=7)


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("retort.alignment.features.SHARD_SECONDS", 4.0)


def align(corpus: SpokenCorpus, aligner: Path, folder: Path, **more: Any) -> AlignmentStore:
    settings: dict[str, Any] = {"processes": 1, "features": corpus.features, "lexicon": MORE, **more}
    return align_others(
        corpus.cuts, settings.pop("lexicon"), settings.pop("features"), aligner, folder, **settings
    )


def state_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_borders_are_found(others: SpokenCorpus, aligner: Path, tmp_path: Path) -> None:
    before = state_of(aligner)
    store = align(others, aligner, tmp_path)
    assert store.keys() == others.truth.keys()
    assert str(store.tree) == str(AlignmentStore(aligner).tree)
    same, off = 0, []
    for cut in others.cuts:
        alignment, truth = store[cut.id], others.truth[cut.id]
        assert [word.symbol for word in alignment.words] == cut.supervisions[0].text.split()
        assert len(alignment.senones) == len(others.features(cut))
        if [phone.symbol for phone in alignment.phones] == [symbol for symbol, _, _ in truth]:
            same += 1
            off += [phone.start - start for phone, (_, start, _) in zip(alignment.phones, truth)]
    assert same >= 0.9 * len(others.truth)
    assert np.median(np.abs(off)) <= 1
    assert state_of(aligner) == before


def test_what_it_learned_from_gets_the_same_paths(aligner: Path, tmp_path: Path) -> None:
    """Of the same utterances the last model's paths are those of training: means and variances are the same too."""
    corpus, first = SpokenCorpus(40), AlignmentStore(aligner)
    store = align(corpus, aligner, tmp_path, lexicon=LEXICON, silence_probability=CONFIG.silence_probability)
    for name in first:
        np.testing.assert_array_equal(store[name].senones, first[name].senones)


def test_the_variance_is_that_of_training(aligner: Path, tmp_path: Path) -> None:
    """One utterance alone gets other frames if its own variance is taken, for it says few phones."""
    corpus = SpokenCorpus(40)
    first = AlignmentStore(aligner)
    speaker = [cut for cut in corpus.cuts if cut.supervisions[0].speaker == "s1"]
    corpus.cuts = speaker  # whole, so that its mean is what it was
    store = align(corpus, aligner, tmp_path, lexicon=LEXICON)
    for cut in speaker:
        np.testing.assert_array_equal(store[cut.id].senones, first[cut.id].senones)


def test_other_words_and_bad_ones(aligner: Path, tmp_path: Path) -> None:
    corpus = SpokenCorpus(3, seed=8)
    donor = corpus.features(corpus.cuts[0])
    corpus.add("new", "dab ab", donor)
    corpus.add("phone", "fad ab", donor)
    corpus.add("unknown", "ab zebra", donor)
    corpus.add("broken", "ab", None)
    corpus.add("misfit", "d d d", np.random.default_rng(1).normal(size=(100, 13)).astype(np.float32) * 9 + 30)
    lines: list[str] = []
    store = align(corpus, aligner, tmp_path, report=lines.append)
    assert store.skipped == {
        "phone": "no pronunciation of fad",
        "unknown": "no pronunciation of zebra",
        "broken": "its audio cannot be read",
    }
    assert [word.symbol for word in store["new"].words] == ["dab", "ab"]
    assert "misfit" in store  # whoever measures must not choose
    assert len(lines) == 1
    assert lines[0].startswith("3 of 8 utterances have no alignment (phone: no pronunciation of fad; ")


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("place", ["features", "alignment"])
def test_a_run_that_was_stopped_goes_on(
    place: str, others: SpokenCorpus, aligner: Path, tmp_path: Path
) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        assert total == 3
        if stage == place and done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        align(others, aligner, tmp_path / "a", progress=stop)
    read: list[str] = []

    def features(cut: Any) -> Any:
        read.append(cut.id)
        return others.features(cut)

    store = align(others, aligner, tmp_path / "a", features=features)
    assert (len(read) > 0) == (place == "features")
    assert len(read) < len(others.cuts)
    whole = align(others, aligner, tmp_path / "b", processes=1 + (place == "alignment"))
    assert list(store) == list(whole)
    for name in whole:
        np.testing.assert_array_equal(store[name].senones, whole[name].senones)


def test_it_is_made_once_for_an_aligner(others: SpokenCorpus, aligner: Path, tmp_path: Path) -> None:
    align(others, aligner, tmp_path)

    def none(*_: Any) -> Any:
        raise AssertionError("something was made again")

    again = align(others, aligner, tmp_path, features=none, progress=none)
    assert len(again) == len(others.cuts)
    stages: list[str] = []
    align(
        others,
        aligner,
        tmp_path,
        features=none,
        silence_probability=0.3,
        progress=lambda *at: stages.append(at[0]),
    )
    assert "alignment" in stages  # and no features were made again


def test_frames_of_30_ms(others: SpokenCorpus, tmp_path: Path) -> None:
    corpus = SpokenCorpus(40)
    config = AlignConfig(**{**vars(CONFIG), "subsampling": 3, "states": 1, "minimum_frames": 15})
    align_corpus(corpus.cuts, LEXICON, corpus.features, tmp_path / "a", config)
    store = align(others, tmp_path / "a", tmp_path / "b")
    assert store.frame_shift == pytest.approx(0.03)
    for cut in others.cuts:
        assert len(store[cut.id].senones) == -(-len(others.features(cut)) // 3)


@pytest.fixture
def mistakes(aligner: Path, tmp_path: Path) -> dict[str, tuple[Path, Path, Lexicon]]:
    first = AlignmentStore(aligner)
    made = tmp_path / "made" / "alignments"
    save_alignments(made, [first[name] for name in first], first.tree, first.lexicon)
    foreign = Lexicon({word: [["X", "Y"]] for word in LEXICON})
    return {
        "not the Gaussians of the aligner": (made.parent, tmp_path / "b", LEXICON),
        "would replace those of the aligner": (aligner, aligner, LEXICON),
        "contains no alignments": (tmp_path / "none", tmp_path / "b", LEXICON),
        r"none of its 6 words can be spelled in the 5 phones": (aligner, tmp_path / "b", foreign),
    }


@pytest.mark.parametrize("number", range(4))
def test_mistakes_are_one_line(
    number: int, others: SpokenCorpus, mistakes: dict[str, tuple[Path, Path, Lexicon]]
) -> None:
    what, (first, folder, lexicon) = list(mistakes.items())[number]
    with pytest.raises(UserError, match=what) as reported:
        align(others, first, folder, lexicon=lexicon)
    assert "\n" not in str(reported.value)
