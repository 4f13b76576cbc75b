"""Frame predictions of a hybrid student over time, compared with the alignment, and the recognised words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from lhotse.cut import Cut
from numpy.typing import NDArray

from retort.alignment.alignment import Timed, runs
from retort.alignment.encoder_frames import EncoderAlignment, EncoderFrames
from retort.alignment.phones import SILENCE
from retort.alignment.store import AlignmentStore
from retort.common.errors import BadUtterance, UserError
from retort.corpora.features import CutFeatures
from retort.decoding.options import GREEDY
from retort.decoding.recogniser import Recogniser
from retort.decoding.transcript import time_candidates
from retort.students.hybrid import HybridStudent
from retort.students.student import Encoded, check_length


class Span(NamedTuple):
    """A text from `start` to `end` in seconds, and whether it agrees with the alignment, if known."""

    text: str
    start: float
    end: float
    right: bool | None = None


@dataclass(frozen=True)
class FrameView:
    """Frame predictions of one utterance in free-running recognition.

    Attributes:
        features: `(T, bins)` float32 after CMVN, a frame every 10 ms.
        words: words of the alignment, with silences between them; empty without an alignment.
        phones: phones of the alignment, without silence.
        guesses: phones of the most likely senones of frames, merged if consecutive ones are equal, without
            silence. A phone is right if it is the aligned one in at least half of its frames.
        recognised: recognised words.
    """

    features: NDArray[np.float32]
    words: list[Span]
    phones: list[Span]
    guesses: list[Span]
    recognised: list[Span]


@torch.inference_mode()
def compute_frame_view(recogniser: Recogniser, cut: Cut, alignments: AlignmentStore | None) -> FrameView:
    """Compute the frame predictions of one cut.

    Args:
        alignments: alignments in the student's senones, not necessarily of this cut; required for phone names.

    Raises:
        UserError: the model is not a hybrid student.
        BadUtterance: its audio is not usable.
    """
    student = recogniser.student
    if not isinstance(student, HybridStudent):
        raise UserError(f"a {student.config.kind} student has no senones")
    features = CutFeatures(recogniser.features)(cut)
    check_length(student.encoder, features.shape[0], cut.id)
    encoded = recogniser.encode([features])
    length = int(encoded.lengths[0])
    recognised = _recognised(recogniser, encoded, cut.duration)
    if alignments is None:
        return FrameView(features.numpy(), [], [], [], recognised)
    senones = student.log_posteriors(encoded)[0].argmax(-1)[:length].cpu().numpy()
    try:
        placed = EncoderFrames(alignments, student.encoder.subsampling)(cut.id, features.shape[0], length)
    except BadUtterance:
        placed = None
    shift = alignments.frame_shift
    return FrameView(
        features.numpy(),
        [] if placed is None else _spans(placed.alignment.words, shift),
        [] if placed is None else _spans(placed.alignment.phones, shift),
        _guesses(senones, alignments, placed, recogniser.frame_seconds),
        recognised,
    )


def _recognised(recogniser: Recogniser, encoded: Encoded, duration: float) -> list[Span]:
    (found,) = recogniser.opened(GREEDY)(encoded)
    if isinstance(found, BadUtterance):
        return []
    (best,) = time_candidates(found, 1, recogniser.tokenizer, recogniser.frame_seconds, 0.0, duration)
    return [Span(word.text, word.start, word.end) for word in best.transcript.words]


def _spans(timed: Sequence[Timed], shift: float) -> list[Span]:
    return [
        Span(each.symbol, each.start * shift, (each.start + each.frames) * shift)
        for each in timed
        if each.symbol != SILENCE
    ]


def _guesses(
    senones: NDArray[np.int64], alignments: AlignmentStore, placed: EncoderAlignment | None, shift: float
) -> list[Span]:
    names = alignments.tree.phones_of_senones()
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    phone_of = np.array([numbers[name] for name in names])
    phones = phone_of[senones]
    agree = None if placed is None else phones == phone_of[placed.senones]
    spans = []
    for start, count in zip(*runs(phones)):
        right = None if agree is None else bool(agree[start : start + count].mean() >= 0.5)
        name = names[int(senones[start])]
        if name != SILENCE:
            spans.append(Span(name, start * shift, (start + count) * shift, right))
    return spans
