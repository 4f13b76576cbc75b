"""Modules whose evaluation cannot be recorded as a graph, and modules with the same results that can."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retort.common.errors import UserError
from retort.nn import attention
from retort.nn.attention import RelativeAttention, SelfAttention
from retort.nn.chunks import Chunks
from retort.nn.masks import valid_mask
from retort.nn.normalisation import MaskedBatchNorm
from retort.nn.positions import relative_table, rotary_angles
from retort.nn.pretrained import SpeechFrontend
from retort.nn.whisper import WhisperFrontend


class AffineNorm(nn.Module):
    """A trained :class:`MaskedBatchNorm`: a factor and a summand per channel."""

    def __init__(self, norm: MaskedBatchNorm) -> None:
        super().__init__()
        assert norm.running_mean is not None
        assert norm.running_var is not None
        factor = norm.weight.detach() * (norm.running_var + norm.eps).rsqrt()
        self.factor, self.summand = (
            nn.Parameter(factor),
            nn.Parameter(norm.bias.detach() - norm.running_mean * factor),
        )

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """`hidden (B, T, C)`, zero where `mask (B, T)` is false in the result."""
        return (hidden * self.factor + self.summand).masked_fill(~mask[..., None], 0.0)


class OpenWhisperFrontend(nn.Module):
    """A :class:`WhisperFrontend` that does not check the number of frames."""

    def __init__(self, frontend: WhisperFrontend) -> None:
        super().__init__()
        self.frontend, self.subsampling = frontend, frontend.subsampling

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map `(B, T, bins)` to `(B, ceil(T / 2), dim)` and the lengths with it."""
        own = self.frontend
        mask = valid_mask(lengths, features.shape[1])[:, None]
        hidden = F.gelu(own.conv1(features.transpose(1, 2).masked_fill(~mask, 0.0)))
        hidden = F.gelu(own.conv2(hidden.masked_fill(~mask, 0.0))).transpose(1, 2)
        places = torch.arange(hidden.shape[1], device=hidden.device).clamp(max=len(own.positions) - 1)
        return hidden + own.positions[places], own.output_lengths(lengths)


def exportable(module: nn.Module) -> nn.Module:
    """Replace the parts of a module, in place.

    Raises:
        UserError: a part cannot be exported.
    """
    for name, child in module.named_children():
        if isinstance(child, MaskedBatchNorm):
            setattr(module, name, AffineNorm(child))
        elif isinstance(child, WhisperFrontend):
            setattr(module, name, OpenWhisperFrontend(child))
        elif isinstance(child, SpeechFrontend) and not child.together:
            raise UserError(
                "this encoder normalises over time (feat_extract_norm: group), which has no graph for batches",
                remedy="Export a CTC student with such an encoder: --for transformers",
            )
        else:
            exportable(child)
    return module


@contextmanager
def explicit_attention() -> Iterator[None]:
    """Within this context attention is two matrix products and a softmax instead of a fused kernel, cosines are of float32,
    and sizes come from the inputs of layers, because those of intermediate results may be recorded as constants."""

    def attend(
        self: Any, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, causal: bool = False
    ) -> Tensor:
        scores = (query @ key.transpose(-1, -2)) * query.shape[-1] ** -0.5
        if causal:
            size = query.shape[2]
            mask = torch.ones(size, size, dtype=torch.bool, device=query.device).tril()
        if mask is not None:
            scores = (
                torch.where(mask, scores, -1e30)
                if mask.dtype == torch.bool
                else scores + mask.clamp(min=-1e30)
            )
        projected: Tensor = self.output((scores.softmax(-1) @ value).transpose(1, 2).flatten(2))
        return projected

    def unflatten(self: Tensor, dim: int, sizes: Sequence[int]) -> Tensor:
        shape = [self.shape[each] for each in range(self.dim())]
        place = dim % self.dim()
        return self.reshape(*shape[:place], *sizes, *shape[place + 1 :])

    def relative(self: Any, hidden: Tensor, mask: Tensor, chunks: Chunks | None = None) -> Tensor:
        query, key, value = self.inputs(hidden, chunks)
        frames, keys = hidden.shape[1], key.shape[2]
        table = relative_table(keys, hidden.shape[2], hidden.device)[: keys + frames - 1]
        position = self.split(self.position(table)[None])
        by_distance = (query + self.position_bias[:, None, :]) @ position.transpose(-1, -2)
        shape = hidden.shape[0], self.heads
        turned = F.pad(by_distance, (1, 0)).reshape(*shape, -1, frames)[:, :, 1:]
        bias = turned.reshape(*shape, frames, -1)[..., :keys] / math.sqrt(query.shape[-1])
        bias = torch.where(mask, bias, -1e30)
        return self.attend(query + self.content_bias[:, None, :], key, value, bias)

    def rotary(size: int, dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
        angles = rotary_angles(size, dim, device)  # ONNX Runtime has cosines of float32 only
        angles = (angles - (angles / math.tau).floor() * math.tau).float()
        return angles.cos(), angles.sin()

    replaced: list[tuple[Any, str, Any]] = [
        (attention, "rotary_table", rotary),
        (SelfAttention, "attend", attend),
        (Tensor, "unflatten", unflatten),
        (RelativeAttention, "forward", relative),
    ]
    before = [getattr(owner, name) for owner, name, _ in replaced]
    try:
        for owner, name, own in replaced:
            setattr(owner, name, own)
        yield
    finally:
        for (owner, name, _), earlier in zip(replaced, before):
            setattr(owner, name, earlier)
