"""Fires of a CIF student: their times, and errors of their number."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from lhotse.cut import Cut
from numpy.typing import NDArray

from retort.audio.fbank import FRAME_SHIFT
from retort.common.errors import BadUtterance, UserError
from retort.corpora.features import CutFeatures
from retort.decoding.greedy import greedy_fired
from retort.decoding.recogniser import Recogniser
from retort.students.cif import CifStudent
from retort.students.ctc import ctc_log_probs
from retort.students.student import check_length
from retort.text.tokenizers import BLANK

END = "∎"
"""Symbol for EOS in plots."""


@dataclass(frozen=True)
class Firing:
    """Fires of one utterance in free-running recognition.

    Attributes:
        features: `(T, bins)` float32 after CMVN, a frame every 10 ms.
        alphas: `(T',)` float32 weights, one per encoder frame; for fires at the peaks of the CTC head the probability of
            any label but the blank.
        fire_times: `(U,)` float32 encoder frames at which tokens are complete.
        labels: labels of the U tokens; empty after EOS.
        frame_seconds: duration of an encoder frame.
    """

    features: NDArray[np.float32]
    alphas: NDArray[np.float32]
    fire_times: NDArray[np.float32]
    labels: list[str]
    frame_seconds: float


@torch.inference_mode()
def compute_firing(recogniser: Recogniser, cut: Cut) -> Firing:
    """Compute the fires of one cut.

    Raises:
        UserError: the model is not a CIF student.
        BadUtterance: its audio is not usable.
    """
    student = _cif(recogniser)
    features = _features(recogniser, CutFeatures(recogniser.features), cut)
    encoded = student.encode(features[None].to(recogniser.device), _length(recogniser, features))
    fired = student.fire(encoded)
    ids = greedy_fired(student, fired, encoded)[0].ids
    count = int(fired.lengths[0])
    labels = [surface.replace(" ", "␣") for surface in recogniser.tokenizer.surfaces(ids)]
    labels = [*labels, END, *[""] * count][:count]
    if student.weights is None:
        alphas = 1.0 - ctc_log_probs(student, encoded)[..., BLANK].exp()
    else:
        alphas = student.weights(encoded.hidden, encoded.lengths, student.encoder.chunks)
    alphas = alphas[0, : int(encoded.lengths[0])]
    return Firing(
        features.numpy(),
        alphas.float().cpu().numpy(),
        fired.fire_times[0, :count].float().cpu().numpy(),
        labels,
        FRAME_SHIFT * student.encoder.subsampling,
    )


@torch.inference_mode()
def length_errors(
    recogniser: Recogniser, cuts: Sequence[Cut], progress: Callable[[int, int], None] | None = None
) -> dict[str, int]:
    """Number of fired tokens in free-running recognition minus reference tokens, EOS included, by utterance id.

    Utterances whose audio is not usable are omitted.

    Raises:
        UserError: the model is not a CIF student.
    """
    student, made = _cif(recogniser), CutFeatures(recogniser.features)
    errors = {}
    for index, cut in enumerate(cuts):
        try:
            features = _features(recogniser, made, cut)
        except BadUtterance:
            continue
        encoded = student.encode(features[None].to(recogniser.device), _length(recogniser, features))
        text = recogniser.normalise(cut.supervisions[0].text or "")
        wanted = len(recogniser.tokenizer.encode(text)) + 1
        errors[cut.id] = int(student.fire(encoded).lengths[0]) - wanted
        if progress is not None:
            progress(index + 1, len(cuts))
    return errors


def _cif(recogniser: Recogniser) -> CifStudent:
    if not isinstance(recogniser.student, CifStudent):
        raise UserError(f"a {recogniser.student.config.kind} student does not fire tokens")
    return recogniser.student


def _features(recogniser: Recogniser, made: CutFeatures, cut: Cut) -> torch.Tensor:
    features = made(cut)
    check_length(recogniser.student.encoder, features.shape[0], cut.id)
    return features


def _length(recogniser: Recogniser, features: torch.Tensor) -> torch.Tensor:
    return torch.tensor([features.shape[0]], device=recogniser.device)
