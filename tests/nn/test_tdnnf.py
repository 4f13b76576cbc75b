from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retort.config.kinds import config_of
from retort.nn import encoder as encoders
from retort.nn.encoder import Encoder
from retort.nn.frontend import FramesConfig
from retort.nn.tdnnf import SKIP, Bottleneck, TdnnfConfig, TdnnfLayer, nearer_orthogonal

CONFIG = TdnnfConfig(
    layers=3, dim=10, bottleneck=4, dilations=[1, 3], dropout=0.0, pool_after=[]
)
BINS = 6


def make_layer(number: int = 1) -> TdnnfLayer:
    torch.manual_seed(number)
    return TdnnfLayer(CONFIG, number)


def make_encoder(stride: int = 3, **changed: object) -> Encoder:
    torch.manual_seed(0)
    frontend = FramesConfig(stride=stride)
    return encoders.make_encoder(frontend, replace(CONFIG, **changed), BINS).eval()  # type: ignore[arg-type]


def slowly(layer: TdnnfLayer, hidden: Tensor) -> Tensor:
    """One utterance `(T, dim)`, frame by frame."""
    reach, frames = layer.dilation, len(hidden)
    first, second = layer.bottleneck.weight, layer.expansion.weight

    def at(values: list[Tensor], place: int, width: int) -> Tensor:
        return values[place] if 0 <= place < frames else torch.zeros(width, dtype=hidden.dtype)

    outputs = list(hidden)
    narrow = [first[..., 0] @ at(outputs, t - reach, 10) + first[..., 1] @ outputs[t] for t in range(frames)]
    rows = []
    for t in range(frames):
        wide = second[..., 0] @ narrow[t] + second[..., 1] @ at(narrow, t + reach, 4) + layer.expansion.bias
        wide = wide.clamp(min=0)
        scaled = (wide - wide.mean()) / (wide.var(correction=0) + 1e-5).sqrt()
        rows.append(scaled * layer.norm.weight + layer.norm.bias + SKIP * hidden[t])
    return torch.stack(rows)


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_layer_is_its_formula_frame_by_frame(number: int) -> None:
    layer = make_layer(number).double()
    assert layer.dilation == (1, 3, 3)[number - 1]  # the last number holds for the rest
    hidden = torch.randn(2, 9, 10, dtype=torch.float64)
    lengths = torch.tensor([9, 5])
    given = hidden.clone()
    given[1, 5:] = torch.nan
    found = layer(given, lengths)
    for row, length in enumerate(lengths.tolist()):
        torch.testing.assert_close(found[row, :length], slowly(layer, hidden[row, :length]))


def test_gradients() -> None:
    layer = make_layer(2).double()
    hidden = torch.randn(2, 5, 10, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda values: layer(values, torch.tensor([5, 2]))[0], hidden)


def test_receptive_field_of_an_encoder() -> None:
    encoder = make_encoder(1, layers=2)
    features = torch.randn(1, 30, BINS, requires_grad=True)
    hidden, _ = encoder(features, torch.tensor([30]))
    (gradient,) = torch.autograd.grad(hidden[0, 15].square().sum(), features)
    outputs = gradient[0].abs().sum(-1).nonzero().flatten().tolist()
    # One frame to each side by the front end and the first layer, three by the second.
    offsets = {a + b + c for a in (-1, 0, 1) for b in (-1, 0, 1) for c in (-3, 0, 3)}
    assert set(outputs) == {15 + offset for offset in offsets}


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    garbage=st.sampled_from([0.0, 1e6, float("nan")]),
    extra=st.integers(0, 5),
    stride=st.sampled_from([1, 3]),
)
@settings(max_examples=40)
def test_neither_padding_nor_the_batch_changes_an_utterance(
    lengths: list[int], garbage: float, extra: int, stride: int
) -> None:
    encoder = make_encoder(stride)
    utterances = [torch.randn(length, BINS) for length in lengths]
    features = torch.full((len(lengths), max(lengths) + extra, BINS), garbage)
    for row, utterance in enumerate(utterances):
        features[row, : len(utterance)] = utterance
    with torch.no_grad():
        hidden, frames = encoder(features, torch.tensor(lengths))
        assert frames.tolist() == encoder.output_lengths(torch.tensor(lengths)).tolist()
        assert frames.tolist() == [-(-length // stride) for length in lengths]
        for row, utterance in enumerate(utterances):
            alone, count = encoder(utterance[None], torch.tensor([len(utterance)]))
            torch.testing.assert_close(hidden[row, : int(count)], alone[0, : int(count)])
            assert not hidden[row, int(count) :].any()


@pytest.mark.parametrize("kind", ["conformer", "transformer", "tdnnf"])
def test_each_layer_ends_in_what_forward_gives(kind: str) -> None:
    torch.manual_seed(0)
    config = config_of("encoder", kind)(layers=3, dim=8, dropout=0.0, pool_after=[2])
    encoder = encoders.make_encoder(FramesConfig(stride=1), config, BINS).eval()
    features, lengths = torch.randn(2, 13, BINS), torch.tensor([13, 6])
    layers = list(encoder.each_layer(features, lengths))
    assert [values.shape[1] for values, _ in layers] == [13, 13, 7, 7]
    assert [counts.tolist() for _, counts in layers] == [[13, 6], [13, 6], [7, 3], [7, 3]]
    hidden, frames = encoder(features, lengths)
    assert torch.equal(encoder.finished(*layers[-1]), hidden)
    assert torch.equal(layers[-1][1], frames)
    assert encoder.subsampling == 2


class TestNearerOrthogonal:
    @staticmethod
    def excess(weight: Tensor) -> float:
        """How far the rows are from orthogonal and of equal length, whatever length that is."""
        matrix = weight.detach().flatten(1).double()
        gram = matrix @ matrix.T
        scale = gram.square().sum() / gram.trace()
        return float((gram / scale - torch.eye(len(gram))).norm())

    def test_it_comes_there_from_anywhere_and_then_squares_the_distance(self) -> None:
        torch.manual_seed(1)
        weight = 7.0 * torch.randn(12, 20, 2, dtype=torch.float64)
        distances = []
        for _ in range(60):
            distances.append(self.excess(weight))
            weight = nearer_orthogonal(weight)
        assert all(after <= before + 1e-12 for before, after in pairwise(distances))
        assert distances[0] > 1
        assert distances[-1] < 1e-9
        near = [each for each in distances if 1e-6 < each < 1e-2]
        assert all(after < 3 * before**2 for before, after in pairwise(near))

    def test_one_step_by_hand(self) -> None:
        torch.manual_seed(2)
        basis = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64)).Q[:3]
        weight = 2.0 * basis + 0.01 * torch.randn(3, 6, dtype=torch.float64)
        gram = [[float((a * b).sum()) for b in weight] for a in weight]
        squares, trace = sum(x * x for row in gram for x in row), sum(gram[i][i] for i in range(3))
        aim = squares / trace
        expected = weight.clone()
        for i in range(3):
            for k in range(3):
                expected[i] -= 0.5 / aim * (gram[i][k] - aim * (i == k)) * weight[k]
        torch.testing.assert_close(nearer_orthogonal(weight), expected)

    def test_its_aim_stays_and_so_do_zeros(self) -> None:
        orthogonal = 3.0 * torch.linalg.qr(torch.randn(8, 8)).Q[:5]
        torch.testing.assert_close(nearer_orthogonal(orthogonal), orthogonal)
        assert not nearer_orthogonal(torch.zeros(3, 4)).any()

    def test_a_fresh_layer_is_there(self) -> None:
        layer = Bottleneck(10, 4, 1)
        assert self.excess(layer.weight) < 1e-5
        assert nearer_orthogonal(layer.weight.bfloat16()).dtype == torch.bfloat16
