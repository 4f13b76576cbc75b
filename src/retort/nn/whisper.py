"""The encoder of Whisper (Radford et al. 2022, section 2.2) as a front end and layers that mask padding.

`transformers`' encoder expects 30 seconds of features and has no attention mask. These modules accept any length up to
the number of positions, and an utterance gives the same frames alone and in any batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retort.common.errors import UserError
from retort.nn.attention import SelfAttention
from retort.nn.chunks import Chunks, context_mask
from retort.nn.cpu_kernels import Dropout
from retort.nn.masks import valid_mask


class WhisperFrontend(nn.Module):
    """Two convolutions over time with GELU, the second of stride 2, and fixed positions.

    Args:
        bins: mel bins of a feature frame.
        dim: width of the output.
        positions: maximum number of output frames; 1500 (30 s) in the published models.
    """

    subsampling = 2

    def __init__(self, bins: int, dim: int, positions: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(bins, dim, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(dim, dim, kernel_size=3, stride=2, padding=1)
        self.positions: Tensor
        self.register_buffer("positions", torch.zeros(positions, dim))

    @property
    def longest(self) -> int:
        """Maximum number of feature frames of an utterance."""
        return len(self.positions) * self.subsampling

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Number of output frames `(B,)` for numbers of feature frames: ceil(T / 2)."""
        return (lengths + 1) // 2

    before = 2
    after = 1

    def forward(self, features: Tensor, lengths: Tensor, first: int = 0) -> tuple[Tensor, Tensor]:
        """Map log-mel features `(B, T, bins)` to `(B, ceil(T / 2), dim)` and the lengths with it.

        Args:
            first: position of the first output frame.

        Raises:
            UserError: an utterance is longer than the positions.
        """
        mask = valid_mask(lengths, features.shape[1])[:, None]
        hidden = F.gelu(self.conv1(features.transpose(1, 2).masked_fill(~mask, 0.0)))
        hidden = F.gelu(self.conv2(hidden.masked_fill(~mask, 0.0))).transpose(1, 2)
        after, most = self.output_lengths(lengths), len(self.positions)
        if first + int(after.max()) > most:
            raise UserError(
                f"an utterance of {2 * first + int(lengths.max())} feature frames is longer than the encoder's "
                f"{most} positions",
                remedy=f"Use utterances of at most {most * 2 / 100:g} s (batches.maximum_seconds)",
            )
        hidden = hidden[:, : most - first]
        return hidden + self.positions[first : first + hidden.shape[1]], after


class WhisperLayer(SelfAttention):
    """Pre-norm self-attention and feed-forward with GELU, each with its residual connection.

    Args:
        dim: width.
        heads: attention heads.
        feedforward: inner width of the feed-forward part.
        dropout: after each part, and within the feed-forward part.
    """

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__(dim, heads, 0.0)
        self.key = nn.Linear(dim, dim, bias=False)
        self.attention_norm = nn.LayerNorm(dim)
        self.feedforward_norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, feedforward)
        self.contract = nn.Linear(feedforward, dim)
        self.residual_dropout = Dropout(dropout)

    def forward(self, hidden: Tensor, lengths: Tensor, chunks: Chunks | None = None) -> Tensor:
        """`hidden (B, T, dim)` to the same shape; frames beyond `lengths (B,)` are not attended to."""
        query, key, value = self.inputs(self.attention_norm(hidden), chunks)
        attended = self.attend(query, key, value, context_mask(lengths, hidden.shape[1], chunks))
        hidden = hidden + self.residual_dropout(attended)
        expanded = self.residual_dropout(F.gelu(self.expand(self.feedforward_norm(hidden))))
        result: Tensor = hidden + self.residual_dropout(self.contract(expanded))
        return result


def whisper_parts(
    architecture: Mapping[str, Any], layers: int, bins: int, dropout: float
) -> tuple[WhisperFrontend, list[WhisperLayer]]:
    """Front end and the first `layers` layers of a configuration, with random weights.

    Args:
        architecture: values of `transformers`' WhisperConfig.
        bins: mel bins of the features.

    Raises:
        UserError: the model has fewer layers or another number of bins.
    """
    from transformers import WhisperConfig

    config = WhisperConfig(**{key: value for key, value in architecture.items() if key != "model_type"})
    if config.num_mel_bins != bins:
        raise UserError(
            f"features.bins is {bins}, but this Whisper has {config.num_mel_bins} mel bins",
            remedy=f"Set features.bins: {config.num_mel_bins}",
        )
    if layers > config.encoder_layers:
        raise UserError(
            f"student.encoder.layers is {layers}, but this Whisper has {config.encoder_layers}",
            remedy=f"Set student.encoder.layers: {config.encoder_layers} or less",
        )
    dim = config.d_model
    made = [
        WhisperLayer(dim, config.encoder_attention_heads, config.encoder_ffn_dim, dropout)
        for _ in range(layers)
    ]
    return WhisperFrontend(bins, dim, config.max_source_positions), made


_LAYER_NAMES = {
    "query": "self_attn.q_proj",
    "key": "self_attn.k_proj",
    "value": "self_attn.v_proj",
    "output": "self_attn.out_proj",
    "attention_norm": "self_attn_layer_norm",
    "expand": "fc1",
    "contract": "fc2",
    "feedforward_norm": "final_layer_norm",
}


def named_encoder_weights(
    frontend: WhisperFrontend, layers: Sequence[WhisperLayer], norm: nn.LayerNorm
) -> dict[str, Tensor]:
    """All weights and positions under the names of `transformers`' WhisperEncoder."""
    found: dict[str, Tensor] = {
        "embed_positions.weight": frontend.positions,
        "layer_norm.weight": norm.weight,
        "layer_norm.bias": norm.bias,
        **dict(frontend.named_parameters()),
    }
    for number, layer in enumerate(layers):
        for name, parameter in layer.named_parameters():
            part, _, kind = name.rpartition(".")
            found[f"layers.{number}.{_LAYER_NAMES[part]}.{kind}"] = parameter
    return found


@torch.no_grad()
def copy_whisper_weights(
    weights: Mapping[str, Tensor], frontend: WhisperFrontend, layers: list[WhisperLayer], norm: nn.LayerNorm
) -> int:
    """Copy the weights of `transformers`' WhisperEncoder; returns the number of tensors.

    The final norm is copied even if fewer layers are used than the model has.

    Args:
        weights: state dictionary of the encoder.
    """
    named = named_encoder_weights(frontend, layers, norm)
    for name, own in named.items():
        own.copy_(weights[name])
    return len(named)
