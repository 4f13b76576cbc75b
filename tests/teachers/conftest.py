"""Tiny pretrained teachers, made on the spot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [
    *["hello", "world", "un", "##fair", "games", "py", "##thon", "it", "'", "s", "Hello", "a", ",", "!"],
    *["我", "爱", "编", "程"],
]
POSITIONS = 12

MakeBert = Callable[..., Path]


@pytest.fixture(scope="session")
def make_bert(tmp_path_factory: pytest.TempPathFactory) -> MakeBert:
    """`make_bert(lower=True, vocabulary=None, half=False)`: a folder with a BERT of random weights."""

    def make(lower: bool = True, vocabulary: Sequence[str] | None = None, half: bool = False) -> Path:
        from transformers import BertConfig, BertModel, BertTokenizerFast

        folder = tmp_path_factory.mktemp("bert")
        words = list(vocabulary or SPECIAL + WORDS)
        (folder / "vocab.txt").write_text("\n".join(words), encoding="utf-8")
        BertTokenizerFast(str(folder / "vocab.txt"), do_lower_case=lower).save_pretrained(folder)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = BertModel(
                BertConfig(
                    vocab_size=len(words),
                    hidden_size=16,
                    num_hidden_layers=2,
                    num_attention_heads=2,
                    intermediate_size=32,
                    max_position_embeddings=POSITIONS,
                    initializer_range=0.5,
                )
            )
        (model.half() if half else model).save_pretrained(folder)
        return folder

    return make


@pytest.fixture(scope="session")
def uncased(make_bert: MakeBert) -> Path:
    return make_bert()


@pytest.fixture(scope="session")
def cased(make_bert: MakeBert) -> Path:
    return make_bert(lower=False)
