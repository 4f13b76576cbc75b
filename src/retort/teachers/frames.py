"""What a teacher says of texts, laid on the frames in which they are heard."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from retort.teachers.signal import Signal
from retort.text.tokenizers import UNKNOWN


@torch.no_grad()
def frame_signal(signal: Signal, segments: Tensor, ids: Sequence[Sequence[int]] | None = None) -> Signal:
    """Copy what is said of a text's pieces to all frames of each piece.

    Args:
        signal: of the pieces of B texts and EOS behind them, as :func:`token_signal` gives it.
        segments: `(B, T)` int64: the piece of each frame, -1 for none. EOS is of no frame.
        ids: of each text, what its pieces are among the teacher's symbols; kept as `labels`, -1 where it is unknown.

    Returns:
        Of T positions, not valid where there is no piece or nothing is said of it.

    Raises:
        ValueError: other texts, or a frame of a piece that the signal does not have.
    """
    batch, size = signal.valid.shape
    if len(segments) != batch or (ids is not None and len(ids) != batch):
        raise ValueError(f"a signal of {batch} texts, segments of {len(segments)}")
    if (segments >= size - 1).any() or (segments < -1).any():
        raise ValueError(f"segments name pieces up to {int(segments.max())}, the signal has {size - 1}")
    segments = segments.to(signal.valid.device)
    owner = torch.arange(batch, device=segments.device)[:, None]
    place = segments.clamp(min=0)
    valid = signal.valid[owner, place] & (segments >= 0)
    labels = None
    if ids is not None:
        table = torch.full((batch, size), -1)
        for row, own in enumerate(ids):
            table[row, : len(own)] = torch.tensor(own, dtype=torch.int64)
        table[table == UNKNOWN] = -1
        labels = table.to(segments.device)[owner, place].masked_fill(segments < 0, -1)
    return Signal(
        signal.vectors[owner, place].masked_fill(~valid[..., None], 0.0),
        valid,
        signal.sources[owner, place].masked_fill(~valid[..., None], 0),
        None if signal.ids is None else signal.ids[owner, place],
        labels,
    )
