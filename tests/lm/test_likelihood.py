from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from retort.lm.likelihood import CausalPlm, MaskedPlm
from retort.pretrained.hub import open_masked_lm

TEXTS = ["ab cd", "", "h", "abcdefgh gfe", "ab cd", "a b c"]


@torch.no_grad()
def slow_causal(plm: CausalPlm, text: str) -> float:
    """One piece after the other, each after its own forward pass."""
    ids, total = [plm.start], 0.0
    for piece in plm.tokenizer(text, add_special_tokens=False)["input_ids"]:
        logits = plm.model(input_ids=torch.tensor([ids])).logits[0, -1]
        total += float(logits.log_softmax(-1)[piece])
        ids.append(piece)
    return total


@torch.no_grad()
def slow_masked(folder: Path, plm: MaskedPlm, text: str) -> float:
    """Each piece hidden in a forward pass of its own."""
    model, ids, total = open_masked_lm(str(folder)), plm.tokenizer(text)["input_ids"], 0.0
    for place in range(1, len(ids) - 1):
        hidden = [*ids[:place], plm.tokenizer.mask_token_id, *ids[place + 1 :]]
        logits = model(input_ids=torch.tensor([hidden])).logits[0, place]
        total += float(logits.log_softmax(-1)[ids[place]])
    return total


@pytest.mark.parametrize("pieces", [1, 20, 1024])
def test_a_causal_model_against_a_slow_loop(tone_gpt: Path, pieces: int) -> None:
    plm = CausalPlm(str(tone_gpt), pieces=pieces)
    assert plm.score(TEXTS) == pytest.approx([slow_causal(plm, text) for text in TEXTS], rel=1e-4)
    assert plm.score(TEXTS)[0] < plm.score(TEXTS)[1] == 0.0


def test_a_masked_model_against_a_slow_loop(tone_masked: Path) -> None:
    plm = MaskedPlm(str(tone_masked))
    expected = [slow_masked(tone_masked, plm, text) for text in TEXTS]
    assert plm.score(TEXTS) == pytest.approx(expected, rel=1e-4)
    assert expected[0] != expected[3]


def test_nothing_and_too_much(tone_gpt: Path, tone_masked: Path) -> None:
    for plm in (CausalPlm(str(tone_gpt)), MaskedPlm(str(tone_masked))):
        assert plm.score([]) == []
        assert plm.score(["", ""]) == [0.0, 0.0]
        first, second = plm.score(["ab " * plm.longest, "ab " * 2 * plm.longest])
        assert first == pytest.approx(second)


def test_parameters(tone_gpt: Path, tone_masked: Path) -> None:
    sizes: Sequence[int] = [
        plm(str(name)).parameters for plm, name in ((CausalPlm, tone_gpt), (MaskedPlm, tone_masked))
    ]
    assert all(1000 < size < 100_000 for size in sizes)
