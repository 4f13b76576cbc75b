"""The computations of a student that recognises audio while it arrives, as graphs: one chunk of the encoder, with the
fires of a CIF student, whose state is inputs and outputs, and the prompt of Whisper's decoder. A token is a step of
:mod:`retort.export.graphs`.

The batch N, the frames of a chunk, fires U and frames of the memory F are dynamic.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retort.common.errors import UserError
from retort.export.graphs import prompt_past
from retort.export.replacements import OpenWhisperFrontend, exportable
from retort.nn.attention import SelfAttention
from retort.nn.chunks import Chunks, StreamCache
from retort.nn.decoder import CifDecoder
from retort.nn.frontend import Conv2dFrontend
from retort.nn.masks import attention_mask, valid_mask
from retort.nn.whisper_fired import FiredWhisperDecoder
from retort.students.cif import CifStudent
from retort.students.student import Student

Key = tuple[nn.Module, str]


class ChunkGraph(nn.Module):
    """The encoder's output for the next chunk of N streams; base class of graphs of streams.

    Args:
        student: in eval mode; it is changed (:func:`retort.export.replacements.exportable`).
        chunks: frames of a chunk, and frames before it that self-attention is limited to (not 0). With a size of 1 the
            frames so far count as chunks, and the size of the chunks that are computed is dynamic.
        bins: of a feature frame.

    Attributes:
        keys: modules and names of the states, in order.
        shapes: shapes of the states of one stream.

    Raises:
        UserError: the encoder has no such graph.
    """

    def __init__(self, student: Student, chunks: Chunks, bins: int) -> None:
        super().__init__()
        self.student: Any = exportable(student)
        self.chunks, self.bins = chunks, bins
        self.keys: list[Key] = []
        self.shapes: list[list[int]] = []
        cache = StreamCache(torch.zeros(1, dtype=torch.int64))
        size = 4 * chunks.size
        features = torch.randn(1, self.window(size), bins)
        valid, count = torch.tensor([features.shape[1]]), torch.tensor([self.front_frames(size)])
        with torch.no_grad():
            self._encoded(features, valid, count, cache.chunks, cache)
        for key, tensor in cache.tensors.items():
            self.keys.append(key)
            self.shapes.append(list(tensor.shape[1:]))

    @property
    def state_names(self) -> list[str]:
        """Names of the states as inputs."""
        return [f"state_{number}" for number in range(len(self.keys))]

    def front_frames(self, frames: int) -> int:
        """Frames of the front end in a chunk of `frames` frames of the output."""
        encoder = self.student.encoder
        return frames * int(encoder.subsampling // encoder.frontend.subsampling)

    def window(self, frames: int) -> int:
        """Feature frames that the front end needs for a chunk of `frames` frames of the output."""
        front = self.student.encoder.frontend
        lead = -(-_before(front) // front.subsampling)
        return int((lead + self.front_frames(frames)) * front.subsampling + _after(front))

    def _encoded(
        self, features: Tensor, valid: Tensor, count: Tensor, first: Tensor, cache: StreamCache
    ) -> tuple[Tensor, ...]:
        """Output `(N, F, D)` and its lengths `(N,)`; `cache` is updated."""
        encoder = self.student.encoder
        made = self._front(features, valid, count, first)
        entered, lengths = encoder.entered(made, count)
        for hidden, after in encoder._through_layers(entered, lengths, replace(self.chunks, cache=cache)):
            last, frames = hidden, after
        return encoder.finished(last, frames), frames

    def _front(self, features: Tensor, valid: Tensor, count: Tensor, first: Tensor) -> Tensor:
        """The front end's output `(N, F', dim)` of the chunk alone."""
        front = self.student.encoder.frontend
        inside = valid_mask(valid, features.shape[1])
        features = features.masked_fill(~inside[..., None], 0.0)
        if not isinstance(front, OpenWhisperFrontend):
            made: Tensor = front(features, valid)[0]
            return made
        own = front.frontend
        once = F.gelu(F.conv1d(features.transpose(1, 2), own.conv1.weight, own.conv1.bias))
        # There is nothing before the utterance and after it, where the convolution of features gives its bias.
        begun = (torch.arange(once.shape[2]) > 0) | (first > 0)[:, None]
        once = once.masked_fill(~(inside[:, 1:-1] & begun)[:, None], 0.0)
        twice = F.gelu(F.conv1d(once, own.conv2.weight, own.conv2.bias, stride=2)).transpose(1, 2)
        later = self.student.encoder.subsampling // front.subsampling
        places = first[:, None] * later + torch.arange(twice.shape[1])
        return twice + own.positions[places.clamp(max=len(own.positions) - 1)]


class StreamGraph(ChunkGraph):
    """The next chunk of N streams: features to fired embeddings, and what the decoder needs of the frames.

    For Whisper's decoder, whose attention places the fires, it is features to frames and their weights.

    Args:
        student: in eval mode; it is changed (:func:`retort.export.replacements.exportable`).
        left: frames before a chunk that self-attention is limited to.
        bins: of a feature frame.

    Attributes:
        attended: whether the decoder's attention places the fires.

    Raises:
        UserError: the encoder or the decoder has no such graph.
    """

    def __init__(self, student: CifStudent, left: int, bins: int) -> None:
        if student.encoder.chunk_step != 1:
            raise UserError(
                "chunks of this encoder have no graph",
                remedy="Export a Conformer, Transformer or Whisper encoder",
            )
        super().__init__(student, Chunks(1, left), bins)
        self.decoder = student.decoder
        self.attended = isinstance(self.decoder, FiredWhisperDecoder)

    @property
    def inputs(self) -> list[str]:
        """Names of the inputs without the states of the layers."""
        return ["features", "valid", "count", "first", *([] if self.attended else ["total", "vector"])]

    @property
    def outputs(self) -> list[str]:
        """Names of the outputs of :meth:`forward`."""
        memory = [] if self._alone() else ["keys", "values"]
        following = [f"next_{name}" for name in self.state_names]
        if self.attended:
            return ["frames", "hidden", "alphas", *memory, *following]
        fires = ["frames", "counts", "times", "embeddings", "last"]
        return [*fires, *memory, "next_total", "next_vector", *following]

    def example(self, batch: int, frames: int) -> dict[str, Tensor]:
        """Random inputs of chunks of `frames` frames of the output."""
        window = self.window(frames)
        hidden = self.student.encoder.config.dim
        made = {
            "features": torch.randn(batch, window, self.bins),
            "valid": torch.full((batch,), window),
            "count": torch.full((batch,), self.front_frames(frames)),
            "first": torch.arange(batch) * frames,
        }
        if not self.attended:
            made["total"] = torch.rand(batch, dtype=torch.float64) + torch.arange(batch)
            made["vector"] = torch.randn(batch, hidden)
        return made | {name: torch.randn(batch, *shape) for name, shape in zip(self.state_names, self.shapes)}

    def forward(
        self,
        features: Tensor,
        valid: Tensor,
        count: Tensor,
        first: Tensor,
        *states: Tensor,
    ) -> tuple[Tensor, ...]:
        """Encode and fire.

        Args:
            features: `(N, T, bins)` float32 after normalisation: those of the frames of the front end before the chunk
                on which it depends, of the chunk, and after it; zero where there are none.
            valid: `(N,)` int64, features of the window up to the end of the utterance; T before its last chunk.
            count: `(N,)` int64, frames of the front end in the chunk.
            first: `(N,)` int64, frames of the output before the chunk.
            states: unless :attr:`attended`, `total (N,)` float64, the sum of the weights so far, and `vector (N, D)`
                float32, of the token in progress; then those of the layers.

        Returns:
            `frames (N,)` int64, frames of the output; `counts (N,)` int64, fires; `times (N, U)` float64, in frames from
            the start of the chunk; `embeddings (N, U, D)`, with U at least 1; `last (N, D)`, the last frame; `keys` and
            `values` of the frames for a decoder that attends to them; and the next `total`, `vector` and states. If
            :attr:`attended`: `frames`, `hidden (N, F, D)`, `alphas (N, F)`, `keys`, `values` and the next states.
        """
        fires = 0 if self.attended else 2
        cache = StreamCache(first, dict(zip(self.keys, states[fires:])))
        hidden, frames, alphas = self._encoded(features, valid, count, first, cache)
        following = [cache.tensors[key] for key in self.keys]
        if self.attended:
            return (frames, hidden, alphas, *self._memory(hidden), *following)
        counts, times, embeddings, after, rest = fire_chunk(hidden, alphas, *states[:fires])
        place = (frames - 1).clamp(min=0)[:, None, None].expand(-1, -1, hidden.shape[2])
        last = hidden.gather(1, place)[:, 0]
        return (frames, counts, times, embeddings, last, *self._memory(hidden), after, rest, *following)

    def _encoded(
        self, features: Tensor, valid: Tensor, count: Tensor, first: Tensor, cache: StreamCache
    ) -> tuple[Tensor, ...]:
        """Output `(N, F, D)`, its lengths `(N,)`, and the weights `(N, F)`; `cache` is updated."""
        output, frames = super()._encoded(features, valid, count, first, cache)
        alphas = self.student.weights(output, frames, replace(self.chunks, cache=cache)).clamp(min=0.0)
        return output, frames, alphas.masked_fill(~valid_mask(frames, output.shape[1]), 0.0)

    def _alone(self) -> bool:
        return isinstance(self.decoder, CifDecoder) and self.decoder.window is None

    def _memory(self, hidden: Tensor) -> tuple[Tensor, ...]:
        decoder = self.decoder
        if self._alone():
            return ()
        if isinstance(decoder, FiredWhisperDecoder):
            memories = decoder.whisper.memories(hidden)
            keys = torch.stack([key.transpose(-1, -2) for key, _ in memories])
            return keys, torch.stack([value for _, value in memories])
        assert isinstance(decoder, CifDecoder)
        assert decoder.window is not None
        return decoder.window.key(hidden), decoder.window.value(hidden)


def fire_chunk(
    hidden: Tensor, alphas: Tensor, total: Tensor, vector: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """:class:`retort.nn.fire_stream.FireStream` for a chunk of N streams, as dense operations.

    Args:
        hidden: `(N, F, D)`.
        alphas: `(N, F)`, at least 0.
        total: `(N,)` float64, sum of the weights before.
        vector: `(N, D)`, of the token in progress.

    Returns:
        Counts `(N,)` int64, times `(N, U)` float64 in frames, zero beyond the counts, vectors `(N, U, D)`, the next
        total and the next vector. U is the largest count and at least 1.
    """
    sums = torch.cat((total[:, None], alphas.double()), 1).cumsum(1)
    begins, ends = sums[:, :-1], sums[:, 1:]
    base = total.floor()
    counts = (sums[:, -1].floor() - base).long()
    size: Any = counts.max() + 1
    units = torch.arange(size, device=hidden.device)
    first = (base[:, None] + units)[..., None]
    overlap = torch.minimum(ends[:, None], first + 1.0) - torch.maximum(begins[:, None], first)
    vectors = overlap.clamp(min=0.0).to(hidden.dtype) @ hidden
    vectors = vectors + torch.where((units == 0)[None, :, None], vector[:, None], 0.0)
    rest = vectors.gather(1, counts[:, None, None].expand(-1, -1, hidden.shape[2]))[:, 0]
    places = (ends[:, None] < first + 1.0).long().sum(2).clamp(max=alphas.shape[1] - 1)
    before, after = begins.gather(1, places), ends.gather(1, places)
    share = (first[..., 0] + 1.0 - before) / (after - before).clamp(min=1e-30)
    times = torch.where(units < counts[:, None], places + share, 0.0)
    return counts, times, vectors, sums[:, -1], rest


class PromptGraph(nn.Module):
    """The prompt of Whisper's decoder but its last token, over the frames so far."""

    inputs: ClassVar[list[str]] = ["frames", "keys", "values"]
    outputs: ClassVar[list[str]] = ["past_keys", "past_values"]

    def __init__(self, decoder: FiredWhisperDecoder) -> None:
        super().__init__()
        self.whisper = decoder.whisper

    def example(self, batch: int, frames: int) -> dict[str, Tensor]:
        """Random inputs."""
        sizes = self.whisper.sizes
        heads, width = sizes.heads, sizes.dim // sizes.heads
        return {
            "frames": torch.full((batch,), frames - 1),
            "keys": torch.randn(sizes.layers, batch, heads, width, frames),
            "values": torch.randn(sizes.layers, batch, heads, frames, width),
        }

    def forward(self, frames: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values `(L, N, 1, H, P, D / H)` of the prompt.

        Args:
            frames: `(N,)` int64, frames that it attends to.
            keys, values: `(L, N, H, D / H, F)` and `(L, N, H, F, D / H)` of the frames.
        """
        layers = range(self.whisper.sizes.layers)
        memories = [(keys[number].transpose(-1, -2), values[number]) for number in layers]
        return prompt_past(self.whisper, memories, attention_mask(frames, keys.shape[4]))


def past_shape(decoder: nn.Module) -> list[int] | None:
    """Layers, heads and width of the keys of no token; None for Whisper's decoder, which has those of its prompt."""
    if isinstance(decoder, FiredWhisperDecoder):
        return None
    assert isinstance(decoder, CifDecoder)
    first = decoder.layers[0]
    assert isinstance(first, SelfAttention)
    return [len(decoder.layers), first.heads, first.query.out_features // first.heads]


def _before(front: nn.Module) -> int:
    if isinstance(front, OpenWhisperFrontend):
        return front.frontend.before
    if isinstance(front, Conv2dFrontend):
        return front.before
    raise UserError(
        "chunks of this front end have no graph",
        remedy="Export a model with the front end conv2d or Whisper's",
    )


def _after(front: nn.Module) -> int:
    return int(front.frontend.after if isinstance(front, OpenWhisperFrontend) else front.after)  # type: ignore[arg-type]
