"""The encoder: front end, layers, and pooling after chosen layers."""

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
"""By `encoder.kind`: a layer from the configuration and its number, counted from 1; called with `hidden (B, T, dim)` and
`lengths (B,)`."""


def context_layer(config: EncoderConfig, number: int) -> nn.Module:
    """A layer of the encoder's kind over vectors of `config.dim`; of a Zipformer one block of its widest stack."""
    return widest_block(config) if config.kind == "zipformer" else LAYERS[config.kind](config, number)


def max_pool(hidden: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Maximum over pairs of frames: `(B, T, D)` to `(B, ceil(T / 2), D)`, lengths to ceil(L / 2).

    Padding counts as minus infinity, so an odd last frame stays alone; frames behind the new lengths are zero.
    """
    batch, frames, dim = hidden.shape
    hidden = hidden.masked_fill(~valid_mask(lengths, frames)[..., None], float("-inf"))
    hidden = F.pad(hidden, (0, 0, 0, frames % 2), value=float("-inf"))
    pooled = hidden.view(batch, -1, 2, dim).amax(dim=2)
    lengths = (lengths + 1) // 2
    return pooled.masked_fill(~valid_mask(lengths, pooled.shape[1])[..., None], 0.0), lengths


class Encoder(nn.Module):
    """Filter banks to `hidden` at a lower rate (CIF-HKD: 1/2 by convolution, 1/4 by pooling).

    Args:
        frontend: kind and sizes of the front end; a pretrained encoder has its own.
        config: kind, number and sizes of the layers.
        bins: filter banks a frame, or samples.
        faithful: the reference's input: scaled by sqrt(dim) and projected once more.
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
        # A Transformer layer with the norm first leaves its sum unnormalised; a Conformer layer ends in a norm.
        self.norm = nn.LayerNorm(config.dim) if config.kind == "transformer" or whisper else nn.Identity()
        self.stored = 0
        """With N above 0, training hands over the stored output of layer N in place of features."""
        self.config = config

    @property
    def subsampling(self) -> int:
        """Feature frames in one encoder frame."""
        return self.frontend.subsampling * int(2 ** len(self.pool_after))

    @property
    def longest(self) -> int | None:
        """Most feature frames of an utterance, where the encoder has a table of positions; else None."""
        return self.frontend.longest if isinstance(self.frontend, WhisperFrontend) else None

    def subsampling_after(self, layers: int) -> int:
        """Feature frames in one frame of layer `layers`, pooled where it is."""
        return self.frontend.subsampling * int(2 ** sum(number <= layers for number in self.pool_after))

    def output_lengths(self, lengths: Tensor, stored: int = 0) -> Tensor:
        """Encoder frames `(B,)` that so many feature frames give, or so many frames of layer `stored`."""
        lengths = lengths if stored else self.frontend.output_lengths(lengths)
        for number in self.pool_after:
            lengths = (lengths + 1) // 2 if number > stored else lengths
        return lengths

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`features (B, T, bins)` to `hidden (B, T', dim)` float32 and lengths; frames behind them are zero."""
        for hidden, after in self.each_layer(features, lengths):
            last, last_lengths = hidden, after
        return self.finished(last, last_lengths), last_lengths

    def lower(self, features: Tensor, lengths: Tensor, layers: int) -> tuple[Tensor, Tensor]:
        """The output `(B, T', dim)` of the first `layers` layers, pooled where they are, and lengths.

        It is what :meth:`each_layer` takes in place of features with `stored` of that number.
        """
        frames = self.each_layer(features, lengths)
        for _ in range(layers + 1):
            hidden, after = next(frames)
        return hidden, after

    def each_layer(
        self, features: Tensor, lengths: Tensor, stored: int = 0
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """What the front end gives, then what each layer gives, pooled where it is.

        Each is `(B, T_n, dim)`, the first of a Zipformer as wide as its first stack, and lengths `(B,)`; what stands
        behind a length is undefined.

        Args:
            stored: with N above 0, `features` are the output of layer N (:meth:`lower`): that is given for the front
                end and for each of the first N layers, which are not computed.
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
        """The encoder's output from what its last layer gives: in float32 or better, and zero behind the lengths."""
        hidden = self.norm(hidden)
        hidden = hidden.to(torch.promote_types(hidden.dtype, torch.float32))
        return hidden.masked_fill(~valid_mask(lengths, hidden.shape[1])[..., None], 0.0)
