"""One file of a teacher's store: the concatenated outputs of many texts, memory-mapped."""

from __future__ import annotations

import hashlib
import itertools
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from retort.common.checksums import sha256
from retort.common.errors import UserError
from retort.common.files import write_whole
from retort.teachers.teacher import TeacherOutput

SUFFIX = ".safetensors"
FORMAT = "1"
_SPAN = struct.Struct("=ii")
_TENSORS = ("vectors", "vector_offsets", "spans", "text", "text_offsets")
_DIGITS = 64
"""Length of a SHA-256, which is the name of a shard; earlier versions wrote shorter names."""
_IDS = "ids"
"""Tensor that only shards of soft labels have."""


_KINDS = {
    "vectors": (torch.float16, 2),
    "vector_offsets": (torch.int64, 1),
    "spans": (torch.int32, 2),
    "text": (torch.uint8, 1),
    "text_offsets": (torch.int64, 1),
}


class BrokenShard(Exception):
    """A shard that is truncated or damaged. It is not read but computed again."""


@dataclass(frozen=True)
class Shard:
    """Outputs of N texts.

    Attributes:
        path: path of the file.
        texts: the N texts, distinct.
        offsets: N + 1 numbers; text i has the vectors `[offsets[i], offsets[i + 1])`: [CLS], pieces, [SEP].
        vectors: `(offsets[N], D)` float16, memory-mapped.
        spans: `offsets[N] - 2 N` pairs of int32 as bytes, mapped; those of text i begin at pair `offsets[i] - 2 i`.
        ids: for soft labels, int32 of the shape of the vectors, memory-mapped; otherwise None.
    """

    path: Path
    texts: list[str]
    offsets: list[int]
    vectors: np.ndarray
    spans: memoryview
    ids: np.ndarray | None = None

    def spans_of(self, row: int) -> list[tuple[int, int]]:
        """Character spans of the pieces of text `row`."""
        first, last = self.offsets[row] - 2 * row, self.offsets[row + 1] - 2 * (row + 1)
        # Four times as fast as tuples from NumPy.
        return list(_SPAN.iter_unpack(self.spans[first * _SPAN.size : last * _SPAN.size]))


def shard_bytes(texts: int, vectors: int, dim: int, characters: int = 0, soft: bool = False) -> int:
    """Size in bytes of shards with this many texts and vectors, without their headers (under 1 kB each).

    Args:
        vectors: number of pieces, plus two for each text.
        characters: total size of the texts in UTF-8.
        soft: whether the vectors are soft labels with ids.
    """
    return (6 if soft else 2) * dim * vectors + 8 * (vectors - 2 * texts) + 16 * texts + characters


def write_shard(folder: Path, outputs: Sequence[TeacherOutput], key: str) -> Path:
    """Write outputs of distinct texts as a new file of `folder`, named by the SHA-256 of its content.

    The name is unique to the content, so that processes do not overwrite each other's shards. The file is renamed when
    it is complete, so that a process that dies leaves no incomplete shard.

    Raises:
        UserError: a vector does not fit float16, or the file cannot be written (disk full).
    """
    content = save(_tensors(outputs), {"format": FORMAT, "key": key, "texts": str(len(outputs))})
    path = folder / f"{hashlib.sha256(content).hexdigest()}{SUFFIX}"
    write_whole(path, content, remedy="Free space and run the same command; stored texts are not computed again")
    return path


def open_shard(path: Path, key: str, dim: int) -> Shard:
    """Map a shard and check its content and its teacher's key.

    Raises:
        BrokenShard: the file is truncated, damaged or missing.
        UserError: the file was made by another teacher, or by another version of Retort.
    """
    try:
        if len(path.stem) == _DIGITS and sha256(path) != path.stem:
            raise BrokenShard("its SHA-256 is not that of its name")
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            names = [*_TENSORS, *({_IDS} & set(file.keys()))] if metadata else []
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError, KeyError) as error:
        raise BrokenShard(str(error)) from None
    if metadata.get("format") != FORMAT:
        raise UserError("not a shard of this version of Retort", where=path, remedy="Remove it")
    if metadata.get("key") != key:
        raise UserError(
            f"the shard belongs to another teacher, layer or tokenizer ({metadata.get('key')}, not {key})",
            where=path,
            remedy="Move it back to its own folder, or remove it",
        )
    return _checked(path, tensors, dim)


def _tensors(outputs: Sequence[TeacherOutput]) -> dict[str, Tensor]:
    texts = [encode(output.text) for output in outputs]
    spans = [span for output in outputs for span in output.spans]
    ids = [output.ids for output in outputs if output.ids is not None]
    return {
        **({_IDS: torch.cat(ids).to("cpu", torch.int32)} if ids else {}),
        "vectors": torch.cat([_to_half(output) for output in outputs]),
        "vector_offsets": _offsets([len(output.vectors) for output in outputs]),
        "spans": torch.tensor(spans, dtype=torch.int32).reshape(-1, 2),
        "text": torch.frombuffer(bytearray(b"".join(texts)) or bytearray(1), dtype=torch.uint8)[
            : sum(map(len, texts))
        ].clone(),
        "text_offsets": _offsets([len(text) for text in texts]),
    }


def encode(text: str) -> bytes:
    """UTF-8 of any Python string, including lone surrogates."""
    return text.encode("utf-8", "surrogatepass")


def _to_half(output: TeacherOutput) -> Tensor:
    half = output.vectors.detach().to("cpu", torch.float16)
    if not bool(half.isfinite().all()):
        largest = float(output.vectors.abs().max())
        raise UserError(
            f"its vectors of '{output.text[:60]}' do not fit float16 (the largest is {largest:.3g})",
            where="teacher store",
            remedy="Set storage: online for this teacher, or choose another layer",
        )
    return half


def _offsets(lengths: Sequence[int]) -> Tensor:
    return torch.tensor(list(itertools.accumulate(lengths, initial=0)), dtype=torch.int64)


def _checked(path: Path, tensors: dict[str, Tensor], dim: int) -> Shard:
    """Check that the tensors match each other; safetensors has checked the file's length."""
    vectors, spans, ids = tensors["vectors"], tensors["spans"], tensors.get(_IDS)
    if any(
        tensors[name].dtype != dtype or tensors[name].ndim != rank for name, (dtype, rank) in _KINDS.items()
    ):
        raise BrokenShard("its tensors have other types")
    offsets, text_offsets = tensors["vector_offsets"].tolist(), tensors["text_offsets"].tolist()
    rows = len(offsets) - 1
    whole = (
        vectors.shape[1] == dim
        and rows >= 0
        and len(text_offsets) == rows + 1
        and offsets[0] == text_offsets[0] == 0
        and offsets[-1] == len(vectors)
        and text_offsets[-1] == len(tensors["text"])
        and tuple(spans.shape) == (len(vectors) - 2 * rows, 2)
        and (ids is None or (ids.dtype == torch.int32 and ids.shape == vectors.shape))
        and all(after - before >= 2 for before, after in itertools.pairwise(offsets))
        and all(after >= before for before, after in itertools.pairwise(text_offsets))
    )
    if not whole:
        raise BrokenShard("its tensors do not match each other")
    content = tensors["text"].numpy().tobytes()
    try:
        texts = [
            content[first:last].decode("utf-8", "surrogatepass")
            for first, last in itertools.pairwise(text_offsets)
        ]
    except UnicodeDecodeError as error:
        raise BrokenShard(str(error)) from None
    pairs = spans.numpy().reshape(-1).view(np.uint8).data
    return Shard(path, texts, offsets, vectors.numpy(), pairs, None if ids is None else ids.numpy())
