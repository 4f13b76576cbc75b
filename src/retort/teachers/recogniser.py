"""A trained recogniser of this project as a teacher of soft labels: distributions over the next token given the audio and
the reference so far.

With a student that is trained in chunks and a teacher that reads whole utterances this is delayed distillation: the
student learns, with the audio up to its chunk, what the teacher knows with all of the audio.
Source: Li et al. 2025 (arXiv 2505.22069), there for CTC.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import numpy as np
import torch
from omegaconf import MISSING
from torch import Tensor

from retort.common.errors import BadUtterance, UserError
from retort.config.ranges import MILLION, number
from retort.config.schema import TeacherConfig
from retort.teachers.posteriors import Posteriors, PosteriorTeacher
from retort.teachers.whisper import SamplesOf, utterance_and_text
from retort.text.tokenizers import Piece, Tokenizer


@dataclass
class RecogniserTeacherConfig(TeacherConfig):
    """Configuration of :class:`RecogniserPosteriorTeacher`; `model` is an experiment or a release with the student's
    tokenizer."""

    kind: str = "recogniser"
    """Kind of the teacher."""
    topk: int = number(MISSING, 1, MILLION)
    """Number of most probable student tokens stored per position."""

    @property
    def reads_audio(self) -> bool:
        return True


class ForcedRecogniser(Protocol):
    """A recogniser whose tokens are given.

    Attributes:
        sampling_rate: of its audio, Hz.
        symbols: its pieces.
        fingerprint: of its weights and configuration.
    """

    sampling_rate: int
    symbols: Sequence[str]
    fingerprint: str

    def log_probs(self, waves: Sequence[np.ndarray], tokens: Sequence[Sequence[int]]) -> list[Tensor | None]:
        """Log-probabilities `(U + 1, V)` of each of the U tokens and of EOS after it, for each wave `(N,)`; None for a
        wave that it cannot encode."""


OpenRecogniser: TypeAlias = "Callable[[str, torch.device | str], ForcedRecogniser]"
"""Opens the recogniser of a folder on a device."""


class RecogniserPosteriorTeacher(PosteriorTeacher):
    """A recogniser that reads the audio and the reference. Utterances that it cannot encode have no soft labels.

    Args:
        config: model and `topk`.
        tokenizer: tokenizer of the student.
        samples_of: returns the audio of an utterance.
        recogniser: the model.
        device: as in the base class.
        batch: number of utterances in one forward pass.

    Raises:
        UserError: the model has other pieces than the student.
    """

    def __init__(
        self,
        config: RecogniserTeacherConfig,
        tokenizer: Tokenizer,
        samples_of: SamplesOf,
        recogniser: ForcedRecogniser,
        device: torch.device | str = "cpu",
        *,
        batch: int = 8,
    ) -> None:
        super().__init__(config, tokenizer, device)
        if list(recogniser.symbols) != list(tokenizer.symbols):
            raise UserError(
                f"its {len(recogniser.symbols)} pieces differ from the {tokenizer.size} pieces of the student",
                where=config.model,
                remedy="Set tokenizer.kind: init, and training.init to the same model",
            )
        self.samples_of, self.recogniser, self.batch = samples_of, recogniser, batch

    def identity(self) -> dict[str, object]:
        return self._identity(self.recogniser.fingerprint, audio="with the tokens of the reference")

    def _text(self, request: str) -> str:
        return utterance_and_text(request)[1]

    def _posteriors(self, texts: Sequence[str], pieces: Sequence[Sequence[Piece]]) -> Iterator[Posteriors]:
        order = sorted(range(len(texts)), key=lambda index: len(pieces[index]))
        for start in range(0, len(order), self.batch):
            owners, waves = [], []
            for index in order[start : start + self.batch]:
                try:
                    utterance, _ = utterance_and_text(texts[index])
                    waves.append(self.samples_of(utterance, self.recogniser.sampling_rate))
                except BadUtterance:
                    continue
                owners.append(index)
            tokens = [[piece.id for piece in pieces[index]] for index in owners]
            for owner, found in zip(owners, self.recogniser.log_probs(waves, tokens) if owners else []):
                if found is not None:
                    yield [(owner, place) for place in range(len(found))], found
