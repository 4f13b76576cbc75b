"""A CIF student that fires at the peaks of its CTC head, and one whose decoder attends to a window of frames."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from utterances import BINS, VOCABULARY, assert_a_batch_is_its_utterances, batch, learn_by_heart

from retort.common.errors import UserError
from retort.config.schema import Recipe
from retort.decoding.greedy import ctc_best_path, ctc_greedy, greedy
from retort.info.describe import describe
from retort.nn.ctc import label_frames
from retort.students.cif import CifConfig, CifStudent, CifStudentConfig, fire_at
from retort.students.ctc import ctc_log_probs
from retort.students.factory import build_student
from retort.students.student import Encoded
from retort.text.tokenizers import BLANK, EOS, PAD
from tiny_students import DECODER, ENCODER, FRONTEND, beam_search

BOTH = pytest.mark.parametrize(("fires", "window"), [("ctc", 0), ("accumulate", 2), ("ctc", 2)])


def build(fires: str = "ctc", window: int = 0, seed: int = 0, dropout: float = 0.0) -> CifStudent:
    config = CifStudentConfig(
        frontend=FRONTEND,
        encoder=replace(ENCODER, layers=1, dim=24, feedforward=48, dropout=dropout, attention_dropout=0.0),
        cif=CifConfig(dropout=dropout, fires=fires),
        decoder=replace(DECODER, dropout=dropout, embedding_dropout=dropout, window=window),
    )
    torch.manual_seed(seed)
    student = build_student(config, VOCABULARY, BINS).eval()
    assert isinstance(student, CifStudent)
    with torch.no_grad():
        student.ctc.weight.mul_(6.0)  # so that the best path is not of one label
        student.ctc.bias.zero_()
        student.decoder.vocabulary.weight.mul_(4.0)
    return student


def encoded_of(lengths: list[int], seed: int = 0, dim: int = 24) -> Encoded:
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.zeros(len(lengths), max(lengths, default=0), dim)
    for row, length in enumerate(lengths):
        hidden[row, :length] = torch.randn(length, dim, generator=generator)
    return Encoded(hidden, torch.tensor(lengths))


@given(st.lists(st.integers(0, 12), min_size=1, max_size=4), st.integers(0, 10**6))
def test_fires_are_frames_and_the_last_one_is_the_end(lengths: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    encoded = encoded_of(lengths, seed)
    counts = torch.stack([torch.randint(each + 1, (), generator=generator) for each in lengths])
    frames = torch.zeros(len(lengths), int(counts.max()), dtype=torch.int64)
    for row, count in enumerate(counts.tolist()):
        frames[row, :count] = torch.randperm(max(1, lengths[row]), generator=generator)[:count].sort().values
    fired = fire_at(encoded, frames, counts)
    for row, (length, count) in enumerate(zip(lengths, counts.tolist())):
        size = int(fired.lengths[row])
        assert size == (count + 1 if length else 0)
        places = [*frames[row, :count].tolist(), length - 1][:size]
        for token, place in enumerate(places):
            assert torch.equal(fired.embeddings[row, token], encoded.hidden[row, place])
            assert float(fired.fire_times[row, token]) == place + 1
        assert not fired.embeddings[row, size:].any()
        assert float(fired.quantity[row]) == size


def test_the_frames_of_fires_get_the_gradient() -> None:
    hidden = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)
    frames, counts, lengths = torch.tensor([[1, 3], [0, 0]]), torch.tensor([2, 0]), torch.tensor([5, 2])
    assert torch.autograd.gradcheck(
        lambda each: fire_at(Encoded(each, lengths), frames, counts).embeddings, (hidden,)
    )
    fire_at(Encoded(hidden, lengths), frames, counts).embeddings.sum().backward()
    assert hidden.grad is not None
    assert hidden.grad[..., 0].tolist() == [[0, 1, 0, 1, 1], [0, 1, 0, 0, 0]]


@BOTH
def test_a_batch_is_its_utterances(fires: str, window: int) -> None:
    student = build(fires, window)
    assert_a_batch_is_its_utterances(student, batch([40, 73, 24, 120], [3, 6, 2, 9]))


def test_training_fires_where_the_path_through_the_reference_has_the_tokens() -> None:
    student = build()
    given = batch([60, 41], [5, 3])
    encoded = student.encode(given.features, given.feature_lengths)
    frames, valid = label_frames(
        ctc_log_probs(student, encoded), encoded.lengths, given.tokens, given.token_lengths - 1, blank=BLANK
    )
    assert valid.sum() == 4 + 2
    taps = student(*given).taps["acoustic"]
    for row, count in enumerate((4, 2)):
        last = encoded.hidden[row, int(encoded.lengths[row]) - 1]
        expected = torch.cat((encoded.hidden[row, frames[row, :count]], last[None]))
        torch.testing.assert_close(taps.values[row, : count + 1], expected)
    assert set(student.loss_weights) == {"ce", "ctc"} == set(student(*given).losses)


@BOTH
def test_too_few_frames_for_the_labels(fires: str, window: int) -> None:
    """There is no path through them: losses and gradients stay finite, and batches change nothing."""
    student = build(fires, window)
    given = batch([16, 60], [9, 3])
    assert_a_batch_is_its_utterances(student, given)
    sum(student(*given).losses.values(), torch.zeros(())).backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


@BOTH
def test_nothing_to_learn_from(fires: str, window: int) -> None:
    """A process whose batch has no utterance goes through all layers and adds zero."""
    student, nothing = build(fires, window).train(), torch.zeros(1, dtype=torch.int64)
    output = student(torch.zeros(1, 1, BINS), nothing, torch.zeros(1, 0, dtype=torch.int64), nothing)
    total = sum(output.losses.values(), torch.zeros(()))
    assert float(total.detach()) == 0.0
    total.backward()
    for name, parameter in student.named_parameters():
        assert parameter.grad is None or not parameter.grad.any(), name


@torch.no_grad()
def test_decoding_fires_at_the_peaks_of_the_best_path() -> None:
    student = build()
    given = batch([120, 73, 30], [3, 3, 3])
    encoded = student.encode(given.features, given.feature_lengths)
    fired, paths = student.fire(encoded), ctc_best_path(student, encoded)
    assert max(len(path.ids) for path in paths) > 2
    for row, path in enumerate(paths):
        times = fired.fire_times[row, : int(fired.lengths[row])].tolist()
        assert times == [*path.ends, float(encoded.lengths[row])]
    with pytest.raises(ValueError):
        student.fire(encoded, torch.tensor([2, 2, 2]))


@torch.no_grad()
def test_blanks_alone_fire_the_end_alone() -> None:
    student = build()
    student.ctc.bias[BLANK] = 100.0
    given = batch([60, 41], [3, 3])
    encoded = student.encode(given.features, given.feature_lengths)
    fired = student.fire(encoded)
    assert fired.lengths.tolist() == [1, 1]
    assert fired.fire_times[:, 0].tolist() == encoded.lengths.tolist()
    assert all(len(each.ids) <= 1 for each in greedy(student, given.features, given.feature_lengths))


@torch.no_grad()
@BOTH
def test_utterances_without_frames_or_fires_are_empty(fires: str, window: int) -> None:
    student = build(fires, window)
    if student.weights is not None:
        student.weights.linear.bias.fill_(-40.0)
        given = batch([60, 41], [3, 3])
        found = greedy(student, given.features, given.feature_lengths)
        assert [each.ids for each in found] == [[], []]
    else:
        fired = student.fire(encoded_of([0, 4]))
        assert int(fired.lengths[0]) == 0
        assert int(fired.lengths[1]) >= 1


def forced(student: CifStudent, encoded: Encoded, ids: list[int]) -> Tensor:
    """Log-probabilities of `ids` at the fires of one utterance, by the decoder over all positions at once."""
    fired = student.fire(encoded)
    history = F.pad(torch.tensor([ids]), (1, 0), value=EOS)[:, :-1]
    embeddings = fired.embeddings[:, : len(ids)]
    _, logits = student.decoder(history, embeddings, student._memory(fired, encoded))
    log_probs = logits[0].float().log_softmax(-1)
    return log_probs[torch.arange(len(ids)), torch.tensor(ids)]


@torch.no_grad()
@BOTH
def test_steps_of_searches_are_the_whole_decoder(fires: str, window: int) -> None:
    student = build(fires, window)
    student.decoder.vocabulary.weight[EOS] = 0.0
    given = batch([120, 73, 30], [3, 3, 3])
    encoded = student.encode(given.features, given.feature_lengths)
    best = greedy(student, given.features, given.feature_lengths)
    beams = beam_search(student, given.features, given.feature_lengths, 3)
    assert any(each.ids for each in best)
    for row in range(3):
        alone = student.encode(*given.utterance(row)[:2])
        (one,) = greedy(student, *given.utterance(row)[:2])
        assert one.ids == best[row].ids
        (beam,) = beam_search(student, *given.utterance(row)[:2], 3)
        assert [each.ids for each in beam] == [each.ids for each in beams[row]]
        for found in (best[row], *beams[row]):
            if found.ids:
                expected = forced(student, alone, found.ids).tolist()
                assert found.log_probs == pytest.approx(expected, abs=1e-4)
    assert encoded.lengths.tolist() == [
        int(each) for each in student.encoder.output_lengths(given.feature_lengths)
    ]


def test_a_window_attends_only_to_the_frames_around_the_fire() -> None:
    student = build("ctc", 2)
    encoded = student.encode(*batch([120], [3])[:2])
    hidden = encoded.hidden.detach().requires_grad_()
    fired = student.fire(Encoded(hidden, encoded.lengths))
    tokens = torch.full((1, int(fired.lengths[0])), EOS + 2)
    states, _ = student.decoder(
        tokens, fired.embeddings.detach(), student._memory(fired, Encoded(hidden, encoded.lengths))
    )
    (gradient,) = torch.autograd.grad(states[0, 0].square().sum(), hidden)
    place = int(fired.fire_times[0, 0]) - 1
    reached = gradient[0].any(-1).nonzero()[:, 0].tolist()
    assert reached == list(range(max(0, place - 2), min(place + 3, int(encoded.lengths[0]))))


@BOTH
def test_it_learns_four_utterances_by_heart(fires: str, window: int) -> None:
    student = build(fires, window, seed=3)
    learn_by_heart(
        student,
        batch([64, 90, 72, 110], [5, 8, 6, 9], seed=5),
        lambda student, given: (
            [each.ids for each in greedy(student, given.features, given.feature_lengths)],
            ctc_greedy(student, student.encode(given.features, given.feature_lengths)),
        ),
    )


@pytest.mark.parametrize(
    "overrides",
    [
        ["student.decoder.window=-1"],
        ["student.decoder.window=2", "student.decoder.kind=parallel"],
        ["student.decoder.window=2", "student.kind=attention"],
        ["student.decoder.window=2", "student.faithful=true", "student.encoder.positions=relative"],
        ["student.cif.fires=ctc", "student.faithful=true", "student.encoder.positions=relative"],
        ["student.cif.fires=ctc", "student.ctc_weight=0"],
        ["student.cif.fires=ctc", "student.quantity_weight=0.3"],
        ["student.cif.fires=ctc", "student.alignment_weight=0.1"],
        ["student.cif.fires=peaks"],
    ],
)
def test_what_does_not_go_together(read_recipe: Callable[..., Recipe], overrides: list[str]) -> None:
    with pytest.raises(UserError):
        read_recipe(*overrides)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_info_of_a_student_without_weights(read_recipe: Callable[..., Recipe], weight: float) -> None:
    with_weights = describe(read_recipe("tokenizer.size=13"))
    without = describe(
        read_recipe("tokenizer.size=13", "student.cif.fires=ctc", f"student.quantity_weight={weight}")
    )
    assert "weights" not in without.parts
    assert without.shipped == with_weights.shipped - with_weights.parts["weights"]


def test_padding_ids_are_never_fires() -> None:
    student = build()
    with torch.no_grad():
        student.ctc.bias[[PAD, EOS]] = 50.0
    encoded = student.encode(*batch([60], [3])[:2])
    assert student.fire(encoded).lengths.tolist() == [1]
