"""The encoder: front end, layers, and pooling after selected layers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from retort.config.student import EncoderConfig, FrontendConfig
from retort.nn.branchformer import BranchformerLayer, EBranchformerLayer
from retort.nn.conformer import ConformerLayer, TransformerLayer
from retort.nn.conformer_encoders import CONFORMER_KINDS, ParakeetFrontend, W2vBertFrontend, conformer_parts
from retort.nn.cpu_kernels import Dropout
from retort.nn.frontend import Conv2dFrontend, FramesFrontend, make_frontend
from retort.nn.masks import valid_mask
from retort.nn.pretrained import SpeechFrontend, speech_parts
from retort.nn.tdnnf import TdnnfLayer
from retort.nn.whisper import WhisperFrontend, whisper_parts
from retort.nn.zipformer import Downsample, ZipformerStack, widest_block

LAYERS: dict[str, Callable[[EncoderConfig, int], nn.Module]] = {
    "conformer": lambda config, number: ConformerLayer(config),
    "transformer": lambda config, number: TransformerLayer(config),
    "tdnnf": TdnnfLayer,
    "branchformer": lambda config, number: BranchformerLayer(config),
    "e_branchformer": lambda config, number: EBranchformerLayer(config),
    "zipformer": ZipformerStack,
}
"""Layers by `encoder.kind`: functions of the configuration and the layer number, from 1; the layers are called with
`hidden (B, T, dim)` and `lengths (B,)`."""


def context_layer(config: EncoderConfig, number: int) -> nn.Module:
    """A layer of the encoder's kind of width `config.dim`; for a Zipformer one block of its widest stack."""
    return widest_block(config) if config.kind == "zipformer" else LAYERS[config.kind](config, number)


def max_pool(hidden: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over pairs of frames: `(B, T, D)` to `(B, ceil(T / 2), D)`, lengths to ceil(L / 2).

    Padding counts as minus infinity, so an odd last frame stays unchanged; frames beyond the new lengths are zero.
    """
    batch, frames, dim = hidden.shape
    hidden = hidden.masked_fill(~valid_mask(lengths, frames)[..., None], float("-inf"))
    hidden = F.pad(hidden, (0, 0, 0, frames % 2), value=float("-inf"))
    pooled = hidden.view(batch, -1, 2, dim).amax(dim=2)
    lengths = (lengths + 1) // 2
    return pooled.masked_fill(~valid_mask(lengths, pooled.shape[1])[..., None], 0.0), lengths


class Encoder(nn.Module):
    """Encoder from filter banks to `hidden` at a lower frame rate (CIF-HKD: 1/2 by convolution, 1/4 by pooling).

    Args:
        frontend: kind and sizes of the front end; unused for a pretrained encoder.
        config: kind, number and sizes of the layers.
        bins: number of filter banks per frame, or samples per frame.
        faithful: use the reference's input: scaled by sqrt(dim), with an additional projection.
    """

    def __init__(
        self, frontend: FrontendConfig, config: EncoderConfig, bins: int, faithful: bool = False
    ) -> None:
        super().__init__()
        self.frontend: (
            Conv2dFrontend
            | FramesFrontend
            | SpeechFrontend
            | WhisperFrontend
            | ParakeetFrontend
            | W2vBertFrontend
        )
        zipformer = config.kind == "zipformer"
        width = config.zipformer.dims[0] if zipformer else config.dim
        model_type = config.architecture.get("model_type") if config.kind == "pretrained" else None
        whisper, blocks = model_type == "whisper", model_type in CONFORMER_KINDS
        layers: list[nn.Module]
        if whisper:
            self.frontend, parts = whisper_parts(config.architecture, config.layers, bins, config.dropout)
            layers = [*parts]
        elif blocks:
            self.frontend, layers = conformer_parts(config.architecture, config.layers, bins, config.dim)
        elif config.kind == "pretrained":
            self.frontend, transformer = speech_parts(config, bins)
            layers = [transformer]
        else:
            self.frontend = make_frontend(frontend, bins, width)
            layers = [LAYERS[config.kind](config, number) for number in range(1, config.layers + 1)]
        self.input_projection = nn.Linear(width, width) if faithful else None
        self.scale = math.sqrt(width) if faithful else 1.0
        self.dropout = Dropout(0.0 if config.kind == "pretrained" else config.dropout)
        self.layers = nn.ModuleList(layers)
        self.pool_after = frozenset(config.pool_after)
        learned = zipformer or whisper or blocks
        self.pools = nn.ModuleDict({str(each): Downsample(2) for each in config.pool_after if learned})
        # The output of a pre-norm Transformer layer is not normalised, while a Conformer layer ends in a norm.
        self.norm = nn.LayerNorm(config.dim) if config.kind == "transformer" or whisper else nn.Identity()
        self.stored = 0
        """With N above 0, the input in training is the stored output of layer N instead of features."""
        self.config = config

    @property
    def subsampling(self) -> int:
        """Feature frames per encoder frame."""
        return self.frontend.subsampling * int(2 ** len(self.pool_after))

    @property
    def longest(self) -> int | None:
        """Maximum number of feature frames for encoders with a table of positions; otherwise None."""
        return self.frontend.longest if isinstance(self.frontend, WhisperFrontend) else None

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
            hidden, lengths = self.frontend(features, lengths)
            hidden = hidden * self.scale
            if self.input_projection is not None:
                hidden = self.input_projection(hidden)
            hidden = self.dropout(hidden)
            yield hidden, lengths
        for number, layer in enumerate(self.layers, start=1):
            if number <= stored:
                continue
            hidden = layer(hidden, lengths)
            if number in self.pool_after:
                pool = self.pools[str(number)] if self.pools else max_pool
                hidden, lengths = pool(hidden, lengths)
            yield hidden, lengths

    def finished(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """The encoder's output from that of its last layer, in float32 or better and zero beyond the lengths."""
        hidden = self.norm(hidden)
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        return hidden.masked_fill(~valid_mask(lengths, hidden.shape[1])[..., None], 0.0)
