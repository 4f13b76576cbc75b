"""The encoder: front end, layers, and pooling after selected layers."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from retort.common.errors import UserError
from retort.config.kinds import builder_of
from retort.config.student import EncoderConfig, FrontendConfig
from retort.nn.chunks import Chunks, StreamCache
from retort.nn.cpu_kernels import Dropout
from retort.nn.frontend import Frontend, make_frontend
from retort.nn.masks import valid_mask
from retort.nn.pooling import Downsample, max_pool

C = TypeVar("C", bound=EncoderConfig)


def make_encoder(frontend: FrontendConfig, config: EncoderConfig, bins: int, faithful: bool = False) -> Encoder:
    """Create the encoder `config.kind` with random weights.

    Args:
        frontend: kind and sizes of the front end; unused for a pretrained encoder.
        config: kind, number and sizes of the layers.
        bins: number of filter banks per frame, or samples per frame.
        faithful: use the reference's input: scaled by sqrt(dim), with an additional projection.

    Raises:
        UserError: the configuration does not match the pretrained model or the features.
    """
    made = builder_of("encoder", config.kind)(frontend, config, bins, faithful)
    assert isinstance(made, Encoder)
    return made


class Encoder(nn.Module):
    """Encoder from filter banks to `hidden` at a lower frame rate (CIF-HKD: 1/2 by convolution, 1/4 by pooling).

    Args:
        config: configuration.
        frontend: module of :class:`retort.nn.frontend.Frontend`.
        layers: modules called with `hidden (B, T, dim)` and `lengths (B,)`.
        width: width of the front end's output.
        faithful: as in :func:`make_encoder`.
        dropout: dropout probability of the front end's output.
        final_norm: whether the output is normalised.
        learned_pools: whether the frame rate is halved by an average with learned weights instead of max pooling.
    """

    config: EncoderConfig
    frontend: Frontend

    def __init__(
        self,
        config: EncoderConfig,
        frontend: nn.Module,
        layers: Sequence[nn.Module],
        width: int,
        *,
        faithful: bool = False,
        dropout: float = 0.0,
        final_norm: bool = False,
        learned_pools: bool = False,
    ) -> None:
        super().__init__()
        self.frontend = frontend  # type: ignore[assignment]
        self.input_projection = nn.Linear(width, width) if faithful else None
        self.scale = math.sqrt(width) if faithful else 1.0
        self.dropout = Dropout(dropout)
        self.layers = nn.ModuleList(layers)
        self.pool_after = frozenset(config.pool_after)
        self.pools = nn.ModuleDict({str(each): Downsample(2) for each in config.pool_after if learned_pools})
        self.norm = nn.LayerNorm(config.dim) if final_norm else nn.Identity()
        self.stored = 0
        """With N above 0, the input in training is the stored output of layer N instead of features."""
        self.config = config
        self.chunks: Chunks | None = None
        """Limits of context in frames of the output; None for the whole utterance."""

    @property
    def subsampling(self) -> int:
        """Feature frames per encoder frame."""
        return self.frontend.subsampling * int(2 ** len(self.pool_after))

    @property
    def longest(self) -> int | None:
        """Maximum number of feature frames for encoders with a table of positions; otherwise None."""
        longest: int | None = getattr(self.frontend, "longest", None)
        return longest

    def context_layer(self, number: int) -> nn.Module:
        """A further layer of the encoder's kind and width, for the fired embeddings of CIF.

        Args:
            number: number of the layer, from 1.

        Raises:
            UserError: this kind has none.
        """
        raise UserError(f"student.cif.context_layers needs layers that a {self.config.kind} encoder does not have")

    @property
    def chunk_step(self) -> int:
        """Chunk sizes must be multiples of this number of output frames, so that no frame of a Zipformer's stack is in
        two chunks."""
        step = 1
        for number, layer in enumerate(self.layers, start=1):
            factor = int(getattr(layer, "factor", 1))
            rate = 2 ** sum(each >= number for each in self.pool_after)
            step = math.lcm(step, factor // math.gcd(factor, rate))
        return step

    def subsampling_after(self, layers: int) -> int:
        """Feature frames per frame of layer `layers`, after pooling."""
        return self.frontend.subsampling * int(2 ** sum(number <= layers for number in self.pool_after))

    def output_lengths(self, lengths: Tensor, stored: int = 0) -> Tensor:
        """Number of encoder frames `(B,)` for numbers of feature frames, or of frames of layer `stored`."""
        lengths = lengths if stored else self.frontend.output_lengths(lengths)
        for number in self.pool_after:
            lengths = (lengths + 1) // 2 if number > stored else lengths
        return lengths

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Encode `features (B, T, bins)` to `hidden (B, T', dim)` float32 and lengths; frames beyond the lengths
        are zero."""
        for hidden, after in self.each_layer(features, lengths):
            last, last_lengths = hidden, after
        return self.finished(last, last_lengths), last_lengths

    def lower(self, features: Tensor, lengths: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        """The output `(B, T', dim)` of the first `layers` layers after pooling, and lengths.

        :meth:`each_layer` accepts it instead of features with `stored` set to that number.
        """
        frames = self.each_layer(features, lengths)
        for _ in range(layers + 1):
            hidden, after = next(frames)
        return hidden, after

    def each_layer(
        self, features: Tensor, lengths: Tensor, stored: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Outputs of the front end and of each layer, after pooling.

        Each output is `(B, T_n, dim)` with lengths `(B,)`; the first one of a Zipformer has the width of its first
        stack. Values beyond the lengths are undefined.

        Args:
            stored: with N above 0, `features` are the output of layer N (:meth:`lower`), which is returned for the
                front end and each of the first N layers without computing them.
        """
        if stored:
            for _ in range(stored + 1):
                yield features, lengths
            hidden = features
        else:
            hidden, lengths = self.entered(*self.frontend(features, lengths))
            yield hidden, lengths
        yield from self._through_layers(hidden, lengths, self.chunks, stored)

    def entered(self, hidden: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """The input of the first layer from the output of the front end."""
        hidden = hidden * self.scale
        if self.input_projection is not None:
            hidden = self.input_projection(hidden)
        return self.dropout(hidden), lengths

    def advance(self, entered: Tensor, lengths: Tensor, chunks: Chunks, cache: StreamCache) -> tuple[Tensor, Tensor]:
        """The output `(B, T', dim)` for the next chunk of B streams, and its lengths.

        Args:
            entered: `(B, T, dim)`, input of the first layer (:meth:`entered`): the frames of one chunk.
            lengths: `(B,)` int64, at least 1; less than a chunk for the last one of a stream.
            chunks: limits of context in frames of the output; `left` is not 0.
            cache: of these streams; it is updated.
        """
        for hidden, after in self._through_layers(entered, lengths, replace(chunks, cache=cache)):
            last, last_lengths = hidden, after
        cache.chunks = cache.chunks + 1
        return self.finished(last, last_lengths), last_lengths

    def _through_layers(
        self, hidden: Tensor, lengths: Tensor, chunks: Chunks | None, stored: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        for number, layer in enumerate(self.layers, start=1):
            if number <= stored:
                continue
            if chunks is None:
                hidden = layer(hidden, lengths)
            else:
                later = 2 ** sum(each >= number for each in self.pool_after)
                own = replace(chunks, size=chunks.size * later, left=chunks.left * later)
                hidden = layer(hidden, lengths, own)
            if number in self.pool_after:
                pool = self.pools[str(number)] if self.pools else max_pool
                hidden, lengths = pool(hidden, lengths)
            yield hidden, lengths

    def finished(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """The encoder's output from that of its last layer, in float32 or better and zero beyond the lengths."""
        hidden = self.norm(hidden)
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        return hidden.masked_fill(~valid_mask(lengths, hidden.shape[1])[..., None], 0.0)


class LayeredEncoder(Encoder, Generic[C]):
    """Base class of encoders of layers over a front end of `student.frontend`; see `docs/new_encoder.md`.

    Args:
        as in :func:`make_encoder`.
    """

    config: C

    final_norm: ClassVar[bool] = False
    """Whether the output is normalised."""
    learned_pools: ClassVar[bool] = False
    """Whether the frame rate is halved by an average with learned weights instead of max pooling."""

    def __init__(self, frontend: FrontendConfig, config: C, bins: int, faithful: bool = False) -> None:
        width = self.input_dim(config)
        super().__init__(
            config,
            make_frontend(frontend, bins, width),
            [self.make_layer(config, number) for number in range(1, config.layers + 1)],
            width,
            faithful=faithful,
            dropout=config.dropout,
            final_norm=self.final_norm,
            learned_pools=self.learned_pools,
        )

    def input_dim(self, config: C) -> int:
        """Width of the front end's output."""
        return config.dim

    @abstractmethod
    def make_layer(self, config: C, number: int) -> nn.Module:
        """Layer `number`, from 1: a module of `hidden (B, T, dim)` and `lengths (B,)` to the same shape."""

    def context_layer(self, number: int) -> nn.Module:
        return self.make_layer(self.config, number)
