"""What frames learn of an alignment: their senones, and which piece of what a teacher reads each of them is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from retort.alignment.alignment import Alignment
from retort.alignment.encoder_frames import EncoderFrames
from retort.alignment.store import AlignmentStore
from retort.alignment.unit_text import piece_segments, unit_text
from retort.common.errors import UserError
from retort.text.tokenizers import Piece, Tokenizer

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
    """Labels of encoder frames from alignments, laid beside them by :class:`EncoderFrames`.

    Args:
        alignments: by the ids of the cuts, at their own speed.
        readers: by name, the teachers that rows on frames have.
        subsampling: feature frames of 10 ms to one of the encoder.

    Raises:
        UserError: a frame of the encoder is not one or several whole ones of the alignments.
    """

    def __init__(
        self, alignments: AlignmentStore, readers: Mapping[str, FrameReader], subsampling: int
    ) -> None:
        self.readers = readers
        self.frames = EncoderFrames(alignments, subsampling)

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
        placed = self.frames(name, features, frames)
        laid = {}
        for teacher, reader in self.readers.items():
            read, pieces, segments = _lay(placed.alignment, teacher, reader, text)
            laid[teacher] = Laid(read, pieces, segments[placed.places])
        return UtteranceFrames(placed.senones, laid)


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
