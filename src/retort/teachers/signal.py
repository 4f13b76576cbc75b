"""What a teacher says about the positions of a student."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from retort.teachers.teacher import Reading
from retort.text.alignment import align_spans

if TYPE_CHECKING:
    from retort.text.tokenizers import Piece


@dataclass(frozen=True)
class Signal:
    """Teacher vectors laid beside a student's positions.

    Attributes:
        vectors: `(B, N, D)` float32; zero where `valid` is false.
        valid: `(B, N)` bool; false where the teacher has nothing to say (a lone space, text it cut off,
            padding).
        sources: `(B, N, 2)` int64; half-open interval of the teacher's positions that the vector was averaged
            from, numbered over the distinct texts of the batch, so that two positions whose intervals overlap
            share a teacher piece. (0, 0) where not valid. Shared numbers begin at a hash of the text, and hold
            in every process.
        ids: None, or, of soft labels, `(B, N, D)` int64: the student's tokens whose probabilities `vectors` holds,
            as in :class:`Reading`.
        labels: None, or, of frames, `(B, N)` int64: which of the teacher's symbols each frame is, -1 for none.
    """

    vectors: Tensor
    valid: Tensor
    sources: Tensor
    ids: Tensor | None = None
    labels: Tensor | None = None


@torch.no_grad()
def token_signal(
    readings: Sequence[Reading],
    texts: Sequence[str],
    pieces: Sequence[Sequence[Piece]],
    *,
    device: torch.device | str | None = None,
    shared: bool = False,
) -> Signal:
    """Teacher vectors for every token of B utterances, and for EOS behind them.

    A token takes the mean of the teacher's vectors whose spans overlap its own; EOS takes [SEP], as in the
    code of CIF-HKD (Interspeech 2023). A token that overlaps none is not valid. N is the largest number of
    pieces, and one. Soft labels are of the tokens themselves, one by one; a token of which nothing is said is not
    valid.

    Args:
        readings: of each utterance's text.
        texts: of each utterance. Utterances of equal texts share their sources.
        pieces: of each utterance, spans in its text, without EOS.
        device: of the result; by default that of the readings.
        shared: number the sources so that they can be compared with those of other batches.

    Raises:
        ValueError: no utterances, arguments that do not belong together, spans that are out of order or
            outside the text, or soft labels of other pieces.
    """
    distinct = _distinct(readings, texts)
    if len(pieces) != len(texts):
        raise ValueError(f"{len(texts)} texts but pieces of {len(pieces)}")
    offsets, count = {}, 0
    for text, reading in distinct.items():
        offsets[text] = count
        count += len(reading.spans) + 1
    positions = max(map(len, pieces)) + 1
    rows = [
        _intervals(distinct[text], own, offsets[text], positions)
        for text, own in zip(texts, pieces, strict=True)
    ]
    sources = torch.tensor(rows, dtype=torch.int64)
    target = torch.device(device) if device is not None else readings[0].vectors.device
    table = _joined([reading.vectors[1:] for reading in distinct.values()], target)
    valid = sources[..., 1] > sources[..., 0]
    ids = None
    if readings[0].ids is not None:
        # A row of zeros says nothing.
        valid &= (table.sum(1) > 0).cpu()[sources[..., 0]]
        sources = sources * valid[..., None]
        ids = _soft_ids(distinct.values(), target)[sources[..., 0].to(target)]
    places = valid.flatten().nonzero()[:, 0]
    vectors = table.new_zeros(valid.numel(), table.shape[1])
    vectors[places.to(target)] = _interval_means(table, sources.flatten(0, 1)[places])
    if shared:
        shifts = torch.tensor([_shared_start(text) - offsets[text] for text in texts])
        sources = torch.where(valid[..., None], sources + shifts[:, None, None], 0)
    return Signal(vectors.view(*valid.shape, -1), valid.to(target), sources.to(target), ids)


@torch.no_grad()
def utterance_signal(
    readings: Sequence[Reading],
    texts: Sequence[str],
    *,
    device: torch.device | str | None = None,
    shared: bool = False,
) -> Signal:
    """The [CLS] vector of each of B utterances, N = 1. Utterances of equal texts share their source.

    Args:
        device: of the result; by default that of the readings.
        shared: number the sources so that they can be compared with those of other batches.

    Raises:
        ValueError: no utterances, or readings of other texts.
    """
    distinct = _distinct(readings, texts)
    number = {text: _shared_start(text) if shared else index for index, text in enumerate(distinct)}
    target = torch.device(device) if device is not None else readings[0].vectors.device
    vectors = _joined([reading.vectors[:1] for reading in readings], target)[:, None]
    sources = torch.tensor([[[number[text], number[text] + 1]] for text in texts], device=target)
    return Signal(vectors, torch.ones(len(texts), 1, dtype=torch.bool, device=target), sources)


def silence(utterances: int, dim: int, *, device: torch.device | str | None = None) -> Signal:
    """A signal that says nothing of any utterance, N = 1, vectors of width `dim`."""
    return Signal(
        torch.zeros(utterances, 1, dim, device=device),
        torch.zeros(utterances, 1, dtype=torch.bool, device=device),
        torch.zeros(utterances, 1, 2, dtype=torch.int64, device=device),
    )


def _joined(parts: Sequence[Tensor], device: torch.device | str) -> Tensor:
    """`(P, D)` float32 on `device`; float16 goes there as it is and is converted behind it."""
    with torch.autocast(parts[0].device.type, enabled=False):  # on a CPU it refuses to join float16 tensors
        return torch.cat(list(parts)).to(device).float()


def _soft_ids(readings: Iterable[Reading], device: torch.device) -> Tensor:
    """`(P, k)` int64 of the same rows as the vectors."""
    parts = [reading.ids for reading in readings]
    return torch.cat([part[1:] for part in parts if part is not None]).to(device).long()


def _shared_start(text: str) -> int:
    """Where a text's positions begin on a line that all processes share, without asking one another.

    There is room for 2^46 texts of 2^16 positions. Should two texts meet, they are not each other's negatives.
    """
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 18) << 16


def _distinct(readings: Sequence[Reading], texts: Sequence[str]) -> Mapping[str, Reading]:
    if not texts or len(readings) != len(texts):
        raise ValueError(f"{len(texts)} texts and {len(readings)} readings: both must be one an utterance")
    distinct: dict[str, Reading] = {}
    for reading, text in zip(readings, texts, strict=True):
        if reading.text != text:
            raise ValueError(f"the reading of '{reading.text}' was given for the text '{text}'")
        distinct.setdefault(text, reading)
    return distinct


def _intervals(
    reading: Reading, pieces: Sequence[Piece], offset: int, positions: int
) -> list[tuple[int, int]]:
    """Rows of the table for each of `positions` positions; (0, 0) where there is none."""
    spans = [(start, end) for _, start, end in pieces]
    if reading.ids is None:
        ranges = align_spans(spans, reading.spans, len(reading.text))
    elif spans == reading.spans:
        ranges = [(place, place + 1) for place in range(len(spans))]
    else:
        raise ValueError(f"the soft labels of '{reading.text}' are of other pieces than the student's")
    end_of_sentence = offset + len(reading.spans)
    intervals = [(first + offset, last + offset) if first < last else (0, 0) for first, last in ranges]
    intervals.append((end_of_sentence, end_of_sentence + 1))
    return intervals + [(0, 0)] * (positions - len(intervals))


def _interval_means(table: Tensor, intervals: Tensor) -> Tensor:
    """Means of the rows `[first, last)` of `table (P, D)` for `intervals (M, 2)`, none empty: `(M, D)`."""
    first, sizes = intervals[:, 0], intervals[:, 1] - intervals[:, 0]
    bags = sizes.cumsum(0) - sizes
    indices = torch.arange(int(sizes.sum())) - torch.repeat_interleave(bags - first, sizes)
    return embedding_bag(indices.to(table.device), table, bags.to(table.device), mode="mean")
