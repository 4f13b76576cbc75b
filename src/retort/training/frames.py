"""What frames learn of an alignment: their senones, and which piece of what a teacher reads each of them is."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from retort.audio.fbank import FRAME_SHIFT
from retort.errors import BadUtterance, UserError
from retort.hybrid.alignment import Alignment
from retort.hybrid.pieces import piece_segments
from retort.hybrid.store import AlignmentStore
from retort.hybrid.unit_text import unit_text
from retort.text.tokenizers import Piece, Tokenizer

APART = 0.03
"""Share by which features and alignment may differ in length; two frames of the alignment always may."""
_AT_SPEED = re.compile(r"(.+)_sp(\d+(?:\.\d+)?)")
"""How lhotse names a cut at another speed."""


ReadUnit = Literal["text", "senone", "phone"]
"""What a teacher of frames reads, as `TeacherConfig.unit` says."""


class FrameReader(NamedTuple):
    """A teacher of frames: what it reads, and its own pieces of that."""

    unit: ReadUnit
    tokenizer: Tokenizer


class Laid(NamedTuple):
    """What a teacher reads of one utterance, and the piece of it that each frame is: `segments (T,)`, -1 for none."""

    text: str
    pieces: list[Piece]
    segments: NDArray[np.int64]


@dataclass
class FrameTexts:
    """What a teacher reads of the utterances of a batch.

    Attributes:
        texts: transcripts, or texts of units.
        pieces: each text's, in the teacher's own symbols.
        segments: `(B, T')` int64: which piece each encoder frame is, -1 for none.
    """

    texts: list[str]
    pieces: list[list[Piece]]
    segments: Tensor

    def to(self, device: torch.device) -> FrameTexts:
        """The same with its tensor on `device`."""
        return replace(self, segments=self.segments.to(device))


@dataclass(frozen=True)
class UtteranceFrames:
    """Of one utterance: `senones (T',)` of the encoder's frames, and by teacher what it reads."""

    senones: NDArray[np.int64]
    laid: dict[str, Laid]


class FrameLabels:
    """Labels of encoder frames from alignments of the utterances at their own speed.

    An encoder frame takes the label of the middle of what it stands for; where the features go on behind the
    alignment, the last label goes on. Cuts at another speed (`NAME_sp0.9`) take the alignment of `NAME`, stretched.

    Args:
        alignments: by the ids of the cuts.
        readers: by name, the teachers that rows on frames have.
        subsampling: feature frames of 10 ms to one of the encoder.

    Raises:
        UserError: a frame of the encoder is not one or several whole ones of the alignments.
    """

    def __init__(
        self, alignments: AlignmentStore, readers: Mapping[str, FrameReader], subsampling: int
    ) -> None:
        self.alignments, self.readers = alignments, readers
        self.shift = max(1, round(alignments.frame_shift / FRAME_SHIFT))
        self.factor = subsampling // self.shift
        if self.factor * self.shift != subsampling:
            raise UserError(
                f"its frames are of {self.shift * 10} ms, the student's of {subsampling * 10} ms",
                where=alignments.folder,
                remedy="Give the front end another stride, or align at the student's rate",
            )

    def __call__(self, name: str, text: str, features: int, frames: int) -> UtteranceFrames:
        """What an utterance's frames are.

        Args:
            name: id of the cut.
            text: its transcript in normal form.
            features: feature frames of 10 ms.
            frames: what the encoder makes of them.

        Raises:
            BadUtterance: it has no alignment, or one of another length or of other words.
            UserError: a teacher's pieces are not the units that it is to read.
        """
        alignment, speed = self._find(name)
        places = self._places(alignment, speed, name, features, frames)
        laid = {}
        for teacher, reader in self.readers.items():
            read, pieces, segments = _lay(alignment, teacher, reader, text)
            laid[teacher] = Laid(read, pieces, segments[places])
        return UtteranceFrames(alignment.senones[places].astype(np.int64), laid)

    def without_teachers(self) -> FrameLabels:
        """The same for senones alone."""
        return FrameLabels(self.alignments, {}, self.factor * self.shift)

    def _find(self, name: str) -> tuple[Alignment, float]:
        """Its alignment, and at which speed of that the cut is heard."""
        original, speed = name, 1.0
        known = name in self.alignments or name in self.alignments.skipped
        if not known and (match := _AT_SPEED.fullmatch(name)):
            original, speed = match[1], float(match[2])
        if original not in self.alignments:
            raise BadUtterance(self.alignments.skipped.get(original, "it has no alignment"), where=name)
        return self.alignments[original], speed

    def _places(
        self, alignment: Alignment, speed: float, name: str, features: int, frames: int
    ) -> NDArray[np.int64]:
        """Which of the alignment's frames stands for each encoder frame: `(frames,)`."""
        own = len(alignment.senones)
        heard = max(1, round(own / speed))
        if abs(heard * self.shift - features) > max(APART * features, 2 * self.shift):
            raise BadUtterance(
                f"its alignment has {heard * self.shift} frames of 10 ms, its features {features}", where=name
            )
        places = np.arange(frames) * self.factor + self.factor // 2
        places = np.minimum(places, heard - 1)
        return np.minimum(((places + 0.5) * speed).astype(np.int64), own - 1)


def _lay(alignment: Alignment, teacher: str, reader: FrameReader, text: str) -> Laid:
    """What a teacher reads, at the alignment's own rate: no unit is lost, however short."""
    if reader.unit == "text":
        pieces = reader.tokenizer.pieces(text)
        return Laid(
            text, pieces, piece_segments(alignment, text, [(each.start, each.end) for each in pieces])
        )
    read, segments = unit_text(alignment, reader.unit)
    pieces = reader.tokenizer.pieces(read)
    if len(pieces) != len(read.split()):
        raise UserError(
            f"the pieces of teacher '{teacher}' are not {reader.unit}s",
            remedy=f"Give it a language model over {reader.unit}s, or teachers.{teacher}.unit: text",
        )
    return Laid(read, pieces, segments)


def collate(utterances: Sequence[UtteranceFrames]) -> tuple[Tensor, dict[str, FrameTexts]]:
    """`senones (B, T')` of a batch, padded with -1, and by teacher what it reads."""
    laid = {
        teacher: FrameTexts(
            [each.laid[teacher].text for each in utterances],
            [each.laid[teacher].pieces for each in utterances],
            _padded([each.laid[teacher].segments for each in utterances]),
        )
        for teacher in utterances[0].laid
    }
    return _padded([each.senones for each in utterances]), laid


def _padded(rows: Sequence[NDArray[np.int64]]) -> Tensor:
    return pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True, padding_value=-1)
