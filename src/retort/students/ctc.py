"""The CTC student: an encoder and one linear layer (Graves et al. 2006)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retort.config.ranges import MILLION, number
from retort.config.student import StudentConfig
from retort.nn.ctc import label_frames
from retort.nn.encoder import make_encoder
from retort.students.student import Encoded, StudentOutput, Tap
from retort.students.tokens import TokenStudent, at_frames, layer_dims, utterance_tap
from retort.text.tokenizers import BLANK


@runtime_checkable
class HasCtc(Protocol):
    """A student with a CTC head: `ctc` from hidden frames to the vocabulary."""

    ctc: nn.Linear


def ctc_log_probs(student: HasCtc, encoded: Encoded) -> Tensor:
    """Log-probabilities `(B, T, V)` of the CTC head, float32 regardless of autocast; undefined beyond the lengths."""
    with torch.autocast(encoded.hidden.device.type, enabled=False):
        result: Tensor = student.ctc(encoded.hidden).log_softmax(-1)
    return result


def ctc_loss(
    log_probs: Tensor, lengths: Tensor, labels: Tensor, label_lengths: Tensor, *, infinite: bool = False
) -> Tensor:
    """CTC loss, summed over the utterances.

    Args:
        log_probs: `(B, T, V)`.
        lengths: `(B,)`, valid frames.
        labels: `(B, U)` int64.
        label_lengths: `(B,)`, number of labels: without EOS, which is a label only for a faithful student.
        infinite: whether the loss of an utterance with too few frames is infinite or zero.
    """
    return F.ctc_loss(
        log_probs.transpose(0, 1),
        labels,
        lengths,
        label_lengths,
        blank=BLANK,
        reduction="sum",
        zero_infinity=not infinite,
    )


@dataclass
class CtcStudentConfig(StudentConfig):
    """Configuration of :class:`CtcStudent`."""

    kind: str = "ctc"
    ctc_weight: float = number(1.0, 0, MILLION, above=True)
    """Weight of the CTC loss, the only loss besides those of rows."""

    chunked: ClassVar[bool] = True
    hard_labels: ClassVar[bool] = False


class CtcStudent(TokenStudent):
    """CTC model.

    Taps over tokens have the values at the frame of each token on the best path of the reference (Futami et al.
    2022, arXiv 2209.02030); of several frames of a token, the one where it is most probable. EOS is no label: the
    taps have a position for it, as teachers do, which is not present. Utterances with too few frames for their
    labels are not present either.

    Args:
        config: architecture and weight of the loss.
        vocabulary: number of ids, including special ones.
        bins: number of filter banks per frame.
    """

    decoder_loss = "ctc"
    vocabulary_parts = ("ctc.",)

    config: CtcStudentConfig

    def __init__(self, config: CtcStudentConfig, vocabulary: int, bins: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = make_encoder(config.frontend, config.encoder, bins)
        self.ctc = nn.Linear(config.encoder.dim, vocabulary)

    @property
    def loss_weights(self) -> dict[str, float]:
        return {"ctc": self.config.ctc_weight}

    @property
    def tap_dims(self) -> dict[str, int]:
        dim = self.config.encoder.dim
        vocabulary = self.ctc.out_features
        own = {"acoustic": dim, "utterance": dim, "tokens": vocabulary, "ctc": vocabulary}
        return own | layer_dims(self.config.encoder)

    @property
    def prose(self) -> str:
        return "output     CTC"

    def forward(
        self, features: Tensor, feature_lengths: Tensor, tokens: Tensor, token_lengths: Tensor
    ) -> StudentOutput:
        """Losses and taps of one batch; the arguments are those of :class:`TokenStudent`."""
        encoded, layers = self.encode_in_layers(features, feature_lengths)
        with torch.autocast(encoded.hidden.device.type, enabled=False):
            logits = self.ctc(encoded.hidden)
        log_probs = logits.log_softmax(-1)
        label_lengths = (token_lengths - 1).clamp(min=0)
        frames, present = label_frames(log_probs, encoded.lengths, tokens, label_lengths, blank=BLANK)
        losses = {"ctc": ctc_loss(log_probs, encoded.lengths, tokens, label_lengths)}
        taps = {
            "acoustic": Tap(at_frames(encoded.hidden, frames), token_lengths, "token", present=present),
            "tokens": Tap(at_frames(logits, frames), token_lengths, "token", present=present),
            "utterance": utterance_tap(encoded.hidden, encoded.lengths),
            "ctc": Tap(log_probs, encoded.lengths, "frame"),
        }
        return StudentOutput(losses, taps | layers, {})
