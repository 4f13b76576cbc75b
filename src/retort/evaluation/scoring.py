"""Errors of hypotheses against references, in words and characters, and the score file.

A character error rate counts the spaces between words as characters, as jiwer does; where the recipe's
normaliser drops spaces there are none. A CJK character is a word. Texts must be normalised.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import kaldialign

from retort.common.errors import UserError
from retort.common.json_reader import read_json
from retort.text.normalise import split_words

REPLICATES = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Counts:
    """Number of words or characters of a reference, and of errors."""

    reference: int = 0
    substitutions: int = 0
    deletions: int = 0
    insertions: int = 0

    @property
    def errors(self) -> int:
        return self.substitutions + self.deletions + self.insertions

    @property
    def rate(self) -> float:
        """Errors as a fraction of the reference; of an empty one, the number of errors."""
        return self.errors / max(self.reference, 1)

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.reference + other.reference,
            self.substitutions + other.substitutions,
            self.deletions + other.deletions,
            self.insertions + other.insertions,
        )


UNDEFINED = "not defined"
"""Text in place of a rate over a reference without words."""


@dataclass(frozen=True)
class Interval:
    """An error rate and its bootstrap interval, as fractions (`retort.evaluation.bootstrap`).

    All three are NaN if the reference has no word.
    """

    rate: float
    low: float
    high: float
    resampled: str
    """`speakers`, or `utterances` if there is only one speaker."""
    level: float = LEVEL
    replicates: int = REPLICATES

    @property
    def rate_text(self) -> str:
        """The rate as a percentage, or `UNDEFINED`."""
        return percent(self.rate)

    @property
    def range_text(self) -> str:
        """The interval as percentages; empty without one."""
        return "" if math.isnan(self.rate) else f"{self.low:.2%} to {self.high:.2%}"

    @property
    def note(self) -> str:
        """A remark on the interval, or an empty text."""
        if math.isnan(self.rate):
            return "the references have no words, so that there is no error rate"
        return "" if self.resampled == "speakers" else "only one speaker: the interval is over utterances"


@dataclass(frozen=True)
class UtteranceScore:
    id: str
    speaker: str
    words: Counts
    characters: Counts


@dataclass
class Score:
    """All utterances of a test, in the order of the references."""

    utterances: list[UtteranceScore]
    missing: list[str] = field(default_factory=list)
    """Utterances without a hypothesis; all their words count as deleted."""
    seconds: float | None = None
    """Duration of the audio."""
    real_time_factor: float | None = None
    """Wall time of decoding per second of audio."""
    workers: int = 1
    """Number of search processes, or of network threads if they are more."""

    @property
    def core_seconds(self) -> float | None:
        """Core seconds per hour of audio: an upper bound, as if no worker ever waited."""
        return None if self.real_time_factor is None else 3600 * self.real_time_factor * self.workers

    @property
    def words(self) -> Counts:
        return sum((utterance.words for utterance in self.utterances), Counts())

    @property
    def characters(self) -> Counts:
        return sum((utterance.characters for utterance in self.utterances), Counts())

    @property
    def wer(self) -> float:
        """NaN if the references have no word."""
        return self.words.rate if self.words.reference else math.nan

    @property
    def cer(self) -> float:
        """NaN if the references have no word."""
        return self.characters.rate if self.characters.reference else math.nan

    @property
    def speakers(self) -> list[str]:
        """Distinct speakers, in order of appearance."""
        return list(dict.fromkeys(utterance.speaker for utterance in self.utterances))


def score(
    references: Mapping[str, str],
    hypotheses: Mapping[str, str],
    speakers: Mapping[str, str] | None = None,
    *,
    seconds: float | None = None,
    decoding_seconds: float | None = None,
    workers: int = 1,
) -> Score:
    """Count the errors of normalised texts, keyed by utterance id.

    Args:
        references: reference texts; only these utterances are scored.
        hypotheses: recognised texts; a missing one counts as empty and is listed.
        speakers: speakers of the utterances; one without an entry gets its own speaker.
        seconds: duration of the audio.
        decoding_seconds: wall time of decoding.
        workers: number of processes or threads of decoding.

    Raises:
        UserError: there is no reference, or a hypothesis belongs to an unknown utterance.
    """
    if not references:
        raise UserError("there is no reference to score against", remedy="Use data with transcripts")
    extra = [name for name in hypotheses if name not in references]
    if extra:
        raise UserError(
            f"{len(extra)} of {len(hypotheses)} hypotheses have no reference, the first is {extra[0]}",
            remedy="Score on the data that was decoded",
        )
    speakers = speakers or {}
    utterances = []
    for name, reference in references.items():
        hypothesis = hypotheses.get(name, "")
        words = count_errors(split_words(reference), split_words(hypothesis))
        characters = count_errors(reference, hypothesis)
        utterances.append(UtteranceScore(name, speakers.get(name, name), words, characters))
    factor = decoding_seconds / seconds if decoding_seconds is not None and seconds else None
    missing = [name for name in references if name not in hypotheses]
    return Score(utterances, missing, seconds, factor, workers)


def count_errors(reference: Sequence[str], hypothesis: Sequence[str]) -> Counts:
    """Minimum number of edits, each of cost 1, between reference and hypothesis; a str is compared by characters."""
    found = kaldialign.edit_distance(reference, hypothesis)
    return Counts(len(reference), found["sub"], found["del"], found["ins"])


def alignment(reference: str, hypothesis: str, *, unit: str = "words") -> list[tuple[str, str]]:
    """Aligned pairs of reference and hypothesis units; an empty text marks an insertion or deletion.

    Args:
        unit: `words` or `characters`.
    """
    if unit == "words":
        return kaldialign.align(split_words(reference), split_words(hypothesis), "")
    if unit == "characters":
        return kaldialign.align(list(reference), list(hypothesis), "")
    raise ValueError(f"unit is '{unit}', not words or characters")


def percent(rate: float, form: str = ".2%") -> str:
    """A rate as a percentage, or `UNDEFINED` for NaN."""
    return UNDEFINED if math.isnan(rate) else format(rate, form)


def defined(rate: float) -> float | None:
    """A rate for JSON: None for NaN."""
    return None if math.isnan(rate) else rate


def demand_words(result: Score, where: str | Path = "") -> Score:
    """Return the score if it has error rates.

    Raises:
        UserError: no reference has a word after normalisation.
    """
    if not result.words.reference:
        raise no_words(where)
    return result


def no_words(where: str | Path = "") -> UserError:
    """The error for references without words."""
    return UserError(
        "no transcript has a word after normalisation, so there is no error rate",
        where=where,
        remedy="Use data with transcripts, or check the normaliser",
    )


def score_to_dict(result: Score, intervals: Mapping[str, Interval]) -> dict[str, Any]:
    """The content of `score.json`; rates are fractions, durations seconds.

    Args:
        result: the counts.
        intervals: intervals of `cer` and `wer`, from :func:`retort.evaluation.bootstrap.intervals`.
    """

    def total(name: str, counts: Counts) -> dict[str, Any]:
        interval = intervals[name]
        rates = {"rate": interval.rate, "low": interval.low, "high": interval.high}
        return {**{key: defined(value) for key, value in rates.items()}, **asdict(counts)}

    return {
        "cer": total("cer", result.characters),
        "wer": total("wer", result.words),
        "utterances": len(result.utterances),
        "speakers": len(result.speakers),
        "seconds": result.seconds,
        "real_time_factor": result.real_time_factor,
        "workers": result.workers,
        "interval": {
            "level": intervals["wer"].level,
            "replicates": intervals["wer"].replicates,
            "resampled": intervals["wer"].resampled,
        },
        "missing": result.missing,
        "per_utterance": [asdict(utterance) for utterance in result.utterances],
    }


def score_from_dict(content: object, where: str | Path) -> Score:
    """The score that :func:`score_to_dict` wrote, checked.

    Raises:
        UserError: the content is incomplete, of the wrong type, or inconsistent.
    """
    try:
        if not isinstance(content, dict):
            raise TypeError("not a table of values")
        result = Score(
            utterances=[_utterance(item) for item in content["per_utterance"]],
            missing=[str(name) for name in content["missing"]],
            seconds=_number(content["seconds"]),
            real_time_factor=_number(content["real_time_factor"]),
            workers=int(content.get("workers", 1)),
        )
        totals = {"cer": _counts(content["cer"]), "wer": _counts(content["wer"])}
        number = content["utterances"]
    except (KeyError, TypeError, ValueError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"not a score file ({reason})", where=where, remedy=_REMEDY) from None
    names = {utterance.id for utterance in result.utterances}
    sums = {"cer": result.characters, "wer": result.words}
    if totals != sums or number != len(result.utterances) or number != len(names) or not names:
        raise UserError("its totals differ from those of its utterances", where=where, remedy=_REMEDY)
    return result


def read_score(path: str | Path) -> Score:
    """Open a `score.json`.

    Raises:
        UserError: the file does not exist or is not a score file.
    """
    try:
        content = read_json(path)
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", where=path, remedy=_REMEDY) from None
    except ValueError as error:
        raise UserError(f"not a score file ({error})", where=path, remedy=_REMEDY) from None
    return score_from_dict(content, path)


_REMEDY = "Write it with `retort evaluate`"


def _utterance(item: Any) -> UtteranceScore:
    words, characters = _counts(item["words"]), _counts(item["characters"])
    return UtteranceScore(str(item["id"]), str(item["speaker"]), words, characters)


def _counts(item: Any) -> Counts:
    values = _integers(item[name] for name in ("reference", "substitutions", "deletions", "insertions"))
    counts = Counts(*values)
    if counts.substitutions + counts.deletions > counts.reference:
        raise ValueError("more errors than the reference has units")
    return counts


def _integers(values: Iterable[Any]) -> list[int]:
    result = list(values)
    for value in result:
        if type(value) is not int or value < 0:
            raise ValueError(f"{value!r} is not a count")
    return result


def _number(value: Any) -> float | None:
    return None if value is None else float(value)
