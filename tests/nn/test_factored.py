"""The factored decoder: its language part is a causal LM over tokens alone, and its parts add up."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from retort.lm.config import ModelConfig
from retort.lm.neural import CausalTransformer
from retort.nn.factored import LANGUAGE_PARTS, FactoredConfig, FactoredDecoder
from retort.nn.window import FrameMemory

VOCABULARY, ACOUSTIC = 11, 6
CONFIG = FactoredConfig(
    layers=2, dim=8, heads=2, feedforward=16, dropout=0.2, embedding_dropout=0.2, language_scale=0.5
)


def build(window: int = 0) -> FactoredDecoder:
    torch.manual_seed(0)
    return FactoredDecoder(replace(CONFIG, window=window), VOCABULARY, ACOUSTIC).eval()


def given(batch: int = 2, size: int = 5) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    previous = torch.randint(2, VOCABULARY, (batch, size), generator=generator)
    return previous, torch.randn(batch, size, ACOUSTIC, generator=generator)


def memory_of(decoder: FactoredDecoder, batch: int = 2, size: int = 5) -> FrameMemory | None:
    if decoder.window is None:
        return None
    frames = torch.randn(batch, 12, ACOUSTIC, generator=torch.Generator().manual_seed(2))
    places = torch.arange(size)[None].expand(batch, -1) * 2
    return decoder.window.remember(frames, torch.tensor([12, 10]), places)


@pytest.mark.parametrize("window", [0, 2])
def test_steps_are_the_parallel_pass(window: int) -> None:
    decoder = build(window)
    previous, embeddings = given()
    memory = memory_of(decoder)
    whole = decoder(previous, embeddings, memory)[1]
    state, steps = decoder.start(2, embeddings, memory), []
    for place in range(previous.shape[1]):
        logits, state = decoder.step(state, previous[:, place], embeddings[:, place])
        steps.append(logits)
    torch.testing.assert_close(torch.stack(steps, 1), whole)


def test_the_language_part_is_the_causal_transformer_with_its_weights() -> None:
    decoder = build()
    network = CausalTransformer(ModelConfig(layers=2, dim=8, heads=2, feedforward=16, dropout=0.0), VOCABULARY).eval()
    names = {name for name in decoder.state_dict() if name.startswith(LANGUAGE_PARTS)}
    assert names == network.state_dict().keys()
    decoder.load_state_dict(network.state_dict(), strict=False)
    previous, embeddings = given()
    language = decoder.language_logits(decoder.history(previous, embeddings))
    expected = network(previous)[0]
    allowed = ~network.barred
    torch.testing.assert_close(language[..., allowed], expected[..., allowed])


def test_logits_are_the_sum_of_the_parts() -> None:
    decoder = build()
    previous, embeddings = given()
    language = decoder.language_logits(decoder.history(previous, embeddings)).log_softmax(-1)
    both = decoder(previous, embeddings)[1]
    decoder.language_scale = 0.0
    sound = decoder(previous, embeddings)[1]
    torch.testing.assert_close(both, sound + 0.5 * language)
    other = decoder(F.pad(previous, (1, 0), value=3)[:, :-1], embeddings)[1]
    torch.testing.assert_close(other, sound)  # the sound part does not depend on the tokens


def test_each_part_depends_on_its_own_inputs() -> None:
    decoder = build()
    previous, embeddings = given()
    changed = decoder.history(previous, embeddings + 1)
    torch.testing.assert_close(changed, decoder.history(previous, embeddings))
    later = previous.clone()
    later[:, 3:] = 2
    first, second = (decoder.history(each, embeddings) for each in (previous, later))
    torch.testing.assert_close(first[:, :3], second[:, :3])


def test_every_parameter_is_trained() -> None:
    for window in (0, 2):
        decoder = build(window).train()
        decoder(*given(), memory_of(decoder))[1].log_softmax(-1)[..., 4].sum().backward()
        assert all(each.grad is not None for each in decoder.parameters())
