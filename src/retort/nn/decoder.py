"""The autoregressive decoder over fired embeddings."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from retort.common.errors import UserError
from retort.config.ranges import WIDEST, choice, number, numbers
from retort.config.student import DecoderConfig, DecoderSizes, EncoderConfig
from retort.nn.attention import SelfAttention
from retort.nn.cpu_kernels import Dropout
from retort.nn.positions import sinusoids
from retort.nn.window import FrameMemory, WindowAttention

if TYPE_CHECKING:
    from retort.config.schema import Recipe


@dataclass
class HistoryConfig(DecoderSizes, DecoderConfig):
    """Configuration of decoders with one step per fired embedding."""

    window: int = number(0, 0, 1000)
    """Number of encoder frames on each side of a token's fire to which the decoder attends; 0 for no attention, as in the
    reference."""
    history_dropout: float = number(0.0, 0, 1, below=True)
    """Share of the previous tokens that are replaced by the unknown token in training, so that the decoder relies on
    the acoustics rather than on a history that has errors in decoding."""

    @property
    def more_prose(self) -> str:
        return f", attention to {2 * self.window + 1} frames" if self.window else ""

    def check(self, recipe: Recipe, where: str) -> None:
        if self.window and recipe.student.faithful:
            raise UserError(
                f"student.decoder.window is {self.window}, but student.faithful reproduces the reference without attention",
                where=where,
                remedy="Set window: 0, or faithful: false",
            )


@dataclass
class AutoregressiveConfig(HistoryConfig):
    """Configuration of :class:`CifDecoder`."""

    kind: str = "autoregressive"
    """Kind of the decoder."""
    output: str = choice("own", "plm")
    """Output layer: `own`, or `plm`: the input embeddings of the language model whose tokenizer is used
    (`tokenizer.kind: teacher`), after a projection to their width, and with a bias. They are trained unless
    `training.freeze` names `decoder.vocabulary.weight`."""
    output_dim: int | None = number(None, 1, WIDEST)
    """Width of those embeddings; required for `plm`, so that neither `retort info` nor the trained student needs the
    language model."""
    init: str = ""
    """Name or folder of a BERT-like encoder whose layers initialise the layers of the decoder; `dim`, `heads` and
    `feedforward` must be the same."""
    init_layers: list[int] = numbers([], -1000, 1000)
    """Which of its layers are used, counted from 1, or from -1 for the last; empty for the first ones."""

    @property
    def more_prose(self) -> str:
        output = f", output through a PLM's embeddings of {self.output_dim}" if self.output == "plm" else ""
        return output + super().more_prose

    @property
    def without_initial_model(self) -> Self:
        return replace(self, init="", init_layers=[])

    def validate(self, key: str) -> None:
        super().validate(key)
        if (self.output == "plm") != (self.output_dim is not None):
            raise UserError(
                f"{key}.output is {self.output}, output_dim is {self.output_dim}",
                remedy="Set output_dim, the width of the PLM's embeddings, for plm only",
            )
        if self.init_layers and len(self.init_layers) != self.layers:
            raise UserError(
                f"{key}.init_layers has {len(self.init_layers)} numbers, {key}.layers is {self.layers}",
                remedy="Give one number per layer, or none",
            )

    def check(self, recipe: Recipe, where: str) -> None:
        if self.output == "plm" and recipe.tokenizer.kind != "teacher":
            raise UserError(
                f"student.decoder.output is plm, but tokenizer.kind is {recipe.tokenizer.kind}",
                where=where,
                remedy="Set tokenizer.kind: teacher, and tokenizer.teacher",
            )
        super().check(recipe, where)


def make_autoregressive(config: AutoregressiveConfig, vocabulary: int, encoder: EncoderConfig) -> CifDecoder:
    """The decoder over the fired embeddings of an encoder."""
    return CifDecoder(config, vocabulary, encoder.dim)


class HistoryLayer(SelfAttention):
    """Pre-norm causal self-attention and feed-forward with ReLU; base class of decoder layers."""

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__(dim, heads, dropout)
        self.attention_norm = nn.LayerNorm(dim)
        self.feedforward_norm = nn.LayerNorm(dim)
        self.expand = nn.Linear(dim, feedforward)
        self.contract = nn.Linear(feedforward, dim)
        self.residual_dropout = Dropout(dropout)

    def look_back(
        self, hidden: Tensor, past: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Self-attention of `hidden (B, N, dim)`; with `past` keys and values `(B, heads, P, dim / heads)`, N is 1.

        `mask (B, 1, 1, P + 1)` is true for the keys that may be attended to, by default all.

        Returns the new hidden and the keys and values, including those of this call.
        """
        normed = self.attention_norm(hidden)
        query, key, value = (self.split(part(normed)) for part in (self.query, self.key, self.value))
        if past is not None:
            key, value = torch.cat((past[0], key), dim=2), torch.cat((past[1], value), dim=2)
        attended = self.attend(query, key, value, mask, causal=past is None)
        return hidden + self.residual_dropout(attended), (key, value)

    def feed(self, hidden: Tensor) -> Tensor:
        """Feed-forward of `hidden (B, N, dim)`."""
        expanded = self.residual_dropout(F.relu(self.expand(self.feedforward_norm(hidden))))
        result: Tensor = hidden + self.residual_dropout(self.contract(expanded))
        return result


class CausalLayer(HistoryLayer):
    """Causal self-attention and feed-forward."""

    def forward(
        self, hidden: Tensor, past: tuple[Tensor, Tensor] | None = None, mask: Tensor | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """:meth:`look_back`, followed by the feed-forward."""
        hidden, keys_values = self.look_back(hidden, past, mask)
        return self.feed(hidden), keys_values


@dataclass
class DecoderState:
    """State of the decoder between steps.

    Attributes:
        past: keys and values `(B, heads, P, dim / heads)` of each layer, P tokens so far.
        previous: `(B, acoustic_dim)`, the previous fired embedding.
        steps: number of tokens so far, P.
        memory: the encoder's frames, for a decoder with `window`.
    """

    past: list[tuple[Tensor, Tensor]]
    previous: Tensor
    steps: int = 0
    memory: FrameMemory | None = None

    def select(self, rows: Tensor) -> DecoderState:
        """The state of the given rows `(M,)` int64, in that order; rows may repeat."""
        past = [(key[rows], value[rows]) for key, value in self.past]
        memory = None if self.memory is None else self.memory.select(rows)
        return DecoderState(past, self.previous[rows], self.steps, memory)


@dataclass(frozen=True)
class RowState:
    """State of the decoder of one utterance, for steps of several utterances whose numbers of tokens differ.

    Attributes:
        past: `(P, layers, 2, heads, dim / heads)`, keys and values of the P tokens so far.
        previous: `(acoustic_dim,)`, the previous fired embedding.
    """

    past: Tensor
    previous: Tensor


class CifDecoder(nn.Module):
    """Autoregressive decoder with one step per fired embedding, without cross-attention (CIF-HKD,
    `CifArTransformerDecoder`).

    The input of step i is the previous token and the previous fired embedding; the embedding of token i is
    added at the output: `state_i = W_out [hidden_i ; c_i]`, `logits_i = W_vocab state_i`. With `window` the
    hidden state first attends to the encoder's frames around the token's fire (:class:`WindowAttention`;
    ours). With `output_dim` the output layer has that width, as a PLM's embeddings, after a projection, and a
    bias, as in a masked PLM.

    Args:
        config: sizes of the network.
        vocabulary: number of ids, including special ones.
        acoustic_dim: width of the fired embeddings.
    """

    def __init__(self, config: HistoryConfig, vocabulary: int, acoustic_dim: int) -> None:
        super().__init__()
        dim = config.dim
        self.embedding = nn.Embedding(vocabulary, dim)
        nn.init.normal_(self.embedding.weight, std=dim**-0.5)
        self.scale = math.sqrt(dim)
        self.input = nn.Linear(dim + acoustic_dim, dim, bias=False)
        self.dropout = Dropout(config.embedding_dropout)
        self.layers = nn.ModuleList(
            CausalLayer(dim, config.heads, config.feedforward, config.dropout) for _ in range(config.layers)
        )
        self.window = (
            WindowAttention(dim, acoustic_dim, config.heads, config.window) if config.window else None
        )
        self.norm = nn.LayerNorm(dim)
        self.output = nn.Linear(dim + acoustic_dim, dim, bias=False)
        width: int | None = getattr(config, "output_dim", None)
        self.projection = nn.Identity() if width is None else nn.Linear(dim, width)
        self.vocabulary = nn.Linear(width or dim, vocabulary, bias=width is not None)

    def forward(
        self, previous_tokens: Tensor, embeddings: Tensor, memory: FrameMemory | None = None
    ) -> tuple[Tensor, Tensor]:
        """All steps at once, with teacher forcing.

        Args:
            previous_tokens: `(B, U)` int64, the start symbol first.
            embeddings: `(B, U, acoustic_dim)`, fired by CIF.
            memory: the encoder's frames, for a decoder with `window`.

        Returns:
            States `(B, U, dim)` before the output layer, and logits `(B, U, V)`.
        """
        return self.finish(self.history(previous_tokens, embeddings), embeddings, memory)

    def history(self, previous_tokens: Tensor, embeddings: Tensor) -> Tensor:
        """The state `(B, U, dim)` of each step before its fired embedding and the frames enter: it depends on the previous
        tokens and fired embeddings only. The arguments are those of :meth:`forward`."""
        shifted = F.pad(embeddings, (0, 0, 1, 0))[:, :-1]
        positions = torch.arange(previous_tokens.shape[1], device=previous_tokens.device)
        hidden = self._input(previous_tokens, shifted, positions)
        for layer in self.layers:
            hidden, _ = layer(hidden)
        return hidden

    def finish(
        self, history: Tensor, embeddings: Tensor, memory: FrameMemory | None = None, first: int = 0
    ) -> tuple[Tensor, Tensor]:
        """The result of :meth:`forward` from that of :meth:`history`, for the tokens from `first` on."""
        return self._output(self._attend(history, memory, first), embeddings)

    def start(self, batch: int, like: Tensor, memory: FrameMemory | None = None) -> DecoderState:
        """The state before the first token, on the device and with the dtype of `like (..., acoustic_dim)`."""
        return DecoderState([], like.new_zeros(batch, like.shape[-1]), memory=memory)

    def step(
        self, state: DecoderState, previous_tokens: Tensor, embedding: Tensor
    ) -> tuple[Tensor, DecoderState]:
        """Decode one token.

        Args:
            state: from :meth:`start` or the previous step.
            previous_tokens: `(B,)` int64.
            embedding: `(B, acoustic_dim)`, fired embedding of this token.

        Returns:
            Logits `(B, V)` and the next state.
        """
        position = torch.tensor([state.steps], device=embedding.device)
        hidden = self._input(previous_tokens[:, None], state.previous[:, None], position)
        past = []
        for index, layer in enumerate(self.layers):
            hidden, keys_values = layer(hidden, state.past[index] if state.past else None)
            past.append(keys_values)
        _, logits = self.finish(hidden, embedding[:, None], state.memory, state.steps)
        return logits[:, 0], DecoderState(past, embedding, state.steps + 1, state.memory)

    def start_row(self, like: Tensor) -> RowState:
        """The state of one utterance before the first token, on the device and with the dtype of `like (acoustic_dim,)`."""
        first, dim = next(iter(self.layers), None), self.embedding.embedding_dim
        heads = first.heads if isinstance(first, CausalLayer) else 1
        past = like.new_zeros(0, len(self.layers), 2, heads, dim // heads)
        return RowState(past, torch.zeros_like(like))

    def step_rows(
        self,
        states: Sequence[RowState],
        previous_tokens: Tensor,
        embeddings: Tensor,
        memory: FrameMemory | None = None,
    ) -> tuple[Tensor, list[RowState]]:
        """Decode one token of each of several utterances, as :meth:`step` does for one of them.

        Args:
            states: of the B utterances, from :meth:`start_row` or the previous step.
            previous_tokens: `(B,)` int64.
            embeddings: `(B, acoustic_dim)`, fired embeddings of these tokens.
            memory: the encoder's frames with the places `(B, 1)` of these tokens, for a decoder with `window`.

        Returns:
            Logits `(B, V)` and the next states.
        """
        device, counts = embeddings.device, [len(each.past) for each in states]
        positions, most = torch.tensor(counts, device=device)[:, None], max(counts)
        past = pad_sequence([each.past for each in states], batch_first=True)  # (B, P, layers, 2, heads, d)
        mask = None
        if min(counts) < most:
            mask = torch.arange(most + 1, device=device) < positions
            mask[:, most] = True  # the token itself
            mask = mask[:, None, None]
        previous = torch.stack([each.previous for each in states])
        hidden, added = self._input(previous_tokens[:, None], previous[:, None], positions), []
        for index, layer in enumerate(self.layers):
            keys_values = past[:, :, index, 0].transpose(1, 2), past[:, :, index, 1].transpose(1, 2)
            hidden, (keys, values) = layer(hidden, keys_values, mask)
            added.append(torch.stack((keys[:, :, -1], values[:, :, -1]), 1))
        _, logits = self.finish(hidden, embeddings[:, None], memory)
        if not added:
            return logits[:, 0], [RowState(each.past, row) for each, row in zip(states, embeddings)]
        new = torch.stack(added, 1)[:, None]
        after = [
            RowState(torch.cat((each.past, more)), row) for each, more, row in zip(states, new, embeddings)
        ]
        return logits[:, 0], after

    def _attend(self, hidden: Tensor, memory: FrameMemory | None, first: int) -> Tensor:
        """Add the window attention of the tokens from `first` on, `hidden (B, N, dim)`, to the frames of `memory`."""
        if self.window is None:
            return hidden
        if memory is None:
            raise ValueError("a decoder with a window requires the encoder's frames")
        return hidden + self.dropout(self.window(hidden, memory, first))

    def _input(self, tokens: Tensor, embeddings: Tensor, positions: Tensor) -> Tensor:
        joined = torch.cat((self.scale * self.embedding(tokens), embeddings), dim=-1)
        hidden = self.input(joined)
        table = sinusoids(positions, hidden.shape[-1]).to(hidden.dtype)
        result: Tensor = self.dropout(hidden + table)
        return result

    def _output(self, hidden: Tensor, embeddings: Tensor) -> tuple[Tensor, Tensor]:
        states = self.output(torch.cat((self.norm(hidden), embeddings), dim=-1))
        return states, self.vocabulary(self.projection(states))
