"""`retort tune`: tunes the weights of language models on a tuning set."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retort.common.errors import UserError
from retort.common.files import write_whole
from retort.common.progress import StageProgress
from retort.corpora.open_cuts import find_data, open_cuts
from retort.decoding.options import DecodingOptions
from retort.decoding.recogniser import Recogniser
from retort.decoding.rescoring import RescoringLM
from retort.decoding.transcript import hypothesis_text
from retort.evaluation.bootstrap import interval
from retort.evaluation.evaluate import evaluation_key, evaluation_name
from retort.evaluation.recognise import recognise
from retort.evaluation.scalar_search import LM_WEIGHT, ScalarRange, search_range
from retort.evaluation.scoring import Counts, Interval, count_errors, no_words
from retort.report.plots import Point, plot_setting
from retort.text.normalise import split_words
from retort.tuning.scalar import read_cache, write_tuned

FUSION = LM_WEIGHT
"""Weights for shallow fusion."""
NO_FUSION = ScalarRange("lm_weight", (0.0,), 0.0, 0.0)
RESCORE_WEIGHTS = np.linspace(0.0, 2.0, 41)
LENGTH_WEIGHTS = np.linspace(-2.0, 4.0, 25)

_AT_ONCE = 64
"""Number of utterances between two progress reports of rescoring."""


@dataclass(frozen=True)
class Weights:
    """One point of the grid and its error rate as a fraction."""

    lm_weight: float
    rescore_weight: float
    length_weight: float
    rate: float


@dataclass(frozen=True)
class Tuned:
    """Result of :func:`tune`.

    Attributes:
        options: decoding options with the best weights.
        measure: the minimised measure, `cer` or `wer`.
        alone: rate without any language model.
        best: the best weights.
        tried: for each shallow fusion weight, the best other weights, sorted by weight.
        warnings: remarks on the weights.
        file: input of `retort evaluate --tuned`.
    """

    options: DecodingOptions
    measure: str
    alone: float
    best: Weights
    tried: list[Weights]
    warnings: list[str]
    file: Path


class Lists:
    """N-best lists of all utterances at one shallow fusion weight, as arrays.

    Args:
        utterances: tables with `speaker`, `reference` (its length), `candidates` (rows of the search's score,
            the rescoring LM's log-probability, pieces and errors, best first).
    """

    def __init__(self, utterances: Sequence[dict[str, Any]]) -> None:
        most = max((len(each["candidates"]) for each in utterances), default=1)
        table = np.zeros((len(utterances), max(most, 1), 4))
        table[..., 0] = -np.inf
        for row, each in enumerate(utterances):
            if each["candidates"]:
                table[row, : len(each["candidates"])] = each["candidates"]
            else:  # an unusable utterance counts as deleted
                table[row, 0] = 0.0, 0.0, 0.0, each["reference"]
        self.scores, self.lm_scores, self.pieces, self.mistakes = np.moveaxis(table, -1, 0)
        self.references = [int(each["reference"]) for each in utterances]
        self.speakers = [str(each["speaker"]) for each in utterances]

    def errors(self, rescore_weight: float, length_weight: float) -> NDArray[np.int64]:
        """Errors of the best hypothesis of each utterance with these weights."""
        total = self.scores + rescore_weight * self.lm_scores + length_weight * self.pieces
        chosen = total.argmax(1)
        return self.mistakes[np.arange(len(chosen)), chosen].astype(np.int64)

    def rate(self, rescore_weight: float = 0.0, length_weight: float = 0.0) -> float:
        """Error rate, a fraction.

        Raises:
            UserError: no reference has a word.
        """
        if not sum(self.references):
            raise no_words()
        return float(self.errors(rescore_weight, length_weight).sum() / max(sum(self.references), 1))

    def bounds(self, rescore_weight: float = 0.0, length_weight: float = 0.0) -> Interval:
        """Error rate with its interval."""
        errors = self.errors(rescore_weight, length_weight).tolist()
        return interval([Counts(*pair) for pair in zip(self.references, errors)], self.speakers)

    def best(self, lm_weight: float, rescored: bool, weighed: bool) -> Weights:
        """The weights with the fewest errors; among equal ones the smallest.

        Args:
            rescored: whether there is a rescoring model.
            weighed: whether there is a length weight.
        """
        rescore_weights = RESCORE_WEIGHTS if rescored else [0.0]
        length_weights = LENGTH_WEIGHTS if weighed else [0.0]
        places = [(float(first), float(second)) for first in rescore_weights for second in length_weights]
        rates = {place: self.rate(*place) for place in places}
        place = min(places, key=lambda each: (rates[each], each[0], abs(each[1])))
        return Weights(lm_weight, *place, rates[place])


def tune(
    recogniser: Recogniser,
    source: str,
    folder: Path,
    options: DecodingOptions,
    progress: StageProgress,
    measure: str = "",
) -> Tuned:
    """Find the weights of `options.lm` and `options.rescore`; their weights in `options` are ignored.

    Every shallow fusion weight needs decoding, whose n-best lists are cached in `folder/tuning/NAME`.
    Rescoring weights need none: all of them are tried on each n-best list. The same holds for the
    length weight, even if the search applies it: the lists are decoded without it. Writes `tuned.json`,
    and plots if matplotlib is installed.

    Args:
        source: manifest or Kaldi folder, not the one that errors are reported on.
        measure: `cer` or `wer`; by default WER if words are separated by spaces.

    Raises:
        UserError: there is no model, or one of them is not usable.
    """
    if not (options.lm or options.rescore):
        raise UserError(
            "there is nothing to tune", remedy="Name a language model: --lm, --rescore or both, or --graph"
        )
    measure = measure or ("wer" if recogniser.separator else "cer")
    plain = replace(options, nbest=1, lm_weight=0.0, rescore_weight=0.0, length_weight=0.0)
    decoder = _Decoder(
        recogniser, source, folder / "tuning" / evaluation_name(source, plain), plain, progress
    )
    lists: dict[float, Lists] = {}
    tried: dict[float, Weights] = {}

    def rate_of(weight: float) -> float:
        lists[weight] = decoder.lists(weight, measure)
        tried[weight] = lists[weight].best(weight, bool(options.rescore), decoder.weighed)
        return tried[weight].rate

    best = tried[search_range(rate_of, FUSION if options.lm else NO_FUSION).best]
    chosen = asdict(best)
    rate = chosen.pop("rate")
    found = Tuned(
        replace(plain, **chosen),
        measure,
        lists[0.0].rate(),
        best,
        [tried[weight] for weight in sorted(tried)],
        _warnings(best, options, max(tried), decoder.weighed),
        decoder.folder / "tuned.json",
    )
    found.warnings.extend(_draw(found, lists, decoder.folder, decoder.weighed))
    tuning = {"tried": [asdict(each) for each in found.tried], "warnings": found.warnings}
    write_tuned(
        found.file,
        found.options,
        {"data": source, "measure": measure, "rate": rate, "alone": found.alone, **tuning},
    )
    return found


class _Decoder:
    """N-best lists at any shallow fusion weight, decoded or read from the cache.

    Args:
        plain: the options with all weights set to zero.
    """

    def __init__(
        self, recogniser: Recogniser, source: str, folder: Path, plain: DecodingOptions, progress: StageProgress
    ) -> None:
        self.recogniser, self.folder, self.progress = recogniser, folder, progress
        self.opened = open_cuts(find_data(source))
        self.key = evaluation_key(recogniser, self.opened, plain)
        # Errors about models are raised before anything is decoded.
        search = recogniser.opened(plain)
        self.rescorer: RescoringLM | None = search.rescoring_lm
        self.weighed = bool(plain.rescore) or search.weighs_length
        self.options = replace(plain, rescore="", rescore_kind="auto", rescore_case="keep")
        self.lm_scores: dict[tuple[int, ...], float] = {}
        folder.mkdir(parents=True, exist_ok=True)

    def lists(self, weight: float, measure: str) -> Lists:
        path = self.folder / f"lists-{weight:g}.json"
        utterances = read_cache(path, self.key, "utterances")
        if utterances is None:
            utterances = self._decode(weight)
            content = {"key": self.key, "lm_weight": weight, "utterances": utterances}
            write_whole(path, json.dumps(content) + "\n")
        place = ("wer", "cer").index(measure)
        return Lists(
            [
                {
                    "speaker": each["speaker"],
                    "reference": each["reference"][place],
                    "candidates": [[*row[:3], row[3 + place]] for row in each["candidates"]],
                }
                for each in utterances
            ]
        )

    def _decode(self, weight: float) -> list[dict[str, Any]]:
        name = f"lm weight {weight:g}" if self.options.lm else "decoding"
        recognised = recognise(
            self.recogniser,
            self.opened.cuts,
            lambda done, total: self.progress(name, done, total),
            replace(self.options, lm_weight=weight),
        )
        candidates = recognised.candidates
        self._rescore(
            [tuple(part.ids) for found in candidates.values() for each in found for part in each.parts]
        )
        utterances = []
        for utterance, reference in recognised.references.items():
            rows = []
            for each in candidates.get(utterance, []):
                parts = [tuple(part.ids) for part in each.parts]
                texts = [hypothesis_text(self.recogniser.tokenizer, ids) for ids in parts]
                text = self.recogniser.normalise(self.recogniser.separator.join(filter(None, texts)))
                errors = (
                    count_errors(split_words(reference), split_words(text)).errors,
                    count_errors(reference, text).errors,
                )
                lm_score = sum(self.lm_scores.get(ids, 0.0) for ids in parts)
                rows.append([each.score, lm_score, sum(map(len, parts)), *errors])
            lengths = [len(split_words(reference)), len(reference)]
            speaker = recognised.speakers[utterance]
            utterances.append({"id": utterance, "speaker": speaker, "reference": lengths, "candidates": rows})
        return utterances

    def _rescore(self, sentences: Sequence[tuple[int, ...]]) -> None:
        """Score sentences that are not scored yet."""
        if self.rescorer is None:
            return
        missing = [each for each in dict.fromkeys(sentences) if each not in self.lm_scores]
        step = _AT_ONCE * self.options.beam
        for start in range(0, len(missing), step):
            part = missing[start : start + step]
            self.lm_scores.update(zip(part, self.rescorer.score(part)))
            self.progress("rescoring", min(start + step, len(missing)), len(missing))


def _warnings(best: Weights, options: DecodingOptions, largest: float, weighed: bool) -> list[str]:
    edges = []
    if options.lm:
        edges.append(("lm weight", best.lm_weight, 0.0, largest))
    if options.rescore:
        edges.append(("rescore weight", best.rescore_weight, 0.0, float(RESCORE_WEIGHTS[-1])))
    if weighed:
        low, high = LENGTH_WEIGHTS[[0, -1]].tolist()
        edges.append(("length weight", best.length_weight, low, high))
    warnings = []
    for name, weight, low, high in edges:
        if weight == high or (weight == low and low):
            warnings.append(f"the best {name}, {weight:g}, is at the edge of the tried range")
        elif weight == low:
            warnings.append(f"the best {name} is 0: that model does not reduce the errors")
    return warnings


def _draw(found: Tuned, lists: dict[float, Lists], folder: Path, weighed: bool) -> list[str]:
    """Plot the error over each weight with the best other weights; return warnings."""
    best, measure = found.best, found.measure.upper()
    at = lists[best.lm_weight]
    reference = "search alone", lists[0.0].bounds()
    curves: dict[str, list[tuple[float, Interval]]] = {}
    if found.options.lm:
        curves["lm weight"] = [
            (each.lm_weight, lists[each.lm_weight].bounds(each.rescore_weight, each.length_weight))
            for each in found.tried
        ]
    if found.options.rescore:
        curves["rescore weight"] = [
            (weight, at.bounds(weight, best.length_weight))
            for weight in {*RESCORE_WEIGHTS[::4].tolist(), best.rescore_weight}
        ]
    if weighed:
        curves["length weight"] = [
            (weight, at.bounds(best.rescore_weight, weight))
            for weight in {*LENGTH_WEIGHTS[::2].tolist(), best.length_weight}
        ]
    try:
        for name, points in curves.items():
            shown = [Point(value, rate, ()) for value, rate in points]
            plot_setting(shown, name, measure, folder / f"{name.replace(' ', '_')}.png", reference)
    except UserError as error:  # matplotlib is optional
        return [f"no plots: {error}"]
    return []
