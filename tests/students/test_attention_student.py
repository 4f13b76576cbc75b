from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from utterances import BINS, VOCABULARY, Batch, assert_a_batch_is_its_utterances, batch, learn_by_heart

from retort.decoding.attention import greedy_attention
from retort.nn.cross_decoder import Decoded
from retort.nn.masks import valid_mask
from retort.students.attention import AttentionStudent, AttentionStudentConfig
from retort.students.factory import build_student
from retort.text.tokenizers import EOS, UNKNOWN
from tiny_students import CROSS_DECODER, ENCODER, FRONTEND, smoothed_cross_entropy


def build(kind: str = "conformer") -> AttentionStudent:
    torch.manual_seed(0)
    config = AttentionStudentConfig(
        frontend=FRONTEND,
        encoder=replace(ENCODER, kind=kind, dim=24, dropout=0.0, attention_dropout=0.0),
        decoder=replace(CROSS_DECODER, layers=2, dropout=0.0, embedding_dropout=0.0),
        ce_weight=0.7,
        ctc_weight=0.3,
    )
    student = build_student(config, VOCABULARY, BINS)
    assert isinstance(student, AttentionStudent)
    return student.eval()


@pytest.mark.parametrize("kind", ["conformer", "transformer"])
def test_a_batch_is_its_utterances(kind: str) -> None:
    student = build(kind)
    assert student.loss_weights == {"ce": 0.7, "ctc": 0.3}
    assert_a_batch_is_its_utterances(student, batch([40, 73, 24, 120], [3, 6, 2, 9]))


def test_losses_and_taps_are_their_formulas() -> None:
    student, given = build(), batch([60, 41], [5, 3])
    output = student(*given)
    encoded = student.encode(given.features, given.feature_lengths)
    previous = F.pad(given.tokens, (1, 0), value=EOS)[:, :-1]
    decoded = student.decoder(previous, encoded.hidden, encoded.lengths)
    mask = valid_mask(given.token_lengths, 5)
    logits = decoded.logits
    ce = smoothed_cross_entropy(logits[mask], given.tokens[mask], student.config.label_smoothing)
    torch.testing.assert_close(output.losses["ce"], ce)
    log_probs = student.ctc(encoded.hidden).log_softmax(-1).transpose(0, 1)
    labels = torch.cat([given.tokens[0, :4], given.tokens[1, :2]])
    ctc = F.ctc_loss(log_probs, labels, encoded.lengths, torch.tensor([4, 2]), blank=0, reduction="sum")
    torch.testing.assert_close(output.losses["ctc"], ctc)
    assert int(output.metrics["correct"]) == int((logits.argmax(-1) == given.tokens)[mask].sum())
    expected = {"acoustic": decoded.contexts, "linguistic": decoded.states, "tokens": logits}
    for name, values in expected.items():
        tap = output.taps[name]
        torch.testing.assert_close(tap.values, values)
        assert (tap.unit, tap.lengths.tolist(), tap.present) == ("token", [5, 3], None)
    for row, length in enumerate(encoded.lengths.tolist()):
        mean = encoded.hidden[row, :length].mean(0)
        torch.testing.assert_close(output.taps["utterance"].values[row, 0], mean)


def test_the_hard_loss_of_every_token_for_rows_that_take_its_place() -> None:
    student, given = build(), batch([60, 41], [5, 3])
    output = student(*given)
    hard, logits = output.taps["tokens"].hard, output.taps["tokens"].values
    assert hard is not None
    for row, length in enumerate((5, 3)):
        for place in range(length):
            one = smoothed_cross_entropy(
                logits[row, place][None], given.tokens[row, place][None], student.config.label_smoothing
            )
            torch.testing.assert_close(hard[row, place], 0.7 * one)
        assert not hard[row, length:].any()
    torch.testing.assert_close(hard.sum(), 0.7 * output.losses["ce"])


def test_history_dropout_hides_tokens_while_training(monkeypatch: pytest.MonkeyPatch) -> None:
    student = build()
    student.config.decoder.history_dropout = 0.25
    seen: list[Tensor] = []
    decode = student.decoder.forward

    def remember(previous: Tensor, hidden: Tensor, lengths: Tensor) -> Decoded:
        seen.append(previous)
        return decode(previous, hidden, lengths)

    monkeypatch.setattr(student.decoder, "forward", remember)
    given = batch([100] * 20, [21] * 20)
    student(*given)
    student.train()(*given)
    whole = F.pad(given.tokens, (1, 0), value=EOS)[:, :-1]
    hidden = seen[1] == UNKNOWN
    assert torch.equal(seen[0], whole)
    assert torch.equal(seen[1][~hidden], whole[~hidden])
    assert not hidden[:, 0].any()
    assert hidden[:, 1:].float().mean() == pytest.approx(0.25, abs=0.08)
    student.config.decoder.history_dropout = 0.0


def test_it_learns_four_utterances_by_heart() -> None:
    def recalled(student: AttentionStudent, given: Batch) -> list[list[list[int]]]:
        encoded = student.encode(given.features, given.feature_lengths)
        return [[each.ids for each in greedy_attention(student, encoded)]]

    torch.manual_seed(3)
    learn_by_heart(build(), batch([64, 90, 72, 110], [5, 8, 6, 9], seed=5), recalled)
