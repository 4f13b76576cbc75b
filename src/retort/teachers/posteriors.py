"""Teachers of soft labels: which of the student's tokens may stand at a place, and how probable each is."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, TypeAlias

import torch
from torch import Tensor

from retort.common.errors import UserError
from retort.config.schema import TeacherConfig
from retort.pretrained.hub import find_model
from retort.teachers.fingerprint import folder_fingerprint, unit_read
from retort.teachers.teacher import Reading
from retort.text.tokenizers import EOS, Piece, Tokenizer

if TYPE_CHECKING:
    from retort.lm.causal import CausalLM

Said: TypeAlias = "tuple[list[tuple[int, int]], Tensor]"
"""M places, each a text and one of its student's pieces (EOS behind the last), and of each place the log-probabilities
`(M, V)` of the student's tokens, -inf where nothing is said of one."""


class PosteriorTeacher(ABC):
    """Reads texts in the student's own pieces and names the `topk` most probable tokens of every place.

    For frames the pieces are the teacher's own (:func:`retort.teachers.symbols.teacher_symbols`), which then stand
    for the student's.

    Probabilities are those at temperature 1, of which a row makes those at any other: one store serves them all.

    Args:
        config: of the teacher, with `topk`; of a smaller vocabulary it names all.
        tokenizer: the student's.
        device: where it runs. Readings are on the CPU.
    """

    def __init__(
        self, config: TeacherConfig, tokenizer: Tokenizer, device: torch.device | str = "cpu"
    ) -> None:
        if config.topk is None:
            raise ValueError("a teacher of soft labels needs topk")
        self.config, self.tokenizer, self.device = config, tokenizer, torch.device(device)
        self.dim = min(config.topk, tokenizer.size)

    @abstractmethod
    def identity(self) -> dict[str, object]:
        """All that its readings depend on, fit for JSON; `model`, its name, is there for people to read."""

    @abstractmethod
    def _say(self, texts: Sequence[str], pieces: Sequence[Sequence[Piece]]) -> Iterator[Said]:
        """Every place of every text at most once; those left out have nothing said of them."""

    def _text(self, asked: str) -> str:
        """The text whose pieces are taught, of what the teacher is asked with."""
        return asked

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> list[Reading]:
        """One reading a text, in order; equal texts are read once. How texts fall into batches changes nothing
        beyond rounding."""
        distinct = list(dict.fromkeys(texts))
        pieces = [self.tokenizer.pieces(self._text(text)) for text in distinct]
        bounds = list(itertools.accumulate((len(each) + 2 for each in pieces), initial=0))
        probs = torch.zeros(bounds[-1], self.dim)
        ids = torch.arange(self.dim, dtype=torch.int32).repeat(bounds[-1], 1)
        for places, log_probs in self._say(distinct, pieces):
            rows = torch.tensor([bounds[text] + 1 + place for text, place in places])
            top = log_probs.exp().topk(self.dim)
            probs[rows], ids[rows] = top.values.float().cpu(), top.indices.int().cpu()
        readings = {
            text: Reading(
                probs[first:last].clone(),
                [(start, end) for _, start, end in each],
                text,
                ids[first:last].clone(),
            )
            for text, each, (first, last) in zip(distinct, pieces, itertools.pairwise(bounds))
        }
        return [readings[text] for text in texts]

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
    """A causal language model over the student's pieces, of `retort lm train`: each token from those before it.

    Bai et al., Interspeech 2019 (LST, arXiv 1907.06017).

    Args:
        lm: the model.
        batch_rows: most texts read at once.

    Raises:
        UserError: its pieces are not the student's.
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
                f"its {len(lm.symbols)} pieces are not the {tokenizer.size} of the student",
                where=config.model,
                remedy="Train it with tokenizer: {kind: student, model: EXPERIMENT}",
            )
        self.lm, self.batch_rows = lm, batch_rows

    def identity(self) -> dict[str, object]:
        return self._identity(folder_fingerprint(find_model(self.config.model)))

    def _say(self, texts: Sequence[str], pieces: Sequence[Sequence[Piece]]) -> Iterator[Said]:
        order = sorted(range(len(texts)), key=lambda index: len(pieces[index]), reverse=True)
        for start in range(0, len(order), self.batch_rows):
            rows = order[start : start + self.batch_rows]
            yield from self._read_on(rows, [[EOS, *(piece.id for piece in pieces[index])] for index in rows])

    def _read_on(self, owners: Sequence[int], sentences: Sequence[Sequence[int]]) -> Iterator[Said]:
        """Step by step, longest sentence first; those at their end are left behind."""
        state, rows = self.lm.start(len(sentences), self.device), len(sentences)
        for place in range(len(sentences[0])):
            going = sum(len(sentence) > place for sentence in sentences)
            if going < rows:
                state, rows = self.lm.select(state, torch.arange(going, device=self.device)), going
            previous = torch.tensor([sentence[place] for sentence in sentences[:rows]], device=self.device)
            log_probs, state = self.lm.step(state, previous)
            yield [(owner, place) for owner in owners[:rows]], log_probs
