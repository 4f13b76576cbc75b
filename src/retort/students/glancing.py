"""Selection of target tokens that are shown to a parallel decoder in training.

The glancing sampler of Paraformer (Gao et al., Interspeech 2022, arXiv 2206.08317, section 2), after Qian et al., ACL 2021
(arXiv 2008.07905).
"""

from __future__ import annotations

import torch
from torch import Tensor

from retort.nn.masks import valid_mask
from retort.text.tokenizers import UNKNOWN


@torch.no_grad()
def glance(
    predicted: Tensor,
    tokens: Tensor,
    token_lengths: Tensor,
    ratio: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Positions to show: for each utterance `floor(ratio x number of wrong tokens)`, drawn uniformly from all
    positions.

    Args:
        predicted: `(B, U)` int64, prediction of the decoder without shown tokens.
        tokens: `(B, U)` int64, targets.
        token_lengths: `(B,)`, including EOS; other positions are neither wrong nor shown.
        ratio: 0 to 1.
        generator: random generator on the tokens' device; by default the global one of the device.

    Returns:
        `(B, U)` bool.
    """
    valid = valid_mask(token_lengths, tokens.shape[1])
    wrong = ((predicted != tokens) & valid).sum(1)
    counts = (wrong.double() * ratio).floor()
    keys = torch.rand(tokens.shape, device=tokens.device, generator=generator).masked_fill(~valid, 2.0)
    return (keys.argsort(1).argsort(1) < counts[:, None]) & valid


def drop_tokens(tokens: Tensor, share: float) -> Tensor:
    """Replace each of `tokens (B, U)` int64 by the unknown token with probability `share`."""
    if share == 0.0:
        return tokens
    return tokens.masked_fill(torch.rand(tokens.shape, device=tokens.device) < share, UNKNOWN)
