"""Two processes against one that has both their batches. Gloo, on the CPU; dropout and augmentation are off."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lhotse import CutSet
from safetensors.torch import load_file
from torch import Tensor

from retort.common.errors import UserError
from retort.config.loading import load_recipe
from retort.config.schema import Recipe
from retort.distill.losses import contrastive
from retort.engine.loop import process_seed
from retort.engine.processes import report_lost_processes
from retort.lm.config import load_lm_recipe
from retort.lm_training.run import train_lm
from retort.nn.collectives import sum_over_processes
from retort.nn.normalisation import MaskedBatchNorm
from retort.training.trainer import Trainer
from tiny_trainers import NO_DROPOUT, read_cuts, trainer_of
from two_processes import Task, results_of, run_in_two

STILL = ("training.clip=1e9", *NO_DROPOUT)
ROWS = """
teachers: {{bert: {{model: "{bert}", case: lower}}}}
distill:
  - {{tap: acoustic, teacher: bert, loss: contrastive, temperature: 0.1, negatives: 20{extra}}}
  - {{tap: utterance, teacher: bert, loss: contrastive, temperature: 0.1, average: utterance{extra}}}
  - {{tap: linguistic, teacher: bert, loss: regression, weight: 0.01}}
"""

ROWS_OF_TOKENS = """
teachers: {{bert: {{model: "{bert}", case: lower}}}}
distill:
  - {{tap: acoustic, teacher: bert, loss: contrastive, temperature: 0.1, negatives: 9, same_token_negatives: false}}
  - {{tap: utterance, teacher: bert, loss: cosine, average: utterance}}
"""


def update(trainer: Trainer, groups: list[tuple[int, int]], manifest: Path) -> dict[str, Any]:
    """One update on these ranges of cuts: what it reports, what it logs, its gradients, its statistics."""
    cuts = list(CutSet.from_file(manifest))
    batches = [trainer.dataset[CutSet.from_cuts(cuts[first:last])] for first, last in groups]
    gradients: dict[str, Tensor] = {}

    def keep() -> None:
        for name, parameter in trainer.module.named_parameters():
            assert parameter.grad is not None, name
            gradients[name] = parameter.grad.clone()

    trainer.optimizer.step = keep
    values = trainer._update(trainer._usable(batches))
    return {
        "loss": values["loss"],
        "logged": trainer._drain_tallies(),
        "gradients": gradients,
        "buffers": {name: each.clone() for name, each in trainer.module.named_buffers()},
    }


def one_process(
    recipe: Recipe, folder: Path, manifest: Path, groups: list[tuple[int, int]]
) -> dict[str, Any]:
    """The same of one process, whose negatives are drawn as two processes agree to draw them."""
    trainer = trainer_of(recipe, folder, read_cuts(manifest))
    torch.manual_seed(process_seed(recipe.seed, 0, 0))

    def draw(size: int, negatives: int, **_: Any) -> Tensor:
        seed = int(torch.randint(2**62, ()))
        return drawn(size, negatives, generator=torch.Generator().manual_seed(seed))

    drawn = contrastive.draw_ids
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(contrastive, "draw_ids", draw)
        return update(trainer, groups, manifest)


def one_update(
    process: int, recipe: str, overrides: list[str], folder: Path, manifest: Path, groups: list[Any]
) -> dict[str, Any]:
    """What one of two processes makes of its part of `groups`."""
    return update(
        trainer_of(load_recipe(recipe, overrides), folder, read_cuts(manifest)), groups[process], manifest
    )


def whole_run(process: int, recipe: str, folder: Path, manifest: Path, letters: str) -> dict[str, Any]:
    """Four updates in one of two processes, which know these letters alone."""
    trainer = trainer_of(
        load_recipe(recipe, ["training.steps=4"]), folder, read_cuts(manifest), letters=letters
    )
    try:
        trainer.run(lambda step, values: None)
    except UserError as error:
        return {"error": str(error)}
    return {
        "step": trainer.position.step,
        "rejected": trainer.position.rejected,
        "weights": dict(trainer.module.student.state_dict()),
    }


LM = """
kind: causal
name: {name}
text: [{{source: {text}}}]
held_out: [{text}.held_out]
tokenizer: {{kind: characters}}
model: {{layers: 1, dim: 8, heads: 2, feedforward: 16, dropout: 0.0}}
batches: {{pieces: 48, longest: 24}}
training: {{steps: 3, warmup_steps: 1, precision: fp32, device: cpu, evaluate_steps: 3, accumulation: {accumulation}}}
"""


def language_model(process: int, recipe: str, folder: Path) -> dict[str, Tensor]:
    """Weights after three updates."""
    outcome = train_lm(load_lm_recipe(recipe), folder, lambda *_: None, lambda *_: None)
    return load_file(outcome.folder / "model" / "model.safetensors")


def single_frames(process: int) -> dict[str, Any]:
    """One frame among two processes: too few for statistics, and then one each."""
    torch.manual_seed(3)
    norm, hidden = MaskedBatchNorm(3), torch.randn(1, 2, 3)
    alone = norm(hidden, torch.tensor([[process == 0, False]]))
    untouched = {name: each.clone() for name, each in norm.state_dict().items()}
    norm(hidden, torch.tensor([[process == 0, process == 1]]))
    return {"alone": alone.detach(), "untouched": untouched, "after": dict(norm.state_dict())}


def lose_the_other(process: int) -> dict[str, str]:
    """What one process says when the other has gone without a word."""
    if process == 1:
        os._exit(0)
    with pytest.raises(UserError) as reported, report_lost_processes():
        sum_over_processes(torch.ones(1))
    return {"reported": str(reported.value)}


@dataclass
class Case:
    """An update to be made by one process on `one`, by two on `two`."""

    recipe: str
    overrides: list[str]
    one: list[tuple[int, int]]
    two: list[list[tuple[int, int]]]


class Pair:
    """What two processes made of every task."""

    def __init__(self, folder: Path, manifest: Path, cases: dict[str, Case], recipe: str) -> None:
        self.folder, self.manifest, self.cases = folder, manifest, cases
        tasks: dict[str, Task] = {
            name: (one_update, case.recipe, case.overrides, folder / name, manifest, case.two)
            for name, case in cases.items()
        }
        for letters in ("abcdefg", "z"):
            tasks[letters] = (whole_run, recipe, folder / letters, manifest, letters)
        tasks["lm"] = (language_model, write_lm(folder, 1), folder / "lm")
        tasks["frames"] = (single_frames,)
        tasks["lost"] = (lose_the_other,)  # the last, for one of them is gone then
        run_in_two(folder, tasks)

    def __getitem__(self, name: str) -> list[dict[str, Any]]:
        return results_of(self.folder, name)

    def of_one(self, name: str) -> dict[str, Any]:
        case = self.cases[name]
        return one_process(load_recipe(case.recipe, case.overrides), self.folder, self.manifest, case.one)


def write_lm(folder: Path, accumulation: int) -> str:
    """A language model of which so many batches of a process make an update."""
    text = folder / "text.txt"
    text.write_text("".join(f"{'ABCDEFGH'[index % 8] * (index % 5 + 1)} AB\n" for index in range(40)))
    Path(f"{text}.held_out").write_text("ABBA\n")
    path = folder / f"lm{accumulation}.yaml"
    path.write_text(LM.format(name=path.stem, text=text, accumulation=accumulation))
    return str(path)


@pytest.fixture(scope="module")
def pair(
    recipe_text: Callable[[str], str],
    manifest: Path,
    tone_bert: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Pair:
    folder = tmp_path_factory.mktemp("pair")

    def write(name: str, rows: str = "", **extra: str) -> str:
        path = folder / f"{name}.yaml"
        path.write_text(recipe_text(name) + rows.format(bert=tone_bert, **extra))
        return str(path)

    halves = [[(0, 4)], [(4, 10)]]
    reference = ["student.encoder.positions=relative", "student.encoder.pool_after=[1]"]
    cases = {
        "plain": Case(write("plain"), [*STILL], [(0, 10)], halves),
        "hkd": Case(write("hkd", ROWS, extra=""), [*STILL], [(0, 10)], halves),
        "own": Case(write("own", ROWS, extra=", gather_negatives: false"), [*STILL], [(0, 10)], halves),
        "parts": Case(write("parts", ROWS_OF_TOKENS), [*STILL, *reference], [(0, 6)], [[(0, 0)], [(0, 6)]]),
    }
    return Pair(folder, manifest, cases, write("run"))


def assert_equal_updates(one: dict[str, Any], parts: list[dict[str, Any]]) -> None:
    size = torch.stack([each.norm() for each in one["gradients"].values()]).norm()
    for part in parts:
        assert part["loss"] == pytest.approx(one["loss"], rel=1e-5)
        assert part["logged"] == pytest.approx(one["logged"], rel=1e-4, abs=1e-6)
        assert part["gradients"].keys() == one["gradients"].keys()
        for name, value in one["gradients"].items():
            torch.testing.assert_close(
                part["gradients"][name], value, rtol=1e-4, atol=1e-5 * float(size), msg=name
            )
        for name, value in one["buffers"].items():
            torch.testing.assert_close(part["buffers"][name], value, rtol=1e-5, atol=1e-6, msg=name)
    for name, value in parts[0]["buffers"].items():
        assert torch.equal(parts[1]["buffers"][name], value), name


class TestEqualUpdates:
    def test_a_conformer_without_rows(self, pair: Pair) -> None:
        one = pair.of_one("plain")
        assert any("running_mean" in name for name in one["buffers"])
        assert_equal_updates(one, pair["plain"])

    def test_rows_whose_negatives_come_from_both(self, pair: Pair) -> None:
        """The sentence of the first utterance is read in the other process too: never its own negative."""
        assert_equal_updates(pair.of_one("hkd"), pair["hkd"])

    def test_own_negatives_alone_are_another_loss(self, pair: Pair) -> None:
        one, parts = pair.of_one("own"), pair["own"]
        assert parts[0]["logged"]["utterance.contrastive"] < 0.9 * one["logged"]["utterance.contrastive"]
        assert parts[0]["logged"]["ce"] == pytest.approx(one["logged"]["ce"], rel=1e-5)

    def test_a_process_without_utterances(self, pair: Pair) -> None:
        assert_equal_updates(pair.of_one("parts"), pair["parts"])


def test_a_run_of_two_lists_what_neither_could_use(pair: Pair, manifest: Path) -> None:
    first, second = pair["abcdefg"]
    assert first["step"] == second["step"] == 4
    assert first["rejected"] == second["rejected"]
    for name, value in first["weights"].items():
        assert torch.equal(second["weights"][name], value), name
    spoken = {cut.id: cut.supervisions[0].text for cut in CutSet.from_file(manifest)}
    assert first["rejected"]
    assert all("H" in spoken[name] for name in first["rejected"])


def test_only_bad_utterances_end_the_run_of_both(pair: Pair) -> None:
    errors = {each["error"] for each in pair["z"]}
    assert len(errors) == 1
    assert "no training utterance is usable; the first of 24 is" in errors.pop()


def test_a_language_model_of_two_is_that_of_one_with_both_their_batches(pair: Pair) -> None:
    one = language_model(0, write_lm(pair.folder, 2), pair.folder / "one")
    for part in pair["lm"]:
        for name, value in one.items():
            torch.testing.assert_close(part[name], value, rtol=1e-4, atol=1e-5, msg=name)


def test_statistics_need_two_frames_wherever_they_are(pair: Pair) -> None:
    first, second = pair["frames"]
    assert int(first["untouched"]["num_batches_tracked"]) == 0
    assert float(first["untouched"]["running_var"].sum()) == 3.0
    assert first["alone"][0, 0].abs().sum() > 0
    assert not second["alone"].any()
    torch.manual_seed(3)
    expected = torch.nn.BatchNorm1d(3)
    expected(torch.randn(1, 2, 3)[0])
    for each in (first, second):
        torch.testing.assert_close(each["after"], dict(expected.state_dict()))


def test_who_has_lost_the_other_says_so_in_one_line(pair: Pair) -> None:
    reported = torch.load(pair.folder / "lost.0.pt", weights_only=True)["reported"]
    assert reported.startswith("process 0 of 2 has lost another one, which ended or cannot be reached (")
    assert reported.endswith("). Run the same command again to resume from the last checkpoint")
    assert "\n" not in reported


@pytest.mark.parametrize("error", [RuntimeError("gloo"), RuntimeError("shape"), KeyError("gloo")])
def test_of_a_single_process_nothing_is_lost(error: Exception) -> None:
    with pytest.raises(type(error)) as raised, report_lost_processes():
        raise error
    assert raised.value is error
