"""The published architecture, slowly: numpy in float64, a frame, a key, a step at a time, with given weights.

The order of the parts is that of the public code of Han et al. 2023 (MingLunHan/CIF-HieraDist). `weights` are
those of a module under test, by the names that the module gives them.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import nn

Weights = dict[str, np.ndarray]
Positions = Callable[[int, int], np.ndarray]


def weights_of(module: nn.Module) -> Weights:
    """Parameters and running statistics, float64."""
    return {name: value.detach().double().numpy() for name, value in module.state_dict().items()}


def below(weights: Weights, prefix: str) -> Weights:
    return {
        name.removeprefix(f"{prefix}."): value
        for name, value in weights.items()
        if name.startswith(f"{prefix}.")
    }


def randomise(module: nn.Module, seed: int = 0) -> None:
    """Weights and statistics of which none is 0 or 1, so that a part left out is seen."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator))
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                buffer.copy_(torch.rand(buffer.shape, generator=generator) + 0.5)


def linear(rows: np.ndarray, weights: Weights) -> np.ndarray:
    return rows @ weights["weight"].T + weights.get("bias", 0.0)


def layer_norm(rows: np.ndarray, weights: Weights) -> np.ndarray:
    mean = rows.mean(-1, keepdims=True)
    variance = ((rows - mean) ** 2).mean(-1, keepdims=True)
    return (rows - mean) / np.sqrt(variance + 1e-5) * weights["weight"] + weights["bias"]


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1.0 / (1.0 + np.exp(-values))


def silu(values: np.ndarray) -> np.ndarray:
    return values * sigmoid(values)


def softmax(values: np.ndarray) -> np.ndarray:
    powers = np.exp(values - values.max())
    return powers / powers.sum()


def sinusoid(position: int, dim: int) -> np.ndarray:
    """Sine and cosine in turn, wavelengths from 2 pi to 10000 x 2 pi (Vaswani et al. 2017, section 3.5)."""
    angles = [position / 10000.0 ** (2 * pair / dim) for pair in range(dim // 2)]
    return np.array([wave(angle) for angle in angles for wave in (math.sin, math.cos)])


def fairseq_sinusoid(position: int, dim: int) -> np.ndarray:
    """Of step `position` in the published decoder: sines, then cosines, counted from 2, other wavelengths."""
    half = dim // 2
    angles = [(position + 2) / 10000.0 ** (index / (half - 1)) for index in range(half)]
    return np.array([math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles])


def frontend(features: np.ndarray, weights: Weights) -> np.ndarray:
    """One 3 x 3 convolution of stride 2 without padding and ReLU over (T, F), flattened by channel, projected."""
    kernels, biases = weights["convolutions.0.weight"], weights["convolutions.0.bias"]
    frames, bins = ((size - 1) // 2 for size in features.shape)
    rows = []
    for t in range(frames):
        row = []
        for kernel, bias in zip(kernels, biases):
            for f in range(bins):
                window = features[2 * t : 2 * t + 3, 2 * f : 2 * f + 3]
                row.append(max(0.0, float((kernel[0] * window).sum() + bias)))
        rows.append(row)
    return linear(np.array(rows), below(weights, "projection"))


def feed_forward(rows: np.ndarray, weights: Weights) -> np.ndarray:
    expanded = silu(linear(layer_norm(rows, below(weights, "norm")), below(weights, "expand")))
    return linear(expanded, below(weights, "contract"))


def relative_attention(rows: np.ndarray, weights: Weights, heads: int, valid: int) -> np.ndarray:
    """Score of key j for query i: (q_i + u) k_j + (q_i + v) W p_(i - j), over sqrt(d); keys from `valid` on away."""
    frames, dim = rows.shape
    size = dim // heads
    query, key, value = (linear(rows, below(weights, name)) for name in ("query", "key", "value"))
    joined = np.zeros((frames, dim))
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        u, v = weights["content_bias"][head], weights["position_bias"][head]
        for i in range(frames):
            scores = np.empty(valid)
            for j in range(valid):
                place = (weights["position.weight"] @ sinusoid(i - j, dim))[own]
                scores[j] = (query[i, own] + u) @ key[j, own] + (query[i, own] + v) @ place
            joined[i, own] = softmax(scores / math.sqrt(size)) @ value[:valid, own]
    return linear(joined, below(weights, "output"))


def convolution(rows: np.ndarray, weights: Weights) -> np.ndarray:
    """Every row counts, as in the published code, be it padding or not; evaluation statistics."""
    gated = linear(layer_norm(rows, below(weights, "norm")), below(weights, "gate"))
    half = gated.shape[1] // 2
    gated = gated[:, :half] * sigmoid(gated[:, half:])
    kernel = weights["depthwise.weight"][:, 0]
    reach = kernel.shape[1] // 2
    mixed = np.zeros_like(gated)
    for t in range(len(gated)):
        for offset in range(-reach, reach + 1):
            if 0 <= t + offset < len(gated):
                mixed[t] += kernel[:, reach + offset] * gated[t + offset]
    norm = below(weights, "batch_norm")
    mixed = (mixed - norm["running_mean"]) / np.sqrt(norm["running_var"] + 1e-5)
    return linear(silu(mixed * norm["weight"] + norm["bias"]), below(weights, "output"))


def conformer_layer(rows: np.ndarray, weights: Weights, heads: int, valid: int | None = None) -> np.ndarray:
    """Half a feed-forward, attention, convolution, half a feed-forward, and a norm at the end."""
    rows = rows + 0.5 * feed_forward(rows, below(weights, "before"))
    normed = layer_norm(rows, below(weights, "attention_norm"))
    rows = rows + relative_attention(normed, below(weights, "attention"), heads, valid or len(rows))
    rows = rows + convolution(rows, below(weights, "convolution"))
    rows = rows + 0.5 * feed_forward(rows, below(weights, "after"))
    return layer_norm(rows, below(weights, "norm"))


def pool(rows: np.ndarray) -> np.ndarray:
    """The larger of every two frames; the published floor drops an odd last one."""
    return np.array([np.maximum(rows[2 * t], rows[2 * t + 1]) for t in range(len(rows) // 2)])


def encoder(
    features: np.ndarray, weights: Weights, layers: int, heads: int, pool_after: set[int]
) -> np.ndarray:
    """The whole published encoder over one utterance (T, F) without padding."""
    rows = frontend(features, below(weights, "frontend"))
    rows = linear(rows * math.sqrt(rows.shape[1]), below(weights, "input_projection"))
    for number in range(1, layers + 1):
        rows = conformer_layer(rows, below(weights, f"layers.{number - 1}"), heads)
        if number in pool_after:
            rows = pool(rows)
    return rows


def weight_estimator(rows: np.ndarray, weights: Weights) -> np.ndarray:
    """Convolution over three frames, linear, sigmoid, nothing between: a weight a frame."""
    kernel, bias = weights["convolution.weight"], weights["convolution.bias"]
    reach = kernel.shape[2] // 2
    mixed = np.tile(bias, (len(rows), 1))
    for t in range(len(rows)):
        for offset in range(-reach, reach + 1):
            if 0 <= t + offset < len(rows):
                mixed[t] += kernel[:, :, reach + offset] @ rows[t + offset]
    return sigmoid(linear(mixed, below(weights, "linear")))[:, 0]


def decoder_layer(rows: np.ndarray, weights: Weights, heads: int) -> np.ndarray:
    """Pre-norm causal attention and feed-forward with ReLU."""
    steps, dim = rows.shape
    size = dim // heads
    normed = layer_norm(rows, below(weights, "attention_norm"))
    query, key, value = (linear(normed, below(weights, name)) for name in ("query", "key", "value"))
    joined = np.zeros((steps, dim))
    for head in range(heads):
        own = slice(head * size, (head + 1) * size)
        for i in range(steps):
            scores = np.array([query[i, own] @ key[j, own] for j in range(i + 1)]) / math.sqrt(size)
            joined[i, own] = softmax(scores) @ value[: i + 1, own]
    rows = rows + linear(joined, below(weights, "output"))
    expanded = linear(layer_norm(rows, below(weights, "feedforward_norm")), below(weights, "expand"))
    return rows + linear(np.maximum(expanded, 0.0), below(weights, "contract"))


def decoder(
    tokens: list[int], fired: np.ndarray, weights: Weights, layers: int, heads: int, positions: Positions
) -> tuple[np.ndarray, np.ndarray]:
    """States before the vocabulary (U, D) and logits (U, V) of `tokens` y_1 .. y_U, the true history given."""
    end, scale = 2, math.sqrt(weights["embedding.weight"].shape[1])
    history = []
    for i in range(len(tokens)):
        before = end if i == 0 else tokens[i - 1]
        outputs = np.zeros(fired.shape[1]) if i == 0 else fired[i - 1]
        joined = np.concatenate((scale * weights["embedding.weight"][before], outputs))
        step = weights["input.weight"] @ joined
        history.append(step + positions(i, len(step)))
    rows = np.array(history)
    for number in range(layers):
        rows = decoder_layer(rows, below(weights, f"layers.{number}"), heads)
    rows = layer_norm(rows, below(weights, "norm"))
    states = np.array([weights["output.weight"] @ np.concatenate(pair) for pair in zip(rows, fired)])
    return states, states @ weights["vocabulary.weight"].T
