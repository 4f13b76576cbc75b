"""Error rates of an exported model, computed by the engine that will run it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from retort.common.errors import BadUtterance, UserError
from retort.corpora.cuts import CheckedCuts
from retort.corpora.waves import load_samples
from retort.decoding.transcriber import Transcriber
from retort.evaluation.scoring import score
from retort.text.normalise import Normaliser

LARGEST_DIFFERENCE = 0.001
"""Largest difference of error rates between torch and a float32 export."""
LARGEST_LOSS = 0.02
"""Largest relative increase of the errors by quantisation."""

Recognise: TypeAlias = Callable[[np.ndarray], str]
"""From `samples (N,)` float32 to a text."""


@dataclass(frozen=True)
class EngineScore:
    """Errors of one engine on one test set.

    Attributes:
        wer, cer: error rates, as fractions.
        real_time: decoding time per second of audio, on one thread.
    """

    wer: float
    cer: float
    real_time: float

    def to_dict(self) -> dict[str, float]:
        """The content of `export.json`."""
        return {"wer": round(self.wer, 5), "cer": round(self.cer, 5), "real_time": round(self.real_time, 4)}


def recognise_with(recogniser: Transcriber) -> Recognise:
    """The greedy texts of a recogniser."""
    return lambda samples: recogniser.transcribe_samples(samples).text


def score_engine(
    recognise: Recognise, cuts: CheckedCuts, normalise: Normaliser, sampling_rate: int
) -> EngineScore:
    """Recognise every utterance by itself and count the errors.

    An utterance that cannot be recognised counts as empty.

    Raises:
        UserError: there is no utterance with a text.
    """
    references: dict[str, str] = {}
    hypotheses: dict[str, str] = {}
    seconds = spent = 0.0
    for cut in cuts.cuts:
        references[cut.id] = normalise(cut.supervisions[0].text or "")
        try:
            samples = load_samples(cut, sampling_rate)
            started = time.perf_counter()
            hypotheses[cut.id] = normalise(recognise(samples))
        except BadUtterance:
            continue
        spent += time.perf_counter() - started
        seconds += len(samples) / sampling_rate
    found = score(references, hypotheses)
    return EngineScore(found.words.rate, found.characters.rate, spent / max(seconds, 1e-9))


def check_scores(scores: Mapping[str, EngineScore], measure: str) -> None:
    """Compare an export with the model in torch, and a quantised export with the one in float32.

    Args:
        scores: by engine; `torch` first, then the export, then `int8` if there is one.
        measure: `wer` or `cer`.

    Raises:
        UserError: a difference is larger than :data:`LARGEST_DIFFERENCE` or :data:`LARGEST_LOSS`.
    """
    remedy = "Use the export anyway with --accept"
    rates = {name: float(getattr(each, measure)) for name, each in scores.items()}
    exported = next(name for name in rates if name not in ("torch", "int8"))
    difference = rates[exported] - rates["torch"]
    if abs(difference) > LARGEST_DIFFERENCE + 1e-9:
        raise UserError(
            f"the {measure.upper()} of {exported} is {rates[exported]:.2%}, that of torch {rates['torch']:.2%}",
            remedy=remedy,
        )
    if "int8" in rates and rates["int8"] > rates[exported] * (1 + LARGEST_LOSS) + 1e-9:
        raise UserError(
            f"the {measure.upper()} of int8 is {rates['int8']:.2%}, that of float32 {rates[exported]:.2%}",
            remedy=f"Export without --int8. {remedy}",
        )


def scores_table(scores: Mapping[str, EngineScore]) -> str:
    """The scores as a Markdown table."""
    lines = ["| engine | WER | CER | real-time factor |", "|---|---|---|---|"]
    lines += [
        f"| {name} | {each.wer:.2%} | {each.cer:.2%} | {each.real_time:.3f} |"
        for name, each in scores.items()
    ]
    return "\n".join(lines)
