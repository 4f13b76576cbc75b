"""Tiny models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch


@pytest.fixture(scope="session")
def tiny_masked(tmp_path_factory: pytest.TempPathFactory, counting: Callable[[int, int], list[str]]) -> Path:
    """A folder with a masked BERT of large random weights; its words are cut into several pieces."""
    from retort.lm.config import ModelConfig
    from retort.lm.masked import build_bert
    from retort.lm.pieces import train_wordpiece
    from retort.pretrained.hub import save_model

    folder = tmp_path_factory.mktemp("masked")
    tokenizer = train_wordpiece(counting(200, 0), 24, True)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = build_bert(ModelConfig(layers=2, dim=16, heads=2, feedforward=32), tokenizer, 40)
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    save_model(model, tokenizer, folder)
    return folder


@pytest.fixture
def sentences() -> Sequence[str]:
    return ["one two three", "eight one", "five six seven eight one two", "four"]
