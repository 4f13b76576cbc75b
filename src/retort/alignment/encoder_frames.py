"""Which frame of an alignment each frame of an encoder is."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from retort.alignment.alignment import Alignment
from retort.alignment.mfcc import FRAME_SHIFT
from retort.alignment.store import AlignmentStore
from retort.common.errors import BadUtterance, UserError

LENGTH_TOLERANCE = 0.03
"""Share by which features and alignment may differ in length; two frames of the alignment always may."""
_AT_SPEED = re.compile(r"(.+)_sp(\d+(?:\.\d+)?)")
"""How lhotse names a cut at another speed."""


class Placed(NamedTuple):
    """An utterance's alignment, and which of its frames stands for each encoder frame: `places (T',)`."""

    alignment: Alignment
    places: NDArray[np.int64]

    @property
    def senones(self) -> NDArray[np.int64]:
        """`(T',)`, of the encoder's frames."""
        return self.alignment.senones[self.places].astype(np.int64)


class EncoderFrames:
    """Lays alignments of utterances at their own speed beside what an encoder makes of them.

    An encoder frame takes the label of the middle of what it stands for; where the features go on behind the
    alignment, the last label goes on. Cuts at another speed (`NAME_sp0.9`) take the alignment of `NAME`, stretched.

    Args:
        alignments: by the ids of the cuts.
        subsampling: feature frames of 10 ms to one of the encoder.

    Raises:
        UserError: a frame of the encoder is not one or several whole ones of the alignments.
    """

    def __init__(self, alignments: AlignmentStore, subsampling: int) -> None:
        self.alignments = alignments
        self.subsampling = subsampling
        self.shift = max(1, round(alignments.frame_shift / FRAME_SHIFT))
        self.factor = subsampling // self.shift
        if self.factor * self.shift != subsampling:
            raise UserError(
                f"its frames are of {self.shift * 10} ms, the student's of {subsampling * 10} ms",
                where=alignments.folder,
                remedy="Give the front end another stride, or align at the student's rate",
            )

    def __call__(self, name: str, features: int, frames: int) -> Placed:
        """Of one utterance.

        Args:
            name: id of the cut.
            features: feature frames of 10 ms.
            frames: what the encoder makes of them.

        Raises:
            BadUtterance: it has no alignment, or one of another length.
        """
        alignment, speed = self._find(name)
        own = len(alignment.senones)
        length = max(1, round(own / speed))
        if abs(length * self.shift - features) > max(LENGTH_TOLERANCE * features, 2 * self.shift):
            raise BadUtterance(
                f"its alignment has {length * self.shift} frames of 10 ms, its features {features}", where=name
            )
        places = np.arange(frames) * self.factor + self.factor // 2
        places = np.minimum(places, length - 1)
        return Placed(alignment, np.minimum(((places + 0.5) * speed).astype(np.int64), own - 1))

    def _find(self, name: str) -> tuple[Alignment, float]:
        """Its alignment, and at which speed of that the cut is heard."""
        original, speed = name, 1.0
        listed = name in self.alignments or name in self.alignments.skipped
        if not listed and (match := _AT_SPEED.fullmatch(name)):
            original, speed = match[1], float(match[2])
        if original not in self.alignments:
            raise BadUtterance(self.alignments.skipped.get(original, "it has no alignment"), where=name)
        return self.alignments[original], speed
