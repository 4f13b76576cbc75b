from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from retort.nn.cross_decoder import CrossDecoder, CrossLayer, CrossState
from retort.nn.decoder import AutoregressiveConfig
from retort.nn.positions import sinusoids
from retort.text.tokenizers import EOS

VOCABULARY, SOURCE = 11, 6


def build(layers: int = 2) -> CrossDecoder:
    torch.manual_seed(0)
    config = AutoregressiveConfig(layers=layers, dim=8, heads=2, feedforward=16, dropout=0.1, embedding_dropout=0.1)
    return CrossDecoder(config, VOCABULARY, SOURCE).eval()


def given(batch: int, size: int, frames: int) -> tuple[Tensor, Tensor, Tensor]:
    previous = torch.randint(3, VOCABULARY, (batch, size))
    previous[:, 0] = EOS
    lengths = torch.arange(frames, frames - batch, -1)
    return previous, torch.randn(batch, frames, SOURCE), lengths


@torch.no_grad()
def test_the_whole_at_once_equals_step_by_step() -> None:
    decoder = build()
    previous, source, lengths = given(3, 9, 7)
    whole = decoder(previous, source, lengths)
    assert (whole.states.shape, whole.logits.shape, whole.contexts.shape) == (
        (3, 9, 8), (3, 9, VOCABULARY), (3, 9, 8),
    )  # fmt: skip
    state = decoder.start(source, lengths)
    for step in range(9):
        logits, state = decoder.step(state, previous[:, step])
        torch.testing.assert_close(logits, whole.logits[:, step], atol=1e-5, rtol=1e-5)
    assert state.steps == 9


@torch.no_grad()
def test_one_layer_is_its_formula() -> None:
    """Vaswani et al. 2017 with the norms first, one position at a time, attention written out."""
    decoder = build(layers=1)
    previous, source, _ = given(1, 5, 4)
    whole = decoder(previous, source, torch.tensor([3]))
    (layer,) = decoder.layers
    assert isinstance(layer, CrossLayer)

    def attended(attention: object, query: Tensor, keys: Tensor) -> Tensor:
        key, value = attention.key(keys), attention.value(keys)  # type: ignore[attr-defined]
        asked = attention.query(query)  # type: ignore[attr-defined]
        heads = [(key[:, h] @ asked[h] / 2.0).softmax(0) @ value[:, h] for h in (slice(0, 4), slice(4, 8))]
        result: Tensor = attention.output(torch.cat(heads))  # type: ignore[attr-defined]
        return result

    inputs = 8**0.5 * decoder.embedding.weight[previous[0]] + sinusoids(torch.arange(5), 8)
    normed = layer.attention_norm(inputs)
    for step in range(5):
        hidden = inputs[step] + attended(layer, normed[step], normed[: step + 1])
        context = attended(layer.cross, layer.cross_norm(hidden), source[0, :3])
        torch.testing.assert_close(whole.contexts[0, step], context, atol=1e-5, rtol=1e-4)
        hidden = hidden + context
        hidden = hidden + layer.contract(F.relu(layer.expand(layer.feedforward_norm(hidden))))
        torch.testing.assert_close(whole.states[0, step], decoder.norm(hidden), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole.logits, decoder.vocabulary(whole.states))


@torch.no_grad()
def test_padding_and_future_tokens_are_masked() -> None:
    decoder = build()
    previous, source, lengths = given(3, 7, 6)
    expected = decoder(previous, source, lengths)
    other = source.clone()
    other[1, 5], other[2, 4:] = 9.0, 9.0
    torch.testing.assert_close(decoder(previous, other, lengths).logits, expected.logits)
    alone = decoder(previous[2:], source[2:, :4], lengths[2:])
    torch.testing.assert_close(alone.logits, expected.logits[2:], atol=1e-5, rtol=1e-5)
    changed = previous.clone()
    changed[:, 4] = 3 + (previous[:, 4] - 2) % (VOCABULARY - 3)
    later = decoder(changed, source, lengths).logits
    torch.testing.assert_close(later[:, :4], expected.logits[:, :4])
    assert (later[:, 4:] != expected.logits[:, 4:]).any(-1).all()


@torch.no_grad()
def test_hypotheses_of_an_utterance_look_at_one_copy_of_its_frames() -> None:
    decoder = build()
    previous, source, lengths = given(2, 5, 6)
    state = decoder.start(source, lengths)
    for step in range(3):
        _, state = decoder.step(state, previous[:, step])
    rows = torch.tensor([0, 0, 0, 1, 1, 1])
    wide = state.select(rows)
    assert isinstance(wide, CrossState)
    assert wide.memory[0][0].data_ptr() == state.memory[0][0].data_ptr()
    recognised = torch.tensor([4, 5, 6, 7, 8, 9])
    logits, wide = decoder.step(wide, recognised)
    for row, (utterance, token) in enumerate(zip(rows.tolist(), recognised.tolist())):
        history = torch.cat((previous[utterance, :3], torch.tensor([token])))[None]
        whole = decoder(history, source[utterance : utterance + 1], lengths[utterance : utterance + 1])
        torch.testing.assert_close(logits[row], whole.logits[0, -1], atol=1e-5, rtol=1e-5)
    logits, _ = decoder.step(wide.select(torch.tensor([2, 1, 4, 4])), torch.tensor([3, 3, 3, 3]))
    assert logits.shape == (4, VOCABULARY)
    torch.testing.assert_close(logits[2], logits[3])


@pytest.mark.parametrize("frames", [1, 3])
def test_gradients(frames: int) -> None:
    decoder = build().double()
    previous, source, lengths = given(1, 3, frames)
    source = source.double().requires_grad_()
    assert torch.autograd.gradcheck(lambda each: tuple(decoder(previous, each, lengths)), source)


@torch.no_grad()
def test_no_frames_and_no_steps_are_finite() -> None:
    decoder = build()
    assert (
        decoder(torch.full((1, 2), EOS), torch.zeros(1, 1, SOURCE), torch.tensor([0])).logits.isfinite().all()
    )
    nothing = torch.zeros(2, 0, dtype=torch.int64)
    assert decoder(nothing, torch.randn(2, 3, SOURCE), torch.tensor([3, 2])).logits.shape == (
        2,
        0,
        VOCABULARY,
    )
