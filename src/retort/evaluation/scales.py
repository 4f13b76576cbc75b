"""The scale of a student's scores against its decoding graph: the one of the fewest errors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from lhotse import CutSet

from retort.corpora.opening import find_data, open_cuts
from retort.decoding.options import GREEDY, DecodingOptions, options_to_dict
from retort.decoding.recogniser import Recogniser
from retort.evaluation.evaluate import evaluation_key, evaluation_name
from retort.evaluation.recognise import recognise
from retort.evaluation.scoring import score
from retort.files import write_whole

Progress = Callable[[str, int, int], None]

FIRST = (0.35, 0.5, 0.7, 1.0, 1.4, 2.0)
"""Scales that are tried of a CTC head, whose own is 1; then further ones while the best is the first or the last."""
SMALLEST, LARGEST = 0.05, 12.0
"""Beyond these nothing is tried."""


@dataclass(frozen=True)
class Scales:
    """Error rates, fractions, by the scale that was tried."""

    tried: dict[float, float]

    @property
    def best(self) -> float:
        """Of the fewest errors; among equals the smallest."""
        return min(self.tried, key=lambda scale: (self.tried[scale], scale))

    @property
    def smoothed(self) -> float:
        """Where a parabola through the best and its two neighbours, over the logarithm of the scale, is lowest.

        Rates of a few hundred utterances are uneven: of two scales that are equal but for one error the better one may
        be the worse one elsewhere. The best itself where it lies at the edge.
        """
        scales = sorted(self.tried)
        place = scales.index(self.best)
        if not 0 < place < len(scales) - 1:
            return self.best
        around = scales[place - 1 : place + 2]
        bend, slope, _ = np.polyfit(np.log(around), [self.tried[scale] for scale in around], 2)
        return float(f"{math.exp(-slope / (2 * bend)):.3g}")

    @property
    def at_the_edge(self) -> bool:
        """Whether a better one may lie beyond those that were tried."""
        return len(self.tried) > 1 and self.best in (min(self.tried), max(self.tried))


@dataclass(frozen=True)
class TunedScale:
    """What :func:`tune_scale` found.

    Attributes:
        options: with the best scale.
        measure: `cer` or `wer`: what was made small.
        alone: the rate without the graph, decoded greedily.
        scales: all that were tried.
        file: what `retort evaluate --tuned` reads.
    """

    options: DecodingOptions
    measure: str
    alone: float
    scales: Scales
    file: Path


def try_scales(recogniser: Recogniser, cuts: CutSet, scales: Sequence[float], progress: Progress) -> Scales:
    """Recognise `cuts`, which must not be those that errors are reported on, at every scale.

    While the best is the first or the last of several, a further one is tried. An utterance of which the graph has no
    reading counts as deleted.
    """

    def rate(scale: float) -> float:
        told = partial(progress, f"acoustic scale {scale:g}")
        return _rate(recogniser, cuts, DecodingOptions(acoustic_scale=scale), told, "wer")

    return _try_all(rate, sorted(scales))


def tune_scale(
    recogniser: Recogniser,
    source: str,
    folder: Path,
    options: DecodingOptions,
    progress: Progress,
    measure: str = "",
) -> TunedScale:
    """Find the acoustic scale of `options.graph`; that of the options is not looked at.

    Rates are kept in `folder/tuning/NAME/scales.json`, and no scale is tried again. Writes `tuned.json`.

    Args:
        source: manifest or Kaldi folder, another than that whose errors are reported.
        measure: `cer` or `wer`; by default the latter where there are spaces between words.

    Raises:
        UserError: the graph cannot be built or does not fit the student.
    """
    measure = measure or ("wer" if recogniser.separator else "cer")
    plain = replace(options, nbest=1, acoustic_scale=0.0)
    place = folder / "tuning" / evaluation_name(source, plain)
    opened = open_cuts(find_data(source))
    recogniser.opened(plain)  # at once: what does not fit is told before anything is decoded
    kept = _Kept(place / "scales.json", f"{measure} {evaluation_key(recogniser, opened, plain)}")

    def rate(chosen: DecodingOptions, name: str) -> float:
        if name not in kept.rates:
            kept.add(name, _rate(recogniser, opened.cuts, chosen, partial(progress, name), measure))
        return kept.rates[name]

    scales = _try_all(
        lambda scale: rate(replace(plain, acoustic_scale=scale), f"acoustic scale {scale:g}"), FIRST
    )
    alone = rate(GREEDY, "without a graph")
    found = replace(plain, acoustic_scale=scales.best)
    told = {"data": source, "measure": measure, "rate": scales.tried[scales.best], "alone": alone}
    content = {**options_to_dict(found), "tuning": {**told, "tried": dict(sorted(scales.tried.items()))}}
    file = place / "tuned.json"
    write_whole(file, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return TunedScale(found, measure, alone, scales, file)


class _Kept:
    """Rates by the name of what was decoded, on disk, while the key stays."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self.rates: dict[str, float] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            if content["key"] == key:
                self.rates = {str(name): float(value) for name, value in content["rates"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return

    def add(self, name: str, rate: float) -> None:
        self.rates[name] = rate
        write_whole(self.path, json.dumps({"key": self.key, "rates": self.rates}, indent=1) + "\n")


def _try_all(rate: Callable[[float], float], first: Sequence[float]) -> Scales:
    """The first ones, then further ones until the best lies between two others."""
    tried: dict[float, float] = {}
    asked = [*first]
    while asked:
        tried |= {scale: rate(scale) for scale in asked}
        asked = _further(Scales(tried))
    return Scales(tried)


def _further(scales: Scales) -> list[float]:
    """The next one beyond the best, if that lies at an edge; of a smaller step at both sides of it there is none."""
    if not scales.at_the_edge:
        return []
    step = math.sqrt(2) if scales.best == max(scales.tried) else math.sqrt(0.5)
    further = float(f"{scales.best * step:.2g}")
    return [further] if SMALLEST <= further <= LARGEST else []


def _rate(
    recogniser: Recogniser,
    cuts: CutSet,
    options: DecodingOptions,
    progress: Callable[[int, int], None],
    measure: str,
) -> float:
    heard = recognise(recogniser, cuts, progress, options)
    result = score(heard.references, heard.hypotheses, heard.speakers)
    return result.wer if measure == "wer" else result.cer
