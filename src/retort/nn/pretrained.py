"""Pretrained speech encoders of Hugging Face as front end and layers: wav2vec 2.0, HuBERT, WavLM and similar models.

The front end is their feature extractor (convolutions over the wave) with its projection; the Transformer
with its convolutional positions is one layer. Sources: Baevski et al. 2020, Hsu et al. 2021, Chen et al.
2022.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from retort.common.errors import UserError
from retort.common.huggingface import build_model
from retort.config.ranges import WIDEST, number
from retort.config.student import EncoderConfig, FrontendConfig
from retort.nn.conformer_encoders import CONFORMER_KINDS, conformer_parts
from retort.nn.encoder import Encoder
from retort.nn.masks import valid_mask
from retort.nn.whisper import whisper_parts

if TYPE_CHECKING:
    from retort.config.schema import Recipe


@dataclass
class PretrainedEncoderConfig(EncoderConfig):
    """A pretrained speech encoder, with its own front end and dropout. Models of the wave (`features.kind: wave`) count
    as one layer; of Whisper, w2v-BERT 2.0 and Parakeet encoders the first `layers` are used."""

    chunked: ClassVar[bool] = True

    kind: str = "pretrained"
    model: str = ""
    """Hugging Face name, folder, or short name of `retort fetch` of a wav2vec 2.0, HuBERT, WavLM, UniSpeech, Whisper,
    w2v-BERT 2.0 or Parakeet model. Its weights initialise the encoder."""
    architecture: dict[str, Any] = field(default_factory=dict)
    """Configuration of that model. It is filled in when the model is loaded, so that a trained student does not need
    it."""
    layers: int = number(1, 0, 1000)
    """Number of layers that are used; 1 with `features.kind: wave`."""
    dim: int = number(256, 1, WIDEST)
    """Width of the model."""

    reads: ClassVar[tuple[str, ...]] = ("wave", "whisper", "w2v_bert", "parakeet")

    @property
    def prose(self) -> str:
        layers = f"{self.layers} layers, " if self.layers > 1 else ""
        return f"{self.model or 'pretrained'}, {layers}dim {self.dim}"

    def check(self, recipe: Recipe, where: str) -> None:
        if recipe.features.kind == "wave" and self.layers != 1:
            raise UserError(
                f"student.encoder.layers is {self.layers} with features.kind: wave",
                where=where,
                remedy="Set 1: the whole model counts as one layer",
            )
        if not self.model and not self.architecture:
            raise UserError(
                "student.encoder.kind is pretrained, but student.encoder.model is missing",
                where=where,
                remedy="Set a model, such as facebook/hubert-base-ls960",
            )
        if recipe.features.kind == "wave" and recipe.augment.frequency_masks:
            raise UserError(
                f"augment.frequency_masks is {recipe.augment.frequency_masks}, but a wave has no frequency bins",
                where=where,
                remedy="Set augment.frequency_masks: 0",
            )


KINDS = ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat")
"""Supported `model_type`s: models of the wave that mask padding."""


def speech_model(architecture: Mapping[str, Any]) -> Any:
    """Create the model of transformers that a configuration describes, with random weights.

    Args:
        architecture: configuration values, including `model_type`.

    Raises:
        UserError: the model type is not supported.
    """
    # WavLM's attention uses masks of two types, which causes a harmless warning of torch.
    warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask")
    if architecture.get("model_type") not in KINDS:
        kind = architecture.get("model_type")
        raise UserError(f"the type of the speech encoder is {kind}", remedy=f"Choose one of {', '.join(KINDS)}")
    model = build_model(architecture)
    # The vector of masked frames in pretraining is removed, since it would have no gradient.
    model.masked_spec_embed = None
    return model


class SpeechFrontend(nn.Module):
    """Wave to vectors of the Transformer's width, one every 20 ms in published models.

    The first convolution may have a GroupNorm (`feat_extract_norm: group`, the base models of wav2vec 2.0 and
    HuBERT), whose statistics include padding. Such convolutions are therefore applied to each utterance
    separately, and everything after them to the batch.

    Args:
        model: from :func:`speech_model`, which provides two parts.
        samples: samples per feature frame.
    """

    def __init__(self, model: Any, samples: int) -> None:
        super().__init__()
        config = model.config
        self.samples = samples
        self.together = config.feat_extract_norm == "layer"
        self.kernels, self.strides = list(config.conv_kernel), list(config.conv_stride)
        self.extractor = model.feature_extractor
        self.extractor._requires_grad = (
            False  # gradient of the wave, which is not needed
        )
        self.projection = model.feature_projection
        step = math.prod(self.strides)
        if step % samples:
            raise UserError(
                f"the stride of the speech encoder is {step} samples, but frames have {samples}",
                remedy="Choose a model for this features.sampling_rate (most are for 16000)",
            )
        self.subsampling = step // samples

    @property
    def shortest(self) -> int:
        """Number of samples for one frame."""
        size = 1
        for kernel, stride in zip(reversed(self.kernels), reversed(self.strides)):
            size = (size - 1) * stride + kernel
        return size

    def output_lengths(self, lengths: Tensor) -> Tensor:
        """Frames `(B,)` that so many feature frames give."""
        sizes = lengths * self.samples
        for kernel, stride in zip(self.kernels, self.strides):
            sizes = (sizes - kernel) // stride + 1
        return sizes.clamp(min=0)

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Map samples `(B, T, samples)` to `(B, T', dim)` and the lengths with it. Padded frames are treated as zeros."""
        features = features.masked_fill(~valid_mask(lengths, features.shape[1])[..., None], 0.0)
        wave = features.flatten(1)
        if self.together:
            extracted = self._convolved(wave)
        else:
            sizes = (lengths * self.samples).tolist()
            alone = [self._convolved(wave[row : row + 1, :size])[0] for row, size in enumerate(sizes)]
            extracted = pad_sequence(alone, batch_first=True)
        projected = self.projection(extracted)  # some models also return the input of the projection
        hidden: Tensor = projected if isinstance(projected, Tensor) else projected[0]
        return hidden, self.output_lengths(lengths)

    def _convolved(self, wave: Tensor) -> Tensor:
        """`(B, N)` to `(B, T', channels)`, with at least one frame."""
        wave = F.pad(wave, (0, max(0, self.shortest - wave.shape[1])))
        convolved: Tensor = self.extractor(wave).transpose(1, 2)
        return convolved


class SpeechTransformer(nn.Module):
    """The model's Transformer as one layer of an encoder.

    Args:
        model: from :func:`speech_model`, which provides this part.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.encoder

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """`hidden (B, T, dim)`, `lengths (B,)`; values beyond the lengths are undefined."""
        mask = valid_mask(lengths.clamp(min=1), hidden.shape[1])
        # The model writes zeros into its input, so it gets a copy.
        attended = self.model(hidden.masked_fill(~mask[..., None], 0.0), attention_mask=mask)
        result: Tensor = attended.last_hidden_state
        return result


def speech_parts(config: PretrainedEncoderConfig, samples: int) -> tuple[SpeechFrontend, SpeechTransformer]:
    """Front end and the single layer of `config.architecture`, with random weights.

    Args:
        samples: samples per feature frame.

    Raises:
        UserError: `config.dim` is not the model's width, or its stride is not a multiple of a feature frame.
    """
    model = speech_model(config.architecture)
    if model.config.hidden_size != config.dim:
        raise UserError(
            f"student.encoder.dim is {config.dim}, but the width of the speech encoder is {model.config.hidden_size}",
            where=config.model,
            remedy=f"Set student.encoder.dim: {model.config.hidden_size}",
        )
    return SpeechFrontend(model, samples), SpeechTransformer(model)


class PretrainedEncoder(Encoder):
    """Front end and layers of a pretrained model, with random weights.

    Args:
        frontend: not used.
        config: with the `architecture`.
        bins: number of bins per frame, or samples per frame.
        faithful: not used.

    Raises:
        UserError: the configuration does not match the model.
    """

    def __init__(
        self, frontend: FrontendConfig, config: PretrainedEncoderConfig, bins: int, faithful: bool = False
    ) -> None:
        model_type, sizes = config.architecture.get("model_type"), (config.architecture, config.layers, bins)
        whisper, blocks = model_type == "whisper", model_type in CONFORMER_KINDS
        front: nn.Module
        layers: list[nn.Module]
        if whisper:
            front, parts = whisper_parts(*sizes, config.dropout)
            layers = [*parts]
        elif blocks:
            front, layers = conformer_parts(*sizes, config.dim)
        else:
            front, transformer = speech_parts(config, bins)
            layers = [transformer]
        super().__init__(config, front, layers, config.dim, final_norm=whisper, learned_pools=whisper or blocks)


@torch.no_grad()
def copy_speech_weights(model: Any, frontend: SpeechFrontend, transformer: SpeechTransformer) -> int:
    """Copy all weights of a model of the same architecture; returns the number of tensors."""
    pairs = (
        (frontend.extractor, model.feature_extractor),
        (frontend.projection, model.feature_projection),
        (transformer.model, model.encoder),
    )
    for own, other in pairs:
        own.load_state_dict(other.state_dict())
    return sum(len(own.state_dict()) for own, _ in pairs)
