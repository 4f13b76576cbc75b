"""`retort tune` for a single decoding option: the acoustic scale of a graph, the scale of a language part, or the length
weight."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from retort.common.errors import UserError
from retort.common.files import write_whole
from retort.common.json_reader import read_json
from retort.common.progress import StageProgress
from retort.corpora.open_cuts import find_data, open_cuts
from retort.decoding.options import GREEDY, DecodingOptions, options_to_dict
from retort.decoding.recogniser import Recogniser
from retort.evaluation.evaluate import evaluation_key, evaluation_name
from retort.evaluation.scalar_search import LENGTH, ScalarRange, Tried, error_rate, search_range


@dataclass(frozen=True)
class TunedScalar:
    """Result of :func:`tune_scalar`.

    Attributes:
        scalar: the tuned option.
        options: the options with its best value.
        measure: the minimised measure, `cer` or `wer`.
        alone: the baseline: greedy decoding without the graph for an acoustic scale, the scale of the training for a
            language part, a weight of 0 for the length.
        tried: error rates of all values.
        file: input of `retort evaluate --tuned`.
    """

    scalar: ScalarRange
    options: DecodingOptions
    measure: str
    alone: float
    tried: Tried
    file: Path


def tune_scalar(
    scalar: ScalarRange,
    recogniser: Recogniser,
    source: str,
    folder: Path,
    options: DecodingOptions,
    progress: StageProgress,
    measure: str = "",
) -> TunedScalar:
    """Find the best value of a decoding option; its value in `options` is ignored.

    Rates are cached in `folder/tuning/NAME/rates.json`. Writes `tuned.json`.

    Args:
        source: manifest or Kaldi folder, not the one that errors are reported on.
        measure: `cer` or `wer`; by default WER if words are separated by spaces.

    Raises:
        UserError: the graph cannot be built or does not fit the student, or its search has no length weight.
    """
    measure = measure or ("wer" if recogniser.separator else "cer")
    plain = scalar.put(replace(options, nbest=1), 0.0)
    place = folder / "tuning" / evaluation_name(source, plain)
    opened = open_cuts(find_data(source))
    search = recogniser.opened(plain)  # errors are raised before anything is decoded
    if scalar is LENGTH and not search.weighs_length:
        raise UserError(
            "there is nothing to tune: the search of this model has no length weight",
            remedy="Name a language model: --lm, --rescore or both, or --graph",
        )
    cache = _RateCache(place / "rates.json", f"{measure} {evaluation_key(recogniser, opened, plain)}")

    def rate(chosen: DecodingOptions, name: str) -> float:
        if name not in cache.rates:
            cache.add(name, error_rate(recogniser, opened.cuts, chosen, partial(progress, name), measure))
        return cache.rates[name]

    def rate_of(value: float) -> float:
        return rate(scalar.put(plain, value), f"{scalar.name} {value:g}")

    tried = search_range(rate_of, scalar)
    alone = rate(GREEDY, "without a graph") if options.graph else rate_of(0.0)
    found = scalar.put(plain, tried.best)
    tuned = place / "tuned.json"
    summary = {"data": source, "measure": measure, "rate": tried.rates[tried.best], "alone": alone}
    write_tuned(tuned, found, {**summary, "tried": dict(sorted(tried.rates.items()))})
    return TunedScalar(scalar, found, measure, alone, tried, tuned)


def write_tuned(path: Path, options: DecodingOptions, tuning: Mapping[str, Any]) -> None:
    """Write tuned options, with what led to them, for :func:`retort.decoding.options.read_options`."""
    content = {**options_to_dict(options), "tuning": tuning}
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def read_cache(path: Path, key: str, name: str) -> Any:
    """An entry of a JSON file that an earlier call wrote with the same model, data and options; None without one."""
    try:
        content = read_json(path)
        return content[name] if content["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


class _RateCache:
    """Error rates on disk by the name of the decoded configuration; invalidated when the key changes."""

    def __init__(self, path: Path, key: str) -> None:
        self.path, self.key = path, key
        path.parent.mkdir(parents=True, exist_ok=True)
        found = read_cache(path, key, "rates")
        self.rates: dict[str, float] = found if isinstance(found, dict) else {}

    def add(self, name: str, rate: float) -> None:
        self.rates[name] = rate
        write_whole(self.path, json.dumps({"key": self.key, "rates": self.rates}, indent=1) + "\n")
