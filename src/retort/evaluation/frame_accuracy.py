"""How often a hybrid student holds the aligned senone most likely, counted while utterances are recognised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from lhotse.cut import Cut
from torch import Tensor

from retort.alignment.encoder_frames import EncoderFrames
from retort.alignment.store import AlignmentStore
from retort.common.errors import BadUtterance
from retort.students.hybrid import HybridStudent
from retort.students.student import Encoded, Student


@dataclass(frozen=True)
class FrameAccuracy:
    """Frames of the encoder with a senone, silences counted, and of how many it is the student's first guess.

    Attributes:
        utterances: that have an alignment.
    """

    correct: int
    frames: int
    utterances: int

    @property
    def rate(self) -> float:
        """Share of the frames."""
        return self.correct / self.frames

    @classmethod
    def from_dict(cls, content: Mapping[str, int]) -> FrameAccuracy:
        """Of what `dataclasses.asdict` gave."""
        return cls(*(int(content[key]) for key in ("correct", "frames", "utterances")))


class FrameWatch:
    """Counts at every batch that :func:`retort.evaluation.recognise.recognise` shows it: no frame is encoded twice.

    Utterances without an alignment, or with one of another length, are passed over.

    Args:
        student: whose frames they are.
        alignments: of the utterances, in the student's senones.

    Raises:
        UserError: as :class:`EncoderFrames`.
        ValueError: they have another number of senones.
    """

    def __init__(self, student: HybridStudent, alignments: AlignmentStore) -> None:
        if alignments.tree.count != student.output.out_features:
            raise ValueError(
                f"alignments of {alignments.tree.count} senones, a student of {student.output.out_features}"
            )
        self.student = student
        self._frames = EncoderFrames(alignments, student.encoder.subsampling)
        self._correct = self._count = self._utterances = 0

    def __call__(self, cuts: Sequence[Cut], features: Sequence[Tensor], encoded: Encoded) -> None:
        """Count a batch.

        Args:
            features: `(T, bins)` of each cut.
            encoded: what the student's encoder made of them.
        """
        guesses = self.student.log_posteriors(encoded).argmax(-1).cpu().numpy()
        for cut, heard, guessed, length in zip(cuts, features, guesses, encoded.lengths.tolist()):
            try:
                senones = self._frames(cut.id, heard.shape[0], length).senones
            except BadUtterance:
                continue
            self._correct += int(np.count_nonzero(guessed[:length] == senones))
            self._count += length
            self._utterances += 1

    @property
    def found(self) -> FrameAccuracy | None:
        """Of all that was seen; None where no utterance had an alignment."""
        return FrameAccuracy(self._correct, self._count, self._utterances) if self._count else None


def watch_frames(student: Student, alignments: AlignmentStore | None) -> FrameWatch | None:
    """A watch over a hybrid student's frames; None of another student, or without alignments."""
    if alignments is None or not isinstance(student, HybridStudent):
        return None
    return FrameWatch(student, alignments)
