"""Whisper as a teacher of soft labels: distributions over the next token given the audio and the reference so far.

Its outputs depend on the utterance, so that its inputs are made by :func:`text_with_id`.
Source: Xu et al. 2022 (arXiv 2207.10600), autoregressive teachers of non-autoregressive students.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch
from omegaconf import MISSING
from torch import Tensor

from retort.audio.whisper import WhisperFeatureConfig, WhisperFeatures
from retort.common.errors import BadUtterance, UserError
from retort.config.ranges import MILLION, number
from retort.config.schema import TeacherConfig, TokenizerConfig
from retort.pretrained.whisper import open_whisper_model, whisper_tokenizer
from retort.teachers.fingerprint import model_fingerprint
from retort.teachers.masked_lm import change_case
from retort.teachers.posteriors import Posteriors, PosteriorTeacher
from retort.text.matching import matching_places, shared_pieces
from retort.text.teacher_pieces import TeacherReader
from retort.text.tokenizers import EOS, SPECIAL, Piece, Tokenizer
from retort.text.whisper_pieces import WhisperTokenizer

SamplesOf: TypeAlias = "Callable[[str, int], np.ndarray]"
"""Maps an utterance id and a sampling rate to the wave, `(N,)` float32."""
RATE, SECONDS, FRAMES = 16000, 30.0, 3000
_SEPARATOR = "\t"
"""Normalised texts contain no tab."""


@dataclass
class WhisperTeacherConfig(TeacherConfig):
    """Configuration of :class:`WhisperPosteriorTeacher`. It is a better teacher after fine-tuning on transcripts with the
    same normalisation (`retort export --for transformers`)."""

    kind: str = "whisper"
    """Kind of the teacher."""
    topk: int = number(MISSING, 1, MILLION)
    """Number of most probable student tokens stored per position."""
    language: str = "en"
    """Language code in the prompt. English-only models ignore it."""

    @property
    def reads_audio(self) -> bool:
        return True


def text_with_id(utterance: str, text: str) -> str:
    """The input of a teacher whose input includes audio: the utterance id and its text."""
    return f"{utterance}{_SEPARATOR}{text}"


def utterance_and_text(request: str) -> tuple[str, str]:
    """The two parts of :func:`text_with_id`."""
    utterance, _, text = request.partition(_SEPARATOR)
    return utterance, text


def reads_audio(teacher: object) -> bool:
    """Whether the inputs of a teacher, cache or store are made by :func:`text_with_id`."""
    return bool(getattr(teacher, "reads_audio", False))


class _DecoderInput(NamedTuple):
    """Decoder input of one utterance.

    Attributes:
        tokens: Whisper's ids of the text, without prompt and EOS.
        places: pairs of an index of the student's pieces (EOS after the last) and an index of `tokens`.
    """

    tokens: list[int]
    places: list[tuple[int, int]]


class WhisperPosteriorTeacher(PosteriorTeacher):
    """A Whisper model whose decoder input is the reference; the audio is padded to 30 s, as in its training.

    A student with Whisper's pieces shares all of them. For other students, a token has soft labels only if it is a
    piece of Whisper. Audio longer than 30 s and texts that exceed the decoder's positions get none.

    Args:
        config: model (folder or name of `transformers`), language, case and `topk`.
        tokenizer: tokenizer of the student.
        samples_of: returns the audio of an utterance.
        device: device of the model.
        batch: number of utterances in one forward pass.

    Raises:
        UserError: the model cannot be found or opened, or shares no piece with the student.
    """

    def __init__(
        self,
        config: WhisperTeacherConfig,
        tokenizer: Tokenizer,
        samples_of: SamplesOf,
        device: torch.device | str = "cpu",
        *,
        batch: int = 4,
    ) -> None:
        super().__init__(config, tokenizer, device)
        self.samples_of, self.batch = samples_of, batch
        self._model: Any = open_whisper_model(config.model).to(self.device)
        self._pieces = whisper_tokenizer(
            config.model, TokenizerConfig(kind="whisper", language=config.language), ()
        )
        bins = int(self._model.config.num_mel_bins)
        self._extract = WhisperFeatures(WhisperFeatureConfig(bins=bins, pad_seconds=SECONDS))
        self._shared = self._shared_pieces()
        end = self._pieces.pieces_of_whisper[EOS]
        self._columns = torch.tensor([*self._shared, end], device=self.device)
        self._own = torch.tensor([*self._shared.values(), EOS], device=self.device)

    def identity(self) -> dict[str, object]:
        return self._identity(
            model_fingerprint(self._model),
            pieces=self._pieces.fingerprint(),
            case=self.config.case,
            audio=f"padded to {SECONDS:g} s",
        )

    def _shared_pieces(self) -> dict[int, int]:
        """Maps Whisper's ids to the student's ids, for shared pieces."""
        if isinstance(self.tokenizer, WhisperTokenizer):
            theirs = self.tokenizer.pieces_of_whisper
            own = {theirs[each]: each for each in range(len(SPECIAL), self.tokenizer.size)}
            backend = self._pieces.backend
            if any(backend.id_to_token(piece) != self.tokenizer.symbols[each] for piece, each in own.items()):
                raise UserError(
                    "its pieces differ from those of the student's Whisper",
                    where=self.config.model,
                    remedy="Choose a teacher and a student that are both multilingual or both English",
                )
            return own
        found = shared_pieces(self.tokenizer, TeacherReader(self._pieces.backend, self.config.case))
        if not found:
            raise UserError(
                f"it shares none of the student's {self.tokenizer.size} pieces, and soft labels need shared pieces",
                where=self.config.model,
                remedy="Set tokenizer.kind: whisper",
            )
        return found

    def _text(self, request: str) -> str:
        return utterance_and_text(request)[1]

    def _posteriors(self, texts: Sequence[str], pieces: Sequence[Sequence[Piece]]) -> Iterator[Posteriors]:
        order = sorted(range(len(texts)), key=lambda index: len(pieces[index]))
        for start in range(0, len(order), self.batch):
            owners, features, inputs = [], [], []
            for index in order[start : start + self.batch]:
                utterance, text = utterance_and_text(texts[index])
                decoder_input = self._decoder_input(text, pieces[index])
                mels = self._features(utterance)
                if mels is None or len(decoder_input.tokens) + len(self._pieces.prompt) > self._positions:
                    continue
                owners.append(index)
                features.append(mels)
                inputs.append(decoder_input)
            if owners:
                yield self._forward(owners, features, inputs)

    @property
    def _positions(self) -> int:
        return int(self._model.config.max_target_positions)

    def _features(self, utterance: str) -> Tensor | None:
        """Log-mel features `(3000, bins)`; None for audio that is too long or cannot be read."""
        try:
            features = torch.from_numpy(self._extract(self.samples_of(utterance, RATE)))
        except BadUtterance:
            return None
        return features if len(features) == FRAMES else None

    def _decoder_input(self, text: str, pieces: Sequence[Piece]) -> _DecoderInput:
        if isinstance(self.tokenizer, WhisperTokenizer):
            tokens = [self.tokenizer.pieces_of_whisper[piece.id] for piece in pieces]
            return _DecoderInput(tokens, [(place, place) for place in range(len(pieces) + 1)])
        theirs = self._pieces.pieces(change_case(text, self.config.case))
        tokens = [self._pieces.pieces_of_whisper[piece.id] for piece in theirs]
        spans = [(piece.start, piece.end) for piece in theirs]
        return _DecoderInput(tokens, [*matching_places(pieces, tokens, spans, self._shared), (len(pieces), len(tokens))])

    def _forward(self, owners: Sequence[int], features: Sequence[Tensor], inputs: Sequence[_DecoderInput]) -> Posteriors:
        prompt, end = self._pieces.prompt, self._pieces.pieces_of_whisper[EOS]
        longest = max(len(each.tokens) for each in inputs)
        rows = [[*prompt, *each.tokens, *[end] * (longest - len(each.tokens))] for each in inputs]
        states = self._model.model(
            input_features=torch.stack(list(features)).transpose(1, 2).to(self.device),
            decoder_input_ids=torch.tensor(rows, device=self.device),
        ).last_hidden_state
        places = [(row, place, there) for row, each in enumerate(inputs) for place, there in each.places]
        at = [row for row, _, _ in places]
        there = [len(prompt) - 1 + where for _, _, where in places]
        log_probs = self._model.proj_out(states[at, there]).float().log_softmax(-1)
        found = log_probs.new_full((len(places), self.tokenizer.size), -torch.inf)
        found[:, self._own] = log_probs[:, self._columns]
        return [(owners[row], place) for row, place, _ in places], found
