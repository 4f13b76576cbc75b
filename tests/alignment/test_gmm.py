"""Gaussians: densities against scipy's, updates against the definition, growth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import norm

from retort.alignment.gmm import Gmms, single_gaussians, with_squares
from retort.alignment.phones import UNTRAINED_LOOP, priors, self_loops
from retort.common.errors import UserError


def random_gmms(seed: int, mixtures: int = 3, senones: int = 4, dim: int = 2) -> Gmms:
    """The last Gaussian of the first senone is not there."""
    draw = np.random.default_rng(seed)
    weights = draw.dirichlet(np.ones(mixtures), senones).T
    weights[-1, 0] = 0.0
    weights /= weights.sum(0)
    shape = (mixtures, senones, dim)
    return Gmms(weights, draw.normal(size=shape), draw.uniform(0.2, 2, shape))


def shares(gmms: Gmms, frames: np.ndarray, senone: int) -> np.ndarray:
    """`(T, M)`: log of weight times density."""
    density = norm.logpdf(frames[:, None], gmms.means[:, senone], np.sqrt(gmms.variances[:, senone])).sum(-1)
    with np.errstate(divide="ignore"):
        return density + np.log(gmms.weights[:, senone])


def test_likelihoods_are_scipys() -> None:
    gmms = random_gmms(0)
    frames = np.random.default_rng(1).normal(size=(20, 2)).astype(np.float32)
    found = gmms.log_likelihoods(with_squares(frames), np.array([2, 0]))
    assert found.dtype == np.float32
    for column, senone in enumerate((2, 0)):
        np.testing.assert_allclose(
            found[:, column], logsumexp(shares(gmms, frames, senone), axis=1), rtol=1e-4
        )


def test_statistics_and_update_are_the_definition() -> None:
    gmms, draw = random_gmms(0), np.random.default_rng(2)
    gmms = Gmms(np.where(gmms.weights > 0, 1.0, 0) / (gmms.weights > 0).sum(0), gmms.means, gmms.variances)
    frames = draw.normal(size=(3000, 2)).astype(np.float32)
    labels = draw.integers(0, 3, 3000)  # senone 3 has no frame
    statistics = np.zeros((3, 4, 5))
    for part in (slice(0, 150), slice(150, 3000)):
        gmms.accumulate(with_squares(frames[part]), labels[part], statistics)
    updated = gmms.updated(statistics)
    for senone in range(3):
        own = frames[labels == senone].astype(np.float64)
        each = shares(gmms, own, senone)
        posterior = np.exp(each - logsumexp(each, axis=1, keepdims=True))
        for mixture in range(3):
            weight = posterior[:, mixture]
            assert updated.weights[mixture, senone] == pytest.approx(weight.mean(), abs=1e-5)
            if weight.sum() > 0:
                mean = np.average(own, axis=0, weights=weight)
                variance = np.average((own - mean) ** 2, axis=0, weights=weight)
                np.testing.assert_allclose(updated.means[mixture, senone], mean, rtol=1e-3, atol=1e-4)
                np.testing.assert_allclose(updated.variances[mixture, senone], variance, rtol=1e-3)
    np.testing.assert_array_equal(updated.means[:, 3], gmms.means[:, 3])
    np.testing.assert_array_equal(updated.weights[:, 3], gmms.weights[:, 3])
    assert updated.count == 3 * 4 - 1


def test_updates_raise_the_likelihood() -> None:
    draw = np.random.default_rng(0)
    frames = np.concatenate([draw.normal(size=(200, 2)) - 3, draw.normal(size=(200, 2)) + 3]).astype(
        np.float32
    )
    squared, labels = with_squares(frames), np.zeros(400, np.int64)
    gmms = random_gmms(5, senones=1)
    gmms = Gmms(np.full((3, 1), 1 / 3), gmms.means, gmms.variances)
    before = -np.inf
    for _ in range(6):
        now = float(gmms.log_likelihoods(squared, np.array([0])).sum())
        assert now > before - 1e-3
        before = now
        statistics = np.zeros((3, 1, 5))
        gmms.accumulate(squared, labels, statistics)
        gmms = gmms.updated(statistics)
    assert before / 400 > -4.0


def test_growth_divides_what_has_frames() -> None:
    statistics = np.zeros((3, 5))
    statistics[:, -1] = [200, 75, 0]
    statistics[:, 2:4] = [[200, 800], [75, 75], [0, 0]]
    single = single_gaussians(statistics)
    assert single.mixtures == 1
    np.testing.assert_allclose(single.variances[0, 0], [1, 4])
    np.testing.assert_allclose(single.variances[0, 2], [1, 875 / 275])  # nothing seen: as of all
    grown = single.grown(statistics[None], 8)
    np.testing.assert_allclose(grown.weights, [[0.5, 1, 1], [0.5, 0, 0]])
    np.testing.assert_allclose(grown.means[:, 0], [[-0.2, -0.4], [0.2, 0.4]])
    np.testing.assert_allclose(grown.means[0, 1:], 0)
    twice = grown.grown(np.stack([statistics / 2] * 2), 3)
    assert twice.mixtures == 3
    np.testing.assert_allclose(twice.weights[:, 0], [0.25, 0.5, 0.25])
    frames = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32)
    assert np.isfinite(twice.log_likelihoods(with_squares(frames), np.arange(3))).all()


def test_a_gaussian_without_frames_is_dropped() -> None:
    gmms = random_gmms(1)
    statistics = np.zeros((3, 4, 5))
    statistics[..., -1] = [[100, 3, 0, 0], [4, 2, 50, 0], [0, 1, 50, 0]]
    statistics[..., 2:4] = statistics[..., -1:]
    updated = gmms.updated(statistics)
    np.testing.assert_allclose(updated.weights[:, :3], [[1, 1, 0], [0, 0, 0.5], [0, 0, 0.5]])


def test_saved_and_opened(tmp_path: Path) -> None:
    gmms = random_gmms(0)
    gmms.save(tmp_path / "model", loops=np.array([0.5]))
    again, more = Gmms.load(tmp_path / "model")
    np.testing.assert_array_equal(again.means, gmms.means)
    np.testing.assert_array_equal(more["loops"], [0.5])
    (tmp_path / "model").write_bytes(b"broken")
    with pytest.raises(UserError, match="model: cannot be read"):
        Gmms.load(tmp_path / "model")


def test_self_loops_and_priors() -> None:
    frames, visits = np.array([1000, 100, 0, 10**6]), np.array([100, 100, 0, 1])
    loops = self_loops(frames, visits)
    assert loops[0] == pytest.approx(0.9, abs=0.01)
    assert loops[1] < 0.06
    assert loops[2] == UNTRAINED_LOOP
    assert loops[3] == 0.99
    found = priors(frames)
    assert found.sum() == pytest.approx(1)
    assert found[0] == pytest.approx(10 * found[1])
    assert found[2] > 0
