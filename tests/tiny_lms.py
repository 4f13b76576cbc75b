"""A causal language model of a few numbers, as the room `lm` makes them, and tiny pretrained ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from retort.text.normalise import Normaliser
from retort.text.tokenizers import BLANK, EOS, PAD, Tokenizer


class RemainderLM:
    """What comes next hangs on the sum of all ids before, modulo 7: nothing of a history may be lost."""

    def __init__(self, tokenizer: Tokenizer, seed: int = 0) -> None:
        self.tokenizer, self.symbols = tokenizer, tokenizer.symbols
        self.normalise, self.parameters = Normaliser.__new__(Normaliser), 0
        generator = torch.Generator().manual_seed(seed)
        table = 3 * torch.randn(7, tokenizer.size, generator=generator)
        table[:, [BLANK, PAD]] = -1e4
        self.table = table.log_softmax(-1)

    def start(self, rows: int, device: torch.device) -> Tensor:
        return torch.zeros(rows, dtype=torch.int64, device=device)

    def step(self, state: Tensor, previous: Tensor) -> tuple[Tensor, Tensor]:
        state = state + previous
        return self.table.to(state.device)[state % 7], state

    def select(self, state: Tensor, rows: Tensor) -> Tensor:
        return state[rows]

    def score(self, sentences: Sequence[Sequence[int]]) -> list[Tensor]:
        return [
            torch.stack([self.after(ids[:place])[each] for place, each in enumerate([*ids, EOS])])
            for ids in sentences
        ]

    def after(self, ids: Sequence[int]) -> Tensor:
        """Log-probabilities `(V,)` behind these ids, at once."""
        return self.table[(EOS + sum(ids)) % 7]


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
