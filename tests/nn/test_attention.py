from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from retort.nn.attention import ATTENTIONS, RelativeAttention, RotaryAttention
from retort.nn.masks import attention_mask
from retort.nn.positions import sinusoids

DIM, HEADS = 8, 2
WIDTH = DIM // HEADS


def build(kind: str) -> RotaryAttention | RelativeAttention:
    torch.manual_seed(0)
    return ATTENTIONS[kind](DIM, HEADS, dropout=0.0).double().eval()


def transformer_xl(module: RelativeAttention, hidden: Tensor, length: int) -> Tensor:
    """Dai et al. 2019, section 3.3, one score at a time: (T, dim) to (T, dim)."""
    query, key, value = module.query(hidden), module.key(hidden), module.value(hidden)
    rows = []
    for i in range(hidden.shape[0]):
        heads = []
        for head in range(HEADS):
            part = slice(head * WIDTH, (head + 1) * WIDTH)
            scores = []
            for j in range(length):
                table = sinusoids(torch.tensor([i - j]), DIM)[0].double()
                position = (module.position.weight @ table)[part]
                content = (query[i, part] + module.content_bias[head]) @ key[j, part]
                by_position = (query[i, part] + module.position_bias[head]) @ position
                scores.append((content + by_position) / math.sqrt(WIDTH))
            weights = torch.stack(scores).softmax(0)
            heads.append((weights[:, None] * value[:length, part]).sum(0))
        rows.append(module.output(torch.cat(heads)))
    return torch.stack(rows)


@pytest.mark.parametrize("frames", [1, 2, 7])
def test_relative_attention_equals_a_double_loop(frames: int) -> None:
    module = build("relative")
    assert isinstance(module, RelativeAttention)
    hidden = torch.randn(2, frames, DIM, dtype=torch.float64)
    lengths = torch.tensor([frames, (frames + 1) // 2])
    out = module(hidden, attention_mask(lengths, frames))
    for index, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(
            out[index], transformer_xl(module, hidden[index], length), atol=1e-7, rtol=1e-6
        )


def test_rotary_attention_equals_a_loop_over_distances() -> None:
    """The score of i and j is the product of the query, turned by i - j alone, with the key as it is."""
    module = build("rotary")
    hidden = torch.randn(6, DIM, dtype=torch.float64)
    query, key, value = module.query(hidden), module.key(hidden), module.value(hidden)
    rows = []
    for i in range(6):
        heads = []
        for head in range(HEADS):
            part = slice(head * WIDTH, (head + 1) * WIDTH)
            scores = []
            for j in range(6):
                total = torch.zeros((), dtype=torch.float64)
                for pair in range(WIDTH // 2):
                    angle = (i - j) / 10000 ** (2 * pair / WIDTH)
                    x, y = query[i, part][pair], query[i, part][pair + WIDTH // 2]
                    cosine, sine = math.cos(angle), math.sin(angle)
                    total = total + (x * cosine - y * sine) * key[j, part][pair]
                    total = total + (x * sine + y * cosine) * key[j, part][pair + WIDTH // 2]
                scores.append(total / math.sqrt(WIDTH))
            heads.append((torch.stack(scores).softmax(0)[:, None] * value[:, part]).sum(0))
        rows.append(module.output(torch.cat(heads)))
    out = module(hidden[None], attention_mask(torch.tensor([6]), 6))[0]
    torch.testing.assert_close(out, torch.stack(rows), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("kind", ["relative", "rotary"])
def test_masked_keys_have_no_influence(kind: str) -> None:
    module = build(kind)
    hidden = torch.randn(1, 9, DIM, dtype=torch.float64)
    mask = attention_mask(torch.tensor([4]), 9)
    other = hidden.clone()
    other[:, 4:] = 100.0
    expected = module(hidden[:, :4], attention_mask(torch.tensor([4]), 4))
    torch.testing.assert_close(module(hidden, mask)[:, :4], expected)
    torch.testing.assert_close(module(other, mask)[:, :4], expected)


@pytest.mark.parametrize("kind", ["relative", "rotary"])
def test_an_empty_utterance_stays_finite_and_so_does_its_gradient(kind: str) -> None:
    module = build(kind)
    hidden = torch.randn(2, 3, DIM, dtype=torch.float64, requires_grad=True)
    out = module(hidden, attention_mask(torch.tensor([0, 3]), 3))
    assert out.isfinite().all()
    out.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad.isfinite().all()


@pytest.mark.parametrize("kind", ["relative", "rotary"])
def test_gradients_in_float64(kind: str) -> None:
    module = build(kind)
    hidden = torch.randn(2, 4, DIM, dtype=torch.float64, requires_grad=True)
    mask = attention_mask(torch.tensor([4, 2]), 4)
    assert torch.autograd.gradcheck(lambda values: module(values, mask), hidden)


def test_dropout_acts_in_training_only() -> None:
    module = RelativeAttention(DIM, HEADS, dropout=0.5)
    hidden, mask = torch.randn(1, 12, DIM), attention_mask(torch.tensor([12]), 12)
    module.train()
    assert not torch.equal(module(hidden, mask), module(hidden, mask))
    module.eval()
    assert torch.equal(module(hidden, mask), module(hidden, mask))
