"""Pretrained language models as teachers of soft labels, for the pieces that they share with the student."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from retort.common.errors import UserError
from retort.config.schema import TeacherConfig
from retort.lm.masked import pad_rows
from retort.lm.masked_scoring import hidden_posteriors, open_masked_scorer
from retort.pretrained.hub import longest_input, open_causal_plm, open_tokenizer, text_end, text_start
from retort.teachers.fingerprint import model_fingerprint, tokenizer_fingerprint
from retort.teachers.masked_lm import change_case, strip_spaces
from retort.teachers.posteriors import Posteriors, PosteriorTeacher
from retort.text.alignment import Span
from retort.text.matching import matching_places, shared_pieces
from retort.text.teacher_pieces import TeacherReader
from retort.text.tokenizers import EOS, Piece, Tokenizer


@dataclass(frozen=True)
class Placed:
    """A text in the teacher's ids, without special ones, and the positions of pieces shared with the student."""

    ids: list[int]
    shared: list[Span]


class PretrainedPosteriorTeacher(PosteriorTeacher):
    """Base of pretrained teachers: maps the teacher's pieces to the student's.

    A token that is no piece of the teacher gets no soft labels. The probability of pieces that the student lacks is
    dropped without renormalisation.

    Args:
        config: model, case and `topk`.
        tokenizer: tokenizer of the student.
        device: device of the model.
        batch_pieces: maximum number of pieces in one forward pass, padding included.

    Raises:
        UserError: the model cannot be found or opened, is of another kind, or shares no piece with the student.
    """

    maximum_pieces: int
    """Maximum input length, special pieces included."""

    def __init__(
        self,
        config: TeacherConfig,
        tokenizer: Tokenizer,
        device: torch.device | str = "cpu",
        *,
        batch_pieces: int = 4096,
    ) -> None:
        super().__init__(config, tokenizer, device)
        self.batch_pieces = batch_pieces
        self.pieces = open_tokenizer(config.model)
        self.shared = shared_pieces(tokenizer, TeacherReader(self.pieces.backend_tokenizer, config.case))
        if not self.shared:
            raise UserError(
                f"it shares none of the student's {tokenizer.size} pieces, and soft labels need shared pieces",
                where=config.model,
                remedy="Set tokenizer.kind: teacher",
            )
        self._columns = torch.tensor(list(self.shared), device=self.device)
        self._own = torch.tensor(list(self.shared.values()), device=self.device)
        self._open()

    @abstractmethod
    def _open(self) -> None: ...

    def _weighed(self, weights: str) -> dict[str, object]:
        return self._identity(
            weights,
            pieces=tokenizer_fingerprint(self.pieces),
            case=self.config.case,
            maximum_pieces=self.maximum_pieces,
        )

    def _place(self, texts: Sequence[str], pieces: Sequence[Sequence[Piece]]) -> list[Placed]:
        encoded = self.pieces(
            [change_case(text, self.config.case) for text in texts],
            add_special_tokens=False,
            return_offsets_mapping=True,
        )
        return [
            Placed(ids, matching_places(own, ids, [strip_spaces(text, *span) for span in spans], self.shared))
            for text, own, ids, spans in zip(texts, pieces, encoded["input_ids"], encoded["offset_mapping"])
        ]

    def _in_student_ids(self, log_probs: Tensor) -> Tensor:
        """`(M, pieces of the teacher)` to `(M, V)`."""
        found = log_probs.new_full((len(log_probs), self.tokenizer.size), -torch.inf)
        found[:, self._own] = log_probs[:, self._columns]
        return found


class MaskedPosteriorTeacher(PretrainedPosteriorTeacher):
    """A masked language model: each piece is masked in turn and predicted from all others.

    Futami et al., Interspeech 2020 (arXiv 2008.03822). EOS has probability 1, since the model input includes the end
    of the sentence.
    """

    def _open(self) -> None:
        self._model, _, self.maximum_pieces = open_masked_scorer(self.config.model)
        self._first, *_, self._last = self.pieces("a")["input_ids"]
        self._model.to(self.device).requires_grad_(False)

    def identity(self) -> dict[str, object]:
        return self._weighed(model_fingerprint(self._model.model))

    def _posteriors(self, texts: Sequence[str], pieces: Sequence[Sequence[Piece]]) -> Iterator[Posteriors]:
        framed, masked = [], []
        placed = self._place(texts, pieces)
        for each in placed:
            ids = each.ids[: self.maximum_pieces - 2]
            framed.append(np.array([self._first, *ids, self._last], np.int64))
            numbers = np.full(len(ids), -1)
            inside = [there for _, there in each.shared if there < len(ids)]
            numbers[inside] = inside
            masked.append(numbers)
        own = [{there: place for place, there in each.shared} for each in placed]
        for rows, _, log_probs in hidden_posteriors(
            self._model, self.pieces, framed, masked, self.batch_pieces
        ):
            places = [(index, own[index][int(there)]) for index, hidden in rows for there in hidden]
            yield places, self._in_student_ids(log_probs)
        ends = torch.full((len(texts), self.tokenizer.size), -torch.inf)
        ends[:, EOS] = 0.0
        yield [(index, len(each)) for index, each in enumerate(pieces)], ends


class CausalPosteriorTeacher(PretrainedPosteriorTeacher):
    """A causal language model by Hugging Face name or folder: each piece given the previous ones.

    The input starts with the model's begin-of-text (or end-of-text) piece, and its end-of-text piece is EOS. A text
    that exceeds its maximum length gets no soft labels.
    """

    def _open(self) -> None:
        end = text_end(self.pieces)
        if end is None:
            raise UserError(
                "its tokenizer has no end-of-text piece",
                where=self.config.model,
                remedy="Choose a causal language model that has one, for example GPT-2",
            )
        begin = text_start(self.pieces)
        self._begin = end if begin is None else begin
        self._model = open_causal_plm(self.config.model).to(self.device)
        self.maximum_pieces = longest_input(self._model, self.pieces)
        self._columns = torch.cat([self._columns, self._columns.new_tensor([end])])
        self._own = torch.cat([self._own, self._own.new_tensor([EOS])])

    def identity(self) -> dict[str, object]:
        return self._weighed(model_fingerprint(self._model))

    def _posteriors(self, texts: Sequence[str], pieces: Sequence[Sequence[Piece]]) -> Iterator[Posteriors]:
        placed = self._place(texts, pieces)
        fitting = [index for index, each in enumerate(placed) if len(each.ids) < self.maximum_pieces]
        order = sorted(fitting, key=lambda index: len(placed[index].ids), reverse=True)
        while order:
            count = max(self.batch_pieces // (len(placed[order[0]].ids) + 1), 1)
            chosen, order = order[:count], order[count:]
            rows = [np.array([self._begin, *placed[index].ids], np.int64) for index in chosen]
            ids, mask = (each.to(self.device) for each in pad_rows(rows, 0))
            logits = self._model(input_ids=ids, attention_mask=mask.long()).logits
            positions = [
                (row, there, (index, place))
                for row, index in enumerate(chosen)
                for place, there in [*placed[index].shared, (len(pieces[index]), len(placed[index].ids))]
            ]
            at, there, places = (list(each) for each in zip(*positions))
            yield places, self._in_student_ids(logits[at, there].float().log_softmax(-1))
