"""Search for the value of one decoding option, such as a weight or a scale, that minimises the error rate."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from lhotse import CutSet

from retort.common.progress import StageProgress
from retort.decoding.options import DecodingOptions
from retort.decoding.recogniser import Recogniser
from retort.evaluation.recognise import recognise
from retort.evaluation.scoring import demand_words, score


@dataclass(frozen=True)
class Tried:
    """Error rates as fractions, by tried value."""

    rates: dict[float, float]

    @property
    def best(self) -> float:
        """The value of the lowest error rate; among equal ones that nearest to zero."""
        return min(self.rates, key=lambda value: (self.rates[value], abs(value)))

    @property
    def smoothed(self) -> float:
        """Minimum of a parabola over the logarithm of the scale, through the best scale and its two neighbours.

        Rates of a few hundred utterances are noisy; the parabola averages over neighbouring scales. The best scale
        itself if it is at the edge.
        """
        scales = sorted(self.rates)
        place = scales.index(self.best)
        if not 0 < place < len(scales) - 1:
            return self.best
        around = scales[place - 1 : place + 2]
        bend, slope, _ = np.polyfit(np.log(around), [self.rates[scale] for scale in around], 2)
        return float(f"{math.exp(-slope / (2 * bend)):.3g}")

    @property
    def at_the_edge(self) -> bool:
        """Whether the best value is the smallest or largest one, so that a better one may be outside the range."""
        return len(self.rates) > 1 and self.best in (min(self.rates), max(self.rates))


@dataclass(frozen=True)
class ScalarRange:
    """A decoding option and the range of its search.

    Attributes:
        field: field of the options.
        first: initial values; further values are tried while the best is at the edge.
        smallest, largest: limits of the search.
        ratio: factor between the best and a further value; 0 if they differ by `step`.
        step: difference between the best and a further value.
        fine: steps around the best of these values that are tried at the end.
        baseline: what the error rate of the best value is compared with.
    """

    field: str
    first: tuple[float, ...]
    smallest: float
    largest: float
    ratio: float = 0.0
    step: float = 0.0
    fine: tuple[float, ...] = ()
    baseline: str = ""

    @property
    def name(self) -> str:
        """Name for display."""
        return self.field.replace("_", " ")

    def put(self, options: DecodingOptions, value: float) -> DecodingOptions:
        """The options with this value."""
        changed: dict[str, Any] = {self.field: value}
        return replace(options, **changed)

    def further(self, tried: Tried) -> list[float]:
        """The next value beyond the best, if that is at the edge of the tried values."""
        if not tried.at_the_edge:
            return []
        up = tried.best == max(tried.rates)
        beyond = tried.best + (self.step if up else -self.step)
        if self.ratio:
            beyond = float(f"{tried.best * (self.ratio if up else 1 / self.ratio):.2g}")
        return self._within([beyond])

    def around(self, tried: Tried) -> list[float]:
        """The values near the best one that are tried at the end."""
        return [
            each for each in self._within(tried.best + step for step in self.fine) if each not in tried.rates
        ]

    def _within(self, values: Iterable[float]) -> list[float]:
        return [rounded for each in values if self.smallest <= (rounded := round(each, 6)) <= self.largest]


SCALE = ScalarRange(
    "acoustic_scale",
    (0.35, 0.5, 0.7, 1.0, 1.4, 2.0),
    0.05,
    12.0,
    ratio=math.sqrt(2),
    baseline="without the graph",
)
"""For graphs of a CTC head, whose default scale is 1."""
LANGUAGE = ScalarRange(
    "language_scale",
    (0.1, 0.2, 0.3, 0.5, 0.7, 1.0),
    0.02,
    4.0,
    ratio=math.sqrt(2),
    baseline="with the scale of the training",
)
"""For the language part of a factored decoder."""
LENGTH = ScalarRange(
    "length_weight", (-0.5, 0.0, 0.5, 1.0, 1.5, 2.0), -4.0, 8.0, step=0.5, baseline="without a length weight"
)
LM_WEIGHT = ScalarRange(
    "lm_weight", (0.0, 0.2, 0.4, 0.6, 0.8, 1.0), 0.0, 2.0, step=0.2, fine=(-0.1, -0.05, 0.05, 0.1)
)


def try_scales(recogniser: Recogniser, cuts: CutSet, scales: Sequence[float], progress: StageProgress) -> Tried:
    """Decode `cuts`, which must not be those that errors are reported on, at every scale.

    Further scales are tried while the best is at the edge. An utterance without a path in the graph counts as deleted.
    """

    def rate(scale: float) -> float:
        report = partial(progress, f"acoustic scale {scale:g}")
        return error_rate(recogniser, cuts, DecodingOptions(acoustic_scale=scale), report, "wer")

    return search_range(rate, replace(SCALE, first=tuple(sorted(scales))))


def search_range(rate: Callable[[float], float], scalar: ScalarRange) -> Tried:
    """Try the initial values, further ones until the best is between two others, and then those around the best."""
    tried = Tried({value: rate(value) for value in scalar.first})
    while values := scalar.further(tried):
        tried.rates.update({value: rate(value) for value in values})
    tried.rates.update({value: rate(value) for value in scalar.around(tried)})
    return tried


def error_rate(
    recogniser: Recogniser,
    cuts: CutSet,
    options: DecodingOptions,
    progress: Callable[[int, int], None],
    measure: str,
) -> float:
    recognised = recognise(recogniser, cuts, progress, options)
    result = demand_words(score(recognised.references, recognised.hypotheses, recognised.speakers))
    return result.wer if measure == "wer" else result.cer
