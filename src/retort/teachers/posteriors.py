"""Teachers of soft labels: distributions over the student's tokens at every position."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from omegaconf import MISSING
from torch import Tensor

from retort.common.errors import UserError
from retort.config.ranges import MILLION, choice, number
from retort.config.schema import TeacherConfig
from retort.pretrained.hub import find_model
from retort.teachers.fingerprint import folder_fingerprint, unit_read
from retort.teachers.teacher import TeacherOutput
from retort.text.tokenizers import EOS, Piece, Tokenizer

if TYPE_CHECKING:
    from retort.lm.causal import CausalLM

Posteriors: TypeAlias = "tuple[list[tuple[int, int]], Tensor]"
"""M positions (index of the text, index of the student's piece; EOS follows the last piece) and the log-probabilities
`(M, V)` of the student's tokens at each, -inf where the teacher has none."""


@dataclass
class CausalLMConfig(TeacherConfig):
    """Configuration of teachers that are causal language models; `model` can be the folder of a model trained by
    `retort lm train` with the tokenizer of the student."""

    kind: str = "causal_lm"
    """Kind of the teacher."""
    topk: int = number(MISSING, 1, MILLION)
    """Number of most probable student tokens stored per position."""
    unit: str = choice("text", "senone", "phone")
    """Input of the teacher: `text` (the transcript), or `senone` or `phone` (the units of an alignment, for a language
    model over these units)."""
    symbols: int | None = number(None, 1, 10 * MILLION)
    """On frames: number of classes of the row's output layer, which are the tokens of the unit
    language model including special ones; given for `retort info`, and checked when the model is loaded."""


class PosteriorTeacher(ABC):
    """Base of teachers that return the `topk` most probable of the student's tokens at every position.

    For frames, the tokens are the teacher's own (:func:`retort.teachers.symbols.teacher_symbols`). Probabilities are
    those at temperature 1; a row converts them to its temperature, so that one store serves all temperatures.

    Args:
        config: of the teacher, with `topk`; a smaller vocabulary is returned whole.
        tokenizer: tokenizer of the student.
        device: device of the model. Outputs are on the CPU.
    """

    def __init__(
        self, config: TeacherConfig, tokenizer: Tokenizer, device: torch.device | str = "cpu"
    ) -> None:
        if config.topk is None:
            raise ValueError("a teacher of soft labels needs topk")
        self.config, self.tokenizer, self.device = config, tokenizer, torch.device(device)
        self.dim = min(config.topk, tokenizer.size)

    @property
    def reads_audio(self) -> bool:
        """As its configuration's."""
        return self.config.reads_audio

    @abstractmethod
    def identity(self) -> dict[str, object]:
        """Everything that the outputs depend on, JSON-serialisable; `model` is only informative."""

    @abstractmethod
    def _posteriors(self, texts: Sequence[str], pieces: Sequence[Sequence[Piece]]) -> Iterator[Posteriors]:
        """Yield log-probabilities, every position at most once; omitted positions get no soft labels."""

    def _text(self, request: str) -> str:
        """The transcript within an element of the input of :meth:`read`."""
        return request

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> list[TeacherOutput]:
        """One output for each text, in order; equal texts are computed once. Batching affects the result only by
        rounding."""
        distinct = list(dict.fromkeys(texts))
        pieces = [self.tokenizer.pieces(self._text(text)) for text in distinct]
        bounds = list(itertools.accumulate((len(each) + 2 for each in pieces), initial=0))
        probs = torch.zeros(bounds[-1], self.dim)
        ids = torch.arange(self.dim, dtype=torch.int32).repeat(bounds[-1], 1)
        for places, log_probs in self._posteriors(distinct, pieces):
            rows = torch.tensor([bounds[text] + 1 + place for text, place in places])
            top = log_probs.exp().topk(self.dim)
            probs[rows], ids[rows] = top.values.float().cpu(), top.indices.int().cpu()
        outputs = {
            text: TeacherOutput(
                probs[first:last].clone(),
                [(start, end) for _, start, end in each],
                text,
                ids[first:last].clone(),
            )
            for text, each, (first, last) in zip(distinct, pieces, itertools.pairwise(bounds))
        }
        return [outputs[text] for text in texts]

    def _identity(self, weights: str, **more: object) -> dict[str, object]:
        return {
            "model": self.config.model,
            "kind": f"{self.config.kind} posteriors",
            "weights": weights,
            "tokenizer": self.tokenizer.fingerprint(),
            **unit_read(self.config),
            **more,
            "dim": self.dim,
        }


class PieceLMTeacher(PosteriorTeacher):
    """A causal language model of `retort lm train` over the student's pieces: each token given the previous ones.

    Bai et al., Interspeech 2019 (LST, arXiv 1907.06017).

    Args:
        lm: the model.
        batch_rows: maximum number of texts in a batch.

    Raises:
        UserError: the model has other pieces than the student.
    """

    def __init__(
        self,
        config: TeacherConfig,
        tokenizer: Tokenizer,
        lm: CausalLM,
        device: torch.device | str = "cpu",
        *,
        batch_rows: int = 256,
    ) -> None:
        super().__init__(config, tokenizer, device)
        if lm.symbols != tokenizer.symbols:
            raise UserError(
                f"its {len(lm.symbols)} pieces differ from the {tokenizer.size} pieces of the student",
                where=config.model,
                remedy="Train it with tokenizer: {kind: student, model: EXPERIMENT}",
            )
        self.lm, self.batch_rows = lm, batch_rows

    def identity(self) -> dict[str, object]:
        return self._identity(folder_fingerprint(find_model(self.config.model)))

    def _posteriors(self, texts: Sequence[str], pieces: Sequence[Sequence[Piece]]) -> Iterator[Posteriors]:
        order = sorted(range(len(texts)), key=lambda index: len(pieces[index]), reverse=True)
        for start in range(0, len(order), self.batch_rows):
            rows = order[start : start + self.batch_rows]
            yield from self._decode(rows, [[EOS, *(piece.id for piece in pieces[index])] for index in rows])

    def _decode(self, owners: Sequence[int], sentences: Sequence[Sequence[int]]) -> Iterator[Posteriors]:
        """Run the model step by step on sentences sorted by length, longest first; finished ones are dropped."""
        state, rows = self.lm.start(len(sentences), self.device), len(sentences)
        for place in range(len(sentences[0])):
            active = sum(len(sentence) > place for sentence in sentences)
            if active < rows:
                state, rows = self.lm.select(state, torch.arange(active, device=self.device)), active
            previous = torch.tensor([sentence[place] for sentence in sentences[:rows]], device=self.device)
            log_probs, state = self.lm.step(state, previous)
            yield [(owner, place) for owner in owners[:rows]], log_probs
