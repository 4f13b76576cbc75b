from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from lhotse import CutSet
from torch import Tensor

from retort.common.errors import UserError
from retort.config.loading import load_recipe
from retort.config.schema import Recipe
from retort.engine.checkpoints import CheckpointFolder
from retort.engine.log import read_metrics
from retort.engine.loop import Stopped
from retort.engine.processes import make_accelerator
from retort.text.tokenizers import CharacterTokenizer
from retort.training.run import Outcome, train
from retort.training.trainer import Trainer
from tiny_trainers import NO_DROPOUT, batch_of, trainer_of, update

ReadRecipe = Callable[..., Recipe]
Report = Callable[[int, dict[str, float]], None]
STILL = (
    "student.encoder.kind=transformer",  # no BatchNorm
    "student.encoder={layers: 1, dim: 32, heads: 2, feedforward: 64, positions: rotary}",
    *NO_DROPOUT,
)
ROWS = """
teachers: {{bert: {{model: "{bert}", case: lower}}}}
distill:
  - {{tap: linguistic, teacher: bert, loss: regression, weight: 0.01}}
  - {{tap: acoustic, teacher: bert, loss: cosine, average: utterance}}
"""


def silent(step: int, values: Mapping[str, float]) -> None:
    pass


class TestAccumulation:
    @pytest.mark.parametrize("cut_at", [4, 6, 1])
    def test_parts_of_a_batch_add_up_to_it(
        self, cuts: CutSet, read_recipe: ReadRecipe, tmp_path: Path, tone_bert: Path, cut_at: int,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        recipe = read_recipe(*STILL, "training.clip=1e9", extra=ROWS.format(bert=tone_bert))
        results = []
        for bounds in ([(0, 8)], [(0, cut_at), (cut_at, 8)]):
            trainer = trainer_of(recipe, tmp_path, cuts)
            group = [batch_of(trainer, cuts, *each) for each in bounds]
            results.append(update(trainer, group, monkeypatch))
        (whole, gradients), (parts, sums) = results
        assert whole["loss"] == pytest.approx(parts["loss"], rel=1e-5)
        assert whole["grad_norm"] == pytest.approx(parts["grad_norm"], rel=1e-4)
        assert gradients.keys() == sums.keys()
        assert len(gradients) == len(list(trainer.module.parameters()))
        for name, value in gradients.items():
            torch.testing.assert_close(sums[name], value, atol=2e-5 * whole["grad_norm"], rtol=1e-3)

    def test_the_loop_takes_as_many_batches_as_it_should(
        self, cuts: CutSet, read_recipe: ReadRecipe, tmp_path: Path
    ) -> None:
        recipe = read_recipe("training.accumulation=2", "batches.seconds=5")
        trainer = trainer_of(recipe, tmp_path, cuts)
        sizes, first = [], trainer._groups()
        for group in first:
            if trainer.position.epoch > 0:
                break
            sizes.append(len(group))
        assert sizes[:-1] == [2] * (len(sizes) - 1)
        assert sizes[-1] in (1, 2)
        assert len(sizes) > 2


def test_the_loss_is_divided_by_all_tokens_once(
    cuts: CutSet, read_recipe: ReadRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = trainer_of(read_recipe(*STILL), tmp_path, cuts)
    group = [batch_of(trainer, cuts, 0, 3), batch_of(trainer, cuts, 3, 10)]
    values, _ = update(trainer, group, monkeypatch)
    tallies = dict(trainer.tallies)
    tokens = sum(int(batch.token_lengths.sum()) for batch in group)
    assert {tally.count for tally in tallies.values()} == {tokens}
    means = trainer._drain_tallies()
    assert values["loss"] == pytest.approx(means["ce"] + 0.5 * means["ctc"] + means["quantity"], rel=1e-5)
    assert means["ce"] == pytest.approx(float(tallies["ce"].sum) / tokens)
    assert trainer.tallies == {}


@pytest.mark.parametrize(("precision", "steps", "share"), [("fp32", 100, 0.6), ("bf16", 20, 0.95)])
def test_the_loss_decreases(
    cuts: CutSet, read_recipe: ReadRecipe, tmp_path: Path, precision: str, steps: int, share: float
) -> None:
    """Few updates in bf16, which many processors emulate."""
    recipe = read_recipe(
        f"training.precision={precision}", f"training.steps={steps}", f"training.evaluate_steps={steps}",
        "training.schedule=cosine", "training.peak_lr=0.005", f"training.warmup_steps={steps // 10}",
        f"training.log_steps={steps // 5}",
    )  # fmt: skip
    trainer = trainer_of(recipe, tmp_path, cuts.subset(first=6))
    trainer.run(silent)
    lines = [line for line in read_metrics(tmp_path / "metrics.jsonl") if "loss" in line]
    assert [line["step"] for line in lines] == [steps // 5 * number for number in range(1, 6)]
    assert lines[-1]["ce"] < min(share + 0.2, 1.0) * lines[0]["ce"]
    assert lines[-1]["loss"] < share * lines[0]["loss"]
    assert all(parameter.dtype == torch.float32 for parameter in trainer.module.parameters())


def test_two_precisions_follow_one_another_in_one_process(read_recipe: ReadRecipe) -> None:
    chosen = ["fp32", "bf16", "fp32"]
    found = [
        make_accelerator(read_recipe(f"training.precision={each}").training).mixed_precision
        for each in chosen
    ]
    assert found == ["no", "bf16", "no"]


def test_auto_is_full_precision_where_a_processor_has_no_bf16(
    read_recipe: ReadRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def precision_with(flags: str) -> str:
        text = f"processor : 0\nflags : fpu sse {flags}\n"
        monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
        accelerator = make_accelerator(automatic)
        monkeypatch.undo()
        return str(accelerator.mixed_precision)

    automatic = read_recipe("training.precision=auto").training
    assert precision_with("avx2") == "no"
    assert precision_with("avx512f avx512_bf16") == "bf16"


def test_half_precision_needs_a_gpu(read_recipe: ReadRecipe) -> None:
    with pytest.raises(UserError, match="fp16 without a GPU"):
        make_accelerator(read_recipe("training.precision=fp16").training)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_with_one_line(
    cuts: CutSet, read_recipe: ReadRecipe, tmp_path: Path, value: float
) -> None:
    trainer = trainer_of(read_recipe(), tmp_path, cuts)
    with torch.no_grad():
        trainer.module.student.ctc.bias[4] = value
    before = {name: each.clone() for name, each in trainer.module.state_dict().items() if "weight" in name}
    with pytest.raises(UserError, match="not finite at step 0") as error:
        trainer.run(silent)
    assert "\n" not in str(error.value)
    for name, each in before.items():
        assert torch.equal(trainer.module.state_dict()[name], each), name


def test_a_rate_far_too_high_stops_with_one_line(
    cuts: CutSet, read_recipe: ReadRecipe, tmp_path: Path
) -> None:
    recipe = read_recipe("training.peak_lr=1e6", "training.clip=1000", "training.warmup_steps=0")
    with pytest.raises(UserError, match=r"not finite at step \d") as error:
        trainer_of(recipe, tmp_path, cuts).run(silent)
    assert "training.peak_lr" in str(error.value)


def test_weights_that_are_not_finite_are_neither_evaluated_nor_kept(
    cuts: CutSet, read_recipe: ReadRecipe, tmp_path: Path
) -> None:
    trainer = trainer_of(read_recipe(), tmp_path, cuts)
    with torch.no_grad():
        trainer.module.student.ctc.bias[4] = math.nan
    with pytest.raises(UserError, match="weight is not finite"):
        trainer._evaluate()


def test_only_bad_utterances_end_the_run(cuts: CutSet, read_recipe: ReadRecipe, tmp_path: Path) -> None:
    trainer = trainer_of(read_recipe(), tmp_path, cuts)
    trainer.dataset.tokenizer = CharacterTokenizer(["z"])
    with pytest.raises(UserError, match="no training utterance is usable; the first of 24 is") as error:
        trainer.run(silent)
    assert "outside the vocabulary" in str(error.value)


class TestCheckpointsOfARun:
    def scored(self, *scores: float) -> Callable[[object], dict[str, float]]:
        values = iter(scores)
        return lambda student: {"cer": next(values)}

    def run(self, recipe: Recipe, folder: Path, cuts: CutSet, *scores: float) -> Trainer:
        trainer = trainer_of(recipe, folder, cuts, self.scored(*scores))
        trainer.run(silent)
        return trainer

    def test_the_best_are_kept_and_the_last_to_go_on_from(
        self, cuts: CutSet, read_recipe: ReadRecipe, tmp_path: Path
    ) -> None:
        recipe = read_recipe("training.steps=5", "training.evaluate_steps=1")
        trainer = self.run(recipe, tmp_path, cuts, 0.5, 0.3, 0.4, 0.2, 0.9)
        assert trainer.chosen() == [2, 4]
        assert trainer.checkpoints.steps() == [2, 4, 5]
        whole = [(trainer.checkpoints.path(step) / "optimizer.safetensors").exists() for step in (2, 4, 5)]
        assert whole == [False, True, True]  # the one before the last stands in when the last is cut short

    def test_a_ctc_head_that_learns_alone_chooses_by_its_own_errors(
        self, cuts: CutSet, read_recipe: ReadRecipe, tmp_path: Path
    ) -> None:
        recipe = read_recipe("training.steps=3", "training.evaluate_steps=1", "student.ce_weight=0")
        rates = iter([(0.1, 0.9), (0.5, 0.3), (0.6, 0.4)])
        trainer = trainer_of(
            recipe, tmp_path, cuts, lambda student: dict(zip(("cer", "ctc_cer"), next(rates), strict=True))
        )
        trainer.run(silent)
        assert trainer.chosen() == [2, 3]

    def test_of_equals_the_later(self, cuts: CutSet, read_recipe: ReadRecipe, tmp_path: Path) -> None:
        recipe = read_recipe("training.steps=4", "training.evaluate_steps=1")
        assert self.run(recipe, tmp_path, cuts, 0.5, 0.5, 0.5, 0.5).chosen() == [3, 4]

    def test_the_last_are_kept(self, cuts: CutSet, read_recipe: ReadRecipe, tmp_path: Path) -> None:
        recipe = read_recipe("training.steps=4", "training.evaluate_steps=1", "training.keep=last")
        trainer = self.run(recipe, tmp_path, cuts, 0.1, 0.2, 0.3, 0.4)
        assert trainer.chosen() == trainer.checkpoints.steps() == [3, 4]


class TestResumed:
    """Dropout, SpecAugment and BatchNorm are all on: a broken-off run must not notice that it was."""

    OVERRIDES = ("augment.frequency_masks=2", "augment.time_masks=2", "batches.seconds=10")

    def weights(self, folder: Path) -> dict[str, Tensor]:
        from retort.engine.checkpoints import read_weights

        last = sorted((folder / "checkpoints").glob("step-*"))[-1]
        shipped = read_weights(folder / "model" / "model.safetensors")
        return {**read_weights(last / "student.safetensors"), **{f"mean.{n}": v for n, v in shipped.items()}}

    def metrics(self, folder: Path) -> list[dict[str, Any]]:
        lines = read_metrics(folder / "metrics.jsonl")
        return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]

    def train(self, recipe: Recipe, root: Path, stop: tuple[int, str] | None = None) -> list[int]:
        """Trains, stopping when a report of step `stop[0]` with the key `stop[1]` comes; steps reported."""
        steps: list[int] = []

        def report(step: int, values: Mapping[str, float]) -> None:
            steps.append(step)
            if stop is not None and step == stop[0] and stop[1] in values:
                raise KeyboardInterrupt

        train(recipe, root, lambda *_: None, report)
        return steps

    @pytest.fixture(scope="class")
    def unbroken(self, recipe_text: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Path:
        """The folder of a run with `OVERRIDES` that nothing stopped."""
        root = tmp_path_factory.mktemp("unbroken")
        (root / "tiny.yaml").write_text(recipe_text("tiny"))
        self.train(load_recipe(str(root / "tiny.yaml"), self.OVERRIDES), root)
        return root / "tiny"

    @pytest.mark.parametrize(
        "stops",
        [
            [(6, "validation.cer")],  # right after the checkpoint of step 6
            [(10, "loss")],  # between two
            [(4, "loss")],  # before the first
            [(2, "loss"), (8, "loss"), (10, "loss")],
        ],
    )
    def test_it_ends_where_the_unbroken_run_ends(
        self, unbroken: Path, read_recipe: ReadRecipe, tmp_path: Path, stops: list[tuple[int, str]]
    ) -> None:
        recipe = read_recipe(*self.OVERRIDES)
        for stop in stops:
            with pytest.raises(KeyboardInterrupt):
                self.train(recipe, tmp_path, stop)
        steps = self.train(recipe, tmp_path)
        assert steps[0] == (2 if stops[-1][0] < 6 else 8)
        expected, found = self.weights(unbroken), self.weights(tmp_path / "tiny")
        assert expected.keys() == found.keys()
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5, msg=name)
        assert self.metrics(tmp_path / "tiny") == self.metrics(unbroken)

    @pytest.mark.parametrize("stop", [(6, "validation.cer"), (8, "loss")])
    def test_what_was_not_logged_yet_is_not_lost(
        self, read_recipe: ReadRecipe, tmp_path: Path, stop: tuple[int, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A checkpoint between two log lines, and warnings that take longer than a session of the run."""
        monkeypatch.setattr("retort.engine.health.PROGRESS", 1.0)  # no accuracy is so much better
        monkeypatch.setattr("retort.engine.health.PATIENCE", 5)
        recipe = read_recipe(
            *self.OVERRIDES, "training.log_steps=4", "training.evaluate_steps=2", "training.checkpoints=6",
            "training.peak_lr=1e-9",
        )  # fmt: skip
        self.train(recipe, tmp_path / "whole")
        with pytest.raises(KeyboardInterrupt):
            self.train(recipe, tmp_path / "broken", stop)
        state = CheckpointFolder(tmp_path / "broken" / "tiny" / "checkpoints").state(6)
        assert state["tallies"]["ce"][1] > 0
        assert state["health"]["since_gain"] > 0
        self.train(recipe, tmp_path / "broken")
        expected = self.metrics(tmp_path / "whole" / "tiny")
        warned = [line["step"] for line in expected if "not improved" in line.get("warning", "")]
        assert len(warned) == 1
        assert warned[0] > stop[0]
        assert self.metrics(tmp_path / "broken" / "tiny") == expected

    def test_a_finished_run_does_nothing_more(self, finished_root: Path, read_recipe: ReadRecipe) -> None:
        before = self.weights(finished_root / "tiny")
        assert self.train(read_recipe(), finished_root) == []
        after = self.weights(finished_root / "tiny")
        assert all(torch.equal(after[name], value) for name, value in before.items())

    def test_the_state_says_where_it_stood(self, finished: Outcome) -> None:
        path = finished.folder / "checkpoints" / "step-00000012" / "state.json"
        state = json.loads(path.read_text())
        assert state["step"] == 12
        assert state["scores"].keys() == {"6", "12"}
        assert state["epoch"] >= 2
        assert state["seconds"] > 0

    @pytest.mark.parametrize(("when", "rest"), [(8, [10, 12]), (12, [])])
    def test_sigterm_saves_and_the_same_command_goes_on(
        self, when: int, rest: list[int], unbroken: Path, read_recipe: ReadRecipe, tmp_path: Path
    ) -> None:
        recipe = read_recipe(*self.OVERRIDES)

        def report(step: int, values: Mapping[str, Any]) -> None:
            if step == when and "loss" in values:
                os.kill(os.getpid(), signal.SIGTERM)

        with pytest.raises(Stopped) as stopped:
            train(recipe, tmp_path, lambda *_: None, report)
        assert stopped.value.step == when
        assert sorted(set(self.train(recipe, tmp_path))) == rest
        expected, found = self.weights(unbroken), self.weights(tmp_path / "tiny")
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5, msg=name)

    def test_minutes_are_kept_too(self, read_recipe: ReadRecipe, tmp_path: Path) -> None:
        recipe = read_recipe(*self.OVERRIDES, "training.checkpoint_minutes=0")
        with pytest.raises(KeyboardInterrupt):
            self.train(recipe, tmp_path, (4, "loss"))
        steps = self.train(recipe, tmp_path)
        assert steps[0] == 4  # step 3 had been saved, which no evaluation asked for
        assert [path.name for path in sorted((tmp_path / "tiny" / "checkpoints").glob("step-*"))] == [
            f"step-{step:08d}" for step in (6, 11, 12)
        ]
