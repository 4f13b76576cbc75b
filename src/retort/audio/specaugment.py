"""SpecAugment: bands of frequency and ranges of time are masked (Park et al. 2019, section 2).

lhotse's transform uses global random state and works on a batch; here an utterance's masks depend only on its own
generator, so that a resumed run has the same masks.
"""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from retort.config.schema import AugmentConfig


def spec_augment(features: Tensor, config: AugmentConfig, generator: Generator) -> Tensor:
    """Mask `(T, bins)` features with their mean; returns a copy.

    Widths are uniform in [0, `frequency_width`) bins and [0, min(`time_width`, `time_share` * T)) frames, as in
    the reference (specification of CIF-HKD, CMVN and SpecAugment).
    """
    masked = features.clone()
    frames, bins = features.shape
    fill = features.mean()
    for _ in range(config.frequency_masks):
        start, end = _interval(bins, config.frequency_width, generator)
        masked[:, start:end] = fill
    for _ in range(config.time_masks):
        start, end = _interval(frames, min(config.time_width, int(config.time_share * frames)), generator)
        masked[start:end] = fill
    return masked


def mask_hidden(
    hidden: Tensor, config: AugmentConfig, generator: Generator, bins: int, subsampling: int
) -> Tensor:
    """Mask stored encoder frames `(T', dim)` as :func:`spec_augment` masks features; returns a copy.

    The recipe's widths are converted: of `bins` feature bins to the same fraction of the channels, of feature frames to
    frames of the encoder layer. Masked places take each channel's mean over the utterance.

    Args:
        bins: of a feature frame.
        subsampling: feature frames per frame of `hidden`.
    """
    masked = hidden.clone()
    frames, dim = hidden.shape
    fill = hidden.mean(0)
    for _ in range(config.frequency_masks):
        start, end = _interval(dim, config.frequency_width * dim // bins, generator)
        masked[:, start:end] = fill[start:end]
    widest = min(config.time_width // subsampling, int(config.time_share * frames))
    for _ in range(config.time_masks):
        start, end = _interval(frames, widest, generator)
        masked[start:end] = fill
    return masked


def _interval(size: int, widest: int, generator: Generator) -> tuple[int, int]:
    width = int(torch.randint(max(widest, 1), (), generator=generator))
    start = int(torch.randint(max(size - width, 0) + 1, (), generator=generator))
    return start, start + min(width, size)
