"""A pretrained masked language model (such as BERT) as a teacher of hidden states, one vector for each piece."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from retort.common.errors import UserError
from retort.config.ranges import MILLION, WIDEST, choice, number, numbers
from retort.config.schema import TeacherConfig
from retort.pretrained.hub import check_frame, longest_input, open_encoder, open_tokenizer
from retort.teachers.fingerprint import model_fingerprint, tokenizer_fingerprint, unit_read
from retort.teachers.teacher import TeacherOutput

if TYPE_CHECKING:
    from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerFast

_CASES: dict[str, Callable[[str], str]] = {"upper": str.upper, "lower": str.lower, "keep": str}


@dataclass
class MaskedLMConfig(TeacherConfig):
    """Configuration of :class:`MaskedLMTeacher`, and with `topk` of a teacher of soft labels."""

    kind: str = "masked_lm"
    """Kind of the teacher."""
    topk: int | None = number(None, 1, MILLION)
    """For soft labels: number of most probable student tokens stored per position. Without it the teacher gives hidden
    states."""
    layers: list[int] = numbers([-1], -1000, 1000)
    """Hidden layers whose outputs are averaged, such as `[8, 9, 10]`; 0 is the embedding layer, -1 the last layer."""
    unit: str = choice("text", "senone", "phone")
    """Input of the teacher: `text` (the transcript), or `senone` or `phone` (the units of an alignment, for a language
    model over these units)."""
    dim: int | None = number(None, 1, WIDEST)
    """Dimension of the teacher's vectors; given so that `retort info` does not need the model, and checked when the
    model is loaded."""
    symbols: int | None = number(None, 1, 10 * MILLION)
    """For soft labels on frames: number of classes of the row's output layer, which are the tokens of the unit
    language model including special ones; given for `retort info`, and checked when the model is loaded."""


class MaskedLMTeacher:
    """A frozen encoder over whole sentences, `[CLS] pieces [SEP]`.

    Its vectors are the mean of the selected layers; CIF-HKD (Interspeech 2023) takes the last layer of BERT.

    Args:
        config: model, layers, case and, optionally, the expected dim.
        device: device of the encoder and of its vectors.
        batch_pieces: maximum number of pieces in one forward pass, padding included.

    Raises:
        UserError: the model cannot be found or opened, has no fast tokenizer, does not enclose a sentence in
            [CLS] and [SEP], lacks a selected layer, or has another dim than the config says.
    """

    def __init__(
        self, config: MaskedLMConfig, device: torch.device | str = "cpu", *, batch_pieces: int = 4096
    ) -> None:
        self.config = config
        self.device = torch.device(device)
        self.batch_pieces = batch_pieces
        self.tokenizer = open_tokenizer(config.model)
        check_frame(self.tokenizer, config.model)
        self._model = open_encoder(config.model)
        _check_vocabulary(self._model, self.tokenizer, config.model)
        self._model.to(self.device)
        self.maximum_pieces = longest_input(self._model, self.tokenizer)
        """Maximum input length, [CLS] and [SEP] included."""
        self.dim = self._check_layers()

    def identity(self) -> dict[str, object]:
        """Everything that the outputs depend on, JSON-serialisable; `model` is only informative."""
        return {
            "model": self.config.model,
            "kind": self.config.kind,
            "weights": model_fingerprint(self._model),
            "tokenizer": tokenizer_fingerprint(self.tokenizer),
            "maximum_pieces": self.maximum_pieces,
            "layers": list(self.config.layers),
            "case": self.config.case,
            **unit_read(self.config),
            "dim": self.dim,
        }

    def read(self, texts: Sequence[str]) -> list[TeacherOutput]:
        """Compute the hidden states of texts, equal texts once, without gradients.

        Texts longer than the model allows are truncated before [SEP]. The forward pass uses autocast if it is
        enabled; the result is float32. Batching affects the result only by rounding.

        Returns:
            One output for each text, in order.
        """
        distinct = list(dict.fromkeys(texts))
        if not distinct:
            return []
        encoded = self._encode(distinct)
        outputs: dict[str, TeacherOutput] = {}
        for indices in self._batches([len(ids) for ids in encoded["input_ids"]]):
            hidden = self._forward([encoded["input_ids"][index] for index in indices])
            for row, index in zip(hidden, indices, strict=True):
                text, offsets = distinct[index], encoded["offset_mapping"][index]
                spans = [strip_spaces(text, start, end) for start, end in offsets[1:-1]]
                # A copy: a view in a cache would keep the whole padded batch in memory.
                outputs[text] = TeacherOutput(row[: len(offsets)].clone(), spans, text)
        return [outputs[text] for text in texts]

    def _encode(self, texts: Sequence[str]) -> BatchEncoding:
        return self.tokenizer(
            [change_case(text, self.config.case) for text in texts],
            truncation=True,
            max_length=self.maximum_pieces,
            return_offsets_mapping=True,
        )

    def _batches(self, lengths: Sequence[int]) -> Iterator[list[int]]:
        batch: list[int] = []
        for index in sorted(range(len(lengths)), key=lengths.__getitem__):
            if batch and (len(batch) + 1) * lengths[index] > self.batch_pieces:
                yield batch
                batch = []
            batch.append(index)
        yield batch

    @torch.no_grad()
    def _forward(self, ids: Sequence[Sequence[int]]) -> Tensor:
        """Mean of the selected layers for rows of ids: `(B, longest, D)` float32."""
        states = self._hidden_states(ids)
        chosen = [states[layer].float() for layer in self.config.layers]
        return chosen[0] if len(chosen) == 1 else torch.stack(chosen).mean(dim=0)

    def _hidden_states(self, ids: Sequence[Sequence[int]]) -> tuple[Tensor, ...]:
        longest = max(map(len, ids))
        pad = self.tokenizer.pad_token_id or 0
        padded = torch.tensor([[*row, *[pad] * (longest - len(row))] for row in ids])
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in ids])
        output = self._model(
            input_ids=padded.to(self.device), attention_mask=mask.to(self.device), output_hidden_states=True
        )
        states: tuple[Tensor, ...] = output.hidden_states
        return states

    @torch.no_grad()
    def _check_layers(self) -> int:
        """Dimension of the selected layers, determined with a text of one letter."""
        states = self._hidden_states(self._encode(["a"])["input_ids"])
        name, count = self.config.model, len(states)
        if not self.config.layers:
            raise UserError("no layer of the teacher is selected", where=name, remedy="Set layers, for example [-1]")
        for layer in self.config.layers:
            if not -count <= layer < count:
                raise UserError(
                    f"there is no layer {layer}: the model has {count} hidden layers, embeddings included",
                    where=name,
                    remedy=f"Choose layers from 0 (embeddings) to {count - 1}, or -1 (last) to -{count}",
                )
        dims = {states[layer].shape[-1] for layer in self.config.layers}
        if len(dims) > 1:
            raise UserError(
                f"layers {self.config.layers} have different dims", where=name, remedy="Choose one layer"
            )
        (dim,) = dims
        if self.config.dim not in (None, dim):
            raise UserError(
                f"its vectors have {dim} dims, the recipe says dim: {self.config.dim}",
                where=name,
                remedy=f"Set dim: {dim}, or choose another model",
            )
        return int(dim)


def change_case(text: str, case: str) -> str:
    """Convert `text` to upper or lower case without changing the position of any character.

    A character whose other case has another length (ß, İ) is not changed, so that spans in the result are spans in
    `text`.

    Args:
        case: `upper`, `lower` or `keep`.
    """
    change = _CASES[case]
    return "".join(other if len(other := change(character)) == 1 else character for character in text)


def strip_spaces(text: str, start: int, end: int) -> tuple[int, int]:
    """Remove the spaces that some tokenizers include in a piece from a span; a lone space gets an empty span."""
    while start < end and text[start].isspace():
        start += 1
    while start < end and text[end - 1].isspace():
        end -= 1
    return start, end


def _check_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    highest, rows = max(tokenizer.get_vocab().values()), model.get_input_embeddings().num_embeddings
    if highest >= rows:
        raise UserError(
            f"its tokenizer has ids up to {highest}, but the model embeds {rows}",
            where=name,
            remedy="Put the model's own tokenizer into its folder",
        )
