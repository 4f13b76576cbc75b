"""A teacher whose vectors are of the letters alone, and stores of it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from retort.teachers import StoredTeacher, TeacherOutput

DIM = 4
IDENTITY = {"model": "letters", "dim": DIM}
TEXTS = [f"{first}{second}" * (1 + index % 3) for index, first in enumerate("abcdefgh") for second in "xyz"]


class Letters:
    """A teacher of letters: its vectors are of the text alone."""

    dim = DIM

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.asked: list[str] = []

    def read(self, texts: Sequence[str]) -> list[TeacherOutput]:
        self.asked += texts
        return [self.output(text) for text in texts]

    def output(self, text: str) -> TeacherOutput:
        numbers = torch.tensor([1, *(ord(letter) % 97 for letter in text), 2], dtype=torch.float32)[:, None]
        vectors = self.scale * numbers * torch.arange(1, DIM + 1) / 8
        return TeacherOutput(vectors, [(place, place + 1) for place in range(len(text))], text)


def store_at(root: Path, **others: object) -> StoredTeacher:
    return StoredTeacher(root, {**IDENTITY, **others})


def check(store: StoredTeacher, texts: Sequence[str]) -> None:
    letters = Letters()
    for output, text in zip(store.read(texts), texts, strict=True):
        expected = letters.output(text)
        assert output.vectors.dtype == torch.float16
        assert torch.equal(output.vectors, expected.vectors.half())  # its numbers are exact in float16
        assert output.spans == expected.spans
        assert all(type(span) is tuple for span in output.spans)
        assert output.text == text


def shards(store: StoredTeacher) -> list[Path]:
    return sorted(store.folder.glob("*.safetensors"))
