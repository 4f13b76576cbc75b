"""Parts of a student that do not learn, or learn slower than others."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lhotse import CutSet
from torch import Tensor

from retort.common.errors import UserError
from retort.config.schema import Recipe
from retort.training.trainer import Trainer
from tiny_trainers import NO_DROPOUT, trainer_of

ReadRecipe = Callable[..., Recipe]
PLAIN = (*NO_DROPOUT, "training.weight_decay=0", "training.clip=1e9", "training.precision=fp32")


def silent(step: int, values: object) -> None:
    pass


def weights(trainer: Trainer) -> dict[str, Tensor]:
    return {name: each.detach().clone() for name, each in trainer.module.student.named_parameters()}


class TestFrozen:
    def test_frozen_parts_stay_and_the_rest_learns(
        self, cuts: CutSet, read_recipe: ReadRecipe, tmp_path: Path
    ) -> None:
        trainer = trainer_of(read_recipe("training.freeze=[encoder,ctc]"), tmp_path, cuts)
        before = weights(trainer)
        trainer.run(silent)
        for name, each in trainer.module.student.named_parameters():
            assert torch.equal(each, before[name]) == name.startswith(("encoder.", "ctc.")), name

    @pytest.mark.parametrize(
        ("parts", "reason"),
        [("[enc]", "Parts are"), ("[encoder,ctc,weights,decoder]", "no trainable parameter")],
    )
    def test_wrong_parts_are_one_line(
        self, cuts: CutSet, read_recipe: ReadRecipe, tmp_path: Path, parts: str, reason: str
    ) -> None:
        with pytest.raises(UserError, match=reason):
            trainer_of(read_recipe(f"training.freeze={parts}"), tmp_path, cuts)


class TestRates:
    def moved(self, cuts: CutSet, recipe: Recipe, folder: Path) -> dict[str, Tensor]:
        trainer = trainer_of(recipe, folder, cuts)
        before = weights(trainer)
        trainer.run(silent)
        return {name: each - before[name] for name, each in weights(trainer).items()}

    def test_a_first_step_is_as_long_as_its_share(
        self, cuts: CutSet, read_recipe: ReadRecipe, tmp_path: Path
    ) -> None:
        """Adam's first step depends on the rate and on gradients, which are still the same."""
        one = (*PLAIN, "training.steps=1", "training.evaluate_steps=1")
        rates = "training.rates={encoder: 0.5, encoder.frontend: 0.25, decoder: 2}"
        expected = self.moved(cuts, read_recipe(*one), tmp_path / "whole")
        found = self.moved(cuts, read_recipe(*one, rates), tmp_path / "shares")
        shares = {"encoder.frontend.": 0.25, "encoder.": 0.5, "decoder.": 2.0, "": 1.0}
        for name, each in found.items():
            share = next(share for part, share in shares.items() if name.startswith(part))
            torch.testing.assert_close(each, share * expected[name], rtol=1e-3, atol=1e-6, msg=name)

    def test_a_resumed_run_keeps_them(self, cuts: CutSet, read_recipe: ReadRecipe, tmp_path: Path) -> None:
        def recipe(steps: int) -> Recipe:
            return read_recipe(
                *PLAIN,
                "training.rates={encoder: 0.1}",
                f"training.steps={steps}",
                "training.schedule=tri_stage",
                "training.floor_share=1",
                "training.evaluate_steps=2",
            )

        whole, first, second = (
            trainer_of(recipe(steps), tmp_path / folder, cuts)
            for steps, folder in ((4, "whole"), (2, "broken"), (4, "broken"))
        )
        whole.run(silent)
        first.run(silent)
        assert second.resume() == []
        second.run(silent)
        expected = weights(whole)
        for name, each in weights(second).items():
            torch.testing.assert_close(each, expected[name], rtol=1e-5, atol=1e-7, msg=name)

    @pytest.mark.parametrize(
        ("rates", "reason"), [("{enc: 0.3}", "Parts are"), ("{encoder: 0}", "training.freeze=.encoder.")]
    )
    def test_wrong_ones_are_one_line(
        self, cuts: CutSet, read_recipe: ReadRecipe, tmp_path: Path, rates: str, reason: str
    ) -> None:
        with pytest.raises(UserError, match=reason):
            trainer_of(read_recipe(f"training.rates={rates}"), tmp_path, cuts)
