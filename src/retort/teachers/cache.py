"""What a teacher said stays in memory, so that an epoch does not ask again what the last one did."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch

from retort.teachers.teacher import Reading, Teacher

_Key = tuple[str, tuple[torch.dtype | None, ...]]


class CachedTeacher:
    """A teacher with the least recently used of its readings forgotten first.

    Vectors stay as they were made (float32, the teacher's device), so a cached reading is the fresh one.
    Readings made under autocast and without it are kept apart.

    Args:
        teacher: asked for what is not here.
        limit: bytes of vectors kept; 0 keeps nothing.
    """

    def __init__(self, teacher: Teacher, limit: int = 512 * 2**20) -> None:
        self.teacher = teacher
        self.limit = limit
        self.bytes = 0
        """Of the vectors that are kept."""
        self._readings: OrderedDict[_Key, Reading] = OrderedDict()

    @property
    def dim(self) -> int:
        return self.teacher.dim

    @property
    def reads_audio(self) -> bool:
        """As :func:`retort.teachers.whisper.reads_audio`."""
        return bool(getattr(self.teacher, "reads_audio", False))

    def read(self, texts: Sequence[str]) -> list[Reading]:
        """As the teacher's own `read`; equal texts are asked once."""
        precision = _precision()
        found: dict[str, Reading] = {}
        missing: list[str] = []
        for text in dict.fromkeys(texts):
            reading = self._readings.get((text, precision))
            if reading is None:
                missing.append(text)
            else:
                self._readings.move_to_end((text, precision))
                found[text] = reading
        if missing:
            for text, reading in zip(missing, self.teacher.read(missing), strict=True):
                found[text] = reading
                self._keep((text, precision), reading)
        return [found[text] for text in texts]

    def _keep(self, key: _Key, reading: Reading) -> None:
        self._readings[key] = reading
        self.bytes += _size(reading)
        while self.bytes > self.limit:
            _, oldest = self._readings.popitem(last=False)
            self.bytes -= _size(oldest)


def _size(reading: Reading) -> int:
    parts = [reading.vectors] if reading.ids is None else [reading.vectors, reading.ids]
    return sum(part.numel() * part.element_size() for part in parts)


def _precision() -> tuple[torch.dtype | None, ...]:
    return tuple(
        torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        for kind in ("cpu", "cuda")
    )
