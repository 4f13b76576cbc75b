"""Detection of segments without speech: errors of both kinds, and the choice of the threshold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from lhotse import CutSet
from numpy.typing import NDArray
from scipy.optimize import minimize

from retort.audio.noise import noise_clips
from retort.common.errors import BadUtterance, UserError
from retort.common.progress import StageProgress
from retort.corpora.features import load_samples
from retort.decoding.no_speech import FARTHEST, NoSpeech, Signal
from retort.decoding.options import GREEDY, DecodingOptions
from retort.decoding.recogniser import Recogniser
from retort.decoding.signals import decoding_signals
from retort.evaluation.recognise import Recognised

CLIPS = 180
"""Seed of the synthetic noise for evaluation."""
CALIBRATION_CLIPS = 360
"""Seed of the synthetic noise for calibration."""
FALSE_ALARMS = 0.005
"""Maximum fraction of real speech that is rejected."""
EVALUATION_SEED, CALIBRATION_SEED = 2, 1
FEWEST = 20
"""Minimum number of utterances for calibration."""
_LEAST_SECONDS = 0.25
_SHRINKAGE = 1e-4
_NOISY_EVERY = 3


@dataclass(frozen=True)
class NoiseScore:
    """Results of a model on noise and on speech.

    Attributes:
        clips: number of noise clips.
        missed: number of them with a transcript.
        utterances: number of utterances of speech.
        false_alarms: number of them that were rejected as no speech.
        kinds: kinds of noise, with the number of clips that have a transcript.
    """

    clips: int
    missed: int
    utterances: int
    false_alarms: int
    kinds: dict[str, int]

    def lines(self) -> list[str]:
        """Both error rates as text, with the kinds of noise that were missed."""
        missed, alarms = (self.missed / max(self.clips, 1), self.false_alarms / max(self.utterances, 1))
        kinds = ", ".join(f"{kind} {count}" for kind, count in self.kinds.items() if count)
        return [
            f"missed noise {missed:.2%} ({self.missed} of {self.clips} clips have words{': ' * bool(kinds)}{kinds})",
            f"false alarms {alarms:.2%} ({self.false_alarms} of {self.utterances} utterances have none)",
        ]


def score_noise(
    recogniser: Recogniser,
    recognised: Recognised,
    options: DecodingOptions,
    progress: Callable[[int, int], None],
    clips: int = CLIPS,
) -> NoiseScore:
    """Recognise synthetic noise, and count the utterances of `recognised` that were rejected as noise."""
    kinds: Counter[str] = Counter()
    for number, clip in enumerate(noise_clips(clips, recogniser.sampling_rate, EVALUATION_SEED), 1):
        try:
            found = recogniser.transcribe_samples(clip.samples, options=options)
        except BadUtterance:  # no hypothesis was found
            continue
        finally:
            progress(number, clips)
        kinds[clip.kind] += bool(found.words)
    threshold = options.no_speech_threshold or recogniser.no_speech.threshold
    lost = [
        name
        for name, value in recognised.no_speech.items()
        if recognised.references[name] and not recognised.hypotheses[name] and value >= min(threshold, 1.0)
    ]
    return NoiseScore(clips, sum(kinds.values()), len(recognised.no_speech), len(lost), dict(kinds))


@dataclass(frozen=True)
class Calibrated:
    """A threshold and its error rates on the calibration data, fractions of the segments."""

    no_speech: NoSpeech
    false_alarms: float
    missed: float


def calibrate(recogniser: Recogniser, cuts: CutSet, progress: StageProgress) -> Calibrated:
    """Fit a classifier of speech and noise on `cuts` and synthetic noise, and choose its threshold.

    At most `FALSE_ALARMS` of the speech is above the threshold, which is in the middle of the gap to the noise
    if there is one. Every third utterance is also used with added noise.

    Args:
        cuts: real speech, such as the tuning set; not the data that errors are reported on.

    Raises:
        UserError: fewer than `FEWEST` utterances.
    """
    speech = [
        row
        for number, cut in enumerate(cuts, 1)
        for row in _speech_rows(recogniser, cut, number, progress, len(cuts))
    ]
    if len(speech) < FEWEST:
        raise UserError(
            f"{len(speech)} segments of speech are too few to choose a threshold",
            remedy=f"Use a manifest of at least {FEWEST} utterances",
        )
    noise: list[dict[str, float]] = []
    clips = noise_clips(CALIBRATION_CLIPS, recogniser.sampling_rate, CALIBRATION_SEED)
    for number, clip in enumerate(clips, 1):
        noise += _rows(recogniser, clip.samples) or _rows(
            recogniser, clip.samples, DecodingOptions(vad="none")
        )
        progress("noise", number, CALIBRATION_CLIPS)
    return _chosen(speech, noise)


def _speech_rows(
    recogniser: Recogniser, cut: Any, number: int, progress: StageProgress, total: int
) -> Iterator[dict[str, float]]:
    progress("speech", number, total)
    try:
        samples = load_samples(cut, recogniser.sampling_rate)
        yield from _rows(recogniser, samples)
        if number % _NOISY_EVERY == 0:
            draw = np.random.default_rng(number)
            level = samples.std() * 10 ** -draw.uniform(0.5, 1.0)
            yield from _rows(
                recogniser, (samples + level * draw.standard_normal(len(samples))).astype(np.float32)
            )
    except BadUtterance:
        return


def _rows(
    recogniser: Recogniser, samples: NDArray[np.float32], options: DecodingOptions = GREEDY
) -> list[dict[str, float]]:
    """Features of every segment."""
    rows: list[dict[str, float]] = []
    search = recogniser.opened(options)
    for piece in recogniser.speech_segments([samples], options):
        if piece.duration < _LEAST_SECONDS:
            continue
        with torch.inference_mode():
            encoded = recogniser.encode([piece.features])
            (found,) = search(encoded)
            if not isinstance(found, BadUtterance):
                best = [found[0]]
                (signals,) = decoding_signals(recogniser.student, encoded, best, [piece.duration])
                rows.append({**signals, **piece.sound})
    return rows


def _chosen(speech: Sequence[dict[str, float]], noise: Sequence[dict[str, float]]) -> Calibrated:
    """Logistic regression with equal weights of both classes, and the threshold."""
    names = list(speech[0])
    table = np.array([[row[name] for name in names] for row in [*speech, *noise]])
    truth = np.repeat([-1.0, 1.0], [len(speech), len(noise)])
    means, deviations = table.mean(0), np.maximum(table.std(0), 1e-6)
    standard = np.clip((table - means) / deviations, -FARTHEST, FARTHEST)
    standard = np.concatenate([standard, np.ones((len(table), 1))], 1)
    shares = np.where(truth > 0, 0.5 / max(len(noise), 1), 0.5 / len(speech))

    def cost(weights: NDArray[np.float64]) -> float:
        losses = np.logaddexp(0.0, -truth * (standard @ weights))
        return float((shares * losses).sum() + _SHRINKAGE * np.square(weights[:-1]).sum())

    weights = minimize(cost, np.zeros(standard.shape[1]), method="L-BFGS-B").x
    logits = standard @ weights
    spoken, silent = np.sort(logits[truth < 0]), np.sort(logits[truth > 0])
    allowed = int(FALSE_ALARMS * len(spoken))
    limit = float(spoken[len(spoken) - 1 - allowed])
    below = float(silent[int(0.01 * len(silent))]) if len(silent) else limit
    threshold = max(limit, (limit + below) / 2) + 1e-3
    signals = {
        name: Signal(float(mean), float(deviation), float(weight))
        for name, mean, deviation, weight in zip(names, means, deviations, weights)
    }
    made = NoSpeech(signals, float(weights[-1]), float(1 / (1 + np.exp(-threshold))))
    return Calibrated(
        NoSpeech.from_dict(made.to_dict()),
        float((spoken > threshold).mean()),
        float((silent <= threshold).mean()),
    )
