"""Cache of teacher outputs in memory, so that a text is not computed again in every epoch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch

from retort.teachers.teacher import Teacher, TeacherOutput

_Key = tuple[str, tuple[torch.dtype | None, ...]]


class CachedTeacher:
    """A teacher whose outputs are cached; the least recently used ones are evicted first.

    Vectors are cached as the teacher returned them (float32, on its device). Outputs under autocast and without it have
    separate entries.

    Args:
        teacher: computes outputs that are not in the cache.
        limit: bytes of vectors in the cache; 0 disables it.
    """

    def __init__(self, teacher: Teacher, limit: int = 512 * 2**20) -> None:
        self.teacher = teacher
        self.limit = limit
        self.bytes = 0
        """Bytes of the cached vectors."""
        self._outputs: OrderedDict[_Key, TeacherOutput] = OrderedDict()

    @property
    def dim(self) -> int:
        return self.teacher.dim

    @property
    def reads_audio(self) -> bool:
        """As :func:`retort.teachers.whisper.reads_audio`."""
        return bool(getattr(self.teacher, "reads_audio", False))

    def read(self, texts: Sequence[str]) -> list[TeacherOutput]:
        """As the teacher's own `read`; equal texts are computed once."""
        precision = _precision()
        found: dict[str, TeacherOutput] = {}
        missing: list[str] = []
        for text in dict.fromkeys(texts):
            output = self._outputs.get((text, precision))
            if output is None:
                missing.append(text)
            else:
                self._outputs.move_to_end((text, precision))
                found[text] = output
        if missing:
            for text, output in zip(missing, self.teacher.read(missing), strict=True):
                found[text] = output
                self._store((text, precision), output)
        return [found[text] for text in texts]

    def _store(self, key: _Key, output: TeacherOutput) -> None:
        self._outputs[key] = output
        self.bytes += _size(output)
        while self.bytes > self.limit:
            _, oldest = self._outputs.popitem(last=False)
            self.bytes -= _size(oldest)


def _size(output: TeacherOutput) -> int:
    parts = [output.vectors] if output.ids is None else [output.vectors, output.ids]
    return sum(part.numel() * part.element_size() for part in parts)


def _precision() -> tuple[torch.dtype | None, ...]:
    return tuple(
        torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else None
        for kind in ("cpu", "cuda")
    )
