"""The computations of a CIF student that are exported as graphs: the encoder with its fires, and one step of the decoder.

The graphs hold all that depends on the weights. What a runtime adds is the extraction of features, the choice of
tokens, and times. Every shape that may differ between calls is dynamic: the batch N, the hypotheses K of an utterance,
feature frames T, encoder frames F, fires U and earlier tokens P.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retort.audio.online import PRIOR_DEVIATION, PRIOR_FRAMES, PRIOR_MEAN
from retort.common.errors import UserError
from retort.config.schema import FeatureConfig
from retort.export.replacements import exportable
from retort.nn.attention import SelfAttention
from retort.nn.cif import ROUNDING, FiredTokens
from retort.nn.decoder import CifDecoder
from retort.nn.masks import attention_mask, valid_mask
from retort.nn.parallel_decoder import ParallelDecoder
from retort.nn.positions import sinusoids
from retort.nn.whisper_decoder import WhisperDecoder
from retort.nn.whisper_fired import FiredWhisperDecoder
from retort.nn.window import WindowAttention, fire_frames
from retort.students.cif import CifStudent
from retort.students.ctc import HasCtc
from retort.students.student import Encoded
from retort.text.tokenizers import BLANK, EOS, PAD


def normalise(features: Tensor, lengths: Tensor, config: FeatureConfig) -> Tensor:
    """Mean and variance normalisation of `features (N, T, bins)` over the valid frames `lengths (N,)`, as
    :func:`retort.audio.cmvn.normalised` does it for one utterance; with `statistics: running` over the frames so far."""
    if not config.cmvn:
        return features
    if config.statistics == "running":
        start = features.new_zeros(1, 2, 1, dtype=torch.float64)
        return normalise_running(features, start, lengths.new_zeros(1))[0]
    mask = valid_mask(lengths, features.shape[1])[..., None]
    wave = config.kind == "wave"
    dims = (1, 2) if wave else (1,)
    count = lengths.clamp(min=1)[:, None, None] * (features.shape[2] if wave else 1)
    mean = features.masked_fill(~mask, 0.0).sum(dims, keepdim=True) / count
    centred = (features - mean).masked_fill(~mask, 0.0)
    variance = centred.square().sum(dims, keepdim=True) / count
    return centred / ((variance + 1e-7).sqrt() if wave else variance.sqrt().clamp(min=1e-5))


def normalise_running(features: Tensor, before: Tensor, frames: Tensor) -> tuple[Tensor, Tensor]:
    """:class:`retort.audio.online.RunningCmvn` of `features (N, T, bins)`, the next ones of N streams.

    Args:
        before: `(N, 2, bins)` float64, sums and sums of squares of the earlier features.
        frames: `(N,)` int64, number of earlier frames.

    Returns:
        The normalised features, and the sums `(N, 2, T, bins)` float64 after each frame.
    """
    number = torch.arange(1, features.shape[1] + 1, device=features.device)
    counts = (frames.double()[:, None] + PRIOR_FRAMES + number)[..., None]
    wide = features.double()
    sums = torch.stack((wide, wide.square()), 1).cumsum(2) + before[:, :, None]
    mean = (sums[:, 0] + PRIOR_FRAMES * PRIOR_MEAN) / counts
    squares = (sums[:, 1] + PRIOR_FRAMES * (PRIOR_MEAN**2 + PRIOR_DEVIATION**2)) / counts
    deviation = (squares - mean.square()).clamp(min=0.0).sqrt().clamp(min=1e-5)
    return ((wide - mean) / deviation).float(), sums


class EncoderGraph(nn.Module):
    """Features to the encoder's output.

    Args:
        student: in eval mode; it is changed (:func:`retort.export.replacements.exportable`).
        features: features of the model.
    """

    def __init__(self, student: nn.Module, features: FeatureConfig) -> None:
        super().__init__()
        self.student: Any = exportable(student)
        self.config = features

    def encode(self, features: Tensor, lengths: Tensor) -> Encoded:
        """Encoder output of `features (N, T, bins)` before CMVN with `lengths (N,)` int64."""
        hidden, frames = self.student.encoder(normalise(features, lengths, self.config), lengths)
        return Encoded(hidden, frames)


class FiredGraph(EncoderGraph):
    """Features to fired embeddings, and what the decoder needs of the frames.

    Raises:
        UserError: the decoder cannot be exported.
    """

    def __init__(self, student: CifStudent, features: FeatureConfig) -> None:
        super().__init__(student, features)
        self.cif = student
        self.memory = memory_of(student.decoder)

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs of :meth:`forward`."""
        ctc = ["ctc_log_probs"] if isinstance(self.cif, HasCtc) else []
        return ["frames", "counts", "times", "quantity", "embeddings", *ctc, *self.memory.outputs]

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, ...]:
        """Encode and fire.

        Args:
            features: `(N, T, bins)` float32 before CMVN.
            lengths: `(N,)` int64, valid feature frames.

        Returns:
            `frames (N,)` int64, valid encoder frames; `counts (N,)` int64, fires; `times (N, U)` float32, in encoder
            frames; `quantity (N,)` float32, sum of the weights; `embeddings (N, U, D)` float32, with U at least 1;
            `ctc_log_probs (N, F, V)` of a student with a CTC head; and the outputs of :attr:`memory`.
        """
        encoded = self.encode(features, lengths)
        student = self.cif
        log_probs = student.ctc(encoded.hidden).log_softmax(-1) if isinstance(student, HasCtc) else None
        if student.weights is None:
            assert log_probs is not None
            fired = fire_at_peaks(encoded, log_probs)
        else:
            fired = fire(encoded, student.weights(encoded.hidden, encoded.lengths), student.config.cif.tail)
        fired = student._in_context(fired)
        spare = student.config.cif.spare
        if spare:
            fired = with_more(fired, encoded, spare)
        heads = () if log_probs is None else (log_probs,)
        memory = self.memory(encoded, fired)
        return (
            encoded.lengths,
            fired.lengths,
            fired.fire_times,
            fired.quantity,
            fired.embeddings,
            *heads,
            *memory,
        )


def fire(encoded: Encoded, alphas: Tensor, tail: float) -> FiredTokens:
    """:func:`retort.nn.cif.integrate_and_fire` without target lengths, as dense operations.

    The share of frame t in token u is the overlap of two intervals, a matrix `(U, F)` per utterance. There is at least
    one position, which is empty for an utterance without fires.

    Args:
        alphas: `(N, F)`, zero beyond each utterance.
        tail: weight above which a remainder is a token.
    """
    sums = alphas.double().cumsum(1)
    quantity = sums[:, -1]
    rest, slack = quantity - quantity.floor(), quantity * ROUNDING
    has_tail = (rest > slack.clamp(min=tail)) | ((rest >= 1.0 - slack) & (rest > 0.0))
    counts = quantity.floor().long() + has_tail.long()
    size = positions(counts)
    base = torch.where(has_tail, quantity.floor(), quantity + 1.0)[:, None]
    divisor = torch.where(has_tail, rest, torch.ones_like(rest))[:, None]
    ends = torch.where(sums >= base, (sums - base) / divisor + base, sums)
    begins = F.pad(ends, (1, 0))[:, :-1]
    units = torch.arange(size, device=alphas.device)
    first = units.double()[None, :, None]
    overlap = torch.minimum(ends[:, None], first + 1.0) - torch.maximum(begins[:, None], first)
    inside = units < counts[:, None]
    shares = overlap.clamp(min=0.0).float().masked_fill(~inside[..., None], 0.0)
    places = (sums[:, None] < first + 1.0).long().sum(2).clamp(max=alphas.shape[1] - 1)
    padded = F.pad(sums, (1, 0))
    before, after = padded.gather(1, places), padded.gather(1, places + 1)
    share = (units + 1.0 - before) / (after - before).clamp(min=1e-30)
    times = torch.where(inside, places + share, 0.0)
    is_tail = has_tail[:, None] & (units + 1 == counts[:, None])
    times = torch.where(is_tail, encoded.lengths[:, None].double(), times)
    return FiredTokens(shares @ encoded.hidden, counts, times.float(), quantity.float())


def positions(counts: Tensor) -> Any:
    """The largest of `counts (N,)`, at least 1, as the size of a dimension."""
    return counts.max().clamp(min=1)


def fire_at_peaks(encoded: Encoded, log_probs: Tensor) -> FiredTokens:
    """Fires at the peaks of the CTC head's best path and at the last frame, as `CifStudent` has them for
    `cif.fires: ctc`.

    Args:
        log_probs: `(N, F, V)`.
    """
    scores, labels = log_probs.max(-1)
    frames = labels.shape[1]
    inside = valid_mask(encoded.lengths, frames)
    emitted = inside & (labels != BLANK) & (labels != PAD) & (labels != EOS)
    begins = emitted & (labels != F.pad(labels, (1, 0), value=-1)[:, :-1])
    numbers = begins.long().cumsum(1) - 1
    counts = begins.long().sum(1)
    lengths = torch.where(encoded.lengths > 0, counts + 1, 0)
    units = torch.arange(positions(lengths), device=labels.device)
    own = (numbers[:, None] == units[:, None]) & emitted[:, None]
    peaks = torch.where(own, scores[:, None], float("-inf")).argmax(2)
    last = (encoded.lengths - 1).clamp(min=0)[:, None]
    places = torch.where(units >= counts[:, None], last, peaks)
    mask = units < lengths[:, None]
    embeddings = encoded.hidden.gather(1, places[..., None].expand(-1, -1, encoded.hidden.shape[-1]))
    times = torch.where(mask, (places + 1).float(), 0.0)
    return FiredTokens(embeddings.masked_fill(~mask[..., None], 0.0), lengths, times, lengths.float())


def with_more(fired: FiredTokens, encoded: Encoded, spare: int) -> FiredTokens:
    """:func:`retort.students.cif.with_spare` with a size that does not depend on values."""
    lengths = torch.where(encoded.lengths > 0, fired.lengths + spare, 0)
    size = fired.embeddings.shape[1] + spare
    units = torch.arange(size, device=lengths.device)
    own, inside = units < fired.lengths[:, None], units < lengths[:, None]
    ends = encoded.lengths.to(fired.fire_times.dtype)[:, None]
    times = torch.where(own, F.pad(fired.fire_times, (0, spare)), ends).masked_fill(~inside, 0.0)
    last = (encoded.lengths - 1).clamp(min=0)[:, None, None].expand(-1, -1, encoded.hidden.shape[-1])
    embeddings = torch.where(
        own[..., None], F.pad(fired.embeddings, (0, 0, 0, spare)), encoded.hidden.gather(1, last)
    )
    return FiredTokens(embeddings.masked_fill(~inside[..., None], 0.0), lengths, times, fired.quantity)


class Memory(nn.Module, ABC):
    """What a decoder needs of the frames, computed once for all steps."""

    outputs: Sequence[str]

    @abstractmethod
    def forward(self, encoded: Encoded, fired: FiredTokens) -> tuple[Tensor, ...]:
        """The tensors named in :attr:`outputs`."""


class NoMemory(Memory):
    """Of a decoder without attention to the frames: the keys and values of no token yet."""

    outputs: Sequence[str] = ("past_keys", "past_values")

    def __init__(self, decoder: CifDecoder) -> None:
        super().__init__()
        first = decoder.layers[0]
        assert isinstance(first, SelfAttention)
        self.layers, self.heads, self.width = len(decoder.layers), first.heads, first.query.out_features

    def forward(self, encoded: Encoded, fired: FiredTokens) -> tuple[Tensor, ...]:
        size = self.layers, encoded.hidden.shape[0], 1, self.heads, 0, self.width // self.heads
        empty = encoded.hidden.new_zeros(size)
        return empty, empty.clone()


class WindowMemory(NoMemory):
    """Of a decoder with attention to the frames around each fire: also `keys`, `values (N, F, dim)` and `places (N, U)`."""

    outputs: Sequence[str] = (*NoMemory.outputs, "keys", "values", "places")

    def __init__(self, decoder: CifDecoder) -> None:
        super().__init__(decoder)
        assert decoder.window is not None
        self.window = decoder.window

    def forward(self, encoded: Encoded, fired: FiredTokens) -> tuple[Tensor, ...]:
        places = fire_frames(fired.fire_times, encoded.lengths)
        return (
            *super().forward(encoded, fired),
            self.window.key(encoded.hidden),
            self.window.value(encoded.hidden),
            places,
        )


class WhisperMemory(Memory):
    """Of Whisper's decoder: `past_keys`, `past_values (L, N, 1, H, P, D / H)` of the prompt but its last token,
    `keys (L, N, H, D / H, F)`, `values (L, N, H, F, D / H)` of the frames, and `places (N, U)`."""

    outputs: Sequence[str] = ("past_keys", "past_values", "keys", "values", "places")

    def __init__(self, decoder: FiredWhisperDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, encoded: Encoded, fired: FiredTokens) -> tuple[Tensor, ...]:
        whisper = self.decoder.whisper
        memories = whisper.memories(encoded.hidden)
        mask = attention_mask(encoded.lengths, encoded.hidden.shape[1])
        keys, values = prompt_past(whisper, memories, mask)
        places = fire_frames(fired.fire_times, encoded.lengths)
        return (
            keys,
            values,
            torch.stack([key.transpose(-1, -2) for key, _ in memories]),
            torch.stack([value for _, value in memories]),
            places,
        )


def prompt_past(whisper: WhisperDecoder, memories: Sequence[tuple[Tensor, Tensor]], mask: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values `(L, N, 1, H, P, D / H)` of the prompt but its last token; arguments as
    :meth:`retort.nn.whisper_decoder.WhisperDecoder.read_prompt`."""
    past = whisper.read_prompt(memories, mask) or [(key[:, :, :0], value[:, :, :0]) for key, value in memories]
    keys, values = (torch.stack([each[kind] for each in past])[:, :, None] for kind in (0, 1))
    return keys, values


def layer_names(decoder: FiredWhisperDecoder) -> list[str]:
    """Names of the keys of the frames for all layers, then of the values.

    A step has an input for each layer, because it would copy the parts of a larger one.
    """
    return [f"{kind}_{number}" for kind in ("keys", "values") for number in range(decoder.whisper.sizes.layers)]


class ParallelMemory(Memory):
    """Of a parallel decoder: `log_probs (N, U, V)` of all positions, after which there is nothing to decode."""

    outputs: Sequence[str] = ("log_probs",)

    def __init__(self, decoder: ParallelDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def forward(self, encoded: Encoded, fired: FiredTokens) -> tuple[Tensor, ...]:
        _, logits = self.decoder(fired.embeddings, fired.lengths, encoded.hidden, encoded.lengths)
        return (logits.log_softmax(-1),)


def memory_of(decoder: nn.Module) -> Memory:
    """The memory of a decoder of a CIF student.

    Raises:
        UserError: the decoder is of another kind.
    """
    if isinstance(decoder, FiredWhisperDecoder):
        return WhisperMemory(decoder)
    if isinstance(decoder, ParallelDecoder):
        return ParallelMemory(decoder)
    if isinstance(decoder, CifDecoder):
        return NoMemory(decoder) if decoder.window is None else WindowMemory(decoder)
    raise UserError(f"a decoder of type {type(decoder).__name__} has no graph for ONNX Runtime")


_FIXED: Mapping[str, Sequence[int]] = {
    "embedding": (1,),
    "before": (1,),
    "past_keys": (0, 3, 5),
    "past_values": (0, 3, 5),
}


class StepGraph(nn.Module, ABC):
    """One token of all hypotheses: N utterances with K hypotheses each."""

    inputs: Sequence[str]
    """Names of the inputs."""
    outputs: ClassVar[list[str]] = ["log_probs", "next_keys", "next_values"]
    fixed: Mapping[str, Sequence[int]]
    """Dimensions of inputs whose size is the same in all calls."""

    @abstractmethod
    def example(self, batch: int, beam: int, frames: int, past: int) -> dict[str, Tensor]:
        """Random inputs of these sizes."""

    def attend(
        self, layer: Any, hidden: Tensor, keys: Tensor, values: Tensor, previous: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Causal self-attention of a layer for `hidden (N K, 1, dim)`, with `keys`, `values (N, K, H, P, D / H)`.

        Returns the new hidden, keys and values. `previous (N, K)` states the sizes: those of selected keys would be
        recorded as constants.
        """
        rest = layer.heads, -1, layer.query.out_features // layer.heads
        rows = previous.shape[0] * previous.shape[1]
        after, (key, value) = layer.look_back(
            hidden, (keys.reshape(rows, *rest), values.reshape(rows, *rest))
        )
        shape = previous.shape[0], previous.shape[1], *rest
        return after, key.reshape(shape), value.reshape(shape)


class WhisperStep(StepGraph):
    """:meth:`retort.nn.whisper_fired.FiredWhisperDecoder.step`, including the logarithm of the softmax."""

    outputs: ClassVar[list[str]] = [*StepGraph.outputs, "attention"]

    def __init__(self, decoder: FiredWhisperDecoder) -> None:
        super().__init__()
        self.decoder = decoder
        self.window = decoder.window
        of_frames = layer_names(decoder)
        self.inputs = (
            "previous", "position", "embedding", "frames", "place", "past_keys", "past_values", *of_frames
        )  # fmt: skip
        self.fixed = {**_FIXED} | {name: (1, 2) if name.startswith("keys") else (1, 3) for name in of_frames}

    def example(self, batch: int, beam: int, frames: int, past: int) -> dict[str, Tensor]:
        sizes = self.decoder.whisper.sizes
        heads, width = sizes.heads, sizes.dim // sizes.heads
        return {
            "previous": torch.full((batch, beam), 5),
            "position": torch.tensor(2),
            "embedding": torch.randn(batch, self.decoder.fired.in_features),
            "frames": torch.full((batch,), frames),
            "place": torch.full((batch,), frames // 2),
            "past_keys": torch.randn(sizes.layers, batch, beam, heads, past, width),
            "past_values": torch.randn(sizes.layers, batch, beam, heads, past, width),
            **{
                name: torch.randn(batch, heads, *((width, frames) if name.startswith("keys") else (frames, width)))
                for name in layer_names(self.decoder)
            },
        }

    def forward(
        self,
        previous: Tensor,
        position: Tensor,
        embedding: Tensor,
        frames: Tensor,
        place: Tensor,
        past_keys: Tensor,
        past_values: Tensor,
        *of_frames: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Log-probabilities of the next token.

        Args:
            previous: `(N, K)` int64, the tokens before; ignored at position 0.
            position: int64, number of tokens before.
            embedding: `(N, D)` float32, fired for this token.
            frames: `(N,)` int64, valid encoder frames.
            place: `(N,)` int64, frame of this token's fire.
            past_keys, past_values: as of :class:`WhisperMemory`, with K for 1.
            of_frames: the keys of all layers and the values of all layers.

        Returns:
            `log_probs (N, K, V)` float32, keys and values with those of this token, and its `attention (N, K, F)`, the
            mean of the alignment heads.
        """
        whisper, batch, beam = self.decoder.whisper, previous.shape[0], previous.shape[1]
        hidden = torch.where(position > 0, whisper.embedding(previous), whisper.prompt[-1])
        row = (position + whisper.sizes.prompt - 1).clamp(max=whisper.sizes.positions - 1).reshape(1)
        hidden = hidden + whisper.positions.index_select(0, row) + self.decoder.fired(embedding)[:, None]
        size, layers = of_frames[0].shape[3], whisper.sizes.layers
        mask = attention_mask(frames, size)
        if self.window:
            distances = (torch.arange(size, device=frames.device) - place[:, None]).abs()
            mask = mask & (distances <= self.window)[:, None, None]
        after_keys, after_values, attention = [], [], []
        layer: Any
        for number, layer in enumerate(whisper.layers):
            states, key, value = self.attend(
                layer, hidden.reshape(batch * beam, 1, -1), past_keys[number], past_values[number], previous
            )
            after_keys.append(key)
            after_values.append(value)
            states = states.reshape(batch, beam, -1)
            cross = layer.cross
            query = cross.split(cross.query(layer.cross_norm(states)))
            scores = (query @ of_frames[number]) * query.shape[-1] ** -0.5
            shares = torch.where(mask, scores, -1e30).softmax(-1)
            attention += [shares[:, head] for index, head in whisper.sizes.alignment_heads if index == number]
            context = cross.output((shares @ of_frames[layers + number]).transpose(1, 2).flatten(2))
            hidden = layer.feed(states + context)
        log_probs = whisper.logits(whisper.norm(hidden)).log_softmax(-1)
        return log_probs, torch.stack(after_keys), torch.stack(after_values), torch.stack(attention).mean(0)


class CifStep(StepGraph):
    """:meth:`retort.nn.decoder.CifDecoder.step`, including the logarithm of the softmax."""

    inputs: Sequence[str] = ("previous", "position", "embedding", "before", "past_keys", "past_values")
    fixed: Mapping[str, Sequence[int]] = _FIXED

    def __init__(self, decoder: CifDecoder) -> None:
        super().__init__()
        self.decoder = decoder

    def example(self, batch: int, beam: int, frames: int, past: int) -> dict[str, Tensor]:
        first, decoder = self.decoder.layers[0], self.decoder
        assert isinstance(first, SelfAttention)
        dim = first.query.out_features
        width = decoder.input.in_features - dim
        shape = len(decoder.layers), batch, beam, first.heads, past, dim // first.heads
        return {
            "previous": torch.full((batch, beam), 5),
            "position": torch.tensor(2),
            "embedding": torch.randn(batch, width),
            "before": torch.randn(batch, width),
            "past_keys": torch.randn(shape),
            "past_values": torch.randn(shape),
        }

    def forward(
        self,
        previous: Tensor,
        position: Tensor,
        embedding: Tensor,
        before: Tensor,
        past_keys: Tensor,
        past_values: Tensor,
        *memory: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities of the next token.

        Args:
            previous: `(N, K)` int64, the tokens before, EOS at position 0.
            position: int64, number of tokens before.
            embedding: `(N, D)` float32, fired for this token.
            before: `(N, D)`, fired for the token before; zero at position 0.
            past_keys, past_values: `(L, N, K, H, P, dim / H)`.
            memory: of :class:`WindowStep`, the frames.

        Returns:
            `log_probs (N, K, V)` float32, and keys and values with those of this token.
        """
        decoder, batch, beam = self.decoder, previous.shape[0], previous.shape[1]
        embedded = decoder.scale * decoder.embedding(previous)
        earlier = before[:, None].expand(-1, beam, -1)
        hidden = decoder.input(torch.cat((embedded, earlier), -1))
        hidden = hidden + sinusoids(position.reshape(1), hidden.shape[-1])
        hidden = hidden.reshape(batch * beam, 1, -1)
        after_keys, after_values = [], []
        layer: Any
        for number, layer in enumerate(decoder.layers):
            hidden, key, value = self.attend(layer, hidden, past_keys[number], past_values[number], previous)
            hidden = layer.feed(hidden)
            after_keys.append(key)
            after_values.append(value)
        hidden = hidden.reshape(batch, beam, -1)
        if decoder.window is not None:
            hidden = hidden + window_attention(decoder.window, hidden, *memory)
        own = embedding[:, None].expand(-1, beam, -1)
        states = decoder.output(torch.cat((decoder.norm(hidden), own), -1))
        log_probs = decoder.vocabulary(decoder.projection(states)).log_softmax(-1)
        return log_probs, torch.stack(after_keys), torch.stack(after_values)


class WindowStep(CifStep):
    """:class:`CifStep` of a decoder with attention to the frames around each fire: `frames (N,)` int64, valid encoder
    frames, `place (N,)` int64, frame of this token's fire, and `keys`, `values (N, F, dim)` of :class:`WindowMemory`."""

    inputs: Sequence[str] = (*CifStep.inputs, "frames", "place", "keys", "values")
    fixed: Mapping[str, Sequence[int]] = {**_FIXED, "keys": (2,), "values": (2,)}

    def example(self, batch: int, beam: int, frames: int, past: int) -> dict[str, Tensor]:
        assert self.decoder.window is not None
        dim = self.decoder.window.key.out_features
        return {
            **super().example(batch, beam, frames, past),
            "frames": torch.full((batch,), frames),
            "place": torch.full((batch,), frames // 2),
            "keys": torch.randn(batch, frames, dim),
            "values": torch.randn(batch, frames, dim),
        }


def window_attention(
    window: WindowAttention, states: Tensor, frames: Tensor, place: Tensor, keys: Tensor, values: Tensor
) -> Tensor:
    """:meth:`retort.nn.window.WindowAttention.forward` for `states (N, K, dim)` of one token."""
    offsets = place[:, None] + torch.arange(-window.window, window.window + 1, device=place.device)
    valid = (offsets >= 0) & (offsets < frames[:, None])
    index = (
        offsets.clamp(min=0)
        .minimum((frames - 1).clamp(min=0)[:, None])[..., None]
        .expand(-1, -1, keys.shape[-1])
    )
    near_keys, near_values = window._split(keys.gather(1, index)), window._split(values.gather(1, index))
    query = window._split(window.query(window.norm(states)))
    scores = torch.einsum("nkhd,nwhd->nkhw", query, near_keys) * query.shape[-1] ** -0.5
    allowed = valid[:, None, None]
    shares = torch.where(allowed, scores + window.distances, -1e30).softmax(-1)
    attended = torch.einsum("nkhw,nwhd->nkhd", torch.where(allowed, shares, 0.0), near_values)
    result: Tensor = window.output(attended.flatten(2))
    return result


def step_of(decoder: nn.Module) -> StepGraph | None:
    """The step of a decoder of a CIF student; None for a parallel one."""
    if isinstance(decoder, FiredWhisperDecoder):
        return WhisperStep(decoder)
    if isinstance(decoder, CifDecoder):
        return CifStep(decoder) if decoder.window is None else WindowStep(decoder)
    return None
