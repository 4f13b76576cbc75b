"""A bank of encoder frames and fired embeddings of training speech, by sound, for text injection."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from retort.students.fired import Segment

_DTYPES = {
    "sounds": torch.uint8,
    "examples": torch.int64,
    "sizes": torch.int64,
    "places": torch.int64,
    "frames": torch.float16,
    "fired": torch.float16,
}


class SegmentBank:
    """The last examples of each sound, in float16 on the CPU.

    Args:
        examples: maximum number of examples of a sound; the oldest one is replaced.
        longest: maximum number of frames of an example; longer ones, and those without frames, are not stored.
    """

    def __init__(self, examples: int, longest: int) -> None:
        self.examples, self.longest = examples, longest
        self._segments: dict[str, deque[Segment]] = {}

    def __contains__(self, sound: object) -> bool:
        return sound in self._segments

    def __getitem__(self, sound: str) -> Sequence[Segment]:
        return self._segments[sound]

    def __len__(self) -> int:
        """Number of sounds."""
        return len(self._segments)

    def add(self, sound: str, segment: Segment) -> None:
        """Store a copy of `segment`, unless it is too long or has no frames."""
        if 0 < len(segment.frames) <= self.longest and len(segment.fired):
            stored = Segment(*(_copied(each) for each in segment))
            self._segments.setdefault(sound, deque(maxlen=self.examples)).append(stored)

    def tensors(self) -> dict[str, Tensor]:
        """The content for a checkpoint."""
        segments = [each for held in self._segments.values() for each in held]
        names = "\n".join(self._segments).encode()
        sizes = [(len(each.frames), len(each.fired)) for each in segments]
        return {
            "sounds": torch.tensor(list(names), dtype=torch.uint8),
            "examples": torch.tensor([len(held) for held in self._segments.values()], dtype=torch.int64),
            "sizes": torch.tensor(sizes, dtype=torch.int64).view(-1, 2),
            "places": torch.cat([each.places for each in segments] or [torch.zeros(0, dtype=torch.int64)]),
            "frames": torch.cat([each.frames for each in segments] or [torch.zeros(0, 0, dtype=torch.float16)]),
            "fired": torch.cat([each.fired for each in segments] or [torch.zeros(0, 0, dtype=torch.float16)]),
        }

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace the content by that of :meth:`tensors`.

        Raises:
            ValueError, KeyError: the tensors do not match.
        """
        for name, dtype in _DTYPES.items():
            if tensors[name].dtype != dtype:
                raise ValueError(f"{name} is of {tensors[name].dtype}, not {dtype}")
        text = bytes(tensors["sounds"].tolist()).decode()
        names = text.split("\n") if text else []
        counts, sizes = tensors["examples"].tolist(), tensors["sizes"].tolist()
        if len({*names} - {""}) != len(counts) or sum(counts) != len(sizes) or not all(counts):
            raise ValueError("the examples of the bank do not match its sounds")
        frames = tensors["frames"].split([each[0] for each in sizes])
        fired, places = (tensors[name].split([each[1] for each in sizes]) for name in ("fired", "places"))
        segments = iter([Segment(*each) for each in zip(frames, fired, places, strict=True)])
        self._segments = {
            name: deque((next(segments) for _ in range(count)), maxlen=self.examples)
            for name, count in zip(names, counts)
        }


def _copied(tensor: Tensor) -> Tensor:
    copied = tensor.detach().cpu()
    return copied.half() if tensor.is_floating_point() and tensor.dtype != torch.float16 else copied.clone()
