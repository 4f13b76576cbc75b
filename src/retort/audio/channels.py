"""Selection of the channels of a recording that are averaged."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

CANCELLING = -0.75
"""Correlation of two channels below which their mean cancels the signal."""
_MOST = 32


def choose_channels(blocks: Iterable[np.ndarray], channels: int) -> list[int]:
    """The channels whose mean preserves the signal, in ascending order.

    All channels except those that are in opposite phase to a louder channel (a balanced line recorded as stereo, a
    microphone with swapped wires): the mean with them would cancel the speech.

    Args:
        blocks: `(n, channels)` float32.
    """
    if channels == 1 or channels > _MOST:
        return list(range(channels))
    total, products, count = np.zeros(channels), np.zeros((channels, channels)), 0
    with np.errstate(all="ignore"):  # values that are not finite are found later, in the mean
        for block in blocks:
            exact = block.astype(np.float64)
            total += exact.sum(axis=0)
            products += exact.T @ exact
            count += len(exact)
        covariance = products / max(count, 1) - np.outer(total, total) / max(count, 1) ** 2
        power = np.diag(covariance)
        correlation = covariance / np.sqrt(np.outer(power, power))
        chosen: list[int] = []
        for channel in np.argsort(-power, kind="stable"):
            if not (correlation[channel, chosen] < CANCELLING).any():
                chosen.append(int(channel))
    return sorted(chosen)
