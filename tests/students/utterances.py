"""Random utterances with random tokens, as a student is given them."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from retort.text.tokenizers import EOS, PAD

BINS, VOCABULARY = 12, 20


class Batch(NamedTuple):
    features: Tensor
    feature_lengths: Tensor
    tokens: Tensor
    token_lengths: Tensor

    def utterance(self, row: int) -> Batch:
        """One of them alone, without its padding."""
        frames, units = int(self.feature_lengths[row]), int(self.token_lengths[row])
        return Batch(
            self.features[row : row + 1, :frames],
            self.feature_lengths[row : row + 1],
            self.tokens[row : row + 1, :units],
            self.token_lengths[row : row + 1],
        )

    def with_garbage(self) -> Batch:
        """The same with what is no number behind the frames."""
        behind = torch.arange(self.features.shape[1]) >= self.feature_lengths[:, None]
        return self._replace(features=self.features.masked_fill(behind[..., None], float("nan")))


def batch(frames: list[int], units: list[int], seed: int = 0) -> Batch:
    """Random utterances with so many feature frames and so many tokens, EOS counted."""
    generator = torch.Generator().manual_seed(seed)
    features = [torch.randn(each, BINS, generator=generator) for each in frames]
    tokens = [
        torch.cat((torch.randint(4, VOCABULARY, (each - 1,), generator=generator), torch.tensor([EOS])))
        for each in units
    ]
    return Batch(
        pad_sequence(features, batch_first=True),
        torch.tensor(frames),
        pad_sequence(tokens, batch_first=True, padding_value=PAD),
        torch.tensor(units),
    )
