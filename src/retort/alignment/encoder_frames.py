"""Maps encoder frames to frames of an alignment."""

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
"""Allowed relative difference in length between features and alignment; two alignment frames are always allowed."""
_AT_SPEED = re.compile(r"(.+)_sp(\d+(?:\.\d+)?)")
"""Name of a cut at another speed in lhotse."""


class EncoderAlignment(NamedTuple):
    """An alignment with the alignment frame of each encoder frame: `places (T',)`."""

    alignment: Alignment
    places: NDArray[np.int64]

    @property
    def senones(self) -> NDArray[np.int64]:
        """`(T',)`, senones of the encoder frames."""
        return self.alignment.senones[self.places].astype(np.int64)


class EncoderFrames:
    """Maps alignments to the frames of an encoder.

    An encoder frame has the label of the middle of its span; if the features are longer than the alignment,
    the last label is repeated. Cuts at another speed (`NAME_sp0.9`) use the stretched alignment of `NAME`.

    Args:
        alignments: alignments by cut id.
        subsampling: feature frames of 10 ms per encoder frame.

    Raises:
        UserError: an encoder frame is not a multiple of an alignment frame.
    """

    def __init__(self, alignments: AlignmentStore, subsampling: int) -> None:
        self.alignments = alignments
        self.subsampling = subsampling
        self.shift = max(1, round(alignments.frame_shift / FRAME_SHIFT))
        self.factor = subsampling // self.shift
        if self.factor * self.shift != subsampling:
            raise UserError(
                f"its frames have {self.shift * 10} ms, the student's {subsampling * 10} ms",
                where=alignments.folder,
                remedy="Change the stride of the front end, or align at the student's frame rate",
            )

    def __call__(self, name: str, features: int, frames: int) -> EncoderAlignment:
        """Map one utterance.

        Args:
            name: id of the cut.
            features: number of feature frames of 10 ms.
            frames: number of encoder frames.

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
        return EncoderAlignment(alignment, np.minimum(((places + 0.5) * speed).astype(np.int64), own - 1))

    def _find(self, name: str) -> tuple[Alignment, float]:
        """The alignment, and the speed of the cut relative to it."""
        original, speed = name, 1.0
        listed = name in self.alignments or name in self.alignments.skipped
        if not listed and (match := _AT_SPEED.fullmatch(name)):
            original, speed = match[1], float(match[2])
        if original not in self.alignments:
            raise BadUtterance(self.alignments.skipped.get(original, "it has no alignment"), where=name)
        return self.alignments[original], speed
