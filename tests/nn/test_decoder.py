from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from retort.nn.decoder import AutoregressiveConfig, CausalLayer, CifDecoder, DecoderState
from retort.nn.positions import sinusoids
from retort.text.tokenizers import EOS

VOCABULARY, ACOUSTIC = 11, 6


def build() -> CifDecoder:
    torch.manual_seed(0)
    config = AutoregressiveConfig(layers=2, dim=8, heads=2, feedforward=16, dropout=0.1, embedding_dropout=0.1)
    return CifDecoder(config, VOCABULARY, ACOUSTIC).eval()


def history(batch: int, size: int) -> tuple[Tensor, Tensor]:
    previous = torch.randint(3, VOCABULARY, (batch, size))
    previous[:, 0] = EOS
    return previous, torch.randn(batch, size, ACOUSTIC)


def by_steps(decoder: CifDecoder, previous: Tensor, embeddings: Tensor) -> Tensor:
    state = decoder.start(previous.shape[0], embeddings)
    logits = []
    for step in range(previous.shape[1]):
        each, state = decoder.step(state, previous[:, step], embeddings[:, step])
        logits.append(each)
    assert state.steps == previous.shape[1]
    return torch.stack(logits, dim=1)


@torch.no_grad()
def test_the_whole_at_once_equals_step_by_step() -> None:
    decoder = build()
    previous, embeddings = history(3, 9)
    _, logits = decoder(previous, embeddings)
    assert logits.shape == (3, 9, VOCABULARY)
    torch.testing.assert_close(by_steps(decoder, previous, embeddings), logits, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_one_layer_is_the_published_formula() -> None:
    """CIF-HKD, decoder, items 1 to 6, one position at a time, with the attention written out."""
    decoder = build()
    del decoder.layers[1:]
    previous, embeddings = history(1, 5)
    states, logits = decoder(previous, embeddings)
    layer = decoder.layers[0]
    assert isinstance(layer, CausalLayer)
    inputs = []
    for step in range(5):
        before = embeddings[0, step - 1] if step else torch.zeros(ACOUSTIC)
        joined = torch.cat((8**0.5 * decoder.embedding.weight[previous[0, step]], before))
        inputs.append(decoder.input.weight @ joined + sinusoids(torch.tensor([step]), 8)[0])
    normed = layer.attention_norm(torch.stack(inputs))
    query, key, value = layer.query(normed), layer.key(normed), layer.value(normed)
    for step in range(5):
        heads = []
        for head in (slice(0, 4), slice(4, 8)):
            weights = (key[: step + 1, head] @ query[step, head] / 2.0).softmax(0)
            heads.append(weights @ value[: step + 1, head])
        hidden = inputs[step] + layer.output(torch.cat(heads))
        hidden = hidden + layer.contract(F.relu(layer.expand(layer.feedforward_norm(hidden))))
        state = decoder.output.weight @ torch.cat((decoder.norm(hidden), embeddings[0, step]))
        torch.testing.assert_close(states[0, step], state, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(logits[0, step], decoder.vocabulary.weight @ state, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("place", [0, 3, 6])
def test_a_token_and_an_embedding_never_reach_back(place: int) -> None:
    decoder = build()
    previous, embeddings = history(1, 7)
    _, logits = decoder(previous, embeddings)

    other_tokens = previous.clone()
    other_tokens[0, place] = 3 + (previous[0, place] - 2) % (VOCABULARY - 3)
    assert int(other_tokens[0, place]) != int(previous[0, place])
    _, changed = decoder(other_tokens, embeddings)
    assert torch.equal(changed[:, :place], logits[:, :place])
    assert (changed[:, place:] != logits[:, place:]).any(-1).all()

    other_embeddings = embeddings.clone()
    other_embeddings[0, place] += 1.0
    _, changed = decoder(previous, other_embeddings)
    assert torch.equal(changed[:, :place], logits[:, :place])
    assert (changed[:, place:] != logits[:, place:]).any(-1).all()


def test_an_embedding_enters_at_its_output_and_at_the_next_history() -> None:
    decoder = build()
    seen: list[Tensor] = []
    decoder.input.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    previous, embeddings = history(1, 5)
    decoder(previous, embeddings)
    acoustic = seen[0][0, :, 8:]
    assert (acoustic[0] == 0).all()
    assert torch.equal(acoustic[1:], embeddings[0, :-1])

    with torch.no_grad():  # without its way through the output, embedding j is not in logits j
        decoder.output.weight[:, 8:] = 0.0
        _, logits = decoder(previous, embeddings)
        other = embeddings.clone()
        other[0, 2] += 1.0
        _, changed = decoder(previous, other)
    assert torch.equal(changed[:, :3], logits[:, :3])
    assert (changed[:, 3:] != logits[:, 3:]).any(-1).all()


@torch.no_grad()
def test_selected_rows_go_on_as_they_would_have() -> None:
    decoder = build()
    previous, embeddings = history(3, 6)
    state = decoder.start(3, embeddings)
    for step in range(4):
        _, state = decoder.step(state, previous[:, step], embeddings[:, step])
    rows = torch.tensor([2, 0, 2, 1])
    selected = state.select(rows)
    assert isinstance(selected, DecoderState)
    assert selected.steps == 4
    expected, _ = decoder.step(state, previous[:, 4], embeddings[:, 4])
    logits, after = decoder.step(selected, previous[rows, 4], embeddings[rows, 4])
    torch.testing.assert_close(logits, expected[rows], atol=1e-6, rtol=1e-5)
    assert after.past[0][0].shape[:3] == (4, 2, 5)
    start = decoder.start(3, embeddings).select(rows)
    assert start.previous.shape == (4, ACOUSTIC)


def test_no_step_at_all() -> None:
    decoder = build()
    states, logits = decoder(torch.zeros(2, 0, dtype=torch.int64), torch.zeros(2, 0, ACOUSTIC))
    assert states.shape == (2, 0, 8)
    assert logits.shape == (2, 0, VOCABULARY)


def test_parameters_of_the_published_decoder() -> None:
    with torch.device("meta"):
        decoder = CifDecoder(AutoregressiveConfig(), 4234, 256)
    sizes = {name: sum(each.numel() for each in part.parameters()) for name, part in decoder.named_children()}
    assert sizes["embedding"] == 1_083_904
    assert sizes["input"] == 131_072
    assert sizes["layers"] == 2 * 1_315_072
    assert sizes["norm"] == 512
    assert sizes["output"] + sizes["vocabulary"] == 1_214_976
