"""Shares of each batch for the entries of `data.train`."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lhotse import MonoCut, Recording, SupervisionSegment

from retort.common.errors import UserError
from retort.config.loading import load_recipe
from retort.config.schema import Recipe
from retort.engine.checkpoints import read_weights
from retort.training.batches import make_sampler
from retort.training.data import load_data
from retort.training.run import train
from retort.training.shares import Group, ShareSampler
from retort.training.teach import training_texts

ReadRecipe = Callable[..., Recipe]


def cuts(name: str, durations: list[float]) -> list[MonoCut]:
    made = []
    for number, duration in enumerate(durations):
        recording = Recording(f"{name}-{number}", [], 16000, int(16000 * duration), duration)
        text = SupervisionSegment(recording.id, recording.id, 0.0, duration, text="a")
        made.append(MonoCut(recording.id, 0.0, duration, 0, recording=recording, supervisions=[text]))
    return made


def recipe_of(seed: int = 1, seconds: float = 60.0, buckets: int = 4) -> Recipe:
    recipe = Recipe(name="x", seed=seed)
    recipe.batches.seconds, recipe.batches.buckets = seconds, buckets
    return recipe


def epoch(sampler: ShareSampler, number: int) -> list[list[str]]:
    sampler.set_epoch(number)
    return [[cut.id for cut in batch] for batch in sampler]


def audio(names: list[str], group: Group) -> float:
    durations = {cut.id: cut.duration for cut in group.cuts}
    return sum(durations.get(name, 0.0) for name in names)


@settings(max_examples=15)
@given(
    st.lists(st.integers(5, 40), min_size=2, max_size=3),
    st.integers(1, 3),
    st.integers(0, 50),
    st.integers(1, 5),
)
def test_each_batch_has_its_shares(sizes: list[int], world: int, seed: int, buckets: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(len(sizes), generator=generator) + 0.2
    shares = (weights / weights.sum()).double()
    shares[-1] = 1.0 - shares[:-1].sum()
    groups = [
        Group(float(share), cuts(f"g{number}", (1.0 + 4.0 * torch.rand(size, generator=generator)).tolist()))
        for number, (share, size) in enumerate(zip(shares, sizes))
    ]
    recipe = recipe_of(seed, 20.0, buckets)
    samplers = [ShareSampler(groups, recipe, rank, world) for rank in range(world)]
    for number in range(2):
        ranks = [epoch(sampler, number) for sampler in samplers]
        assert ranks == [epoch(ShareSampler(groups, recipe, rank, world), number) for rank in range(world)]
        assert max(map(len, ranks)) - min(map(len, ranks)) == 0 or sum(map(len, ranks)) < world
        batches = [batch for each in ranks for batch in each]
        names = [name for batch in batches for name in batch]
        assert len(set(names)) == len(names)
        for group in groups:
            longest = max(cut.duration for cut in group.cuts)
            whole = samplers[0].epoch_seconds * group.share
            assert abs(audio(names, group) - whole) <= 2 * longest + whole / len(batches) * world
            mean = audio(names, group) / len(batches)
            assert all(abs(audio(batch, group) - mean) <= 2 * longest for batch in batches)


def test_over_the_epochs_every_cut_comes_equally_often() -> None:
    old, new = cuts("old", [2.0 + number % 5 for number in range(90)]), cuts("new", [3.0, 2.0, 4.0] * 5)
    sampler = ShareSampler([Group(0.3, new), Group(0.7, old)], recipe_of(seconds=20))
    counts: Counter[str] = Counter()
    batches = 0
    for number in range(30):
        for batch in epoch(sampler, number):
            counts.update(batch)
            batches += 1
    assert {counts[cut.id] for cut in new} == {30}
    assert set(counts) == {cut.id for cut in [*old, *new]}
    assert max(counts[cut.id] for cut in old) - min(counts[cut.id] for cut in old) <= 2
    seconds = sum(counts[cut.id] * cut.duration for cut in new)
    assert seconds / sum(counts[cut.id] * cut.duration for cut in [*old, *new]) == pytest.approx(
        0.3, abs=0.01
    )


def test_orders_differ_between_epochs_and_seeds() -> None:
    groups = [Group(0.5, cuts("a", [2.0] * 40)), Group(0.5, cuts("b", [3.0] * 40))]
    one = epoch(ShareSampler(groups, recipe_of(seconds=12)), 0)
    assert one == epoch(ShareSampler(groups, recipe_of(seconds=12)), 0)
    assert one != epoch(ShareSampler(groups, recipe_of(seconds=12)), 1)
    assert one != epoch(ShareSampler(groups, recipe_of(seed=2, seconds=12)), 0)


def test_padding_counts() -> None:
    """Batches stay near `batches.seconds` where one entry is of long and the other of short utterances."""
    groups = [Group(0.5, cuts("long", [15.0] * 40)), Group(0.5, cuts("short", [1.5] * 400))]
    durations = {cut.id: cut.duration for group in groups for cut in group.cuts}
    padded = [
        len(batch) * max(durations[name] for name in batch)
        for batch in epoch(ShareSampler(groups, recipe_of(seconds=60)), 0)
    ]
    assert max(padded) <= 90
    assert sum(padded) / len(padded) <= 60


@pytest.fixture
def entries(make_corpus: Callable[..., Path], tmp_path: Path) -> tuple[Path, Path]:
    return make_corpus(tmp_path / "new", 6, seed=900), make_corpus(tmp_path / "extra", 6, seed=950)


def mixed(read_recipe: ReadRecipe, corpus: Path, *sources: str, extra: tuple[str, ...] = ()) -> Recipe:
    train = f"data.train=[{','.join(sources)}]"
    return read_recipe(train, "batches.seconds=6", *extra)


def test_entries_of_a_recipe(
    corpus: Path, entries: tuple[Path, Path], tmp_path: Path, read_recipe: ReadRecipe
) -> None:
    new, extra = entries
    recipe = mixed(
        read_recipe, corpus, f"{{source: {corpus}/train, share: 0.4}}", str(new), f"{{source: {extra}}}",
        extra=("augment.speeds=[0.9,1.0]",),
    )  # fmt: skip
    assert recipe.data.train_sources == [f"{corpus}/train", str(new), str(extra)]
    data = load_data(recipe, tmp_path / "cache", lambda *_: None)
    assert [group.share for group in data.groups] == [0.4, pytest.approx(0.6)]
    names = [{cut.id for cut in group.cuts} for group in data.groups]
    assert {name.split("-")[0] for name in names[0]} == {"train"}
    assert {name.split("-")[0] for name in names[1]} == {"new", "extra"}
    assert len(names[0]) == 2 * 24
    assert sum(map(len, names)) == len(data.train)
    assert isinstance(make_sampler(data.train, recipe, 0, 1, data.groups), ShareSampler)
    assert len(training_texts(recipe)) > 24
    plain = mixed(read_recipe, corpus, f"{corpus}/train", str(new))
    assert load_data(plain, tmp_path / "cache", lambda *_: None).groups == []


def test_a_killed_run_equals_the_unbroken_one(
    corpus: Path, entries: tuple[Path, Path], tmp_path: Path, read_recipe: ReadRecipe
) -> None:
    recipe = mixed(
        read_recipe, corpus, f"{{source: {corpus}/train, share: 0.5}}", str(entries[0]),
        extra=("training.steps=6", "training.evaluate_steps=3"),
    )  # fmt: skip
    whole = train(recipe, tmp_path / "whole", lambda *_: None, lambda *_: None)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    for name in ("model", "checkpoints/step-00000006"):
        shutil.rmtree(tmp_path / "killed" / "tiny" / name)
    again = train(recipe, tmp_path / "killed", lambda *_: None, lambda *_: None)
    first, second = (read_weights(each.folder / "model" / "model.safetensors") for each in (whole, again))
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


@pytest.mark.parametrize(
    "sources",
    [
        ["{source: a, share: 0}"],
        ["{source: a, share: 1.1}"],
        ["{source: a, share: .5}"],
        ["{source: a, share: .5}", "{source: b, share: .6}"],
        ["{source: a, share: .5}", "{source: b, share: .5}", "c"],
        ["{source: a, share: -.5}", "b"],
        ["{source: a, share: true}", "b"],
        ["{source: a, share: half}", "b"],
        ["{source: a, share: .nan}", "b"],
        ["{share: .5}", "b"],
        ["{source: a, weight: .5}", "b"],
        ["{source: [a], share: .5}", "b"],
        ["[a]"],
        ["5"],
    ],
)
def test_shares_that_cannot_be(read_recipe: ReadRecipe, corpus: Path, sources: list[str]) -> None:
    with pytest.raises(UserError) as error:
        mixed(read_recipe, corpus, *sources)
    assert "\n" not in str(error.value)


def test_shares_and_transcripts_that_are_read_aloud(read_recipe: ReadRecipe, corpus: Path) -> None:
    with pytest.raises(UserError):
        mixed(read_recipe, corpus, "{source: a, share: .5}", "b", extra=("data.spoken.voices=2",))


def test_shares_that_sum_to_one_in_thirds(read_recipe: ReadRecipe, corpus: Path) -> None:
    recipe = mixed(read_recipe, corpus, *(f"{{source: {name}, share: 0.3333}}" for name in "abc"))
    assert recipe.data.train_shares == [0.3333] * 3
    assert load_recipe("aishell1/cif").data.train_shares == [None] * len(
        load_recipe("aishell1/cif").data.train
    )


def test_less_data_than_its_share_of_one_batch(
    corpus: Path, entries: tuple[Path, Path], tmp_path: Path, read_recipe: ReadRecipe
) -> None:
    recipe = mixed(
        read_recipe,
        corpus,
        f"{corpus}/train",
        f"{{source: {entries[0]}, share: 0.5}}",
        extra=("batches.seconds=30",),
    )
    with pytest.raises(UserError):
        load_data(recipe, tmp_path / "cache", lambda *_: None)


def test_two_test_sets_of_one_name(read_recipe: ReadRecipe) -> None:
    with pytest.raises(UserError):
        read_recipe("data.test=[a/x/test,b/x/test]")
    read_recipe("data.test=[a/x/test,a/y/test]")
