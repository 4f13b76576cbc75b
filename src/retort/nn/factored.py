"""A decoder over fired embeddings whose logits are a sound part plus a scaled language part (ours).

The language part sees the previous tokens alone and is the network of a causal language model, so that it can be trained
on any amount of text before the recogniser is trained. Nothing is added at inference: its layers are the decoder's layers.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retort.config.ranges import number
from retort.config.student import EncoderConfig
from retort.nn.decoder import CausalLayer, CifDecoder, HistoryConfig
from retort.nn.positions import sinusoids
from retort.nn.window import FrameMemory

LANGUAGE_PARTS = ("embedding.", "layers.", "norm.")
"""Prefixes of the parameters of the language part; they have the names and shapes of
:class:`retort.lm.neural.CausalTransformer`."""


@dataclass
class FactoredConfig(HistoryConfig):
    """Configuration of :class:`FactoredDecoder`."""

    kind: str = "factored"
    """Kind of the decoder."""
    language: str = ""
    """Folder of a Transformer of `retort lm train` over the student's tokens, with the same `layers`, `dim`, `heads` and
    `feedforward`, whose weights initialise the language part. It may be trained on any amount of text
    (`tokenizer.kind: student`)."""
    language_scale: float = number(0.3, 0, 1000)
    """Scale of the log-probabilities of the language part. `retort tune --language-scale` chooses another one for
    decoding."""

    @property
    def without_initial_model(self) -> Self:
        return replace(self, language="")


def make_factored(config: FactoredConfig, vocabulary: int, encoder: EncoderConfig) -> FactoredDecoder:
    """The decoder over the fired embeddings of an encoder."""
    return FactoredDecoder(config, vocabulary, encoder.dim)


class FactoredDecoder(CifDecoder):
    """Autoregressive decoder with one step per fired embedding, `logits_i = sound_i + scale log p(token_i | previous)`.

    The language part is a causal Transformer over the previous tokens with one embedding for input and output. The sound
    part is a feed-forward module over the embedding fired for the token, and, with `window`, over the encoder's frames
    around the fire, selected by the hidden state of the language part; it does not see the tokens otherwise.

    Args:
        config: sizes of the network; `language_scale` is the initial :attr:`language_scale`.
        vocabulary: number of ids, including special ones.
        acoustic_dim: width of the fired embeddings.

    Attributes:
        language_scale: scale of the language part, a setting of the search as well.
    """

    def __init__(self, config: FactoredConfig, vocabulary: int, acoustic_dim: int) -> None:
        super().__init__(config, vocabulary, acoustic_dim)
        dim = config.dim
        self.input = None  # type: ignore[assignment]  # the fired embeddings are no input of the language part
        self.output = nn.Linear(dim if self.window is not None else acoustic_dim, dim)
        self.sound = nn.Linear(acoustic_dim, dim) if self.window is not None else None
        self.sound_norm = nn.LayerNorm(dim)
        self.expand, self.contract = nn.Linear(dim, config.feedforward), nn.Linear(config.feedforward, dim)
        for layer in self.layers:
            assert isinstance(layer, CausalLayer)
            layer.dropout = 0.0  # no attention dropout, as in the language model
        self.language_scale = config.language_scale

    def history(self, previous_tokens: Tensor, embeddings: Tensor) -> Tensor:
        """The state `(B, U, dim)` of the language part; the embeddings are not used."""
        positions = torch.arange(previous_tokens.shape[1], device=previous_tokens.device)
        hidden = self._input(previous_tokens, embeddings, positions)
        for layer in self.layers:
            hidden, _ = layer(hidden)
        return hidden

    def finish(
        self, history: Tensor, embeddings: Tensor, memory: FrameMemory | None = None, first: int = 0
    ) -> tuple[Tensor, Tensor]:
        """States `(B, U, dim)` of the sound part, and the logits of both parts."""
        sound = embeddings
        if self.sound is not None:
            assert self.window is not None
            if memory is None:
                raise ValueError("a decoder with a window requires the encoder's frames")
            sound = self.sound(embeddings) + self.dropout(self.window(history, memory, first))
        hidden = self.output(sound)
        expanded = self.dropout(F.relu(self.expand(self.sound_norm(hidden))))
        states = hidden + self.dropout(self.contract(expanded))
        logits = self.vocabulary(states)
        language = self.language_logits(history).float().log_softmax(-1).to(logits.dtype)
        return states, logits + self.language_scale * language

    def language_logits(self, history: Tensor) -> Tensor:
        """Logits `(B, U, V)` of the language part from its states."""
        return F.linear(self.dropout(self.norm(history)), self.embedding.weight)

    def _input(self, tokens: Tensor, embeddings: Tensor, positions: Tensor) -> Tensor:
        hidden = self.scale * self.embedding(tokens)
        table = sinusoids(positions, hidden.shape[-1]).to(hidden.dtype)
        result: Tensor = self.dropout(hidden + table)
        return result
