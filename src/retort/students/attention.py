"""The attention student: encoder, CTC head, autoregressive decoder with cross-attention.

Source: Watanabe et al. 2017, "Hybrid CTC/attention architecture for end-to-end speech recognition".
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch.nn.functional as F
from torch import Tensor, nn

from retort.config.ranges import MILLION, number
from retort.config.student import StudentConfig
from retort.nn.cross_decoder import CrossDecoder, CrossDecoderConfig
from retort.nn.encoder import make_encoder
from retort.nn.masks import valid_mask
from retort.students.cross_entropy import hard_loss
from retort.students.ctc import ctc_log_probs, ctc_loss
from retort.students.glancing import drop_tokens
from retort.students.student import StudentOutput, Tap
from retort.students.tokens import TokenStudent, layer_dims, utterance_tap
from retort.text.tokenizers import EOS


@dataclass
class AttentionStudentConfig(StudentConfig):
    """Configuration of :class:`AttentionStudent`."""

    kind: str = "attention"
    decoder: CrossDecoderConfig = field(default_factory=CrossDecoderConfig)
    """Decoder."""
    label_smoothing: float = number(0.1, 0, 1, below=True)
    """Label smoothing of the cross-entropy loss."""
    ce_weight: float = number(1.0, 0, MILLION)
    """Weight of the cross-entropy loss of the decoder."""
    ctc_weight: float = number(0.5, 0, MILLION)
    """Weight of the CTC loss."""


class AttentionStudent(TokenStudent):
    """Encoder-decoder model with attention and a CTC head.

    The tap `acoustic` is the context vector of the decoder's last layer for each token: attention as down-sampling
    to tokens (Deng et al. 2022, arXiv 2203.03582), here with the decoder's own attention.

    Args:
        config: architecture and weights of the losses.
        vocabulary: number of ids, including special ones.
        bins: number of filter banks per frame.
    """

    vocabulary_parts = ("ctc.", "decoder.embedding.", "decoder.vocabulary.")

    config: AttentionStudentConfig

    def __init__(self, config: AttentionStudentConfig, vocabulary: int, bins: int) -> None:
        super().__init__()
        self.config = config
        dim = config.encoder.dim
        self.encoder = make_encoder(config.frontend, config.encoder, bins)
        self.ctc = nn.Linear(dim, vocabulary)
        self.decoder = CrossDecoder(config.decoder, vocabulary, dim)

    @property
    def loss_weights(self) -> dict[str, float]:
        return {"ce": self.config.ce_weight, "ctc": self.config.ctc_weight}

    @property
    def tap_dims(self) -> dict[str, int]:
        decoder = self.config.decoder.dim
        vocabulary = self.decoder.vocabulary.out_features
        return {
            "acoustic": decoder,
            "linguistic": decoder,
            "utterance": self.config.encoder.dim,
            "tokens": vocabulary,
            "ctc": self.ctc.out_features,
        } | layer_dims(self.config.encoder)

    @property
    def prose(self) -> str:
        return f"decoder    with attention to the frames, {self.config.decoder.prose}"

    def forward(
        self, features: Tensor, feature_lengths: Tensor, tokens: Tensor, token_lengths: Tensor
    ) -> StudentOutput:
        """Losses and taps of one batch; the arguments are those of :class:`TokenStudent`."""
        encoded, layers = self.encode_in_layers(features, feature_lengths)
        share = self.config.decoder.history_dropout if self.training else 0.0
        previous = F.pad(drop_tokens(tokens, share), (1, 0), value=EOS)[:, :-1]
        decoded = self.decoder(previous, encoded.hidden, encoded.lengths)
        mask = valid_mask(token_lengths, tokens.shape[1])
        ce = hard_loss(decoded.logits, tokens, mask, self.config.label_smoothing, self.config.ce_weight)
        label_lengths = (token_lengths - 1).clamp(min=0)
        log_probs = ctc_log_probs(self, encoded)
        losses = {
            "ce": ce.total,
            "ctc": ctc_loss(log_probs, encoded.lengths, tokens, label_lengths),
        }
        taps = {
            "acoustic": Tap(decoded.contexts, token_lengths, "token"),
            "linguistic": Tap(decoded.states, token_lengths, "token"),
            "tokens": Tap(decoded.logits, token_lengths, "token", ce.hard),
            "utterance": utterance_tap(encoded.hidden, encoded.lengths),
            "ctc": Tap(log_probs, encoded.lengths, "frame"),
        }
        return StudentOutput(losses, taps | layers, {"correct": ce.correct})
