"""The CTC recogniser: an encoder and one linear layer (Graves et al. 2006)."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retort.nn.ctc import label_frames
from retort.nn.encoder import Encoder
from retort.nn.masks import masked_mean, valid_mask
from retort.student_config import StudentConfig
from retort.students.student import Encoded, Labelled, Student, StudentOutput
from retort.students.taps import Tap, Unit
from retort.text.tokenizers import BLANK


@runtime_checkable
class HasCtc(Protocol):
    """A student with a CTC head: `ctc` from hidden frames to the vocabulary."""

    ctc: nn.Linear


def ctc_log_probs(student: HasCtc, encoded: Encoded) -> Tensor:
    """`(B, T, V)` of the CTC head, float32 whatever the autocast; undefined behind the lengths."""
    with torch.autocast(encoded.hidden.device.type, enabled=False):
        result: Tensor = student.ctc(encoded.hidden).log_softmax(-1)
    return result


def ctc_loss(log_probs: Tensor, lengths: Tensor, tokens: Tensor, token_lengths: Tensor) -> Tensor:
    """Sum over the utterances; one with too few frames for its labels adds nothing.

    Args:
        log_probs: `(B, T, V)`.
        lengths: `(B,)`, valid frames.
        tokens: `(B, U)` int64, EOS last, which is no label, then pad.
        token_lengths: `(B,)`, EOS counted.
    """
    return F.ctc_loss(
        log_probs.transpose(0, 1),
        tokens,
        lengths,
        (token_lengths - 1).clamp(min=0),
        blank=BLANK,
        reduction="sum",
        zero_infinity=True,
    )


class CtcStudent(Student):
    """Speech to tokens, all frames independently of one another.

    Its taps over tokens are what stands at the frame where the best path through the reference has each token
    (Futami et al. 2022, arXiv 2209.02030); of several frames of a token, at the one where it is most probable. EOS
    is no label: the taps have a place for it, as teachers do, at which nothing is present. Nothing is present either of
    an utterance that has too few frames for its labels.

    Args:
        config: architecture and the weight of the loss.
        vocabulary: number of ids, the special ones counted.
        bins: filter banks a frame.
    """

    vocabulary_parts = ("ctc.",)

    def __init__(self, config: StudentConfig, vocabulary: int, bins: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config.frontend, config.encoder, bins)
        self.ctc = nn.Linear(config.encoder.dim, vocabulary)

    @property
    def loss_weights(self) -> dict[str, float]:
        return {"ctc": self.config.ctc_weight}

    @property
    def tap_dims(self) -> dict[str, int]:
        dim = self.config.encoder.dim
        return {"acoustic": dim, "utterance": dim, "tokens": self.ctc.out_features}

    @property
    def tap_units(self) -> dict[str, Unit]:
        return {"acoustic": "token", "utterance": "utterance", "tokens": "token"}

    @property
    def prose(self) -> str:
        return "output     CTC"

    @property
    def criterion(self) -> str:
        return "cer"

    def labels(self, batch: Labelled) -> tuple[Tensor, ...]:
        return batch.tokens, batch.token_lengths

    def positions(self, batch: Labelled) -> int:
        """Tokens, EOS counted, so that losses can be compared with those of other students."""
        return int(batch.token_lengths.sum())

    def forward(
        self, features: Tensor, feature_lengths: Tensor, tokens: Tensor, token_lengths: Tensor
    ) -> StudentOutput:
        """Losses and taps of one batch.

        Args:
            features: `(B, T, bins)`.
            feature_lengths: `(B,)`.
            tokens: `(B, U)` int64, EOS last, then pad; U may be more than the longest of `token_lengths`.
            token_lengths: `(B,)`, EOS counted.
        """
        encoded = self.encode(features, feature_lengths)
        with torch.autocast(encoded.hidden.device.type, enabled=False):
            logits = self.ctc(encoded.hidden)
        log_probs = logits.log_softmax(-1)
        labels = (token_lengths - 1).clamp(min=0)
        frames, present = label_frames(log_probs, encoded.lengths, tokens, labels, blank=BLANK)
        losses = {"ctc": ctc_loss(log_probs, encoded.lengths, tokens, token_lengths)}
        mean = masked_mean(encoded.hidden, valid_mask(encoded.lengths, encoded.hidden.shape[1]))
        taps = {
            "acoustic": Tap(_at(encoded.hidden, frames), token_lengths, "token", present=present),
            "tokens": Tap(_at(logits, frames), token_lengths, "token", present=present),
            "utterance": Tap(mean, torch.ones_like(token_lengths), "utterance"),
        }
        return StudentOutput(losses, taps, {})


def _at(values: Tensor, frames: Tensor) -> Tensor:
    """`(B, U, D)` of `values (B, T, D)` at `frames (B, U)`."""
    return values.gather(1, frames[..., None].expand(-1, -1, values.shape[-1]))
