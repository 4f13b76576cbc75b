"""One number of the search, the scale against a decoding graph or the weight of length: that of the fewest errors."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from lhotse import CutSet

from retort.common.errors import UserError
from retort.common.files import write_whole
from retort.common.json_reader import read_json
from retort.corpora.open_cuts import find_data, open_cuts
from retort.decoding.options import GREEDY, DecodingOptions, options_to_dict
from retort.decoding.recogniser import Recogniser
from retort.evaluation.evaluate import evaluation_key, evaluation_name
from retort.evaluation.recognise import recognise
from retort.evaluation.scoring import demand_words, score

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Tried:
    """Error rates, fractions, by the value that was tried."""

    rates: dict[float, float]

    @property
    def best(self) -> float:
        """Of the fewest errors; among equals the one nearest to zero."""
        return min(self.rates, key=lambda value: (self.rates[value], abs(value)))

    @property
    def smoothed(self) -> float:
        """Where a parabola through the best scale and its two neighbours, over its logarithm, is lowest.

        Rates of a few hundred utterances are uneven: of two scales that are equal but for one error the better one may
        be the worse one elsewhere. The best itself where it lies at the edge.
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
        """Whether a better one may lie beyond those that were tried."""
        return len(self.rates) > 1 and self.best in (min(self.rates), max(self.rates))


@dataclass(frozen=True)
class Number:
    """What is looked for.

    Attributes:
        field: of the options.
        first: tried first; then further ones while the best is the first or the last.
        smallest, largest: beyond these nothing is tried.
        ratio: between the best and a further one; 0 where they differ by `step`.
        step: that difference.
    """

    field: str
    first: tuple[float, ...]
    smallest: float
    largest: float
    ratio: float = 0.0
    step: float = 0.0

    @property
    def name(self) -> str:
        """For people."""
        return self.field.replace("_", " ")

    def put(self, options: DecodingOptions, value: float) -> DecodingOptions:
        """The options with another value."""
        changed: dict[str, Any] = {self.field: value}
        return replace(options, **changed)

    def further(self, tried: Tried) -> list[float]:
        """The next one beyond the best, if that lies at an edge; between two that were tried there is none."""
        if not tried.at_the_edge:
            return []
        up = tried.best == max(tried.rates)
        beyond = tried.best + (self.step if up else -self.step)
        if self.ratio:
            beyond = float(f"{tried.best * (self.ratio if up else 1 / self.ratio):.2g}")
        return [beyond] if self.smallest <= beyond <= self.largest else []


SCALE = Number("acoustic_scale", (0.35, 0.5, 0.7, 1.0, 1.4, 2.0), 0.05, 12.0, ratio=math.sqrt(2))
"""Of a CTC head, whose own is 1."""
LENGTH = Number("length_weight", (-0.5, 0.0, 0.5, 1.0, 1.5, 2.0), -4.0, 8.0, step=0.5)


@dataclass(frozen=True)
class TunedNumber:
    """What :func:`tune_number` found.

    Attributes:
        number: what was looked for.
        options: with its best value.
        measure: `cer` or `wer`: what was made small.
        alone: the rate without it: of a scale, without the graph, decoded greedily; of length, with a weight of 0.
        tried: all values.
        file: what `retort evaluate --tuned` reads.
    """

    number: Number
    options: DecodingOptions
    measure: str
    alone: float
    tried: Tried
    file: Path


def try_scales(recogniser: Recogniser, cuts: CutSet, scales: Sequence[float], progress: Progress) -> Tried:
    """Recognise `cuts`, which must not be those that errors are reported on, at every scale.

    While the best is the first or the last of several, a further one is tried. An utterance of which the graph has no
    reading counts as deleted.
    """

    def rate(scale: float) -> float:
        told = partial(progress, f"acoustic scale {scale:g}")
        return _rate(recogniser, cuts, DecodingOptions(acoustic_scale=scale), told, "wer")

    return _try_all(rate, replace(SCALE, first=tuple(sorted(scales))))


def tune_number(
    number: Number,
    recogniser: Recogniser,
    source: str,
    folder: Path,
    options: DecodingOptions,
    progress: Progress,
    measure: str = "",
) -> TunedNumber:
    """Find a number of the options; what they have there is not looked at.

    Rates are kept in `folder/tuning/NAME/rates.json`, and no value is tried again. Writes `tuned.json`.

    Args:
        source: manifest or Kaldi folder, another than that whose errors are reported.
        measure: `cer` or `wer`; by default the latter where there are spaces between words.

    Raises:
        UserError: the graph cannot be built or does not fit the student, or its search gives length no weight.
    """
    measure = measure or ("wer" if recogniser.separator else "cer")
    plain = number.put(replace(options, nbest=1), 0.0)
    place = folder / "tuning" / evaluation_name(source, plain)
    opened = open_cuts(find_data(source))
    search = recogniser.opened(plain)  # at once: what does not fit is told before anything is decoded
    if number is LENGTH and not search.weighs_length:
        raise UserError(
            "there is nothing to tune: the search of this model gives length no weight",
            remedy="Name a language model: --lm, --rescore or both, or --graph",
        )
    kept = _Kept(place / "rates.json", f"{measure} {evaluation_key(recogniser, opened, plain)}")

    def rate(chosen: DecodingOptions, name: str) -> float:
        if name not in kept.rates:
            kept.add(name, _rate(recogniser, opened.cuts, chosen, partial(progress, name), measure))
        return kept.rates[name]

    tried = _try_all(lambda value: rate(number.put(plain, value), f"{number.name} {value:g}"), number)
    alone = rate(GREEDY, "without a graph") if options.graph else tried.rates[0.0]
    found = number.put(plain, tried.best)
    told = {"data": source, "measure": measure, "rate": tried.rates[tried.best], "alone": alone}
    content = {**options_to_dict(found), "tuning": {**told, "tried": dict(sorted(tried.rates.items()))}}
    tuned = place / "tuned.json"
    write_whole(tuned, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    return TunedNumber(number, found, measure, alone, tried, tuned)


class _Kept:
    """Rates by the name of what was decoded, on disk, while the key stays."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        self.rates: dict[str, float] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            content = read_json(path)
            if content["key"] == key:
                self.rates = {str(name): float(value) for name, value in content["rates"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return

    def add(self, name: str, rate: float) -> None:
        self.rates[name] = rate
        write_whole(self.path, json.dumps({"key": self.key, "rates": self.rates}, indent=1) + "\n")


def _try_all(rate: Callable[[float], float], number: Number) -> Tried:
    """The first ones, then further ones until the best lies between two others."""
    rates: dict[float, float] = {}
    asked = [*number.first]
    while asked:
        rates |= {value: rate(value) for value in asked}
        asked = number.further(Tried(rates))
    return Tried(rates)


def _rate(
    recogniser: Recogniser,
    cuts: CutSet,
    options: DecodingOptions,
    progress: Callable[[int, int], None],
    measure: str,
) -> float:
    heard = recognise(recogniser, cuts, progress, options)
    result = demand_words(score(heard.references, heard.hypotheses, heard.speakers))
    return result.wer if measure == "wer" else result.cer
