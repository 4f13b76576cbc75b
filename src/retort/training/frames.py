"""Labels of encoder frames from alignments: senones, and the pieces of teachers of frames."""

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
"""Unit of a teacher of frames, see `TeacherConfig.unit`."""


class FrameReader(NamedTuple):
    """A teacher of frames: its unit and its tokenizer."""

    unit: ReadUnit
    tokenizer: Tokenizer


class TeacherInput(NamedTuple):
    """Input of a teacher for one utterance, and the piece of each frame: `segments (T,)`, -1 for none."""

    text: str
    pieces: list[Piece]
    segments: NDArray[np.int64]


@dataclass
class FrameTexts:
    """Input of a teacher for the utterances of a batch.

    Attributes:
        texts: transcripts, or texts of units.
        pieces: pieces of each text in the teacher's symbols.
        segments: `(B, T')` int64: index of the piece of each encoder frame, -1 for none.
    """

    texts: list[str]
    pieces: list[list[Piece]]
    segments: Tensor

    def to(self, device: torch.device) -> FrameTexts:
        """The same with its tensor on `device`."""
        return replace(self, segments=self.segments.to(device))


@dataclass(frozen=True)
class UtteranceFrames:
    """Labels of one utterance: `senones (T',)` of encoder frames, and the input of each teacher."""

    senones: NDArray[np.int64]
    inputs: dict[str, TeacherInput]


class FrameLabels:
    """Labels of encoder frames from alignments, mapped to frames by :class:`EncoderFrames`.

    Args:
        alignments: by the ids of the cuts, without speed perturbation.
        readers: teachers of rows on frames, by name.
        subsampling: feature frames of 10 ms per encoder frame.

    Raises:
        UserError: an encoder frame is not a multiple of the alignments' frame.
    """

    def __init__(
        self, alignments: AlignmentStore, readers: Mapping[str, FrameReader], subsampling: int
    ) -> None:
        self.readers = readers
        self.frames = EncoderFrames(alignments, subsampling)

    def __call__(self, name: str, text: str, features: int, frames: int) -> UtteranceFrames:
        """The labels of an utterance.

        Args:
            name: id of the cut.
            text: its normalised transcript.
            features: number of feature frames of 10 ms.
            frames: number of encoder frames.

        Raises:
            BadUtterance: it has no alignment, or one of another length or with other words.
            UserError: a teacher's pieces are not its units.
        """
        placed = self.frames(name, features, frames)
        inputs = {}
        for teacher, reader in self.readers.items():
            read, pieces, segments = _teacher_input(placed.alignment, teacher, reader, text)
            inputs[teacher] = TeacherInput(read, pieces, segments[placed.places])
        return UtteranceFrames(placed.senones, inputs)


def _teacher_input(alignment: Alignment, teacher: str, reader: FrameReader, text: str) -> TeacherInput:
    """Input of a teacher, at the frame rate of the alignment, so that no short unit is lost."""
    if reader.unit == "text":
        pieces = reader.tokenizer.pieces(text)
        return TeacherInput(
            text, pieces, piece_segments(alignment, text, [(each.start, each.end) for each in pieces])
        )
    read, segments = unit_text(alignment, reader.unit)
    pieces = reader.tokenizer.pieces(read)
    if len(pieces) != len(read.split()):
        raise UserError(
            f"the pieces of teacher '{teacher}' are not {reader.unit}s",
            remedy=f"Choose a language model over {reader.unit}s, or teachers.{teacher}.unit: text",
        )
    return TeacherInput(read, pieces, segments)


def collate(utterances: Sequence[UtteranceFrames]) -> tuple[Tensor, dict[str, FrameTexts]]:
    """`senones (B, T')` of a batch, padded with -1, and the input of each teacher."""
    inputs = {
        teacher: FrameTexts(
            [each.inputs[teacher].text for each in utterances],
            [each.inputs[teacher].pieces for each in utterances],
            _padded([each.inputs[teacher].segments for each in utterances]),
        )
        for teacher in utterances[0].inputs
    }
    return _padded([each.senones for each in utterances]), inputs


def _padded(rows: Sequence[NDArray[np.int64]]) -> Tensor:
    return pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True, padding_value=-1)
