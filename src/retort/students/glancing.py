"""Which true tokens a parallel decoder is shown while it trains.

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
    """Positions to be shown: of each utterance `floor(ratio x tokens that are wrong)`, drawn evenly from all of it.

    Args:
        predicted: `(B, U)` int64, what the decoder says by itself.
        tokens: `(B, U)` int64, what is true.
        token_lengths: `(B,)`, including EOS; the rest is neither wrong nor shown.
        ratio: 0 to 1.
        generator: of the draw, on the tokens' device; by default that device's global one.

    Returns:
        `(B, U)` bool.
    """
    valid = valid_mask(token_lengths, tokens.shape[1])
    wrong = ((predicted != tokens) & valid).sum(1)
    counts = (wrong.double() * ratio).floor()
    keys = torch.rand(tokens.shape, device=tokens.device, generator=generator).masked_fill(~valid, 2.0)
    return (keys.argsort(1).argsort(1) < counts[:, None]) & valid


def drop_tokens(tokens: Tensor, share: float) -> Tensor:
    """`tokens (B, U)` int64 with this share of them, drawn one by one, unknown."""
    if share == 0.0:
        return tokens
    return tokens.masked_fill(torch.rand(tokens.shape, device=tokens.device) < share, UNKNOWN)
