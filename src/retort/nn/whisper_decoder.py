"""The decoder of Whisper (Radford et al. 2022, section 2.2), autoregressive with cross-attention.

It has the interface of :class:`retort.nn.cross_decoder.CrossDecoder`. The start symbol of a history is replaced by
the prompt, the special tokens for language and task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retort.common.errors import UserError
from retort.nn.attention import Memory
from retort.nn.cpu_kernels import Dropout
from retort.nn.cross_decoder import CrossLayer, CrossState
from retort.nn.masks import attention_mask


@dataclass(frozen=True)
class WhisperDecoderSizes:
    """Sizes of a decoder.

    Attributes:
        prompt: number of special tokens before the first token of the text.
        positions: maximum number of tokens of prompt and text; 448 in the published models.
        alignment_heads: pairs of layer and head, counted from 0, whose attention weights follow the speech.
    """

    dim: int
    layers: int
    heads: int
    feedforward: int
    prompt: int
    positions: int
    alignment_heads: tuple[tuple[int, int], ...]

    @property
    def prose(self) -> str:
        """The sizes as text."""
        return f"Whisper's: {self.layers} layers, dim {self.dim}, {self.heads} heads, feed-forward {self.feedforward}"

    @classmethod
    def read(cls, architecture: Mapping[str, Any]) -> WhisperDecoderSizes:
        """Read the sizes from the output of `retort.pretrained.whisper.whisper_architecture`.

        Raises:
            UserError: it describes only an encoder.
        """
        try:
            sizes = cls(
                architecture["d_model"],
                architecture["decoder_layers"],
                architecture["decoder_attention_heads"],
                architecture["decoder_ffn_dim"],
                architecture["prompt"],
                architecture["max_target_positions"],
                tuple((int(layer), int(head)) for layer, head in architecture["alignment_heads"]),
            )
        except KeyError as error:
            raise UserError(
                f"student.encoder.architecture has no {error.args[0]}",
                remedy="Set student.encoder.model to a Whisper model",
            ) from None
        inside = [0 <= layer < sizes.layers and 0 <= head < sizes.heads for layer, head in sizes.alignment_heads]
        if not inside or not all(inside) or not 1 <= sizes.prompt < sizes.positions:
            raise UserError(
                "student.encoder.architecture has alignment heads or a prompt that its decoder does not have",
                remedy="Set student.encoder.model to a Whisper model",
            )
        return sizes


class WhisperDecoderLayer(CrossLayer):
    """Pre-norm causal self-attention, cross-attention, and feed-forward with GELU.

    Args:
        dropout: dropout after each part; there is no attention dropout.
    """

    def __init__(self, dim: int, heads: int, feedforward: int, dropout: float) -> None:
        super().__init__(dim, heads, feedforward, dropout, dim)
        self.dropout = self.cross.dropout = 0.0
        self.key = nn.Linear(dim, dim, bias=False)
        self.cross.key = nn.Linear(dim, dim, bias=False)

    def feed(self, hidden: Tensor) -> Tensor:
        """Feed-forward of `hidden (B, N, dim)`."""
        expanded = self.residual_dropout(F.gelu(self.expand(self.feedforward_norm(hidden))))
        result: Tensor = hidden + self.residual_dropout(self.contract(expanded))
        return result

    def weights(self, hidden: Tensor, memory: Memory, mask: Tensor, past: Memory | None = None) -> Tensor:
        """Attention weights `(B, heads, N, T)` over the frames, from the layer's input `hidden (B, N, dim)`."""
        query = self.cross.split(self.cross.query(self.cross_norm(self.look_back(hidden, past)[0])))
        scores = query @ memory[0].transpose(-1, -2) * query.shape[-1] ** -0.5
        return scores.float().masked_fill(~mask, float("-inf")).softmax(-1)


class WhisperDecoded(NamedTuple):
    """Outputs of all steps.

    Attributes:
        states: `(B, U, dim)`, before the output layer.
        contexts: `(B, U, dim)`, context vectors of the last layer's cross-attention.
    """

    states: Tensor
    contexts: Tensor


class WhisperDecoder(nn.Module):
    """Tied embeddings, learned positions, and a prompt before every text.

    Args:
        sizes: sizes of the model.
        vocabulary: number of ids, including this project's special ones.
        dropout: dropout of embeddings and layers in training.
    """

    def __init__(self, sizes: WhisperDecoderSizes, vocabulary: int, dropout: float) -> None:
        super().__init__()
        self.sizes = sizes
        self.embedding = nn.Embedding(vocabulary, sizes.dim)
        self.prompt = nn.Parameter(torch.empty(sizes.prompt, sizes.dim))
        self.positions = nn.Parameter(torch.empty(sizes.positions, sizes.dim))
        for weights in (self.embedding.weight, self.prompt, self.positions):
            nn.init.normal_(weights, std=0.02)
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(
            WhisperDecoderLayer(sizes.dim, sizes.heads, sizes.feedforward, dropout) for _ in range(sizes.layers)
        )
        self.norm = nn.LayerNorm(sizes.dim)

    @property
    def most_tokens(self) -> int:
        """Maximum length of a text, including the end symbol."""
        return self.sizes.positions - self.sizes.prompt

    def forward(self, previous_tokens: Tensor, source: Tensor, lengths: Tensor) -> WhisperDecoded:
        """All steps at once, with teacher forcing.

        Args:
            previous_tokens: `(B, U)` int64, the start symbol first.
            source: `(B, T, dim)`, frames.
            lengths: `(B,)`, number of valid frames.

        Raises:
            UserError: the text is longer than the positions.
        """
        hidden = contexts = self.with_prompt(previous_tokens)
        mask = attention_mask(lengths, source.shape[1])
        for layer, memory in zip(self.layers, self.memories(source)):
            hidden, contexts, _ = layer(hidden, memory, mask)
        before = self.sizes.prompt - 1
        return WhisperDecoded(self.norm(hidden[:, before:]), contexts[:, before:])

    def logits(self, states: Tensor) -> Tensor:
        """Logits `(..., V)` of `states (..., dim)`."""
        return F.linear(states, self.embedding.weight)

    def start(self, source: Tensor, lengths: Tensor) -> CrossState:
        """The state after all of the prompt but its last token; arguments as in :meth:`forward`."""
        memory, mask = self.memories(source), attention_mask(lengths, source.shape[1])
        return CrossState(memory, mask, self.read_prompt(memory, mask), self.sizes.prompt - 1)

    def read_prompt(self, memory: Sequence[Memory], mask: Tensor) -> list[Memory]:
        """Keys and values of all of the prompt but its last token; none for a prompt of one token.

        Args:
            memory: keys and values of the frames of B utterances, for each layer.
            mask: `(B, 1, 1, T)`, frames that may be attended to.
        """
        count = self.sizes.prompt - 1
        if count == 0:
            return []
        # `len` would be recorded as a constant in an export.
        hidden = (self.prompt + self.positions[: count + 1])[:count].expand(mask.shape[0], -1, -1)
        past = []
        for layer, own in zip(self.layers, memory):
            hidden, _, keys_values = layer(hidden, own, mask)
            past.append(keys_values)
        return past

    def step(self, state: CrossState, previous_tokens: Tensor) -> tuple[Tensor, CrossState]:
        """Decode one token.

        Args:
            state: from :meth:`start` or the previous step.
            previous_tokens: `(M,)` int64; at the first step the start symbol, which is replaced by the prompt's
                last token.

        Returns:
            Logits `(M, V)` and the next state.
        """
        if state.steps < self.sizes.prompt:
            hidden = self.prompt[state.steps].expand(len(previous_tokens), -1)
        else:
            hidden = self.embedding(previous_tokens)
        hidden = hidden + self.positions[state.steps]
        logits, past = self.advance(hidden, state.memory, state.mask, state.past)
        return logits, CrossState(state.memory, state.mask, past, state.steps + 1)

    def advance(
        self,
        hidden: Tensor,
        memory: Sequence[Memory],
        mask: Tensor,
        past: Sequence[Memory],
        attention: list[Tensor] | None = None,
    ) -> tuple[Tensor, list[Memory]]:
        """All layers for one position.

        Args:
            hidden: `(M, dim)`, embedding and position of M hypotheses of B utterances.
            memory: keys and values of each layer, of the frames of B utterances.
            mask: `(B, 1, 1, T)`, frames that may be attended to.
            past: keys and values of each layer, of the earlier positions; empty at the first one.
            attention: the weights `(B, heads, 1, T)` of the alignment heads are added to it; then M must be B.

        Returns:
            logits `(M, V)`, and `past` including this position.
        """
        hidden, after = hidden[:, None], []
        for index, layer in enumerate(self.layers):
            before = past[index] if past else None
            if attention is not None and (heads := self._alignment_heads(index)):
                assert isinstance(layer, WhisperDecoderLayer)
                attention.append(layer.weights(hidden, memory[index], mask, before)[:, heads])
            hidden, _, kept = layer(hidden, memory[index], mask, before)
            after.append(kept)
        return self.logits(self.norm(hidden))[:, 0], after

    def alignment(self, previous_tokens: Tensor, source: Tensor, lengths: Tensor) -> Tensor:
        """Attention weights `(B, heads, U, T)` of the alignment heads; arguments as :meth:`forward`."""
        hidden = self.with_prompt(previous_tokens)
        mask, found = attention_mask(lengths, source.shape[1]), []
        for number, (layer, memory) in enumerate(zip(self.layers, self.memories(source))):
            heads = self._alignment_heads(number)
            if heads and isinstance(layer, WhisperDecoderLayer):
                found.append(layer.weights(hidden, memory, mask)[:, heads])
            hidden, _, _ = layer(hidden, memory, mask)
        return torch.cat(found, 1)[:, :, self.sizes.prompt - 1 :]

    def _alignment_heads(self, layer: int) -> list[int]:
        return [head for index, head in self.sizes.alignment_heads if index == layer]

    def with_prompt(self, previous_tokens: Tensor) -> Tensor:
        """Embeddings `(B, prompt - 1 + U, dim)` of the prompt and of the tokens after the start symbol.

        Raises:
            UserError: the text is longer than the positions.
        """
        size = self.sizes.prompt - 1 + previous_tokens.shape[1]
        if size > self.sizes.positions:
            raise UserError(
                f"a text of {previous_tokens.shape[1]} tokens is longer than the decoder's "
                f"{self.sizes.positions} positions"
            )
        prompt = self.prompt.expand(len(previous_tokens), -1, -1)
        hidden = torch.cat((prompt, self.embedding(previous_tokens[:, 1:])), dim=1)[:, :size]
        embedded: Tensor = self.dropout(hidden + self.positions[:size])
        return embedded

    def memories(self, source: Tensor) -> list[Memory]:
        """Keys and values of the frames `source (B, T, dim)` for each layer."""
        return [layer.cross.memory(source) for layer in self.layers if isinstance(layer, CrossLayer)]


_LAYER_NAMES: Sequence[tuple[str, str]] = (
    ("query", "self_attn.q_proj"),
    ("key", "self_attn.k_proj"),
    ("value", "self_attn.v_proj"),
    ("output", "self_attn.out_proj"),
    ("attention_norm", "self_attn_layer_norm"),
    ("cross.query", "encoder_attn.q_proj"),
    ("cross.key", "encoder_attn.k_proj"),
    ("cross.value", "encoder_attn.v_proj"),
    ("cross.output", "encoder_attn.out_proj"),
    ("cross_norm", "encoder_attn_layer_norm"),
    ("expand", "fc1"),
    ("contract", "fc2"),
    ("feedforward_norm", "final_layer_norm"),
)


def named_decoder_weights(decoder: WhisperDecoder) -> dict[str, Tensor]:
    """Layers, norm and positions under the names of `transformers`' WhisperDecoder, without embeddings."""
    names = dict(_LAYER_NAMES)
    found: dict[str, Tensor] = {"embed_positions.weight": decoder.positions}
    for number, layer in enumerate(decoder.layers):
        for name, parameter in layer.named_parameters():
            part, _, kind = name.rpartition(".")
            found[f"layers.{number}.{names[part]}.{kind}"] = parameter
    found["layer_norm.weight"], found["layer_norm.bias"] = decoder.norm.weight, decoder.norm.bias
    return found


@torch.no_grad()
def copy_whisper_decoder(
    weights: Mapping[str, Tensor], decoder: WhisperDecoder, rows: Sequence[int], prompt: Sequence[int]
) -> int:
    """Copy the weights of `transformers`' WhisperDecoder; returns the number of tensors.

    Args:
        weights: state dictionary of the decoder.
        rows: Whisper's id of each id of the vocabulary.
        prompt: Whisper's ids of the prompt.
    """
    own = named_decoder_weights(decoder)
    for name, parameter in own.items():
        parameter.copy_(weights[name])
    embeddings = weights["embed_tokens.weight"]
    decoder.embedding.weight.copy_(embeddings[torch.tensor(list(rows))])
    decoder.prompt.copy_(embeddings[torch.tensor(list(prompt))])
    return len(own) + 1
