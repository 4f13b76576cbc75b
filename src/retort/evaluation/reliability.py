"""Reliability of word confidences: expected calibration error and normalised cross-entropy, and a calibration for them.

Sources: Guo et al. 2017, arXiv 1706.04599 (expected calibration error, temperature scaling); Siu and Gish 1999 (normalised
cross-entropy, as in NIST's evaluations).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import kaldialign
import numpy as np
from numpy.typing import NDArray

from retort.common.errors import UserError
from retort.corpora.open_cuts import find_data, open_cuts
from retort.decoding.confidence import AS_DECODED, LEAST, Calibration, logit
from retort.decoding.recogniser import Recogniser
from retort.decoding.transcript import TimedText
from retort.evaluation.recognise import recognise
from retort.text.normalise import split_words

BINS = 10
"""Bins of equal width for the expected calibration error."""
REPLICATES, SEED, LEVEL = 1000, 1, 0.95
FEWEST_ERRORS = 20
"""Fewest correct and fewest wrong words that a calibration can be fitted to."""
LARGEST_TEMPERATURE = 20.0


@dataclass(frozen=True)
class WordOutcomes:
    """The words of hypotheses, whether each is correct, and who spoke it.

    Attributes:
        confidences: `(N,)` float64, in [0, 1].
        correct: `(N,)` bool, whether the word is aligned with an equal word of the reference.
        speakers: speaker of each word.
    """

    confidences: NDArray[np.float64]
    correct: NDArray[np.bool_]
    speakers: Sequence[str]


@dataclass(frozen=True)
class Reliability:
    """Reliability of confidences, with 95 % intervals over speakers.

    Attributes:
        words: number of words.
        correct: share of them that is correct.
        ece: expected calibration error: mean distance of confidence and share of correct words over the bins.
        nce: normalised cross-entropy: 1 for perfect confidences, 0 for those that are all the share of correct words.
        ece_range, nce_range: intervals.
        bins: for each bin with words its number of words, mean confidence, and share of correct words.
    """

    words: int
    correct: float
    ece: float
    nce: float
    ece_range: tuple[float, float]
    nce_range: tuple[float, float]
    bins: list[tuple[int, float, float]]

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Reliability:
        """Create an instance from its fields as JSON has them.

        Raises:
            ValueError, KeyError, TypeError: the content is not valid.
        """
        low, high = content["ece_range"]
        below, above = content["nce_range"]
        return cls(
            int(content["words"]),
            float(content["correct"]),
            float(content["ece"]),
            float(content["nce"]),
            (float(low), float(high)),
            (float(below), float(above)),
            [(int(count), float(mean), float(share)) for count, mean, share in content["bins"]],
        )

    def __str__(self) -> str:
        (low, high), (below, above) = self.ece_range, self.nce_range
        return (
            f"confidence of {self.words:,} words: ECE {self.ece:.2%} ({low:.2%} to {high:.2%}), "
            f"NCE {self.nce:.3f} ({below:.3f} to {above:.3f})"
        )


def correct_words(reference: Sequence[str], words: Sequence[str]) -> list[bool]:
    """Whether each word of a hypothesis is aligned with an equal word of the reference."""
    pairs = kaldialign.align(list(reference), list(words), "")
    return [one == other for one, other in pairs if other]


def word_outcomes(
    references: Mapping[str, Sequence[str]], words: Mapping[str, Sequence[TimedText]], speakers: Mapping[str, str]
) -> WordOutcomes:
    """The outcomes of all words of hypotheses; words without a text (after normalisation) are left out.

    Args:
        references: words of the reference of each utterance.
        words: words of the hypothesis of each utterance, normalised as the reference.
        speakers: speaker of each utterance.
    """
    confidences: list[float] = []
    correct: list[bool] = []
    owners: list[str] = []
    for name, found in words.items():
        spoken = [each for each in found if each.text]
        correct += correct_words(references[name], [each.text for each in spoken])
        confidences += [each.confidence for each in spoken]
        owners += [speakers[name]] * len(spoken)
    return WordOutcomes(np.array(confidences), np.array(correct, dtype=bool), owners)


def reliability(outcomes: WordOutcomes) -> Reliability | None:
    """Expected calibration error and normalised cross-entropy; None without words."""
    if not len(outcomes.confidences):
        return None
    _, groups = np.unique(np.asarray(outcomes.speakers), return_inverse=True)
    sums = np.zeros((groups.max() + 1, BINS, 4))
    confidences, correct = outcomes.confidences, outcomes.correct
    limited = np.clip(confidences, LEAST, 1.0 - LEAST)
    costs = -np.log(np.where(correct, limited, 1.0 - limited))
    bins = np.minimum((confidences * BINS).astype(int), BINS - 1)
    np.add.at(sums, (groups, bins), np.stack([np.ones_like(confidences), confidences, correct, costs], 1))
    drawn = np.random.default_rng(SEED).integers(len(sums), size=(REPLICATES, len(sums)))
    counts = np.stack([np.bincount(row, minlength=len(sums)) for row in drawn])
    replicates = np.einsum("rg,gbk->rbk", counts, sums)
    whole = sums.sum(0)
    count, mean, share = whole[:, 0], whole[:, 1], whole[:, 2]
    return Reliability(
        len(confidences),
        float(correct.mean()),
        float(_ece(whole)),
        float(_nce(whole)),
        _interval(_ece(replicates)),
        _interval(_nce(replicates)),
        [(int(n), float(m / n), float(s / n)) for n, m, s in zip(count, mean, share) if n],
    )


def _ece(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Expected calibration error of sums `(..., BINS, 4)`: of words, confidences, correct words and costs."""
    gaps: NDArray[np.float64] = np.abs(sums[..., 1] - sums[..., 2]).sum(-1)
    return gaps / np.maximum(sums[..., 0].sum(-1), 1)


def _nce(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """Normalised cross-entropy of the same sums; 0 where all words are correct or all are wrong."""
    words, correct, costs = (sums[..., part].sum(-1) for part in (0, 2, 3))
    share = np.clip(correct / np.maximum(words, 1), LEAST, 1.0 - LEAST)
    most = -(correct * np.log(share) + (words - correct) * np.log(1.0 - share))
    varied = (correct > 0) & (correct < words)
    return np.where(varied, (most - costs) / np.where(varied, most, 1.0), 0.0)


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def fit_calibration(outcomes: WordOutcomes) -> Calibration:
    """Temperature and bias with the least cross-entropy, which is the largest normalised cross-entropy.

    Args:
        outcomes: of tuning data, with the confidences of the decoder.

    Raises:
        UserError: there are too few correct or too few wrong words.
    """
    from scipy.optimize import minimize

    fewest = int(min(outcomes.correct.sum(), (~outcomes.correct).sum())) if len(outcomes.correct) else 0
    if fewest < FEWEST_ERRORS:
        raise UserError(
            f"{fewest} correct or wrong words are too few for a calibration of confidences",
            remedy=f"Use data with at least {FEWEST_ERRORS} correct and {FEWEST_ERRORS} wrong words",
        )
    logits = np.array([logit(each) for each in outcomes.confidences])
    signs = np.where(outcomes.correct, 1.0, -1.0)

    def cost(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        margins = signs * (parameters[0] * logits + parameters[1])
        slopes = -signs / (1.0 + np.exp(np.clip(margins, -60, 60)))
        return float(np.logaddexp(0.0, -margins).mean()), np.array([(slopes * logits).mean(), slopes.mean()])

    bounds = [(1.0 / LARGEST_TEMPERATURE, LARGEST_TEMPERATURE), (-20.0, 20.0)]
    scale, bias = minimize(cost, np.array([1.0, 0.0]), jac=True, bounds=bounds, method="L-BFGS-B").x
    return Calibration.from_dict(Calibration(float(1.0 / scale), float(bias)).to_dict())


@dataclass(frozen=True)
class CalibratedConfidence:
    """A calibration, and the reliability on its tuning data without and with it."""

    calibration: Calibration
    before: Reliability
    after: Reliability


def calibrate_confidence(
    recogniser: Recogniser, source: str, progress: Callable[[int, int], None] | None = None
) -> CalibratedConfidence:
    """Fit a calibration to the confidences of greedy decoding.

    Args:
        recogniser: its own calibration is ignored, and stays unchanged.
        source: manifest or Kaldi folder of tuning data, not of those that errors are reported on.

    Raises:
        UserError: there are too few correct or too few wrong words.
    """
    own, recogniser.calibration = recogniser.calibration, AS_DECODED
    try:
        recognised = recognise(recogniser, open_cuts(find_data(source)).cuts, progress)
    finally:
        recogniser.calibration = own
    references = {name: split_words(text) for name, text in recognised.references.items()}
    outcomes = word_outcomes(references, recognised.words, recognised.speakers)
    calibration = fit_calibration(outcomes)
    scaled = np.array([calibration(each) for each in outcomes.confidences])
    before, after = reliability(outcomes), reliability(replace(outcomes, confidences=scaled))
    assert before is not None
    assert after is not None
    return CalibratedConfidence(calibration, before, after)
