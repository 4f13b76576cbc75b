"""Masked language models: construction, masking and forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from retort.lm.config import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

ATTENTION = "sdpa_float32"
"""Name of :func:`_attention` in transformers."""


class MaskedLM(nn.Module):
    """A Hugging Face masked language model that computes logits at chosen positions only.

    Most of the work of a small model is its output layer, and five of six positions are not needed.

    Args:
        model: any `AutoModelForMaskedLM`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model
        self._chosen: Tensor | None = None
        model.base_model.register_forward_hook(self._choose)

    def forward(self, ids: Tensor, mask: Tensor, chosen: Tensor) -> Tensor:
        """Logits `(M, V)` at the M chosen positions, row by row.

        Args:
            ids: `(B, N)`.
            mask: `(B, N)`, true for what is not padding.
            chosen: `(B, N)`, true where logits are computed.
        """
        self._chosen = chosen
        try:
            logits: Tensor = self.model(input_ids=ids, attention_mask=mask).logits
        finally:
            self._chosen = None
        return logits[0]

    def _choose(self, module: nn.Module, inputs: Any, output: Any) -> Any:
        """Pass only the chosen positions to the head: `(1, M, D)`."""
        if self._chosen is not None:
            output.last_hidden_state = output.last_hidden_state[self._chosen][None]
        return output


def build_bert(config: ModelConfig, tokenizer: PreTrainedTokenizerFast, positions: int) -> PreTrainedModel:
    """A BERT with random weights from torch's generator and tied input and output embeddings."""
    from transformers import BertConfig, BertForMaskedLM

    return BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.dim,
            num_hidden_layers=config.layers,
            num_attention_heads=config.heads,
            intermediate_size=config.feedforward,
            hidden_dropout_prob=config.dropout,
            attention_probs_dropout_prob=0.0,  # see fast_attention
            max_position_embeddings=positions,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


def fast_attention(model: PreTrainedModel) -> None:
    """Configure a model for fast training: fused attention, in float32 on a CPU, without attention dropout."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register(ATTENTION, _attention)
    AttentionMaskInterface.register(ATTENTION, sdpa_mask)
    model.set_attn_implementation(ATTENTION)


def _attention(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, **options: Any
) -> Any:
    """transformers' `sdpa`; on a CPU in float32, where the backward pass of the fused kernel is faster."""
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    dtype = query.dtype
    with torch.autocast(query.device.type, enabled=False):
        if query.device.type == "cpu":
            query, key, value = query.float(), key.float(), value.float()
        attended, weights = sdpa_attention_forward(
            module, query, key, value, mask, **{**options, "dropout": 0.0}
        )
    return attended.to(dtype), weights


@dataclass(frozen=True)
class MaskedBatch:
    """Sentences with masked tokens.

    Attributes:
        ids: `(B, N)` int64, input of the model.
        mask: `(B, N)`, true for what is not padding.
        chosen: `(B, N)`, true for the M tokens to predict.
        targets: `(M,)`, their ids, row by row.
    """

    ids: Tensor
    mask: Tensor
    chosen: Tensor
    targets: Tensor

    def to(self, device: torch.device) -> MaskedBatch:
        """The batch with its tensors on `device`."""
        return MaskedBatch(*(each.to(device) for each in (self.ids, self.mask, self.chosen, self.targets)))


class Masking:
    """Masks tokens as BERT (Devlin et al. 2019): of the chosen tokens 80 % are masked, 10 % replaced, 10 % unchanged.

    The two special tokens around a sentence are never chosen.

    Args:
        tokenizer: tokenizer with a mask token.
        share: probability that a token is chosen.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, share: float) -> None:
        from transformers import DataCollatorForLanguageModeling

        self._collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=share)
        self._pad = tokenizer.pad_token_id or 0

    def __call__(self, sentences: Sequence[NDArray[np.int64]], seed: int) -> MaskedBatch:
        """Mask rows of `[CLS] tokens [SEP]` with the random seed `seed`."""
        ids, mask = pad_rows(sentences, self._pad)
        special = ~mask
        special[:, 0] = True
        special[torch.arange(len(ids)), mask.sum(1) - 1] = True
        self._collator.generator = torch.Generator().manual_seed(seed)
        seen, labels = self._collator.torch_mask_tokens(ids.clone(), special)
        chosen = labels != -100
        return MaskedBatch(seen, mask, chosen, labels[chosen])


def pad_rows(rows: Sequence[NDArray[np.int64]], pad: int) -> tuple[Tensor, Tensor]:
    """Pad rows of ids to `(B, N)` int64; the mask is true for what is not padding."""
    ids = pad_sequence([torch.from_numpy(row) for row in rows], batch_first=True, padding_value=pad)
    lengths = torch.tensor([len(row) for row in rows])
    return ids, torch.arange(ids.shape[1]) < lengths[:, None]
