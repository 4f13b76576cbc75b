from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from retort.lm.config import ModelConfig
from retort.lm.masked import MaskedLM, Masking, build_bert, fast_attention, pad_rows
from retort.lm.pieces import train_wordpiece
from retort.pretrained.hub import open_masked_lm, open_tokenizer


@pytest.fixture(scope="module")
def drawn() -> tuple[object, torch.Tensor, object]:
    """Many pieces of many kinds, masked once."""
    words = [f"{a}{b}" for a in "abcdefgh" for b in "ijklmnop"]
    tokenizer = train_wordpiece([" ".join(words)] * 5, 200, True)
    draw = np.random.default_rng(0)
    texts = [" ".join(draw.choice(words, draw.integers(5, 60))) for _ in range(800)]
    rows = [np.array(ids) for ids in tokenizer(texts).input_ids]
    return tokenizer, pad_rows(rows, 0)[0], Masking(tokenizer, 0.15)(rows, seed=1)


def test_a_share_is_chosen_and_most_of_it_hidden(drawn) -> None:  # type: ignore[no-untyped-def]
    tokenizer, ids, batch = drawn
    pieces = int(batch.mask.sum()) - 2 * len(ids)
    chosen = int(batch.chosen.sum())
    assert chosen / pieces == pytest.approx(0.15, abs=0.01)
    seen, targets = batch.ids[batch.chosen], batch.targets
    assert torch.equal(targets, ids[batch.chosen])
    hidden = float((seen == tokenizer.mask_token_id).float().mean())
    shown = float((seen == targets).float().mean())
    assert hidden == pytest.approx(0.8, abs=0.02)
    assert shown == pytest.approx(0.1, abs=0.02)
    assert torch.equal(batch.ids[~batch.chosen], ids[~batch.chosen])


def test_special_pieces_and_padding_are_never_chosen(drawn) -> None:  # type: ignore[no-untyped-def]
    tokenizer, ids, batch = drawn
    for piece in (tokenizer.cls_token_id, tokenizer.sep_token_id, tokenizer.pad_token_id):
        assert not batch.chosen[ids == piece].any()


def test_the_seed_alone_decides() -> None:
    tokenizer = train_wordpiece(["one two three four"] * 5, 30, True)
    rows = [np.array(ids) for ids in tokenizer(["one two three four three two one"] * 8).input_ids]
    masking = Masking(tokenizer, 0.3)
    first = masking(rows, seed=5)
    torch.manual_seed(99)
    assert torch.equal(first.ids, masking(rows, seed=5).ids)
    assert not torch.equal(first.ids, masking(rows, seed=6).ids)


def test_logits_at_chosen_positions_are_the_whole_models(tiny_masked: Path, sentences: Sequence[str]) -> None:
    tokenizer = open_tokenizer(str(tiny_masked))
    rows = [np.array(ids) for ids in tokenizer(list(sentences)).input_ids]
    ids, mask = pad_rows(rows, tokenizer.pad_token_id)
    chosen = torch.zeros_like(mask)
    chosen[0, 2] = chosen[2, 1] = chosen[2, 3] = True
    with torch.no_grad():
        whole = open_masked_lm(str(tiny_masked))(input_ids=ids, attention_mask=mask).logits
        some = MaskedLM(open_masked_lm(str(tiny_masked)))(ids, mask, chosen)
    assert some.shape == (3, len(tokenizer))
    torch.testing.assert_close(some, whole[chosen])


def test_the_fast_attention_is_attention(tiny_masked: Path, sentences: Sequence[str]) -> None:
    tokenizer = open_tokenizer(str(tiny_masked))
    batch = tokenizer(list(sentences), padding=True, return_tensors="pt")
    model = open_masked_lm(str(tiny_masked))
    with torch.no_grad():
        plain = model(**batch).logits
        fast_attention(model)
        fast = model(**batch).logits
        model.config.attention_probs_dropout_prob = 0.5
        for module in model.modules():
            if type(module).__name__ == "BertSelfAttention":
                module.train()
        without_dropout = model(**batch).logits
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(fast[real], plain[real])
    torch.testing.assert_close(without_dropout[real], plain[real])


def test_a_bert_from_scratch_has_the_sizes_that_were_asked_for() -> None:
    tokenizer = train_wordpiece(["one two three four"] * 5, 30, True)
    model = build_bert(ModelConfig(layers=3, dim=32, heads=4, feedforward=48), tokenizer, 20)
    assert model.get_input_embeddings().weight.shape == (len(tokenizer), 32)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert len(model.base_model.encoder.layer) == 3
    assert model.config.max_position_embeddings == 20
