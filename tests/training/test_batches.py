from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet
from torch import Tensor

from retort.audio.files import read_audio
from retort.common.errors import UserError
from retort.config.schema import Recipe
from retort.corpora.cuts import make_cut, open_recording
from retort.corpora.features import load_samples
from retort.corpora.open_cuts import open_cuts
from retort.text.tokenizers import EOS, PAD, CharacterTokenizer
from retort.training.batches import (
    FRAME_STEP,
    TOKEN_STEP,
    Batch,
    UtteranceDataset,
    epoch_batches,
    make_sampler,
    mix_noise,
)
from retort.training.batches import utterance_generator as generator_of
from retort.training.data import load_data

ReadRecipe = Callable[..., Recipe]
MASKS = (
    "augment.frequency_masks=2",
    "augment.frequency_width=10",
    "augment.time_masks=2",
    "augment.time_width=20",
)
ONLINE = "features.storage=online"


def quarter(lengths: Tensor) -> Tensor:
    return torch.div(lengths + 3, 4, rounding_mode="floor")


def dataset_of(recipe: Recipe, noise: CutSet | None = None) -> UtteranceDataset:
    return UtteranceDataset(recipe, CharacterTokenizer(list("▁abcdefgh")), quarter, noise)


@pytest.fixture(scope="module")
def cuts(corpus: Path) -> CutSet:
    return open_cuts(corpus / "train").cuts


def batches_of(
    recipe: Recipe, cuts: CutSet, epoch: int = 0, skip: int = 0, noise: CutSet | None = None
) -> list[Batch]:
    return list(epoch_batches(dataset_of(recipe, noise), make_sampler(cuts, recipe, 0, 1), epoch, skip))


def by_id(batches: list[Batch]) -> dict[str, Tensor]:
    found = {}
    for batch in batches:
        for name, features, length in zip(batch.ids, batch.features, batch.feature_lengths):
            found[name] = features[: int(length)]
    return found


def same(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_every_utterance_comes_once_an_epoch(cuts: CutSet, read_recipe: ReadRecipe) -> None:
    batches = batches_of(read_recipe(ONLINE), cuts)
    assert sorted(name for batch in batches for name in batch.ids) == sorted(cuts.ids)
    assert len(batches) > 2


def test_tokens_end_in_eos_and_are_padded(cuts: CutSet, read_recipe: ReadRecipe) -> None:
    tokenizer = CharacterTokenizer(list("▁abcdefgh"))
    for batch in batches_of(read_recipe(ONLINE), cuts):
        assert batch.tokens.dtype == torch.int64
        longest = int(batch.token_lengths.max())
        assert batch.tokens.shape == (len(batch.ids), math.ceil(longest / TOKEN_STEP) * TOKEN_STEP)
        for text, pieces, row, length in zip(batch.texts, batch.pieces, batch.tokens, batch.token_lengths):
            ids = tokenizer.encode(text)
            assert row.tolist() == [*ids, EOS] + [PAD] * (batch.tokens.shape[1] - int(length))
            assert int(length) == len(ids) + 1
            assert [piece.id for piece in pieces] == ids


def test_padding_of_features_is_zero(cuts: CutSet, read_recipe: ReadRecipe) -> None:
    for batch in batches_of(read_recipe(ONLINE), cuts):
        longest = int(batch.feature_lengths.max())
        assert batch.features.shape[1] == math.ceil(longest / FRAME_STEP) * FRAME_STEP
        for features, length in zip(batch.features, batch.feature_lengths):
            assert not features[int(length) :].any()
            assert features[: int(length)].abs().sum(1).min() > 0


def test_bucketing_respects_the_seconds(cuts: CutSet, read_recipe: ReadRecipe) -> None:
    durations = {cut.id: cut.duration for cut in cuts}
    for seconds in (4.0, 9.0):
        batches = batches_of(read_recipe(ONLINE, f"batches.seconds={seconds}"), cuts)
        lengths = [sorted(durations[name] for name in batch.ids) for batch in batches]
        assert max(len(each) * each[-1] for each in lengths) <= 1.2 * seconds
        assert max(len(each) * each[0] for each in lengths) <= seconds
        assert np.mean([len(each) * each[-1] for each in lengths]) > seconds / 2


def test_one_longer_than_a_batch_comes_alone(cuts: CutSet, read_recipe: ReadRecipe) -> None:
    batches = batches_of(read_recipe(ONLINE, "batches.seconds=0.5"), cuts)
    assert all(len(batch.ids) == 1 for batch in batches)
    assert len(batches) == len(cuts)


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_handful_of_utterances(cuts: CutSet, read_recipe: ReadRecipe, count: int) -> None:
    few = cuts.subset(first=count)
    assert sum(len(batch.ids) for batch in batches_of(read_recipe(ONLINE), few)) == count


def test_one_bucket(cuts: CutSet, read_recipe: ReadRecipe) -> None:
    assert len(by_id(batches_of(read_recipe(ONLINE, "batches.buckets=1"), cuts))) == len(cuts)


def test_epochs_differ_in_order_and_the_seed_decides(cuts: CutSet, read_recipe: ReadRecipe) -> None:
    recipe, other = read_recipe(ONLINE), read_recipe(ONLINE, "seed=2")
    orders = [
        [batch.ids for batch in batches_of(*each)]
        for each in ((recipe, cuts, 0), (recipe, cuts, 0), (recipe, cuts, 1), (other, cuts, 0))
    ]
    assert orders[0] == orders[1]
    assert all(orders[0] != order for order in orders[2:])


class TestAugmentation:
    def test_it_does_not_depend_on_the_batches(self, cuts: CutSet, read_recipe: ReadRecipe) -> None:
        small = by_id(batches_of(read_recipe(ONLINE, "batches.seconds=3", *MASKS), cuts))
        large = by_id(batches_of(read_recipe(ONLINE, "batches.seconds=20", *MASKS), CutSet(list(cuts)[::-1])))
        assert same(small, large)

    def test_it_differs_between_epochs_and_seeds(self, cuts: CutSet, read_recipe: ReadRecipe) -> None:
        recipe = read_recipe(ONLINE, *MASKS)
        first, second = by_id(batches_of(recipe, cuts, 0)), by_id(batches_of(recipe, cuts, 1))
        other = by_id(batches_of(read_recipe(ONLINE, "seed=2", *MASKS), cuts))
        for name in first:
            assert not torch.equal(first[name], second[name])
            assert not torch.equal(first[name], other[name])

    def test_workers_change_nothing(self, cuts: CutSet, read_recipe: ReadRecipe) -> None:
        alone = batches_of(read_recipe(ONLINE, *MASKS), cuts, 3)
        helped = batches_of(read_recipe(ONLINE, "batches.workers=2", *MASKS), cuts, 3)
        assert [batch.ids for batch in alone] == [batch.ids for batch in helped]
        assert same(by_id(alone), by_id(helped))

    def test_the_generator_knows_seed_epoch_and_name(self) -> None:
        draws = [
            torch.rand(3, generator=generator_of(*each)).tolist()
            for each in ((1, 0, "a"), (1, 0, "a"), (1, 1, "a"), (2, 0, "a"), (1, 0, "b"))
        ]
        assert draws[0] == draws[1]
        assert all(a != b for a, b in itertools.combinations(draws[1:], 2))

    def test_the_global_generator_is_left_alone(self, cuts: CutSet, read_recipe: ReadRecipe) -> None:
        before = torch.get_rng_state()
        batches_of(read_recipe(ONLINE, *MASKS), cuts)
        assert torch.equal(torch.get_rng_state(), before)  # else a resumed run would drop out otherwise


@pytest.mark.parametrize("skip", [0, 1, 3, 100])
def test_skipping_gives_the_rest_exactly(cuts: CutSet, read_recipe: ReadRecipe, skip: int) -> None:
    recipe = read_recipe(ONLINE, "batches.seconds=4", *MASKS)
    whole, rest = batches_of(recipe, cuts, 2), batches_of(recipe, cuts, 2, skip)
    assert [batch.ids for batch in rest] == [batch.ids for batch in whole][skip:]
    assert all(torch.equal(a.features, b.features) for a, b in zip(whole[skip:], rest, strict=True))


def test_two_ranks_share_the_epoch(cuts: CutSet, read_recipe: ReadRecipe) -> None:
    recipe = read_recipe(ONLINE, "batches.seconds=3")
    ranks = [[list(batch.ids) for batch in make_sampler(cuts, recipe, rank, 2)] for rank in (0, 1)]
    assert len(ranks[0]) == len(ranks[1])
    seen = [name for rank in ranks for batch in rank for name in batch]
    assert {re.sub(r"_dup\d+$", "", name) for name in seen} == set(cuts.ids)  # lhotse fills the last batch up
    assert len(seen) <= len(cuts) + 1


class TestNoise:
    @pytest.fixture
    def noise(self, tmp_path: Path) -> CutSet:
        """Three noises of other lengths and rates than the speech."""
        draw, made = np.random.default_rng(0), []
        for index, (seconds, rate) in enumerate([(0.4, 16000), (3.0, 16000), (1.0, 8000)]):
            path = tmp_path / f"noise-{index}.wav"
            soundfile.write(path, draw.uniform(-0.3, 0.3, int(seconds * rate)), rate)
            made.append(make_cut(f"noise-{index}", open_recording(f"noise-{index}", path), None, ""))
        return CutSet.from_cuts(made).resample(16000).to_eager()

    def test_the_ratio_is_what_was_asked_for(
        self, cuts: CutSet, noise: CutSet, read_recipe: ReadRecipe
    ) -> None:
        config = read_recipe(ONLINE).augment
        config.noise_probability, config.noise_snr = 1.0, [5.0, 5.0]
        for cut in itertools.islice(cuts, 5):
            mixed = mix_noise(cut, noise, config, generator_of(1, 0, cut.id))
            assert (mixed.id, mixed.duration) == (cut.id, cut.duration)
            clean, noisy = load_samples(cut, 16000), load_samples(mixed, 16000)
            assert clean.shape == noisy.shape
            added = (noisy - clean)[: -int(0.1 * 16000)]
            ratio = 10 * np.log10(np.mean(clean**2) / np.mean(added**2))
            assert ratio == pytest.approx(5.0, abs=1.5)

    def test_it_follows_the_probability_and_the_utterance(
        self, cuts: CutSet, noise: CutSet, read_recipe: ReadRecipe
    ) -> None:
        half = read_recipe(ONLINE, "augment.noise_probability=0.5")
        clean = by_id(batches_of(half, cuts))
        first, again = (by_id(batches_of(half, cuts, noise=noise)) for _ in range(2))
        assert same(first, again)
        changed = sum(not torch.equal(clean[name], first[name]) for name in clean)
        assert 4 <= changed <= 20  # of 24
        assert same(clean, by_id(batches_of(read_recipe(ONLINE, "augment.noise_probability=0"), cuts)))

    def test_speech_of_another_rate_is_mixed_too(
        self, tmp_path: Path, noise: CutSet, read_recipe: ReadRecipe, say: Callable[..., np.ndarray]
    ) -> None:
        soundfile.write(tmp_path / "low.wav", say("abc de", rate=8000), 8000)
        cut = make_cut("low", open_recording("low", tmp_path / "low.wav"), "abc de", "s")
        recipe = read_recipe(ONLINE, "augment.noise_probability=1")
        batch = dataset_of(recipe, noise)[CutSet.from_cuts([cut])]
        assert batch is not None
        assert (batch.ids, batch.rejected) == (["low"], [])

    def test_it_needs_the_wave(self, read_recipe: ReadRecipe, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"augment\.noise changes the audio"):
            read_recipe(f"augment.noise=[{tmp_path}]")

    def test_a_recipe_names_it(self, tmp_path: Path, noise: CutSet, read_recipe: ReadRecipe) -> None:
        noise_path = tmp_path / "noise.jsonl.gz"
        CutSet.from_cuts(noise).to_file(noise_path)
        recipe = read_recipe(ONLINE, f"augment.noise=[{noise_path}]")
        data = load_data(recipe, tmp_path / "cache", lambda *_: None)
        assert data.noise is not None
        assert {cut.sampling_rate for cut in data.noise} == {16000}
        assert len(data.noise) == 3


def test_speeds_give_copies(cuts: CutSet, tmp_path: Path, read_recipe: ReadRecipe) -> None:
    recipe = read_recipe(ONLINE, "augment.speeds=[0.9,1.0,1.1]")
    data = load_data(recipe, tmp_path / "cache", lambda *_: None)
    batches = batches_of(recipe, data.train)
    lengths = {
        name: int(length) for batch in batches for name, length in zip(batch.ids, batch.feature_lengths)
    }
    assert len(lengths) == 3 * len(cuts)
    for cut in cuts:
        own = len(read_audio(cut.recording.sources[0].source)) / 160
        for suffix, speed in (("", 1.0), ("_sp0.9", 0.9), ("_sp1.1", 1.1)):
            assert lengths[cut.id + suffix] == pytest.approx(own / speed, abs=1.5)
    assert len(data.validation) == 6


def test_what_cannot_be_used_is_listed(
    tmp_path: Path, read_recipe: ReadRecipe, say: Callable[..., np.ndarray]
) -> None:
    def cut(name: str, text: str, samples: np.ndarray) -> object:
        soundfile.write(tmp_path / f"{name}.wav", samples, 16000, subtype="FLOAT")
        made = make_cut(name, open_recording(name, tmp_path / f"{name}.wav"), "x", "s")
        made.supervisions[0].text = text
        return made

    wave = say("abc de")
    bad = {
        "empty text": (".,!", wave, "transcript is empty"),
        "unknown": ("ab ж cz", wave, "outside the vocabulary: ж z"),
        "silent": ("ab", np.zeros(16000, np.float32), "silence"),
        "nan": ("ab", np.where(np.arange(len(wave)) == 50, np.nan, wave), "NaN"),
        "short": ("a", wave[1000:1600], "too short"),
        "crowded": ("abcdefgh " * 10, wave, "89 tokens do not fit"),
    }
    cuts = CutSet.from_cuts(
        [cut("good", "abc de", wave), *(cut(name, *each[:2]) for name, each in bad.items())]
    )
    batch = dataset_of(read_recipe(ONLINE))[cuts]
    assert batch is not None
    assert batch.ids == ["good"]
    reasons = {each.id: each.reason for each in batch.rejected}
    assert reasons.keys() == bad.keys()
    for name, (_, _, reason) in bad.items():
        assert reason in reasons[name], name
        assert "\n" not in reasons[name]


def test_a_batch_of_bad_ones_is_empty_but_tells(tmp_path: Path, read_recipe: ReadRecipe) -> None:
    soundfile.write(tmp_path / "a.wav", np.zeros(16000), 16000)
    cut = make_cut("a", open_recording("a", tmp_path / "a.wav"), "a", "s")
    (batch,) = batches_of(read_recipe(ONLINE), CutSet.from_cuts([cut]))
    assert batch.ids == batch.texts == batch.pieces == []
    assert [each.id for each in batch.rejected] == ["a"]
    # One utterance of no frames and no tokens: it passes through every layer and adds nothing.
    assert batch.features.shape == (1, 1, 40)
    assert batch.features.dtype == torch.float32
    assert not batch.features.any()
    assert batch.tokens.shape == (1, 0)
    assert batch.tokens.dtype == torch.int64
    assert batch.feature_lengths.tolist() == batch.token_lengths.tolist() == [0]
