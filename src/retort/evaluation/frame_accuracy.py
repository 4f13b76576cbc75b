"""Frame accuracy: how often the most likely senone of a hybrid student is the aligned one."""

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
    """Number of encoder frames with an aligned senone, silence included, and of those predicted correctly.

    Attributes:
        utterances: number of utterances with an alignment.
    """

    correct: int
    frames: int
    utterances: int

    @property
    def rate(self) -> float:
        """Fraction of the frames."""
        return self.correct / self.frames

    @classmethod
    def from_dict(cls, content: Mapping[str, int]) -> FrameAccuracy:
        """From the result of `dataclasses.asdict`."""
        return cls(*(int(content[key]) for key in ("correct", "frames", "utterances")))


class FrameWatch:
    """Counts frames in every batch of :func:`retort.evaluation.recognise.recognise`, without encoding them again.

    Utterances without an alignment, or with one of another length, are skipped.

    Args:
        student: student whose frames are counted.
        alignments: alignments of the utterances in the student's senones.

    Raises:
        UserError: as :class:`EncoderFrames`.
        ValueError: the numbers of senones differ.
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
            encoded: output of the student's encoder.
        """
        guesses = self.student.log_posteriors(encoded).argmax(-1).cpu().numpy()
        for cut, feature, guessed, length in zip(cuts, features, guesses, encoded.lengths.tolist()):
            try:
                senones = self._frames(cut.id, feature.shape[0], length).senones
            except BadUtterance:
                continue
            self._correct += int(np.count_nonzero(guessed[:length] == senones))
            self._count += length
            self._utterances += 1

    @property
    def found(self) -> FrameAccuracy | None:
        """Result over all batches; None if no utterance had an alignment."""
        return FrameAccuracy(self._correct, self._count, self._utterances) if self._count else None


def watch_frames(student: Student, alignments: AlignmentStore | None) -> FrameWatch | None:
    """A :class:`FrameWatch` for a hybrid student with alignments; otherwise None."""
    if alignments is None or not isinstance(student, HybridStudent):
        return None
    return FrameWatch(student, alignments)
