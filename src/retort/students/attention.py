"""The attention recogniser: encoder, CTC head, autoregressive decoder with attention to the frames.

Source: Watanabe et al. 2017, "Hybrid CTC/attention architecture for end-to-end speech recognition".
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retort.nn.cross_decoder import CrossDecoder
from retort.nn.encoder import Encoder
from retort.nn.masks import masked_mean, valid_mask
from retort.student_config import StudentConfig
from retort.students.cross_entropy import smoothed_cross_entropies
from retort.students.ctc import ctc_log_probs, ctc_loss
from retort.students.history import forgotten
from retort.students.student import Labelled, Student, StudentOutput
from retort.students.taps import Tap, Unit
from retort.text.tokenizers import EOS


class AttentionStudent(Student):
    """Speech to tokens, the decoder choosing the frames of each.

    The tap `acoustic` is the context vector that the last layer of the decoder finds in the frames for each token:
    attention as down-sampling to tokens (Deng et al. 2022, arXiv 2203.03582), though by the decoder's own attention.

    Args:
        config: architecture and the weights of the losses.
        vocabulary: number of ids, the special ones counted.
        bins: filter banks a frame.
    """

    vocabulary_parts = ("ctc.", "decoder.embedding.", "decoder.vocabulary.")

    def __init__(self, config: StudentConfig, vocabulary: int, bins: int) -> None:
        super().__init__()
        self.config = config
        dim = config.encoder.dim
        self.encoder = Encoder(config.frontend, config.encoder, bins)
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
        }

    @property
    def tap_units(self) -> dict[str, Unit]:
        return {"acoustic": "token", "linguistic": "token", "utterance": "utterance", "tokens": "token"}

    @property
    def prose(self) -> str:
        config = self.config.decoder
        return (
            f"decoder    {config.layers} layers with attention to the frames, dim {config.dim}, {config.heads} heads, "
            f"feed-forward {config.feedforward}"
        )

    @property
    def criterion(self) -> str:
        """Errors of characters, of the CTC head where it alone learns."""
        return "cer" if self.config.ce_weight > 0.0 else "ctc_cer"

    def labels(self, batch: Labelled) -> tuple[Tensor, ...]:
        return batch.tokens, batch.token_lengths

    def positions(self, batch: Labelled) -> int:
        """Tokens, EOS counted."""
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
        share = self.config.decoder.history_dropout if self.training else 0.0
        previous = F.pad(forgotten(tokens, share), (1, 0), value=EOS)[:, :-1]
        decoded = self.decoder(previous, encoded.hidden, encoded.lengths)
        mask = valid_mask(token_lengths, tokens.shape[1])
        targets, predicted = tokens[mask], decoded.logits[mask].float()
        entropies = smoothed_cross_entropies(predicted, targets, self.config.label_smoothing)
        hard = entropies.new_zeros(mask.shape).masked_scatter(mask, self.config.ce_weight * entropies)
        log_probs = ctc_log_probs(self, encoded)
        losses = {
            "ce": entropies.sum(),
            "ctc": ctc_loss(log_probs, encoded.lengths, tokens, token_lengths),
        }
        mean = masked_mean(encoded.hidden, valid_mask(encoded.lengths, encoded.hidden.shape[1]))
        taps = {
            "acoustic": Tap(decoded.contexts, token_lengths, "token"),
            "linguistic": Tap(decoded.states, token_lengths, "token"),
            "tokens": Tap(decoded.logits, token_lengths, "token", hard),
            "utterance": Tap(mean, torch.ones_like(token_lengths), "utterance"),
        }
        metrics = {"correct": (predicted.detach().argmax(-1) == targets).sum()}
        return StudentOutput(losses, taps, metrics)
