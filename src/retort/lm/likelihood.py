"""Log-probabilities of texts under pretrained language models, with the models' own tokenizers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F

from retort.common.errors import UserError
from retort.lm.masked import pad_rows
from retort.lm.masked_scoring import open_masked_scorer, score_masked
from retort.pretrained.hub import longest_input, open_causal_plm, open_tokenizer, text_start

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class CausalPlm:
    """A pretrained causal language model: log-probability of all tokens of a text, without the end of the text.

    Args:
        name: Hugging Face name or folder.
        device: device of the model.
        pieces: maximum number of tokens per forward pass, including padding; determines the memory of the
            logits.

    Raises:
        UserError: it cannot be opened, is not a causal language model, or has no start symbol.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu", pieces: int = 1024) -> None:
        self.tokenizer = open_tokenizer(name)
        self.model = open_causal_plm(name).to(device)
        self.longest = longest_input(self.model, self.tokenizer)
        self.pieces = pieces
        self.parameters = sum(each.numel() for each in self.model.parameters())
        self.start = _start(self.tokenizer, name)

    @torch.no_grad()
    def score(self, texts: Sequence[str]) -> list[float]:
        """Natural log-probabilities; texts that are too long for the model are truncated."""
        if not texts:
            return []
        rows = [
            np.array([self.start, *ids][: self.longest], np.int64)
            for ids in self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        ]
        order = sorted(range(len(rows)), key=lambda index: len(rows[index]), reverse=True)
        results = dict.fromkeys(range(len(rows)), 0.0)
        device = next(self.model.parameters()).device
        while order:
            count = max(self.pieces // len(rows[order[0]]), 1)
            chosen, order = order[:count], order[count:]
            ids, mask = (each.to(device) for each in pad_rows([rows[index] for index in chosen], self.start))
            if ids.shape[1] < 2:
                break  # only empty texts are left
            logits = self.model(input_ids=ids, attention_mask=mask.long()).logits[:, :-1]
            costs = F.cross_entropy(logits.transpose(1, 2).float(), ids[:, 1:], reduction="none").double()
            sums = -costs.masked_fill(~mask[:, 1:], 0.0).sum(1)
            results.update(zip(chosen, sums.tolist()))
        return [results[index] for index in range(len(rows))]


class MaskedPlm:
    """A masked language model: pseudo-log-likelihood of a text with each token masked in turn (Salazar et al. 2020).

    Args:
        name: Hugging Face name or folder.
        device: device of the model.

    Raises:
        UserError: it cannot be opened, or is not a masked language model.
    """

    def __init__(self, name: str, device: torch.device | str = "cpu") -> None:
        model, self.tokenizer, self.longest = open_masked_scorer(name)
        self.model = model.to(device)
        self.parameters = sum(each.numel() for each in model.parameters())

    def score(self, texts: Sequence[str]) -> list[float]:
        """Natural log-probabilities; texts that are too long for the model are truncated."""
        if not texts:
            return []
        encoded = self.tokenizer(list(texts), truncation=True, max_length=self.longest)["input_ids"]
        rows = [np.array(ids) for ids in encoded]
        alone = [np.arange(len(ids) - 2) for ids in rows]
        return [-float(each.nll.sum()) for each in score_masked(self.model, self.tokenizer, rows, alone)]


def _start(tokenizer: PreTrainedTokenizerFast, name: str) -> int:
    if (found := text_start(tokenizer)) is None:
        raise UserError(
            "its tokenizer has no symbol for the start or the end of a text",
            where=name,
            remedy="Choose another language model",
        )
    return found
