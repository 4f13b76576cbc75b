"""The scale of a hybrid student's scores against its decoding graph: the one of the fewest errors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from lhotse import CutSet

from retort.decoding.options import DecodingOptions
from retort.decoding.recogniser import Recogniser
from retort.evaluation.recognise import recognise
from retort.evaluation.scoring import score

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Scales:
    """Word error rates, fractions, by the scale that was tried."""

    tried: dict[float, float]

    @property
    def best(self) -> float:
        """Of the fewest errors; among equals the smallest."""
        return min(self.tried, key=lambda scale: (self.tried[scale], scale))

    @property
    def at_the_edge(self) -> bool:
        """Whether a better one may lie beyond those that were tried."""
        return len(self.tried) > 1 and self.best in (min(self.tried), max(self.tried))


def try_scales(recogniser: Recogniser, cuts: CutSet, scales: Sequence[float], progress: Progress) -> Scales:
    """Recognise `cuts`, which must not be those that errors are reported on, at every scale.

    An utterance of which the graph has no reading counts as deleted.
    """
    tried = {}
    for scale in sorted(scales):
        told = partial(progress, f"acoustic scale {scale:g}")
        heard = recognise(recogniser, cuts, told, DecodingOptions(acoustic_scale=scale))
        tried[scale] = score(heard.references, heard.hypotheses, heard.speakers).words.rate
    return Scales(tried)
