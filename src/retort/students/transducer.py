"""The transducer student: encoder, prediction network, joiner (Graves 2012, arXiv 1211.3711), and a CTC head.

An utterance ends with its frames, so EOS is removed from the tokens and used only as the start symbol.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retort.config.ranges import MILLION, number
from retort.config.student import StudentConfig
from retort.nn.ctc import label_frames
from retort.nn.encoder import make_encoder
from retort.nn.masks import valid_mask
from retort.nn.predictor import PREDICTORS, Joiner, TransducerConfig
from retort.nn.transducer import lattice_cells, packed_arcs, path_loss, token_frames
from retort.students.ctc import ctc_log_probs, ctc_loss
from retort.students.student import Labelled, StudentOutput, Tap
from retort.students.tokens import TokenStudent, at_frames, layer_dims, utterance_tap
from retort.text.tokenizers import BLANK, EOS


@dataclass
class TransducerStudentConfig(StudentConfig):
    """Configuration of :class:`TransducerStudent`."""

    kind: str = "transducer"
    transducer: TransducerConfig = field(default_factory=TransducerConfig)
    """Prediction network and joiner."""
    ctc_weight: float = number(0.5, 0, MILLION)
    """Weight of the CTC loss; 0 for no CTC head."""

    chunked: ClassVar[bool] = True
    hard_labels: ClassVar[bool] = False


class TransducerStudent(TokenStudent):
    """Transducer with any number of tokens per frame, or at most one if it is monotonic.

    Args:
        config: architecture and weights of the losses.
        vocabulary: number of ids, including special ones.
        bins: number of filter banks per frame.
    """

    decoder_loss = "transducer"
    vocabulary_parts = ("ctc.", "predictor.embedding.", "joiner.output.")

    ctc: nn.Linear
    """Exists if `ctc_weight` is above 0."""

    config: TransducerStudentConfig

    def __init__(self, config: TransducerStudentConfig, vocabulary: int, bins: int) -> None:
        super().__init__()
        self.config = config
        dim, own = config.encoder.dim, config.transducer
        self.encoder = make_encoder(config.frontend, config.encoder, bins)
        if config.ctc_weight > 0.0:
            self.ctc = nn.Linear(dim, vocabulary)
        self.predictor = PREDICTORS[own.predictor](own, vocabulary)
        self.joiner = Joiner(dim, own.dim, own.joiner_dim, vocabulary)

    @property
    def loss_weights(self) -> dict[str, float]:
        weights = {"transducer": self.config.transducer.weight}
        return weights | ({"ctc": self.config.ctc_weight} if self.config.ctc_weight > 0.0 else {})

    @property
    def tap_dims(self) -> dict[str, int]:
        dim = self.config.encoder.dim
        ctc = {"ctc": self.ctc.out_features} if self.config.ctc_weight > 0.0 else {}
        return {
            **ctc,
            "acoustic": dim,
            "linguistic": self.config.transducer.joiner_dim,
            "utterance": dim,
            "tokens": self.joiner.output.out_features,
        } | layer_dims(self.config.encoder)

    @property
    def prose(self) -> str:
        own = self.config.transducer
        size = f"layers {own.layers}" if own.predictor == "lstm" else f"context {own.context}"
        return f"transducer {own.predictor} predictor, {size}, dim {own.dim}; joiner dim {own.joiner_dim}"

    def positions(self, batch: Labelled) -> int:
        """Number of tokens, without EOS."""
        return int((batch.token_lengths - 1).clamp(min=0).sum())

    def forward(
        self, features: Tensor, feature_lengths: Tensor, tokens: Tensor, token_lengths: Tensor
    ) -> StudentOutput:
        """Losses and taps of one batch.

        Taps over tokens follow the best path of the CTC head, or of the transducer if there is none: `acoustic` is
        the hidden frame of the token, `linguistic` the joiner's state for that frame and the previous tokens,
        `tokens` the logits from that state. An undertrained transducer emits all tokens in one frame, and soft
        labels there would keep it so. The choice of the path has no gradient. Utterances with too few frames for
        CTC are not present, nor is EOS, which has a position as in teachers. `utterance` is the mean of the hidden
        frames.
        """
        encoded, layers = self.encode_in_layers(features, feature_lengths)
        counts = (token_lengths - 1).clamp(min=0).masked_fill(encoded.lengths == 0, 0)
        tokens = tokens[:, : int(counts.max())]
        encoder_proj = self.joiner.project_encoder(encoded.hidden)
        predictor_proj = self.joiner.project_predictor(self.predictor(tokens, EOS))
        logits = self.joiner.over_lattices(encoder_proj, predictor_proj, encoded.lengths, counts)
        cells = lattice_cells(encoded.lengths, counts, encoder_proj.shape[1], predictor_proj.shape[1])
        arcs = packed_arcs(logits, tokens, counts, cells, BLANK)
        monotonic = self.config.transducer.monotonic
        losses = {"transducer": path_loss(arcs, encoded.lengths, counts, "sum", monotonic=monotonic)}
        frames = token_frames(arcs, encoded.lengths, counts, monotonic=monotonic)
        present = mask = valid_mask(counts, tokens.shape[1])
        with torch.no_grad():
            correct = self.joiner(at_frames(encoder_proj, frames), predictor_proj[:, :-1])[1].argmax(-1) == tokens
        if self.config.ctc_weight > 0.0:
            log_probs = ctc_log_probs(self, encoded)
            losses["ctc"] = ctc_loss(log_probs, encoded.lengths, tokens, counts)
            layers["ctc"] = Tap(log_probs, encoded.lengths, "frame")
            frames, present = label_frames(log_probs, encoded.lengths, tokens, counts, blank=BLANK)
        states, predicted = self.joiner(at_frames(encoder_proj, frames), predictor_proj[:, :-1])
        along = {"acoustic": at_frames(encoded.hidden, frames), "linguistic": states, "tokens": predicted}
        taps = {
            name: Tap(F.pad(values, (0, 0, 0, 1)), token_lengths, "token", present=F.pad(present, (0, 1)))
            for name, values in along.items()
        }
        taps["utterance"] = utterance_tap(encoded.hidden, encoded.lengths)
        return StudentOutput(losses, taps | layers, {"correct": (correct & mask).sum()})
