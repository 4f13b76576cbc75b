"""Whisper's decoder for CIF students: one step per fire, with attention to the frames around it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retort.config.ranges import number
from retort.config.student import DecoderConfig, EncoderConfig, check_whisper_decoder
from retort.nn.attention import Memory
from retort.nn.masks import attention_mask
from retort.nn.whisper_decoder import WhisperDecoder, WhisperDecoderSizes

if TYPE_CHECKING:
    from retort.config.schema import Recipe


@dataclass
class FiredWhisperConfig(DecoderConfig):
    """Configuration of :class:`FiredWhisperDecoder`; its sizes are those of the Whisper model."""

    kind: str = "whisper"
    """Kind of the decoder."""
    window: int = number(0, 0, 1000)
    """Number of encoder frames on each side of a fire to which the decoder attends; 0 for attention to all frames."""
    history_dropout: float = number(0.0, 0, 1, below=True)
    """Share of the previous tokens that are replaced by the unknown token in training."""

    @property
    def more_prose(self) -> str:
        return f", attention to {2 * self.window + 1} frames" if self.window else ""

    def check(self, recipe: Recipe, where: str) -> None:
        check_whisper_decoder(recipe, "student.decoder.kind", where)


def make_fired_whisper(config: FiredWhisperConfig, vocabulary: int, encoder: EncoderConfig) -> FiredWhisperDecoder:
    """The decoder over the fired embeddings of an encoder of Whisper.

    Raises:
        UserError: the encoder's architecture has no Whisper decoder.
    """
    sizes = WhisperDecoderSizes.read(getattr(encoder, "architecture", {}))
    return FiredWhisperDecoder(sizes, vocabulary, encoder.dim, config.window)


class Frames(NamedTuple):
    """Encoder frames and the positions of fires.

    Attributes:
        source: `(B, T, dim)`.
        lengths: `(B,)` int64, valid frames.
        places: `(B, U)` int64, the frame in which each token was fired.
        ends: `(B, U)` int64, the frame at which the context of each token ends, exclusive; None for that of the
            utterance. The context of the prompt ends with that of the first token.
    """

    source: Tensor
    lengths: Tensor
    places: Tensor
    ends: Tensor | None = None

    @property
    def prompt_lengths(self) -> Tensor:
        """Number of frames `(B,)` that the prompt attends to."""
        return self.lengths if self.ends is None or not self.ends.shape[1] else self.ends[:, 0]


@dataclass(frozen=True)
class FiredWhisperState:
    """State of the decoder between steps, for M hypotheses of B utterances.

    Attributes:
        memory: keys and values of the frames of B utterances, for each layer.
        masks: `(B, 1, U, T)`, frames that each token attends to.
        past: keys and values of the prompt and the tokens so far of M hypotheses, for each layer.
        steps: number of tokens so far.
    """

    memory: list[Memory]
    masks: Tensor
    past: list[Memory]
    steps: int = 0

    def select(self, rows: Tensor) -> FiredWhisperState:
        """The state of the given rows `(K,)` int64, in that order; rows may repeat.

        The hypotheses of an utterance are contiguous before and after, and their number is the same for all
        utterances.
        """
        return replace(self, past=[(key[rows], value[rows]) for key, value in self.past])


class FiredWhisperDecoder(nn.Module):
    """Whisper's decoder over the fired embeddings of CIF, with the interface of `retort.nn.decoder.CifDecoder` (ours).

    The input of step i is the embedding of the previous token, as in Whisper, plus a projection of the embedding
    fired for token i, which is initially zero. The cross-attention is limited to a window around the fire. Training
    therefore starts from Whisper's decoder limited to the window, while CIF determines the number of tokens.

    Args:
        sizes: sizes of Whisper's decoder.
        vocabulary: number of ids, including this project's special ones.
        acoustic_dim: width of the fired embeddings.
        window: number of frames on each side of a fire; 0 attends to all frames.
    """

    def __init__(self, sizes: WhisperDecoderSizes, vocabulary: int, acoustic_dim: int, window: int) -> None:
        super().__init__()
        self.window = window
        # Whisper was trained without dropout: dropout 0.1 in its decoder raises the loss from 2.4 to 10 nats per
        # token.
        self.whisper = WhisperDecoder(sizes, vocabulary, 0.0)
        self.fired = nn.Linear(acoustic_dim, sizes.dim, bias=False)
        nn.init.zeros_(self.fired.weight)

    def remember(self, hidden: Tensor, lengths: Tensor, places: Tensor, ends: Tensor | None = None) -> Frames:
        """Frames for :meth:`forward` and :meth:`start` from `hidden (B, T, dim)`; `places (B, U)` are the frames of
        the tokens, whose context ends at `ends (B, U)`."""
        return Frames(hidden, lengths, places, ends)

    def forward(self, previous_tokens: Tensor, embeddings: Tensor, frames: Frames) -> tuple[Tensor, Tensor]:
        """All steps at once, with teacher forcing.

        Args:
            previous_tokens: `(B, U)` int64, the start symbol first.
            embeddings: `(B, U, acoustic_dim)`, fired by CIF.
            frames: result of :meth:`remember`.

        Returns:
            States `(B, U, dim)` before the output layer, and logits `(B, U, V)`.

        Raises:
            UserError: the text is longer than the positions.
        """
        whisper = self.whisper
        before = whisper.sizes.prompt - 1
        hidden = whisper.with_prompt(previous_tokens) + F.pad(self.fired(embeddings), (0, 0, before, 0))
        whole = attention_mask(frames.prompt_lengths, frames.source.shape[1]).expand(-1, -1, before, -1)
        masks = torch.cat((whole, self._near(frames)), dim=2)
        for layer, memory in zip(whisper.layers, whisper.memories(frames.source)):
            hidden, _, _ = layer(hidden, memory, masks)
        states = whisper.norm(hidden[:, before:])
        return states, whisper.logits(states)

    def start(self, frames: Frames) -> FiredWhisperState:
        """The state before the first token."""
        state = self.whisper.start(frames.source, frames.prompt_lengths)
        return FiredWhisperState(state.memory, self._near(frames), state.past)

    def step(
        self, state: FiredWhisperState, previous_tokens: Tensor, embedding: Tensor
    ) -> tuple[Tensor, FiredWhisperState]:
        """Decode one token.

        Args:
            state: from :meth:`start` or the previous step.
            previous_tokens: `(M,)` int64.
            embedding: `(M, acoustic_dim)`, fired embedding of this token.

        Returns:
            Logits `(M, V)` and the next state.
        """
        mask, hidden = state.masks[:, :, state.steps, None], self._input(state.steps, previous_tokens, embedding)
        logits, past = self.whisper.advance(hidden, state.memory, mask, state.past)
        return logits, replace(state, past=past, steps=state.steps + 1)

    def attended_step(
        self, state: FiredWhisperState, previous_tokens: Tensor, embedding: Tensor, place: int
    ) -> tuple[Tensor, FiredWhisperState, Tensor]:
        """Decode one token of one utterance, with attention to all frames in the memory, or to the window around `place`.

        Args:
            state: with the memory of the frames so far; without `past` it is that before the first token.
            previous_tokens: `(1,)` int64.
            embedding: `(1, acoustic_dim)`, fired embedding of this token.
            place: frame of the token, for the window.

        Returns:
            Logits `(1, V)`, the next state, and the attention `(1, T)` of this token, the mean of the alignment heads.
        """
        every = torch.arange(state.memory[0][0].shape[2], device=embedding.device)
        near = (every - place).abs() <= self.window if self.window else torch.ones_like(every, dtype=torch.bool)
        past = state.past or self.whisper.read_prompt(state.memory, torch.ones_like(near)[None, None, None])
        found: list[Tensor] = []
        hidden = self._input(state.steps, previous_tokens, embedding)
        logits, past = self.whisper.advance(hidden, state.memory, near[None, None, None], past, found)
        attention = torch.cat(found, 1).mean((1, 2))
        return logits, replace(state, past=past, steps=state.steps + 1), attention

    def _input(self, step: int, previous_tokens: Tensor, embedding: Tensor) -> Tensor:
        """Input `(M, dim)` of the layers for a token."""
        whisper = self.whisper
        hidden = whisper.embedding(previous_tokens) if step else whisper.prompt[-1]
        # An utterance without speech may fire more tokens than there are positions.
        place = min(whisper.sizes.prompt - 1 + step, whisper.sizes.positions - 1)
        hidden = hidden + whisper.positions[place] + self.fired(embedding)
        return hidden

    def _near(self, frames: Frames) -> Tensor:
        """`(B, 1, U, T)` bool: the valid frames around each fire."""
        size = frames.source.shape[1]
        valid = attention_mask(frames.lengths, size)
        places = frames.places[:, None, :, None]
        every = torch.arange(size, device=places.device)
        near = valid.expand(-1, -1, places.shape[2], -1)
        if self.window:
            near = near & ((every - places).abs() <= self.window)
        if frames.ends is not None:
            near = near & (every < frames.ends[:, None, :, None].clamp(min=1))
        return near
