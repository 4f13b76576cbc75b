"""Teacher targets: the outputs of a teacher aligned with the positions of a student."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from retort.teachers.teacher import TeacherOutput
from retort.text.alignment import align_spans, word_spans

if TYPE_CHECKING:
    from retort.text.tokenizers import Piece


TargetUnit = Literal["token", "frame", "utterance", "word"]
"""Unit of the positions of targets; `word`: tokens, of which only the last one of each word and EOS are valid."""


@dataclass(frozen=True)
class TeacherTargets:
    """Teacher vectors for the positions of a student.

    Attributes:
        vectors: `(B, N, D)` float32; zero where `valid` is false.
        valid: `(B, N)` bool; false where the teacher gives no target (a lone space, truncated text, padding).
        sources: `(B, N, 2)` int64; half-open interval of the teacher's positions that the vector was averaged
            from, numbered over the distinct texts of the batch, so that two positions whose intervals overlap
            share a teacher piece. (0, 0) where not valid. Shared numbers start at a hash of the text and are
            the same in every process.
        ids: for soft labels `(B, N, D)` int64: the student's tokens whose probabilities `vectors` holds, as in
            :class:`TeacherOutput`; otherwise None.
        labels: for frames `(B, N)` int64: the teacher's symbol of each frame, -1 for none; otherwise None.
    """

    vectors: Tensor
    valid: Tensor
    sources: Tensor
    ids: Tensor | None = None
    labels: Tensor | None = None


@torch.no_grad()
def token_targets(
    outputs: Sequence[TeacherOutput],
    texts: Sequence[str],
    pieces: Sequence[Sequence[Piece]],
    *,
    device: torch.device | str | None = None,
    shared: bool = False,
    words: bool = False,
) -> TeacherTargets:
    """Teacher vectors for every token of B utterances and for the EOS of each.

    The target of a token is the mean of the teacher's vectors whose spans overlap its span; that of EOS is [SEP], as
    in the code of CIF-HKD (Interspeech 2023). A token without overlap is not valid. N is the largest number of pieces
    plus one. Soft labels belong to single tokens; a token without probabilities is not valid.

    Args:
        outputs: of the text of each utterance.
        texts: of each utterance. Utterances with equal texts share their sources.
        pieces: of each utterance, with spans in its text, without EOS.
        device: device of the result; by default that of the outputs.
        shared: number the sources so that they can be compared with those of other batches.
        words: only the last token of each word is valid, and EOS; the target of a token is the mean over its word.

    Raises:
        ValueError: there is no utterance, the arguments do not match, spans are unsorted or outside the text, or
            soft labels belong to other pieces.
    """
    distinct = _distinct(outputs, texts)
    if len(pieces) != len(texts):
        raise ValueError(f"{len(texts)} texts but pieces of {len(pieces)}")
    offsets, count = {}, 0
    for text, output in distinct.items():
        offsets[text] = count
        count += len(output.spans) + 1
    positions = max(map(len, pieces)) + 1
    rows = [
        _intervals(distinct[text], own, offsets[text], positions, words)
        for text, own in zip(texts, pieces, strict=True)
    ]
    sources = torch.tensor(rows, dtype=torch.int64)
    target = torch.device(device) if device is not None else outputs[0].vectors.device
    table = _joined([output.vectors[1:] for output in distinct.values()], target)
    valid = sources[..., 1] > sources[..., 0]
    ids = None
    if outputs[0].ids is not None:
        # A row of zeros means no target.
        valid &= (table.sum(1) > 0).cpu()[sources[..., 0]]
        sources = sources * valid[..., None]
        ids = _soft_ids(distinct.values(), target)[sources[..., 0].to(target)]
    places = valid.flatten().nonzero()[:, 0]
    vectors = table.new_zeros(valid.numel(), table.shape[1])
    vectors[places.to(target)] = _interval_means(table, sources.flatten(0, 1)[places])
    if shared:
        shifts = torch.tensor([_shared_start(text) - offsets[text] for text in texts])
        sources = torch.where(valid[..., None], sources + shifts[:, None, None], 0)
    return TeacherTargets(vectors.view(*valid.shape, -1), valid.to(target), sources.to(target), ids)


@torch.no_grad()
def utterance_targets(
    outputs: Sequence[TeacherOutput],
    texts: Sequence[str],
    *,
    device: torch.device | str | None = None,
    shared: bool = False,
) -> TeacherTargets:
    """The [CLS] vector of each of B utterances, N = 1. Utterances with equal texts share their source.

    Args:
        device: device of the result; by default that of the outputs.
        shared: number the sources so that they can be compared with those of other batches.

    Raises:
        ValueError: there is no utterance, or the outputs belong to other texts.
    """
    distinct = _distinct(outputs, texts)
    number = {text: _shared_start(text) if shared else index for index, text in enumerate(distinct)}
    target = torch.device(device) if device is not None else outputs[0].vectors.device
    vectors = _joined([output.vectors[:1] for output in outputs], target)[:, None]
    sources = torch.tensor([[[number[text], number[text] + 1]] for text in texts], device=target)
    return TeacherTargets(vectors, torch.ones(len(texts), 1, dtype=torch.bool, device=target), sources)


def empty_targets(utterances: int, dim: int, *, device: torch.device | str | None = None) -> TeacherTargets:
    """Targets that are valid nowhere, N = 1, with vectors of width `dim`."""
    return TeacherTargets(
        torch.zeros(utterances, 1, dim, device=device),
        torch.zeros(utterances, 1, dtype=torch.bool, device=device),
        torch.zeros(utterances, 1, 2, dtype=torch.int64, device=device),
    )


def _joined(parts: Sequence[Tensor], device: torch.device | str) -> Tensor:
    """`(P, D)` float32 on `device`; float16 is transferred before it is converted."""
    with torch.autocast(
        parts[0].device.type, enabled=False
    ):  # autocast on a CPU cannot concatenate float16 tensors
        return torch.cat(list(parts)).to(device).float()


def _soft_ids(outputs: Iterable[TeacherOutput], device: torch.device) -> Tensor:
    """`(P, k)` int64, in the same rows as the vectors."""
    parts = [output.ids for output in outputs]
    return torch.cat([part[1:] for part in parts if part is not None]).to(device).long()


def _shared_start(text: str) -> int:
    """First number of a text's positions, the same in all processes without communication.

    It is a hash with room for 2^46 texts of 2^16 positions. Texts that collide are not negatives of each other.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 18) << 16


def _distinct(outputs: Sequence[TeacherOutput], texts: Sequence[str]) -> Mapping[str, TeacherOutput]:
    if not texts or len(outputs) != len(texts):
        raise ValueError(
            f"{len(texts)} texts and {len(outputs)} outputs: there must be one of each per utterance"
        )
    distinct: dict[str, TeacherOutput] = {}
    for output, text in zip(outputs, texts, strict=True):
        if output.text != text:
            raise ValueError(f"the output of '{output.text}' was passed for the text '{text}'")
        distinct.setdefault(text, output)
    return distinct


def _intervals(
    output: TeacherOutput, pieces: Sequence[Piece], offset: int, positions: int, words: bool
) -> list[tuple[int, int]]:
    """Interval of rows of the table for each of `positions` positions; (0, 0) for none."""
    spans = [(start, end) for _, start, end in pieces]
    if output.ids is None:
        spans = word_spans(output.text, spans) if words else spans
        ranges = align_spans(spans, output.spans, len(output.text))
    elif spans == output.spans:
        ranges = [(place, place + 1) for place in range(len(spans))]
    else:
        raise ValueError(f"the soft labels of '{output.text}' belong to other pieces than the student's")
    end_of_sentence = offset + len(output.spans)
    intervals = [(first + offset, last + offset) if first < last else (0, 0) for first, last in ranges]
    intervals.append((end_of_sentence, end_of_sentence + 1))
    return intervals + [(0, 0)] * (positions - len(intervals))


def _interval_means(table: Tensor, intervals: Tensor) -> Tensor:
    """Means of the rows `[first, last)` of `table (P, D)` for `intervals (M, 2)`, none empty: `(M, D)`."""
    first, sizes = intervals[:, 0], intervals[:, 1] - intervals[:, 0]
    bags = sizes.cumsum(0) - sizes
    indices = torch.arange(int(sizes.sum())) - torch.repeat_interleave(bags - first, sizes)
    return embedding_bag(indices.to(table.device), table, bags.to(table.device), mode="mean")
