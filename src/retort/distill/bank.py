"""A bank of teacher vectors of previous batches, from which a contrastive row draws negatives."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from retort.distill.positions import Bank, Targets
from retort.nn.collectives import gather_numbers, gather_rows, process_count


class VectorBank(nn.Module):
    """The last `size` teacher vectors, first in, first out, the newest first.

    The content is saved with the row, so that a resumed run draws from the same vectors. With several processes that
    share their negatives, all banks have the same content.

    Args:
        size: maximum number of vectors.
        dim: D of the vectors.
    """

    vectors: Tensor
    sources: Tensor
    tokens: Tensor
    filled: Tensor

    def __init__(self, size: int, dim: int) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(size, dim))
        self.register_buffer("sources", torch.zeros(size, 2, dtype=torch.int64))
        self.register_buffer("tokens", torch.full((size,), -1, dtype=torch.int64))
        self.register_buffer("filled", torch.zeros((), dtype=torch.int64))

    def content(self) -> Bank:
        """The vectors so far, which :meth:`add` overwrites."""
        count = int(self.filled)
        return Bank(self.vectors[:count], self.sources[:count], self.tokens[:count])

    @torch.no_grad()
    def add(self, targets: Targets, *, gather: bool) -> None:
        """Add the vectors of a batch.

        Args:
            targets: with sources that have the same numbers in all batches (`shared` in
                :func:`retort.teachers.targets.token_targets`).
            gather: add the vectors of all processes, each of which must call this.
        """
        assert targets.sources is not None
        tokens = targets.tokens
        if tokens is None:
            tokens = torch.full((len(targets.vectors),), -1, device=targets.vectors.device)
        rows = [targets.vectors.float(), targets.sources, tokens]
        if gather and process_count() > 1:
            gathered = gather_numbers(len(tokens), device=tokens.device)
            counts = [count for (count,) in gathered]
            rows = [gather_rows(each, counts) for each in rows]
        for own, new in zip((self.vectors, self.sources, self.tokens), rows):
            own.copy_(torch.cat((new, own))[: len(own)])
        self.filled.add_(len(rows[0])).clamp_(max=len(self.vectors))
