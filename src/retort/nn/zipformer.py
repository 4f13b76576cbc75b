"""A Zipformer's stacks: blocks at frame rates that fall and rise again, as in a U-Net.

Yao et al., "Zipformer: A faster and better encoder for automatic speech recognition", ICLR 2024, arXiv 2310.11230.
Its front end (Conv-Embed) is not here but for the norm at its end: the stacks stand behind a front end of ours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retort.nn.masks import valid_mask
from retort.nn.zipformer_block import BiasNorm, Bypass, ZipformerBlock
from retort.student_config import EncoderConfig


class Downsample(nn.Module):
    """Weighted mean over so many frames each, with one learned weight a place, softmax-normalised (section 3.1).

    Over the last frames of an utterance the weights are shared out among those that are there; the authors'
    implementation fills up with the last frame of the batch, so that padding changes what is heard.
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(factor))

    def forward(self, hidden: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`(B, T, D)` to `(B, ceil(T / factor), D)`, lengths to ceil(L / factor); behind these are zeros."""
        factor, frames = len(self.weight), hidden.shape[1]
        behind = -frames % factor
        valid = valid_mask(lengths, frames + behind)
        hidden = hidden.masked_fill(~valid[:, :frames, None], 0.0)
        shares = self.weight.softmax(0) * valid.unflatten(1, (-1, factor))
        shares = shares / shares.sum(-1, keepdim=True).clamp(min=torch.finfo(shares.dtype).tiny)
        parts = F.pad(hidden, (0, 0, 0, behind)).unflatten(1, (-1, factor))
        return (parts * shares[..., None]).sum(2), (lengths + factor - 1) // factor


class ZipformerStack(nn.Module):
    """Blocks between :class:`Downsample` and its reverse, which repeats every frame; the frame rate stays.

    A stack changes the first channels, as many as it is wide. The others pass, so that a wider stack behind it
    finds what a stack before left there, and the last one's output has every channel of the most recent stack
    that has it: with widths that rise and fall again, the paper's padding, truncation and final concatenation.

    Args:
        config: of the encoder; `dim` is the width of the widest stack.
        number: of the stack, counted from 1; the first has a norm before it, as the paper's front end ends in.
    """

    def __init__(self, config: EncoderConfig, number: int = 1) -> None:
        super().__init__()
        own, index = config.zipformer, number - 1
        self.dim, self.width, factor = own.dims[index], config.dim, own.downsampling[index]
        self.entry = BiasNorm(self.dim) if number == 1 else nn.Identity()
        self.downsample = Downsample(factor) if factor > 1 else None
        self.blocks = nn.ModuleList(ZipformerBlock(config, index) for _ in range(own.blocks[index]))
        self.bypass = Bypass(self.dim, own.straight_steps) if factor > 1 else None

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """`hidden (B, T, n)` to `(B, T, config.dim)`, `lengths (B,)`; what stands behind a length is undefined.

        Of n < config.dim the missing channels are zeros.
        """
        hidden = F.pad(hidden, (0, self.width - hidden.shape[-1]))
        changed, passed = hidden.split((self.dim, self.width - self.dim), dim=-1)
        changed = self._stacked(self.entry(changed), lengths)
        return torch.cat((changed, passed.to(changed.dtype)), dim=-1)

    def _stacked(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        before, factor = hidden, 1
        if self.downsample is not None:
            hidden, lengths = self.downsample(hidden, lengths)
            factor = len(self.downsample.weight)
        for block in self.blocks:
            hidden = block(hidden, lengths)
        if self.bypass is None:
            return hidden
        repeated = hidden[:, :, None].expand(-1, -1, factor, -1).flatten(1, 2)
        result: Tensor = self.bypass(before, repeated[:, : before.shape[1]])
        return result


def widest_block(config: EncoderConfig) -> ZipformerBlock:
    """A single block with the sizes of the widest stack, over vectors of `config.dim`."""
    return ZipformerBlock(config, config.zipformer.dims.index(config.dim))
