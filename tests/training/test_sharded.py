"""A training over shards equals the one over files, bit for bit and with the same order of batches."""

from __future__ import annotations

import os
import shutil
import signal
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from retort.common.errors import UserError
from retort.config.distill import RowConfig
from retort.config.kinds import config_of
from retort.config.schema import Recipe
from retort.corpora.open_cuts import open_cuts
from retort.corpora.write_shards import write_shards
from retort.engine.log import read_metrics
from retort.engine.loop import Stopped
from retort.text.tokenizers import CharacterTokenizer
from retort.training import sampling
from retort.training.batches import UtteranceDataset, epoch_batches, make_sampler
from retort.training.data import Data, load_data
from retort.training.run import Outcome, train
from retort.training.sharded import ShardedCuts
from retort.training.teach import normalised_texts
from two_processes import results_of, run_in_two

ReadRecipe = Callable[..., Recipe]
DISTILLED = """
teachers: {{bert: {{model: "{bert}", case: lower, dim: 16, storage: {storage}}}}}
distill:
  - {{tap: acoustic, teacher: bert, loss: contrastive, weight: 1.0, temperature: 0.02, negatives: 700}}
"""
SETTINGS = (
    "augment.speeds=[0.9,1.0,1.1]", "augment.time_masks=2", "batches.seconds=9", "batches.maximum_seconds=1.6",
    "training.steps=7", "training.evaluate_steps=7", "training.log_steps=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def shards(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded") / "train"
    write_shards(list(open_cuts(corpus / "train").cuts), folder, shard_cuts=7)
    return folder


def quiet(*_: object) -> None:
    pass


def trained(recipe: Recipe, root: Path) -> Outcome:
    return train(recipe, root, quiet, quiet)


def log_of(outcome: Outcome) -> list[dict[str, Any]]:
    return [{key: line[key] for key in line if key != "seconds"} for line in read_metrics(outcome.folder / "metrics.jsonl")]


def weights_of(outcome: Outcome) -> dict[str, torch.Tensor]:
    return load_file(outcome.folder / "model" / "model.safetensors")


def same(first: Mapping[str, torch.Tensor], second: Mapping[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def data_of(recipe: Recipe, folder: Path) -> Data:
    return load_data(recipe, folder, quiet)


@pytest.mark.parametrize("storage", ["online", "disk"])
def test_shards_train_as_files_do(
    read_recipe: ReadRecipe, shards: Path, tmp_path: Path, tone_bert: Path, storage: str
) -> None:
    extra = DISTILLED.format(bert=tone_bert, storage=storage)
    files = trained(read_recipe(*SETTINGS, extra=extra, name="files"), tmp_path / "files")
    sharded = trained(
        read_recipe(*SETTINGS, f"data.train=[{shards}]", extra=extra, name="shards"), tmp_path / "shards"
    )
    assert log_of(files) == log_of(sharded)
    assert same(weights_of(files), weights_of(sharded))


def test_a_run_over_shards_is_resumed_at_the_batch(
    read_recipe: ReadRecipe, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampling, "BLOCK", 4)
    monkeypatch.setattr(sampling, "SEGMENT", 24)  # several segments in an epoch
    settings = (*SETTINGS, f"data.train=[{shards}]", "training.steps=14", "training.evaluate_steps=14")
    whole = trained(read_recipe(*settings, name="whole"), tmp_path)
    parts = read_recipe(*settings, name="parts")

    def stop(step: int, values: Mapping[str, Any]) -> None:
        if step in (3, 8, 9) and "loss" in values:
            os.kill(os.getpid(), signal.SIGTERM)

    for step in (3, 8, 9):
        with pytest.raises(Stopped) as stopped:
            train(parts, tmp_path, quiet, stop)
        assert stopped.value.step == step
    resumed = trained(parts, tmp_path)
    assert log_of(resumed) == log_of(whole)
    assert same(weights_of(resumed), weights_of(whole))


def test_cuts_texts_and_order_are_those_of_the_files(
    read_recipe: ReadRecipe, shards: Path, tmp_path: Path
) -> None:
    recipe = read_recipe(*SETTINGS, "features.storage=online")
    files, sharded = data_of(recipe, tmp_path), data_of(read_recipe(*SETTINGS, f"data.train=[{shards}]"), tmp_path)
    assert isinstance(sharded.train, ShardedCuts)
    expected = list(files.train)
    assert 24 < len(sharded.train) == len(expected) < 72  # at three speeds, without the longest
    for number, cut in enumerate(expected):
        assert sharded.train[number].duration == cut.duration
        opened = sharded.train.open(number)
        assert (opened.id, opened.duration) == (cut.id, cut.duration)
    assert normalised_texts(sharded.train, recipe.normaliser) == normalised_texts(files.train, recipe.normaliser)


def test_shards_and_files_together(
    read_recipe: ReadRecipe, shards: Path, corpus: Path, tmp_path: Path
) -> None:
    mixed = read_recipe("features.storage=online", f"data.train=[{shards},{corpus / 'test'}]")
    data = data_of(mixed, tmp_path)
    alone = read_recipe("features.storage=online", f"data.train=[{corpus / 'train'},{corpus / 'test'}]")
    assert ids_of(mixed, data, 0, 1) == ids_of(alone, data_of(alone, tmp_path), 0, 1)


def test_an_id_in_two_sources_is_refused(
    read_recipe: ReadRecipe, shards: Path, corpus: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="occur"):
        data_of(read_recipe(f"data.train=[{shards},{corpus / 'train'}]"), tmp_path)


@pytest.mark.parametrize("setting", ["share", "stored_layers", "whisper", "recogniser"])
def test_what_needs_files_is_refused(
    read_recipe: ReadRecipe, shards: Path, corpus: Path, tmp_path: Path, setting: str
) -> None:
    recipe = read_recipe("features.storage=online")
    recipe.data.train = [str(shards), str(corpus / "test")]
    if setting == "share":
        recipe.data.train[0] = {"source": str(shards), "share": 0.5}
    elif setting == "stored_layers":
        recipe.training.stored_layers = 1
    else:
        recipe.teachers = {"audio": config_of("teacher", setting)(model="m", topk=4)}
        recipe.distill = [RowConfig("tokens", "audio", "soft_label")]
    with pytest.raises(UserError, match="shards"):
        data_of(recipe, tmp_path)


def test_damaged_audio_is_rejected_and_listed(
    read_recipe: ReadRecipe, shards: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    path = copy / "recording.000000.tar"
    content = bytearray(path.read_bytes())
    content[1000] ^= 1
    path.write_bytes(content)
    outcome = trained(read_recipe("training.steps=5", "training.evaluate_steps=5", f"data.train=[{copy}]"), tmp_path)
    assert [each.id for each in outcome.rejected] == ["train-000"]


def _lengths(lengths: torch.Tensor) -> torch.Tensor:
    return lengths


def ids_of(recipe: Recipe, data: Data, rank: int, world: int) -> list[list[str]]:
    shards = data.train if isinstance(data.train, ShardedCuts) else None
    dataset = UtteranceDataset(
        recipe, CharacterTokenizer(list("▁abcdefgh")), _lengths, None, shards=shards
    )
    sampler = make_sampler(data.train, recipe, rank, world)
    found = []
    for segment in range(sampler.segments):
        found += [batch.ids for batch in epoch_batches(dataset, sampler, 0, 0, segment)]
    return found


def _draw(process: int, recipe: Recipe, folder: Path) -> dict[str, Any]:
    """The batches of a process, and the number of them that every process has drawn."""
    accelerator = Accelerator(cpu=True)
    found = ids_of(recipe, data_of(recipe, folder), accelerator.process_index, accelerator.num_processes)
    counts = accelerator.gather(torch.tensor([len(found)])).tolist()
    return {"ids": found, "counts": counts}


def test_two_processes_share_the_shards(read_recipe: ReadRecipe, shards: Path, tmp_path: Path) -> None:
    workers = "batches.workers=1"
    recipe = read_recipe("features.storage=online", workers, "batches.seconds=5", f"data.train=[{shards}]")
    data_of(recipe, tmp_path)  # makes the features of the validation data
    run_in_two(tmp_path, {"draw": (_draw, recipe, tmp_path)})
    results = results_of(tmp_path, "draw")
    drawn = Counter(name for each in results for batch in each["ids"] for name in batch)
    assert drawn == Counter({f"train-{number:03d}": 1 for number in range(24)})
    for each in results:
        assert each["counts"] == [len(each["ids"])] * 2
