"""A causal language model of a table, as the room `lm` makes them, and tiny pretrained ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from retort.config.schema import NormaliserConfig
from retort.lm.causal import BARRED, IMPOSSIBLE
from retort.lm.factory import save_causal_lm
from retort.lm.kneser_ney import estimate
from retort.lm.ngram import NgramLM
from retort.text.normalise import Normaliser
from retort.text.tokenizers import EOS, Tokenizer

HASH = 7


class TableLM:
    """A :class:`retort.lm.causal.CausalLM` whose log-probabilities stand in a table over a hash of the history."""

    def __init__(self, tokenizer: Tokenizer, seed: int = 5, sharpness: float = 2.0) -> None:
        self.tokenizer, self.symbols, self.normalise = (
            tokenizer,
            tokenizer.symbols,
            Normaliser(NormaliserConfig()),
        )
        generator = torch.Generator().manual_seed(seed)
        logits = sharpness * torch.randn(HASH, tokenizer.size, generator=generator)
        logits[:, BARRED] = IMPOSSIBLE
        self.table = logits.log_softmax(-1)
        self.parameters = self.table.numel()
        self.asked = 0

    def start(self, rows: int, device: torch.device) -> Tensor:
        return torch.zeros(rows, dtype=torch.int64, device=device)

    def step(self, state: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        self.asked += len(previous)
        context = state * 3 + previous + 1
        return self.table[context % HASH], context % HASH

    def select(self, state: Tensor, rows: Tensor) -> Tensor:
        return state[rows]

    def join(self, states: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(states))

    def score(self, sentences: Sequence[Sequence[int]]) -> list[Tensor]:
        return [
            torch.stack([self.after(ids[:place])[each] for place, each in enumerate([*ids, EOS])])
            for ids in sentences
        ]

    def after(self, ids: Sequence[int]) -> Tensor:
        """Log-probabilities `(V,)` of what comes next after these ids."""
        context = EOS + 1
        for each in ids:
            context = context % HASH * 3 + each + 1
        return self.table[context % HASH]


def save_ngram(folder: Path, tokenizer: Tokenizer, texts: Sequence[str], order: int = 3) -> NgramLM:
    """An n-gram model of these texts in `folder/model`, as `retort lm train` leaves it."""
    rows = [[EOS, *tokenizer.encode(text), EOS] for text in texts]
    lengths = np.array([len(row) for row in rows])
    ids = np.array([each for row in rows for each in row])
    table, _ = estimate(ids, lengths, np.ones(len(rows), np.int64), tokenizer.size, order)
    model = NgramLM(table, tokenizer, Normaliser(NormaliserConfig(case="lower")))
    save_causal_lm(model, folder / "model")
    return model


def masked_bert(folder: Path, vocabulary: Sequence[str], dim: int = 16, seed: int = 0) -> Path:
    """A masked BERT with its head, of large random weights, whose pieces are `vocabulary`."""
    from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(vocabulary), encoding="utf-8")
    BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=True).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        config = BertConfig(
            vocab_size=len(vocabulary),
            hidden_size=dim,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=2 * dim,
            max_position_embeddings=40,
            initializer_range=0.4,
        )
        model = BertForMaskedLM(config)
        for name, parameter in model.named_parameters():
            if "LayerNorm" in name:
                torch.nn.init.normal_(parameter, 1.0, 0.2)
        model.save_pretrained(folder)
    return folder


def causal_gpt(folder: Path, vocabulary: Sequence[str], end: bool = True) -> Path:
    """A GPT-2 of large random weights over whole words, its last piece the end of a text."""
    from tokenizers import Tokenizer as Backend
    from tokenizers import models, normalizers, pre_tokenizers
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    words = {word: index for index, word in enumerate(["<unk>", *vocabulary, "<end>"])}
    backend = Backend(models.WordLevel(words, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    special = {"unk_token": "<unk>", **({"bos_token": "<end>", "eos_token": "<end>"} if end else {})}
    PreTrainedTokenizerFast(tokenizer_object=backend, **special).save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = GPT2Config(
            vocab_size=len(words), n_positions=12, n_embd=8, n_layer=2, n_head=2, initializer_range=0.6
        )
        GPT2LMHeadModel(config).save_pretrained(folder)
    return folder
