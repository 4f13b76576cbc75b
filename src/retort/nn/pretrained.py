"""Pretrained speech encoders of Hugging Face as front end and layers: wav2vec 2.0, HuBERT, WavLM and their like.

Their feature extractor (convolutions over the wave) and its projection are the front end, their Transformer with its
convolutional positions is one layer. Sources: Baevski et al. 2020, Hsu et al. 2021, Chen et al. 2022.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from retort.common.errors import UserError
from retort.common.huggingface import build_model
from retort.config.student import EncoderConfig
from retort.nn.masks import valid_mask

KINDS = ("wav2vec2", "hubert", "wavlm", "unispeech", "unispeech-sat")
"""What `model_type` may be: models that read the wave, whose padding a mask hides."""


def speech_model(architecture: Mapping[str, Any]) -> Any:
    """The model of transformers that a configuration describes, its weights drawn at random.

    Args:
        architecture: values of its configuration, `model_type` among them.

    Raises:
        UserError: it is of another kind.
    """
    # WavLM's attention takes masks of two types, of which torch warns; nothing is wrong with it.
    warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask")
    if architecture.get("model_type") not in KINDS:
        kind = architecture.get("model_type")
        raise UserError(f"a speech encoder of type {kind}", remedy=f"Choose one of {', '.join(KINDS)}")
    model = build_model(architecture)
    # What stands in for masked frames in pretraining: nothing would give it a gradient.
    model.masked_spec_embed = None
    return model


class SpeechFrontend(nn.Module):
    """Wave to vectors of the Transformer's width, one every 20 ms (of the models that there are).

    Where the model's first convolution has a GroupNorm (`feat_extract_norm: group`, the base models of wav2vec 2.0
    and HuBERT), statistics go over the whole utterance, padding counted. These convolutions therefore hear each
    utterance by itself; what stands behind them is batched again.

    Args:
        model: of :func:`speech_model`, of which two parts are taken.
        samples: in a feature frame.
    """

    def __init__(self, model: Any, samples: int) -> None:
        super().__init__()
        config = model.config
        self.samples = samples
        self.together = config.feat_extract_norm == "layer"
        self.kernels, self.strides = list(config.conv_kernel), list(config.conv_stride)
        self.extractor = model.feature_extractor
        self.extractor._requires_grad = (
            False  # of the wave, for which nobody asks; weights learn all the same
        )
        self.projection = model.feature_projection
        step = math.prod(self.strides)
        if step % samples:
            raise UserError(
                f"the speech encoder takes a step of {step} samples, frames have {samples}",
                remedy="Choose a model for this features.sampling_rate (most are for 16000)",
            )
        self.subsampling = step // samples

    @property
    def shortest(self) -> int:
        """Samples that give one frame."""
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
        """Map samples `(B, T, samples)` to `(B, T', dim)` and the lengths with it. Padded frames are read as zeros."""
        features = features.masked_fill(~valid_mask(lengths, features.shape[1])[..., None], 0.0)
        wave = features.flatten(1)
        if self.together:
            extracted = self._convolved(wave)
        else:
            sizes = (lengths * self.samples).tolist()
            alone = [self._convolved(wave[row : row + 1, :size])[0] for row, size in enumerate(sizes)]
            extracted = pad_sequence(alone, batch_first=True)
        projected = self.projection(extracted)  # of some models with what it projected beside it
        hidden: Tensor = projected if isinstance(projected, Tensor) else projected[0]
        return hidden, self.output_lengths(lengths)

    def _convolved(self, wave: Tensor) -> Tensor:
        """`(B, N)` to `(B, T', channels)`, with one frame at least."""
        wave = F.pad(wave, (0, max(0, self.shortest - wave.shape[1])))
        convolved: Tensor = self.extractor(wave).transpose(1, 2)
        return convolved


class SpeechTransformer(nn.Module):
    """The model's Transformer as one layer of an encoder.

    Args:
        model: of :func:`speech_model`, of which one part is taken.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model.encoder

    def forward(self, hidden: Tensor, lengths: Tensor) -> Tensor:
        """`hidden (B, T, dim)`, `lengths (B,)`; what stands behind a length is undefined."""
        mask = valid_mask(lengths.clamp(min=1), hidden.shape[1])
        # It writes zeros into what it is given, hence a copy.
        attended = self.model(hidden.masked_fill(~mask[..., None], 0.0), attention_mask=mask)
        result: Tensor = attended.last_hidden_state
        return result


def speech_parts(config: EncoderConfig, samples: int) -> tuple[SpeechFrontend, SpeechTransformer]:
    """Front end and the one layer that `config.architecture` describes, with fresh weights.

    Args:
        samples: in a feature frame.

    Raises:
        UserError: `config.dim` is not the model's, or its frames are no whole number of feature frames.
    """
    model = speech_model(config.architecture)
    if model.config.hidden_size != config.dim:
        raise UserError(
            f"student.encoder.dim is {config.dim}, the speech encoder gives vectors of {model.config.hidden_size}",
            where=config.model,
            remedy=f"Set student.encoder.dim: {model.config.hidden_size}",
        )
    return SpeechFrontend(model, samples), SpeechTransformer(model)


@torch.no_grad()
def copy_speech_weights(model: Any, frontend: SpeechFrontend, transformer: SpeechTransformer) -> int:
    """Take all weights of a model of the same architecture; how many tensors they are."""
    pairs = (
        (frontend.extractor, model.feature_extractor),
        (frontend.projection, model.feature_projection),
        (transformer.model, model.encoder),
    )
    for own, other in pairs:
        own.load_state_dict(other.state_dict())
    return sum(len(own.state_dict()) for own, _ in pairs)
