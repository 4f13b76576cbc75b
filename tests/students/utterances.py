"""Random utterances with random tokens, as a student is given them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from retort.students.student import Student
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
        """The same with what is no number after the frames, and with more padding after the tokens."""
        padded = torch.arange(self.features.shape[1]) >= self.feature_lengths[:, None]
        return self._replace(
            features=self.features.masked_fill(padded[..., None], float("nan")),
            tokens=F.pad(self.tokens, (0, 4), value=PAD),
        )


def batch(frames: list[int], units: list[int], seed: int = 0, vocabulary: int = VOCABULARY) -> Batch:
    """Random utterances with so many feature frames and so many tokens, EOS counted."""
    generator = torch.Generator().manual_seed(seed)
    features = [torch.randn(each, BINS, generator=generator) for each in frames]
    tokens = [
        torch.cat((torch.randint(4, vocabulary, (each - 1,), generator=generator), torch.tensor([EOS])))
        for each in units
    ]
    return Batch(
        pad_sequence(features, batch_first=True),
        torch.tensor(frames),
        pad_sequence(tokens, batch_first=True, padding_value=PAD),
        torch.tensor(units),
    )


def assert_a_batch_is_its_utterances(student: Student, given: Batch) -> None:
    """Losses and counts add up, and taps are the same where anything is present, whatever is after an end."""
    with torch.no_grad():
        together = student(*given.with_garbage())
        alone = [student(*given.utterance(row)) for row in range(len(given.features))]
    weighted = {name for name, weight in student.loss_weights.items() if weight > 0.0}
    assert weighted <= together.losses.keys() <= student.loss_weights.keys()
    for name, loss in together.losses.items():
        total = torch.stack([each.losses[name] for each in alone]).sum()
        torch.testing.assert_close(loss, total, atol=1e-4, rtol=1e-5)
    for name, value in together.metrics.items():
        torch.testing.assert_close(value, sum(each.metrics[name] for each in alone), atol=1e-4, rtol=1e-5)
    assert {name: tap.values.shape[-1] for name, tap in together.taps.items()} == student.tap_dims
    assert {name: tap.unit for name, tap in together.taps.items()} == student.tap_units
    for name, tap in together.taps.items():
        for row, each in enumerate(alone):
            size = int(each.taps[name].lengths[0])
            assert int(tap.lengths[row]) == size
            present = slice(size) if tap.present is None else tap.present[row, :size]
            values, expected = tap.values[row, :size][present], each.taps[name].values[0, :size][present]
            torch.testing.assert_close(values, expected, atol=2e-5, rtol=1e-4)


def learn_by_heart(
    student: Student, given: Batch, recalled: Callable[[Any, Batch], object], rate: float = 4e-3
) -> None:
    """Train until all that is recalled is the tokens of the batch, without EOS; fail if it never is.

    Args:
        recalled: of the student in eval mode, several lists of token ids, each of all utterances.
    """
    texts = [row[: int(count) - 1].tolist() for row, count in zip(given.tokens, given.token_lengths)]
    optimizer = torch.optim.Adam(student.parameters(), lr=rate)
    found: Any = None
    for step in range(1, 401):
        losses = student.train()(*given).losses
        total = torch.stack([student.loss_weights[name] * loss for name, loss in losses.items()]).sum()
        optimizer.zero_grad()
        (total / given.token_lengths.sum()).backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimizer.step()
        if step % 25 == 0:
            with torch.no_grad():
                found = recalled(student.eval(), given)
            if all(each == texts for each in found):
                break
    assert all(each == texts for each in found)
