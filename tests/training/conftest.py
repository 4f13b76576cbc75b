"""What a training starts from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import Tensor

from retort.config.schema import Recipe
from retort.training.run import train
from retort.training.trainer import Trainer


class Started(Exception):
    """Carries what a run starts from."""


@pytest.fixture
def start_of(monkeypatch: pytest.MonkeyPatch) -> Callable[[Recipe, Path], dict[str, Tensor]]:
    def stop(trainer: Trainer, report: object) -> None:
        raise Started(trainer.module.student.state_dict())

    def start(recipe: Recipe, root: Path) -> dict[str, Tensor]:
        monkeypatch.setattr(Trainer, "run", stop)
        with pytest.raises(Started) as started:
            train(recipe, root, lambda *_: None, lambda *_: None)
        weights: dict[str, Tensor] = started.value.args[0]
        return weights

    return start
