"""Gaussian mixture models with diagonal covariances, one per senone: likelihoods, Viterbi training, growth."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retort.common.errors import UserError
from retort.common.files import write_whole

VARIANCE_FLOOR = 0.01
"""Features have a variance of about 1."""
_LEAST = 10.0
"""A Gaussian with fewer frames is dropped."""
_DIVISIBLE = 80.0
"""A Gaussian with at least this many frames is split."""
_APART = 0.2
"""Distance of the halves of a split Gaussian from its mean, in standard deviations."""
_ABSENT = -1e30
"""Log-likelihood of a missing Gaussian; finite, since infinity times 0 is NaN."""


def with_squares(features: NDArray[np.float32]) -> NDArray[np.float32]:
    """`(T, D)` to `(T, 2 D + 1)`: values, squares, 1. Densities and statistics are products with this."""
    ones = np.ones((len(features), 1), np.float32)
    return np.concatenate([features, np.square(features), ones], axis=1)


class Gmms:
    """Up to M Gaussians for each of S senones.

    Args:
        weights: `(M, S)`, each senone's sum to 1; 0 for a missing Gaussian.
        means, variances: `(M, S, D)`.
    """

    def __init__(
        self, weights: NDArray[np.float64], means: NDArray[np.float64], variances: NDArray[np.float64]
    ) -> None:
        self.weights = weights
        self.means = means
        self.variances = variances
        there = weights > 0
        constant = np.log(np.where(there, weights, 1.0)) - 0.5 * (
            np.log(2 * math.pi * variances) + np.square(means) / variances
        ).sum(-1)
        constant[~there] = _ABSENT
        parts = [means / variances, -0.5 / variances, constant[..., None]]
        self._linear = np.concatenate(parts, axis=-1).astype(np.float32)

    @property
    def mixtures(self) -> int:
        """M"""
        return len(self.weights)

    @property
    def count(self) -> int:
        """Number of Gaussians."""
        return int((self.weights > 0).sum())

    def log_likelihoods(
        self, squared: NDArray[np.float32], senones: NDArray[np.integer]
    ) -> NDArray[np.float32]:
        """`(T, 2 D + 1)` of :func:`with_squares` and `(U,)` senones to `(T, U)`."""
        each = squared @ self._linear[:, senones].transpose(0, 2, 1)
        top = each.max(0)
        each -= top
        np.exp(each, out=each)
        return top + np.log(each.sum(0))

    def accumulate(
        self, squared: NDArray[np.float32], labels: NDArray[np.integer], statistics: NDArray[np.float64]
    ) -> None:
        """Add frames, weighted by the posteriors of the Gaussians of their senones, to `statistics (M, S, 2 D + 1)`.

        Args:
            squared: `(T, 2 D + 1)`.
            labels: `(T,)`, the senone of each frame.
        """
        order = np.argsort(labels, kind="stable")
        senones, firsts = np.unique(labels[order], return_index=True)
        for senone, frames in zip(senones, np.split(order, firsts[1:])):
            own = squared[frames]
            shares = self._linear[:, senone] @ own.T
            shares -= shares.max(0)
            np.exp(shares, out=shares)
            shares /= shares.sum(0)
            statistics[:, senone] += shares @ own

    def updated(self, statistics: NDArray[np.float64]) -> Gmms:
        """Maximum likelihood estimate from accumulated statistics.

        A Gaussian with too few frames is dropped unless it is the largest of its senone; a senone without
        frames stays unchanged.
        """
        frames = statistics[..., -1]
        keep = (frames >= _LEAST) | (np.arange(len(frames))[:, None] == frames.argmax(0))
        frames = np.where(keep & (frames > 1.0), frames, 0.0)
        divisor = np.maximum(frames, 1.0)[..., None]
        dim = self.means.shape[-1]
        means = statistics[..., :dim] / divisor
        variances = np.maximum(statistics[..., dim:-1] / divisor - np.square(means), VARIANCE_FLOOR)
        unseen = frames.sum(0) == 0
        weights = np.where(unseen, self.weights, frames / np.maximum(frames.sum(0), 1.0))
        there = (weights > 0)[..., None]
        fallback = unseen[:, None] | ~there
        return Gmms(
            weights, np.where(fallback, self.means, means), np.where(fallback, self.variances, variances)
        )

    def grown(self, statistics: NDArray[np.float64], mixtures: int) -> Gmms:
        """Split every Gaussian that has enough frames, up to `mixtures` per senone, the largest first.

        Args:
            statistics: statistics from which these Gaussians were estimated.
        """
        total = min(2 * self.mixtures, mixtures)
        senones, dim = self.weights.shape[1], self.means.shape[-1]
        weights = np.zeros((total, senones))
        means, variances = np.zeros((total, senones, dim)), np.ones((total, senones, dim))
        # The Gaussians of a senone come first, sorted by weight, followed by the second halves.
        order = np.argsort(-self.weights, axis=0, kind="stable")
        for rank in range(self.mixtures):
            chosen = (order[rank], np.arange(senones))
            weights[rank], means[rank], variances[rank] = (
                self.weights[chosen],
                self.means[chosen],
                self.variances[chosen],
            )
        frames = weights[: self.mixtures] * statistics[..., -1].sum(0)
        for rank in range(total - self.mixtures):
            split = frames[rank] >= _DIVISIBLE
            new = self.mixtures + rank
            shift = _APART * np.sqrt(variances[rank]) * split[:, None]
            means[new], variances[new] = means[rank] + shift, variances[rank]
            means[rank] -= shift
            weights[rank] = np.where(split, weights[rank] / 2, weights[rank])
            weights[new] = np.where(split, weights[rank], 0.0)
        return Gmms(weights, means, variances)

    def save(self, path: Path, **more: NDArray[np.float64]) -> None:
        """Save as safetensors, atomically, together with the arrays `more`."""
        from safetensors.numpy import save

        own = {"weights": self.weights, "means": self.means, "variances": self.variances}
        arrays = {name: np.ascontiguousarray(each) for name, each in {**own, **more}.items()}
        write_whole(path, save(arrays))

    @classmethod
    def load(cls, path: Path) -> tuple[Gmms, dict[str, NDArray[np.float64]]]:
        """Load what :meth:`save` wrote.

        Raises:
            UserError: the file is missing or damaged.
        """
        from safetensors import SafetensorError
        from safetensors.numpy import load_file

        try:
            arrays = load_file(path)
            return cls(arrays.pop("weights"), arrays.pop("means"), arrays.pop("variances")), arrays
        except (OSError, KeyError, SafetensorError) as error:
            raise UserError(f"cannot be read ({error})", where=path, remedy="Remove the file and align again") from None


def single_gaussians(statistics: NDArray[np.float64]) -> Gmms:
    """One Gaussian per senone from `(S, 2 D + 1)`; senones without frames get that of all frames."""
    dim = (statistics.shape[-1] - 1) // 2
    total = statistics.sum(0, keepdims=True)
    filled = np.where(statistics[:, -1:] > 1.0, statistics, total)
    frames = filled[:, -1:]
    means = filled[:, :dim] / frames
    variances = np.maximum(filled[:, dim:-1] / frames - np.square(means), VARIANCE_FLOOR)
    return Gmms(np.ones((1, len(statistics))), means[None], variances[None])
