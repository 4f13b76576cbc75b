"""What must work on a CUDA GPU: CIF, a few updates in bf16, transcription; skipped without one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from retort.config.schema import Recipe
from retort.decoding.recogniser import load
from retort.engine.log import read_metrics
from retort.nn.cif import integrate_and_fire
from retort.training.run import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")


def test_cif_and_its_gradients_are_those_of_the_cpu() -> None:
    draw = torch.Generator().manual_seed(0)
    hidden, weights = torch.randn(3, 40, 8, generator=draw), torch.rand(3, 40, generator=draw)
    lengths, targets = torch.tensor([40, 31, 12]), torch.tensor([9, 7, 3])
    found = {}
    for device in ("cpu", "cuda"):
        given = [each.to(device).requires_grad_() for each in (hidden, weights)]
        fired = integrate_and_fire(*given, lengths.to(device), targets.to(device))
        fired.embeddings.square().sum().backward()
        found[device] = [fired.embeddings, fired.fire_times, *(each.grad for each in given)]
    for ours, theirs in zip(found["cuda"], found["cpu"], strict=True):
        assert ours is not None
        torch.testing.assert_close(ours.cpu(), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_few_updates_lower_the_loss(
    precision: str, read_recipe: Callable[..., Recipe], tmp_path: Path
) -> None:
    steps = ("training.steps=12", "training.evaluate_steps=6", "training.log_steps=1", "data.test=[]")
    recipe = read_recipe(*steps, "training.device=auto", f"training.precision={precision}")
    outcome = train(recipe, tmp_path, lambda *_: None, lambda *_: None)
    losses = [each["loss"] for each in read_metrics(outcome.folder / "metrics.jsonl") if "loss" in each]
    assert np.isfinite(losses).all()
    assert losses[-1] < losses[0]


def test_a_transcript_is_that_of_the_cpu(
    read_recipe: Callable[..., Recipe], corpus: Path, tmp_path: Path
) -> None:
    recipe = read_recipe("training.steps=60", "training.evaluate_steps=60", "data.test=[]")
    folder = train(recipe, tmp_path, lambda *_: None, lambda *_: None).folder
    audio = sorted((corpus / "test" / "wav").glob("*.wav"))[:3]
    texts = {
        device: [load(folder, device).transcribe(each).text for each in audio] for device in ("cpu", "cuda")
    }
    assert texts["cuda"] == texts["cpu"]
