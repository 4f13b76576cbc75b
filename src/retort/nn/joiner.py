"""The joiner of transducers: a frame and what was said before it make a distribution over tokens and blank."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Joiner(nn.Module):
    """`output(tanh(acoustic(hidden) + linguistic(predicted)))` (Graves et al. 2013, as k2's icefall has it).

    The two sides are projected once, by :meth:`hear` and :meth:`read`, and joined wherever they meet.

    Args:
        acoustic_dim: of the encoder's hidden frames.
        linguistic_dim: of the prediction network.
        dim: of what is joined.
        vocabulary: number of ids, blank and the other special ones counted.
    """

    def __init__(self, acoustic_dim: int, linguistic_dim: int, dim: int, vocabulary: int) -> None:
        super().__init__()
        self.acoustic = nn.Linear(acoustic_dim, dim)
        self.linguistic = nn.Linear(linguistic_dim, dim, bias=False)
        self.output = nn.Linear(dim, vocabulary)

    def hear(self, hidden: Tensor) -> Tensor:
        """`(..., acoustic_dim)` to `(..., dim)`."""
        heard: Tensor = self.acoustic(hidden)
        return heard

    def read(self, predicted: Tensor) -> Tensor:
        """`(..., linguistic_dim)` to `(..., dim)`."""
        read: Tensor = self.linguistic(predicted)
        return read

    def forward(self, heard: Tensor, read: Tensor) -> tuple[Tensor, Tensor]:
        """States `(..., dim)` and logits `(..., V)` of two sides that can be added."""
        states = torch.tanh(heard + read)
        return states, self.output(states)

    def over_lattices(self, heard: Tensor, read: Tensor, lengths: Tensor, token_lengths: Tensor) -> Tensor:
        """Logits `(N, V)` of all cells of the lattices of a batch, utterance by utterance, frame by frame.

        Cells outside of the lattices are not computed: N is the sum of T_b (U_b + 1).

        Args:
            heard: `(B, T, dim)`.
            read: `(B, U + 1, dim)`.
            lengths: `(B,)`, the frames T_b.
            token_lengths: `(B,)`, the tokens U_b.
        """
        sums = [
            (frames[:length, None] + places[None, : count + 1]).flatten(0, 1)
            for frames, places, length, count in zip(heard, read, lengths.tolist(), token_lengths.tolist())
        ]
        logits: Tensor = self.output(torch.tanh(torch.cat(sums)))
        return logits
