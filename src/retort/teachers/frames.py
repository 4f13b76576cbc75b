"""Teacher targets of pieces, expanded to the frames of each piece."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from retort.teachers.targets import TeacherTargets
from retort.text.tokenizers import UNKNOWN


@torch.no_grad()
def frame_targets(targets: TeacherTargets, segments: Tensor, ids: Sequence[Sequence[int]] | None = None) -> TeacherTargets:
    """Copy the targets of each piece to all frames of that piece.

    Args:
        targets: of the pieces of B texts, each followed by EOS, as :func:`token_targets` returns them.
        segments: `(B, T)` int64, index of the piece of each frame, -1 for none. No frame belongs to EOS.
        ids: for each text, the teacher's symbols of its pieces; returned as `labels`, -1 for the unknown symbol.

    Returns:
        Targets of T positions; a frame without a piece, or whose piece has no target, is not valid.

    Raises:
        ValueError: the number of texts differs, or a frame has a piece that the targets lack.
    """
    batch, size = targets.valid.shape
    if len(segments) != batch or (ids is not None and len(ids) != batch):
        raise ValueError(f"targets of {batch} texts, segments of {len(segments)}")
    if (segments >= size - 1).any() or (segments < -1).any():
        raise ValueError(f"segments refer to pieces up to {int(segments.max())}, the targets have {size - 1}")
    segments = segments.to(targets.valid.device)
    owner = torch.arange(batch, device=segments.device)[:, None]
    place = segments.clamp(min=0)
    valid = targets.valid[owner, place] & (segments >= 0)
    labels = None
    if ids is not None:
        table = torch.full((batch, size), -1)
        for row, own in enumerate(ids):
            table[row, : len(own)] = torch.tensor(own, dtype=torch.int64)
        table[table == UNKNOWN] = -1
        labels = table.to(segments.device)[owner, place].masked_fill(segments < 0, -1)
    return TeacherTargets(
        targets.vectors[owner, place].masked_fill(~valid[..., None], 0.0),
        valid,
        targets.sources[owner, place].masked_fill(~valid[..., None], 0),
        None if targets.ids is None else targets.ids[owner, place],
        labels,
    )
