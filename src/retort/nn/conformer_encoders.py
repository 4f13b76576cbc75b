"""Pretrained Conformers of `transformers` as front end and layers: w2v-BERT 2.0 and Parakeet (FastConformer).

Their modules are used unchanged; masks, positions and the order of layers are reimplemented, so that any
number of the first layers can be used and pooled, and the result of an utterance does not depend on its
batch.

Sources: Barrault et al. 2023 (Seamless), Rekesh et al. 2023 (Fast Conformer).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from retort.common.errors import UserError
from retort.common.huggingface import build_model
from retort.nn.masks import valid_mask

CONFORMER_KINDS = ("wav2vec2-bert", "parakeet_encoder")
"""`model_type` of these encoders."""


class ParakeetFrontend(nn.Module):
    """Depthwise-separable convolutions over time and bins that subsample by 8, and a projection.

    Args:
        model: ParakeetEncoder that provides this part.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.convolutions = model.subsampling
        self.scale = float(model.input_scale)
        self.subsampling = int(model.config.subsampling_factor)

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Number of output frames `(B,)` for numbers of feature frames."""
        kernel, stride = self.convolutions.kernel_size, self.convolutions.stride
        for _ in range(self.convolutions.num_layers):
            lengths = (lengths + 2 * self.convolutions.padding - kernel) // stride + 1
        return lengths.clamp(min=0)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`features (B, T, bins)` to `(B, T', dim)` and lengths."""
        mask = valid_mask(lengths, features.shape[1])
        hidden: Tensor = self.convolutions(features.masked_fill(~mask[..., None], 0.0), mask.long())
        return hidden * self.scale, self.output_lengths(lengths)


class ParakeetLayer(nn.Module):
    """One block. Its BatchNorm always uses the statistics of pretraining; its scale and bias are trained.

    Args:
        block: ParakeetEncoderBlock.
        positions: ParakeetEncoderRelPositionalEncoding, which has no weights.
    """

    def __init__(self, block: nn.Module, positions: nn.Module) -> None:
        super().__init__()
        self.block, self.positions = block, positions

    def train(self, mode: bool = True) -> ParakeetLayer:
        """Set the mode of all modules except BatchNorm, whose batch statistics would depend on padding."""
        super().train(mode)
        for module in self.modules():
            if isinstance(module, nn.BatchNorm1d):
                module.eval()
        return self

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """`hidden (B, T, dim)` to the same shape; frames beyond `lengths (B,)` are not attended to."""
        valid = valid_mask(lengths.clamp(min=1), hidden.shape[1])
        mask = (valid[:, None, :] & valid[:, :, None])[:, None]
        result: Tensor = self.block(
            hidden.masked_fill(~valid[..., None], 0.0),
            attention_mask=mask,
            position_embeddings=self.positions(hidden),
        )
        return result


class W2vBertFrontend(nn.Module):
    """Pairs of feature frames, normalised and projected; an odd last frame is dropped.

    Args:
        model: Wav2Vec2BertModel that provides this part.
    """

    subsampling = 2

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.projection = model.feature_projection

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Number of output frames `(B,)` for numbers of feature frames."""
        return lengths // 2

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`features (B, T, bins)` to `(B, T', dim)`, T' at least 1, and lengths."""
        features = features.masked_fill(~valid_mask(lengths, features.shape[1])[..., None], 0.0)
        features = (
            features[:, : features.shape[1] // 2 * 2] if features.shape[1] > 1 else features.repeat(1, 2, 1)
        )
        hidden: Tensor = self.projection(features.unflatten(1, (-1, 2)).flatten(2))[0]
        return hidden, self.output_lengths(lengths)


class W2vBertLayer(nn.Module):
    """One block.

    Args:
        block: Wav2Vec2BertEncoderLayer.
        positions: its position embedding, without weights; None for positions within its attention.
    """

    def __init__(self, block: nn.Module, positions: nn.Module | None) -> None:
        super().__init__()
        self.block, self.positions = block, positions

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """`hidden (B, T, dim)` to the same shape; frames beyond `lengths (B,)` are not attended to."""
        valid = valid_mask(lengths.clamp(min=1), hidden.shape[1])
        hidden = hidden.masked_fill(~valid[..., None], 0.0)
        mask = torch.zeros_like(valid, dtype=hidden.dtype).masked_fill(~valid, torch.finfo(hidden.dtype).min)
        result: Tensor = self.block(
            hidden,
            attention_mask=mask[:, None, None],
            relative_position_embeddings=None if self.positions is None else self.positions(hidden),
            conv_attention_mask=valid,
        )
        return result


def conformer_model(architecture: Mapping[str, Any]) -> Any:
    """Create the encoder of transformers that a configuration describes, with random weights.

    Args:
        architecture: configuration values, including `model_type`.
    """
    # Relative positions are a bias, which has the same result with any other implementation.
    return build_model(architecture, attention="eager")


def conformer_parts(
    architecture: Mapping[str, Any], layers: int, bins: int, dim: int
) -> tuple[ParakeetFrontend | W2vBertFrontend, list[nn.Module]]:
    """Front end and the first `layers` layers of a configuration, with random weights.

    Args:
        bins: number of bins of a feature frame.
        dim: `student.encoder.dim`.

    Raises:
        UserError: the model has fewer layers, another width or another number of bins.
    """
    parakeet = architecture["model_type"] == "parakeet_encoder"
    model = conformer_model(architecture)
    config = model.config
    reads = config.num_mel_bins if parakeet else config.feature_projection_input_dim // 2
    for key, given, own, most in (
        ("features.bins", bins, reads, False),
        ("student.encoder.dim", dim, config.hidden_size, False),
        ("student.encoder.layers", layers, config.num_hidden_layers, True),
    ):
        if given > own or (given != own and not most):
            raise UserError(
                f"{key} is {given}, this {config.model_type} has {own}",
                remedy=f"Set {key}: {own}{' or less' if most else ''}",
            )
    if parakeet:
        if math.log2(config.subsampling_factor) % 1:
            raise UserError(f"the subsampling factor of this Parakeet is {config.subsampling_factor}")
        return ParakeetFrontend(model), [
            ParakeetLayer(block, model.encode_positions) for block in model.layers[:layers]
        ]
    blocks, positions = model.encoder.layers[:layers], model.encoder.embed_positions
    return W2vBertFrontend(model), [W2vBertLayer(block, positions) for block in blocks]


@torch.no_grad()
def copy_conformer_weights(
    weights: Mapping[str, Tensor], frontend: ParakeetFrontend | W2vBertFrontend, layers: list[nn.Module]
) -> int:
    """Copy the weights of an encoder of the same architecture; returns the number of tensors.

    Args:
        weights: state dictionary of ParakeetEncoder or Wav2Vec2BertModel.
    """
    parakeet = isinstance(frontend, ParakeetFrontend)
    start, above = ("subsampling.", "layers") if parakeet else ("feature_projection.", "encoder.layers")
    own = frontend.convolutions if isinstance(frontend, ParakeetFrontend) else frontend.projection
    pairs = [(own, start), *((layer.block, f"{above}.{number}.") for number, layer in enumerate(layers))]
    count = 0
    for module, prefix in pairs:
        assert isinstance(module, nn.Module)
        within = {
            name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)
        }
        module.load_state_dict(within)
        count += len(within)
    return count
