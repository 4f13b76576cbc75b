"""The hybrid student: an encoder that predicts the senone (tied HMM state) of every frame.

Words are found by a search of a decoding graph. The taps are those of Lee and Chang, arXiv 2110.10429: the output,
and frames of lower layers for auxiliary heads, which belong to the rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retort.alignment.unit_text import senone_symbol
from retort.config.ranges import MILLION, number
from retort.config.student import StudentConfig
from retort.nn.encoder import make_encoder
from retort.nn.masks import valid_mask
from retort.students.cross_entropy import hard_loss
from retort.students.student import Encoded, Labelled, Student, StudentOutput, Tap, Unit
from retort.students.tokens import encode_in_layers, layer_dims


@dataclass
class HybridStudentConfig(StudentConfig):
    """Configuration of :class:`HybridStudent`."""

    kind: str = "hybrid"
    label_smoothing: float = number(0.1, 0, 1, below=True)
    """Label smoothing of the cross-entropy loss."""
    ce_weight: float = number(1.0, 0, MILLION)
    """Weight of the cross-entropy loss of the frames."""


class HybridStudent(Student):
    """Senone model with one output per encoder frame.

    Args:
        config: architecture and `label_smoothing`.
        senones: number of senones, S.
        bins: number of filter banks per frame.
    """

    vocabulary_parts = ("output.", "log_priors")

    log_priors: Tensor
    """Log priors `(S,)` float32; zero until :meth:`set_priors`."""

    config: HybridStudentConfig

    def __init__(self, config: HybridStudentConfig, senones: int, bins: int) -> None:
        super().__init__()
        self.config = config
        self.encoder = make_encoder(config.frontend, config.encoder, bins)
        self.output = nn.Linear(config.encoder.dim, senones)
        self.register_buffer("log_priors", torch.zeros(senones))

    @property
    def loss_weights(self) -> dict[str, float]:
        return {"ce": self.config.ce_weight}

    @property
    def tap_dims(self) -> dict[str, int]:
        """`senones`, and `frames.N` of every layer N with the frame rate of the output."""
        return {"senones": self.output.out_features} | layer_dims(self.config.encoder)

    @property
    def tap_units(self) -> dict[str, Unit]:
        return dict.fromkeys(self.tap_dims, "frame")

    @property
    def outputs(self) -> dict[str, list[str]]:
        return {"senones": [senone_symbol(senone) for senone in range(self.output.out_features)]}

    @property
    def prose(self) -> str:
        return f"senones    {self.output.out_features:,}"

    @property
    def criterion(self) -> str:
        return "wer"

    def labels(self, batch: Labelled) -> tuple[Tensor, ...]:
        return (_senones(batch),)

    def positions(self, batch: Labelled) -> int:
        """Number of frames with a senone, including silences."""
        return int((_senones(batch) >= 0).sum())

    def set_priors(self, priors: Tensor) -> None:
        """Set :attr:`log_priors` from `priors (S,)`, above 0.

        Raises:
            ValueError: the shape differs, or a prior is not above 0.
        """
        if priors.shape != self.log_priors.shape or not (priors > 0).all():
            raise ValueError(f"priors {tuple(priors.shape)} must be {tuple(self.log_priors.shape)}, above 0")
        self.log_priors.copy_(priors.log())

    def forward(self, features: Tensor, feature_lengths: Tensor, senones: Tensor) -> StudentOutput:
        """Losses and taps of one batch.

        Args:
            features: `(B, T, bins)`.
            feature_lengths: `(B,)`.
            senones: `(B, T')` int64, labels of encoder frames, -1 for none; T' may differ in padding.

        Raises:
            ValueError: a frame beyond the encoder output has a label.
        """
        encoded, layers = encode_in_layers(self.encoder, self.config.encoder, features, feature_lengths)
        lengths, logits = encoded.lengths, self.output(encoded.hidden)
        senones = _align_to(senones, lengths, logits.shape[1])
        ce = hard_loss(logits, senones, senones >= 0, self.config.label_smoothing, self.config.ce_weight)
        taps = {"senones": Tap(logits, lengths, "frame", ce.hard)} | layers
        return StudentOutput({"ce": ce.total}, taps, {"correct": ce.correct})

    def log_posteriors(self, encoded: Encoded) -> Tensor:
        """log p(senone | frame) `(B, T', S)` float32; a decoding graph uses these minus :attr:`log_priors`."""
        return self.output(encoded.hidden).float().log_softmax(-1)


def _senones(batch: Labelled) -> Tensor:
    if batch.senones is None:
        raise ValueError("the batch has no senones: its dataset has no alignment")
    return batch.senones


def _align_to(senones: Tensor, lengths: Tensor, size: int) -> Tensor:
    """`senones` padded or cut to `(B, size)`."""
    fitting = F.pad(senones, (0, size - senones.shape[1]), value=-1)
    if ((fitting >= 0) & ~valid_mask(lengths, size)).any() or (senones[:, size:] >= 0).any():
        raise ValueError(f"senones beyond the encoder output, whose lengths are {lengths.tolist()}")
    return fitting
