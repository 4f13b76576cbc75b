"""Whisper's decoder as the decoder of a CIF student: one step for each fire, with attention to the frames around it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retort.nn.attention import Memory
from retort.nn.masks import attention_mask
from retort.nn.whisper_decoder import WhisperDecoder, WhisperDecoderSizes


class Frames(NamedTuple):
    """Encoder frames and the fires among them.

    Attributes:
        source: `(B, T, dim)`.
        lengths: `(B,)` int64, valid frames.
        places: `(B, U)` int64, the frame in which each token was fired.
    """

    source: Tensor
    lengths: Tensor
    places: Tensor


@dataclass(frozen=True)
class FiredWhisperState:
    """What the decoder keeps between steps, of M hypotheses of B utterances.

    Attributes:
        memory: keys and values of each layer, of the frames of B utterances.
        masks: `(B, 1, U, T)`, the frames that each token attends to.
        past: of each layer, keys and values of the prompt and of the tokens so far, of M hypotheses.
        steps: tokens so far.
    """

    memory: list[Memory]
    masks: Tensor
    past: list[Memory]
    steps: int = 0

    def select(self, rows: Tensor) -> FiredWhisperState:
        """The state of the given rows `(K,)` int64, in that order, repeated if need be.

        The hypotheses of an utterance are neighbours before and after, as many of each utterance.
        """
        return replace(self, past=[(key[rows], value[rows]) for key, value in self.past])


class FiredWhisperDecoder(nn.Module):
    """Whisper's decoder over the fired embeddings of CIF, with the interface of `retort.nn.decoder.CifDecoder` (ours).

    Step i reads the embedding of the token before it, as in Whisper, plus a projection of the embedding fired for token i,
    which is zero before training, and its attention to the frames is limited to a window around the fire. So training
    starts from exactly Whisper's decoder, limited to the window, and CIF decides how many tokens there are.

    Args:
        sizes: of Whisper's decoder.
        vocabulary: number of ids, the special ones of this project counted.
        acoustic_dim: of the fired embeddings.
        window: frames to each side of a fire; 0 attends to all frames.
    """

    def __init__(self, sizes: WhisperDecoderSizes, vocabulary: int, acoustic_dim: int, window: int) -> None:
        super().__init__()
        self.window = window
        # Whisper was trained without dropout: with 0.1 in its decoder, what it knows is gone (2.4 nats a token become 10).
        self.whisper = WhisperDecoder(sizes, vocabulary, 0.0)
        self.fired = nn.Linear(acoustic_dim, sizes.dim, bias=False)
        nn.init.zeros_(self.fired.weight)

    def remember(self, hidden: Tensor, lengths: Tensor, places: Tensor) -> Frames:
        """What :meth:`forward` and :meth:`start` need of `hidden (B, T, dim)`; `places (B, U)` are the tokens' frames."""
        return Frames(hidden, lengths, places)

    def forward(self, previous_tokens: Tensor, embeddings: Tensor, frames: Frames) -> tuple[Tensor, Tensor]:
        """All steps at once, with the history given.

        Args:
            previous_tokens: `(B, U)` int64, the start symbol first.
            embeddings: `(B, U, acoustic_dim)`, fired by CIF.
            frames: of :meth:`remember`.

        Returns:
            states `(B, U, dim)` before the vocabulary, and logits `(B, U, V)`.

        Raises:
            UserError: the text is longer than the positions.
        """
        whisper = self.whisper
        before = whisper.sizes.prompt - 1
        hidden = whisper.with_prompt(previous_tokens) + F.pad(self.fired(embeddings), (0, 0, before, 0))
        whole = attention_mask(frames.lengths, frames.source.shape[1]).expand(-1, -1, before, -1)
        masks = torch.cat((whole, self._near(frames)), dim=2)
        for layer, memory in zip(whisper.layers, whisper.memories(frames.source)):
            hidden, _, _ = layer(hidden, memory, masks)
        states = whisper.norm(hidden[:, before:])
        return states, whisper.logits(states)

    def start(self, frames: Frames) -> FiredWhisperState:
        """The state before the first token."""
        state = self.whisper.start(frames.source, frames.lengths)
        return FiredWhisperState(state.memory, self._near(frames), state.past)

    def step(
        self, state: FiredWhisperState, previous_tokens: Tensor, embedding: Tensor
    ) -> tuple[Tensor, FiredWhisperState]:
        """One token further.

        Args:
            state: from :meth:`start` or the step before.
            previous_tokens: `(M,)` int64.
            embedding: `(M, acoustic_dim)`, this token's.

        Returns:
            logits `(M, V)` and the next state.
        """
        whisper = self.whisper
        hidden = whisper.embedding(previous_tokens) if state.steps else whisper.prompt[-1]
        # An utterance may fire more tokens than there are positions, if it is no speech.
        place = min(whisper.sizes.prompt - 1 + state.steps, whisper.sizes.positions - 1)
        hidden = (hidden + whisper.positions[place] + self.fired(embedding))[:, None]
        mask, past = state.masks[:, :, state.steps, None], []
        for index, layer in enumerate(whisper.layers):
            hidden, _, keys_values = layer(hidden, state.memory[index], mask, state.past[index] if state.past else None)
            past.append(keys_values)
        logits = whisper.logits(whisper.norm(hidden))
        return logits[:, 0], replace(state, past=past, steps=state.steps + 1)

    def _near(self, frames: Frames) -> Tensor:
        """`(B, 1, U, T)` bool: the valid frames around each fire."""
        size = frames.source.shape[1]
        valid = attention_mask(frames.lengths, size)
        places = frames.places[:, None, :, None]
        if not self.window:
            return valid.expand(-1, -1, places.shape[2], -1)
        distances = torch.arange(size, device=places.device) - places
        return valid & (distances.abs() <= self.window)
