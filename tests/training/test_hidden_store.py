"""Training with stored lower layers of the encoder: the store, and what is learned from it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lhotse import CutSet
from torch import Tensor

from retort.audio.whisper import WhisperFeatureConfig
from retort.common.errors import BadUtterance, UserError
from retort.config.schema import Recipe
from retort.corpora.open_cuts import open_cuts
from retort.engine.checkpoints import read_weights
from retort.info.describe import describe
from retort.nn.encoder import Encoder, make_encoder
from retort.nn.frontend import Conv2dConfig
from retort.nn.pretrained import PretrainedEncoderConfig
from retort.nn.whisper import copy_whisper_weights
from retort.training import hidden_store
from retort.training.hidden_store import HiddenStore, store_hidden
from retort.training.run import Outcome, train
from tiny_speech import WHISPER, make_whisper, tiny_whisper, whisper_settings

ReadRecipe = Callable[..., Recipe]
FEATURES = WhisperFeatureConfig()
SHORT = ("training.steps=2", "training.evaluate_steps=1", "training.log_steps=1", "batches.seconds=8")
PLAIN = ("augment.time_masks=0", "augment.frequency_masks=0")


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_whisper(tmp_path_factory.mktemp("whisper"))


@pytest.fixture
def cuts(corpus: Path) -> CutSet:
    return open_cuts(corpus / "validation").cuts


def encoder(pool_after: tuple[int, ...] = (2,), **changed: Any) -> Encoder:
    config = PretrainedEncoderConfig(
        architecture={"model_type": "whisper", **(WHISPER | changed)}, layers=3,
        dim=WHISPER["d_model"], pool_after=list(pool_after),
    )  # fmt: skip
    made = make_encoder(Conv2dConfig(), config, 80).eval()
    model = tiny_whisper(**changed)
    copy_whisper_weights(model.encoder.state_dict(), made.frontend, list(made.layers), made.norm)
    return made


def stored(
    cuts: CutSet, root: Path, made: Encoder | None = None, layers: int = 2, **changed: Any
) -> HiddenStore:
    return store_hidden(cuts, root, changed.get("config", FEATURES), made or encoder(), layers, "fp32")[0]


def contents(store: HiddenStore, cuts: CutSet) -> dict[str, Tensor]:
    return {cut.id: store[cut.id] for cut in cuts}


def run(recipe: Recipe, root: Path) -> Outcome:
    return train(recipe, root, lambda *_: None, lambda *_: None)


def weights(outcome: Outcome) -> dict[str, Tensor]:
    return read_weights(outcome.folder / "model" / "model.safetensors")


def losses(outcome: Outcome) -> list[float]:
    lines = (outcome.folder / "metrics.jsonl").read_text().splitlines()
    return [each["loss"] for each in map(json.loads, lines) if "loss" in each]


def same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 0.0) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=tolerance, rtol=0.0, msg=name)


class TestStore:
    @pytest.mark.parametrize("layers", [1, 2, 3])
    def test_it_has_what_the_layers_give(self, cuts: CutSet, tmp_path: Path, layers: int) -> None:
        made = encoder()
        store = stored(cuts, tmp_path, made, layers)
        assert len(store) == len(cuts)
        assert store.dim == 16
        assert store.subsampling == made.subsampling_after(layers) == (2 if layers == 1 else 4)
        features = hidden_store.CutFeatures(FEATURES)
        for cut in cuts:
            alone = features(cut)
            with torch.inference_mode():
                hidden, _ = made.lower(alone[None], torch.tensor([len(alone)]), layers)
            torch.testing.assert_close(store[cut.id], hidden[0], atol=0.02, rtol=1e-3)

    def test_batches_change_nothing(
        self, cuts: CutSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        together = contents(stored(cuts, tmp_path / "together"), cuts)
        monkeypatch.setattr(hidden_store, "BATCH_SECONDS", 0.1)
        same(contents(stored(cuts, tmp_path / "alone"), cuts), together, tolerance=4e-3)  # an ulp of float16

    def test_a_killed_store_goes_on(
        self, cuts: CutSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(hidden_store, "BATCH_SECONDS", 3.0)
        whole = contents(stored(cuts, tmp_path / "whole"), cuts)
        calls: list[int] = []

        def kill(done: int, total: int) -> None:
            calls.append(done)
            if len(calls) == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            store_hidden(cuts, tmp_path / "killed", FEATURES, encoder(), 2, "fp32", kill)
        (folder,) = (tmp_path / "killed").iterdir()
        with (folder / "index.jsonl").open("a") as file:  # in the middle of a line, with half of its frames
            file.write('["validation-0')
        with (folder / "frames.float16").open("ab") as frames:
            frames.write(b"\0" * 33)
        seen: list[tuple[int, int]] = []
        resumed, _ = store_hidden(
            cuts, tmp_path / "killed", FEATURES, encoder(), 2, "fp32", lambda *counts: seen.append(counts)
        )
        assert seen[0][0] > calls[-1]
        same(contents(resumed, cuts), whole)

    @pytest.mark.parametrize(
        "damage", ["frames", "half_frames", "index", "line", "about", "rejected", "entry"]
    )
    def test_a_damaged_store_is_mended(self, cuts: CutSet, tmp_path: Path, damage: str) -> None:
        whole = contents(stored(cuts, tmp_path), cuts)
        (folder,) = tmp_path.iterdir()
        frames, index = folder / "frames.float16", folder / "index.jsonl"
        lines = index.read_text().splitlines(keepends=True)
        if damage == "frames":
            frames.unlink()
        elif damage == "half_frames":
            frames.write_bytes(frames.read_bytes()[: frames.stat().st_size // 2 + 1])
        elif damage == "index":
            index.unlink()
        elif damage == "line":
            index.write_text("".join([lines[0], "garbage\n", *lines[2:]]))
        elif damage == "about":
            (folder / "about.json").write_text("{")
        elif damage == "rejected":
            (folder / "rejected.json").unlink()
        else:
            index.write_text("".join(lines[:-1]))
            frames.write_bytes(frames.read_bytes()[: -json.loads(lines[-1])[1] * 16 * 2])
        found = contents(stored(cuts, tmp_path), cuts)
        if damage == "entry":  # encoded again by itself: its products may round differently, by one unit of float16
            name = json.loads(lines[-1])[0]
            torch.testing.assert_close(found[name], whole[name], atol=1e-4, rtol=2**-10)
            found[name] = whole[name]
        same(found, whole)
        assert len(list(tmp_path.iterdir())) == 1

    def test_a_whole_store_is_not_made_again(self, cuts: CutSet, tmp_path: Path) -> None:
        stored(cuts, tmp_path)

        def fail(*_: int) -> None:
            raise AssertionError

        store_hidden(cuts, tmp_path, FEATURES, encoder(), 2, "fp32", fail)

    def test_other_layers_weights_and_pooling_have_a_store_of_their_own(
        self, cuts: CutSet, tmp_path: Path
    ) -> None:
        stored(cuts, tmp_path)
        other = encoder()
        with torch.no_grad():
            other.layers[1].query.weight[0, 0] += 1e-3
        stored(cuts, tmp_path, other)
        stored(cuts, tmp_path, layers=1)
        stored(cuts, tmp_path, encoder(pool_after=()))
        stored(CutSet.from_cuts(list(cuts)[1:]), tmp_path)
        assert len(list(tmp_path.iterdir())) == 5
        above = encoder()
        with torch.no_grad():
            above.layers[2].query.weight[0, 0] += 1.0
        stored(cuts, tmp_path, above)
        assert len(list(tmp_path.iterdir())) == 5

    def test_what_cannot_be_encoded_is_listed(self, cuts: CutSet, tmp_path: Path) -> None:
        short = encoder(max_source_positions=60)  # 1.2 s
        store, rejected = store_hidden(cuts, tmp_path, FEATURES, short, 2, "fp32")
        assert rejected
        assert {each.id for each in rejected} == {cut.id for cut in cuts if cut.duration > 1.2}
        with pytest.raises(BadUtterance):
            store[rejected[0].id]
        assert store_hidden(cuts, tmp_path, FEATURES, short, 2, "fp32")[1] == rejected
        with pytest.raises(UserError):
            store_hidden(cuts, tmp_path, FEATURES, encoder(max_source_positions=10), 2, "fp32")

    def test_values_beyond_float16_are_refused(self, cuts: CutSet, tmp_path: Path) -> None:
        large = encoder()
        with torch.no_grad():
            large.layers[0].contract.bias += 1e5
        with pytest.raises(UserError):
            stored(cuts, tmp_path, large)


class TestTraining:
    def test_it_equals_a_training_that_computes_the_frozen_layers(
        self, whisper: Path, tmp_path: Path, read_recipe: ReadRecipe
    ) -> None:
        base = (
            *whisper_settings(whisper),
            *PLAIN,
            "augment.speeds=[0.9,1.0]",
            "student.encoder.dropout=0",
            *SHORT,
        )
        stored_run = run(read_recipe(*base, "training.stored_layers=2"), tmp_path / "stored")
        parts = "[encoder.frontend,encoder.layers.0,encoder.layers.1,encoder.pools.2]"
        whole = run(read_recipe(*base, f"training.freeze={parts}"), tmp_path / "whole")
        same(weights(stored_run), weights(whole), tolerance=2e-3)
        assert losses(stored_run) == pytest.approx(losses(whole), rel=1e-3)
        own = tiny_whisper().encoder.state_dict()
        trained = weights(stored_run)
        assert torch.equal(trained["encoder.layers.1.expand.weight"], own["layers.1.fc1.weight"])
        assert not torch.equal(trained["encoder.layers.2.expand.weight"], own["layers.2.fc1.weight"])

    def test_a_resumed_run_equals_the_unbroken_one(
        self, whisper: Path, tmp_path: Path, read_recipe: ReadRecipe
    ) -> None:
        base = (
            *whisper_settings(whisper), "training.stored_layers=2", "augment.time_masks=2", "augment.time_width=9",
            "augment.frequency_masks=2", "augment.frequency_width=9", *SHORT,
        )  # fmt: skip
        unbroken = run(read_recipe(*base), tmp_path / "unbroken")
        shutil.copytree(tmp_path / "unbroken", tmp_path / "resumed")
        for name in ("model", "checkpoints/step-00000002"):
            shutil.rmtree(tmp_path / "resumed" / "tiny" / name)
        again = run(read_recipe(*base), tmp_path / "resumed")
        same(weights(again), weights(unbroken))
        plain = run(read_recipe(*base, *PLAIN), tmp_path / "plain")
        assert losses(plain) != losses(unbroken)  # masks reach the stored frames

    def test_rows_that_start_with_ridge_regression(
        self, whisper: Path, tmp_path: Path, read_recipe: ReadRecipe, tone_bert: Path
    ) -> None:
        """The regression reads the stored frames."""
        rows = (
            f'teachers: {{bert: {{model: "{tone_bert}", case: lower, dim: 16}}}}\n'
            "distill: [{tap: linguistic, teacher: bert, loss: regression, init: ridge, normalise: standard}]\n"
        )
        recipe = read_recipe(*whisper_settings(whisper), "training.stored_layers=2", *SHORT, extra=rows)
        outcome = run(recipe, tmp_path / "exp")
        assert len(losses(outcome)) == 2

    def test_an_encoder_of_our_own(self, finished: Outcome, tmp_path: Path, read_recipe: ReadRecipe) -> None:
        """Of any kind, if training starts from a model."""
        start = f"training.init={finished.folder}"
        outcome = run(
            read_recipe(start, "tokenizer.kind=init", "training.stored_layers=1", "name=stored_run"),
            tmp_path / "exp",
        )
        before = weights(finished)
        for name, value in weights(outcome).items():
            frozen = name.startswith(("encoder.frontend", "encoder.layers.0"))
            if frozen:
                torch.testing.assert_close(value, before[name])
        assert losses(outcome)

    def test_info_counts_and_names_the_stored_layers(self, whisper: Path, read_recipe: ReadRecipe) -> None:
        recipe = read_recipe(*whisper_settings(whisper), "training.stored_layers=2", "tokenizer.size=13")
        described = describe(recipe)
        assert any(line.startswith("stored ") for line in described.lines)
        assert described.shipped == sum(described.parts.values())

    def test_longer_than_the_positions_is_left_out(
        self, tmp_path: Path, corpus: Path, read_recipe: ReadRecipe
    ) -> None:
        """In training; in evaluation it has no hypothesis, and a file is recognised in shorter stretches."""
        folder = make_whisper(tmp_path / "whisper", max_source_positions=75)  # 1.5 s
        longer = {cut.id for cut in open_cuts(corpus / "train").cuts if cut.duration > 1.5}
        assert longer
        for extra in ((), ("training.stored_layers=2",)):
            outcome = run(
                read_recipe(*whisper_settings(folder), *SHORT, "training.steps=6", *extra),
                tmp_path / f"exp{len(extra)}",
            )
            assert {each.id for each in outcome.rejected if each.id.startswith("train")} == longer
        waves = [cut for cut in open_cuts(corpus / "test").cuts if cut.duration > 1.5]
        outcome.recogniser.transcribe(waves[0].recording.sources[0].source)


@pytest.mark.parametrize(
    "overrides",
    [
        ["training.stored_layers=-1"],
        ["training.stored_layers=4"],
        ["training.stored_layers=2", "augment.noise=[noise]"],
        [
            "training.stored_layers=2",
            "student.encoder.model=",
            "student.encoder.architecture={model_type: whisper}",
        ],
        [
            "training.stored_layers=2",
            "distill=[{tap: frames.1, teacher: t, loss: regression}]",
            "teachers={t: {}}",
        ],
        ["features.sampling_rate=8000"],
        ["features.cmvn=true"],
    ],
)
def test_what_does_not_go_together(whisper: Path, read_recipe: ReadRecipe, overrides: list[str]) -> None:
    read_recipe(*whisper_settings(whisper))
    with pytest.raises(UserError):
        read_recipe(*whisper_settings(whisper), *overrides)


def test_layers_without_a_start_are_refused(read_recipe: ReadRecipe) -> None:
    with pytest.raises(UserError):
        read_recipe("training.stored_layers=1")
    read_recipe("training.stored_layers=1", "training.init=exp/other")
