"""The CIF recogniser: encoder, integrate-and-fire, autoregressive or parallel decoder, CTC head.

Source: Dong and Xu 2020 (CIF); Han et al. 2023 for the sizes of the recipe `aishell1/cif`; Gao et al. 2022 (Paraformer)
for the parallel decoder.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retort.nn.cif import FiredTokens, integrate_and_fire
from retort.nn.ctc import label_frames
from retort.nn.decoder import CifDecoder
from retort.nn.encoder import Encoder, context_layer
from retort.nn.masks import valid_mask
from retort.nn.parallel_decoder import ParallelDecoder
from retort.nn.weights import WeightEstimator
from retort.student_config import StudentConfig
from retort.students.cross_entropy import hard_loss
from retort.students.ctc import ctc_log_probs, ctc_loss
from retort.students.frames import layer_dims
from retort.students.glancing import glance
from retort.students.history import forgotten
from retort.students.student import Encoded, StudentOutput
from retort.students.taps import Tap
from retort.students.tokens import TokenStudent, utterance_tap
from retort.text.tokenizers import BLANK, EOS

DECODERS: dict[str, type[CifDecoder] | type[ParallelDecoder]] = {
    "autoregressive": CifDecoder,
    "parallel": ParallelDecoder,
}
"""By `decoder.kind`."""


class CifStudent(TokenStudent):
    """Speech to tokens, one token a fire.

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
        self.encoder = Encoder(config.frontend, config.encoder, bins, config.faithful)
        self.ctc = nn.Linear(dim, vocabulary)
        self.weights = WeightEstimator(dim, config.cif.kernel, config.cif.dropout, config.cif.activation)
        self.context = nn.ModuleList(
            context_layer(config.encoder, number + 1) for number in range(config.cif.context_layers)
        )
        self.decoder = DECODERS[config.decoder.kind](config.decoder, vocabulary, dim)

    @property
    def loss_weights(self) -> dict[str, float]:
        config = self.config
        return {
            "ce": config.ce_weight,
            "ctc": config.ctc_weight,
            "quantity": config.quantity_weight,
            "alignment": config.alignment_weight,
        }

    @property
    def tap_dims(self) -> dict[str, int]:
        dim = self.config.encoder.dim
        vocabulary = self.decoder.vocabulary.out_features
        return {
            "acoustic": dim,
            "linguistic": self.config.decoder.dim,
            "utterance": dim,
            "tokens": vocabulary,
        } | layer_dims(self.config.encoder)

    @property
    def prose(self) -> str:
        config = self.config.decoder
        output = (
            f", output through a PLM's embeddings of {config.output_dim}" if config.output == "plm" else ""
        )
        return (
            f"decoder    {config.layers} layers, dim {config.dim}, {config.heads} heads, feed-forward "
            f"{config.feedforward}{output}{', parallel' if config.kind == 'parallel' else ''}"
        )

    def fire(self, encoded: Encoded, target_lengths: Tensor | None = None) -> FiredTokens:
        """Fire freely, or exactly `target_lengths (B,)` tokens; in float32 whatever the autocast."""
        return self._fire(encoded, self.weights(encoded.hidden, encoded.lengths), target_lengths)

    def _fire(self, encoded: Encoded, alphas: Tensor, target_lengths: Tensor | None) -> FiredTokens:
        with torch.autocast(encoded.hidden.device.type, enabled=False):
            fired = integrate_and_fire(
                encoded.hidden, alphas, encoded.lengths, target_lengths, tail=self.config.cif.tail
            )
        embeddings = fired.embeddings
        if not self.context or embeddings.shape[1] == 0:
            return fired
        for layer in self.context:
            embeddings = layer(embeddings, fired.lengths)
        mask = valid_mask(fired.lengths, embeddings.shape[1])
        return fired._replace(embeddings=embeddings.float().masked_fill(~mask[..., None], 0.0))

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
        encoded, layers = self.encode_in_layers(features, feature_lengths)
        alphas = self.weights(encoded.hidden, encoded.lengths)
        fired = self._fire(encoded, alphas, token_lengths)
        tokens = tokens[:, : fired.embeddings.shape[1]]
        states, logits, counts = self._decode(encoded, fired, tokens)
        mask = valid_mask(token_lengths, tokens.shape[1])
        ce = hard_loss(logits, tokens, mask, self.config.label_smoothing, self.config.ce_weight)
        losses = {
            "ce": ce.total,
            "quantity": (fired.quantity - token_lengths).abs().sum(),
        }
        losses |= self._ctc_losses(encoded, alphas, tokens, token_lengths)
        taps = {
            "acoustic": Tap(fired.embeddings, token_lengths, "token"),
            "linguistic": Tap(states, token_lengths, "token"),
            "tokens": Tap(logits, token_lengths, "token", ce.hard),
            "utterance": utterance_tap(fired.embeddings, token_lengths),
        }
        metrics = {
            "correct": ce.correct,
            "quantity_total": fired.quantity.detach().sum(),
        }
        return StudentOutput(losses, taps | layers, metrics | counts)

    def _decode(
        self, encoded: Encoded, fired: FiredTokens, tokens: Tensor
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """States and logits of all positions of `tokens (B, U)`, and what a parallel decoder counts.

        While that trains it decodes twice: what it gets wrong by itself says how many true tokens it is shown, the losses
        are those of the second pass, over all positions, shown ones among them (as in the authors' code, FunASR; Qian et
        al. leave these out).
        """
        if isinstance(self.decoder, CifDecoder):
            previous = F.pad(self._forget(tokens), (1, 0), value=EOS)[:, :-1]
            return *self.decoder(previous, fired.embeddings), {}
        given = (fired.embeddings, fired.lengths, encoded.hidden, encoded.lengths)
        ratio = self.config.decoder.glancing
        if not self.training or ratio == 0.0:
            return *self.decoder(*given), {}
        with torch.no_grad():
            guesses = self.decoder(*given)[1].argmax(-1)
        # Else autocast, in some versions of torch, hands the weights that it has cast without gradients to the second pass.
        torch.clear_autocast_cache()
        shown = glance(guesses, tokens, fired.lengths, ratio)
        right = (guesses == tokens) & valid_mask(fired.lengths, tokens.shape[1])
        return *self.decoder(*given, (tokens, shown)), {"correct": right.sum(), "shown": shown.sum()}

    def start(self, fired: FiredTokens, encoded: Encoded | None = None) -> Any:
        """The state of the decoder before its first step, of a search that goes from fire to fire.

        Args:
            encoded: what was fired; read by a parallel decoder with cross-attention.

        Raises:
            ValueError: that decoder is not given it.
        """
        if isinstance(self.decoder, CifDecoder):
            return self.decoder.start(len(fired.embeddings), fired.embeddings)
        memory = (None, None) if encoded is None else (encoded.hidden, encoded.lengths)
        return self.decoder.start(fired.embeddings, fired.lengths, *memory)

    def _forget(self, tokens: Tensor) -> Tensor:
        """`tokens (B, U)` with some of them unknown, while training."""
        return forgotten(tokens, self.config.decoder.history_dropout) if self.training else tokens

    def _ctc_losses(
        self, encoded: Encoded, alphas: Tensor, tokens: Tensor, token_lengths: Tensor
    ) -> dict[str, Tensor]:
        faithful = self.config.faithful
        label_lengths = token_lengths if faithful else (token_lengths - 1).clamp(min=0)
        log_probs = ctc_log_probs(self, encoded)
        ctc = ctc_loss(log_probs, encoded.lengths, tokens, label_lengths, infinite=faithful)
        if self.config.alignment_weight == 0.0:
            return {"ctc": ctc}
        frames, valid = label_frames(log_probs, encoded.lengths, tokens, label_lengths, blank=BLANK)
        return {"ctc": ctc, "alignment": alignment_loss(alphas, token_lengths, frames, valid)}


def alignment_loss(alphas: Tensor, token_lengths: Tensor, frames: Tensor, valid: Tensor) -> Tensor:
    """How far from the middle of its share of the weights each token is heard, in tokens; summed.

    Token i takes the weight from i to i + 1. Where another aligner (the CTC head) hears it in frame t, the
    weight before the middle of t should be i + 0.5; the distance counts as Huber's loss with threshold 0.5.
    Ours; the reference's code constrains CIF by CTC in another way. `docs/tried.md` has what it gave.

    Args:
        alphas: `(B, T)` float32, zero behind each utterance, unscaled.
        token_lengths: `(B,)`, what the weights are scaled to.
        frames: `(B, U)` int64, where each token is heard.
        valid: `(B, U)` bool, the tokens that count.
    """
    dtype, alphas = alphas.dtype, alphas.double()
    scaled = alphas * (token_lengths / alphas.sum(1).clamp(min=1e-8))[:, None]
    before = scaled.cumsum(1) - scaled / 2
    middles = torch.arange(frames.shape[1], device=frames.device) + 0.5
    distance = F.huber_loss(
        before.gather(1, frames), middles.expand_as(frames).double(), reduction="none", delta=0.5
    )
    return distance[valid].sum().to(dtype)
