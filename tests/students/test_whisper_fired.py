"""A CIF student with the decoder of Whisper."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from retort.audio.whisper import WhisperFeatureConfig
from retort.config.schema import NormaliserConfig, TokenizerConfig
from retort.decoding.options import DecodingOptions
from retort.decoding.recogniser import Recogniser, load
from retort.nn.pretrained import PretrainedEncoderConfig
from retort.nn.whisper_alignment import middle_frames, token_runs
from retort.nn.whisper_fired import FiredWhisperConfig
from retort.pretrained.whisper import whisper_architecture, whisper_tokenizer
from retort.students.cif import CifConfig, CifStudent, CifStudentConfig, fire_at, spacing_loss
from retort.students.factory import build_student
from retort.students.student import Encoded
from retort.text.tokenizers import EOS, PAD
from retort.training.init import fit, start_from_pretrained
from tiny_students import unscored
from tiny_whispers import tiny_whisper_folder, tiny_whisper_recogniser


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper_folder(tmp_path_factory.mktemp("whisper"))


def build(
    folder: Path, window: int = 0, spare: int = 0, fires: str = "accumulate", size: int | None = None
) -> Recogniser:
    tokenizer = whisper_tokenizer(str(folder), TokenizerConfig(kind="whisper", size=size), ())
    config = CifStudentConfig(
        encoder=PretrainedEncoderConfig(
            architecture=whisper_architecture(str(folder)), layers=3, dim=16, pool_after=[]
        ),
        cif=CifConfig(fires=fires, spare=spare),
        decoder=FiredWhisperConfig(window=window),
        label_smoothing=0.0,
        alignment_weight=0.1,
    )
    torch.manual_seed(1)
    student = build_student(config, tokenizer.size, 80)
    assert start_from_pretrained(student, str(folder), tokenizer) > 80
    features = WhisperFeatureConfig()
    return Recogniser(student, tokenizer, features, NormaliserConfig(case="lower"))


def student_of(recogniser: Recogniser) -> CifStudent:
    assert isinstance(recogniser.student, CifStudent)
    return recogniser.student


def some_features(sizes: tuple[int, ...] = (120, 33, 71)) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(size, 80, generator=generator) for size in sizes]


def learned(student: CifStudent) -> CifStudent:
    """With fired embeddings that count, as after some training."""
    torch.nn.init.normal_(student.get_parameter("decoder.fired.weight"))
    return student


def test_untouched_it_is_whispers_decoder(folder: Path) -> None:
    student = student_of(build(folder))
    whisper = tiny_whisper_recogniser(folder).student
    previous = torch.tensor([[EOS, 5, 80, 90], [EOS, 7, 9, 11]])
    with torch.inference_mode():
        encoded = student.encode(torch.stack(some_features((60, 60))), torch.tensor([60, 41]))
        fired = student.fire(encoded, torch.tensor([4, 4]))
        expected = whisper.decoder.logits(whisper.decoder(previous, encoded.hidden, encoded.lengths).states)
        torch.testing.assert_close(student.decode(encoded, fired, previous), expected)


@pytest.mark.parametrize("window", [0, 2, 100])
def test_steps_equal_all_at_once(folder: Path, window: int) -> None:
    student = learned(student_of(build(folder, window))).double()
    previous = torch.tensor([[EOS, 5, 80, 90], [EOS, 7, 9, 11]])
    with torch.inference_mode():
        encoded = student.encode(torch.stack(some_features((60, 60))).double(), torch.tensor([60, 41]))
        fired = student.fire(encoded, torch.tensor([4, 4]))
        together = student.decode(encoded, fired, previous)
        state = student.start(fired, encoded).select(torch.tensor([0, 0, 1, 1]))
        for step in range(4):
            embeddings = fired.embeddings[:, step].repeat_interleave(2, 0)
            logits, state = student.decoder.step(state, previous[:, step].repeat_interleave(2), embeddings)
            torch.testing.assert_close(logits[::2], together[:, step])
            state = state.select(torch.tensor([1, 0, 3, 2]))


def test_a_window_limits_what_a_token_attends_to(folder: Path) -> None:
    """At a step, keys and values of frames beyond the window change nothing; those inside it do."""
    student = student_of(build(folder, 3)).double()
    with torch.inference_mode():
        encoded = student.encode(torch.stack(some_features((120,))).double(), torch.tensor([120]))
        frames = Encoded(encoded.hidden, encoded.lengths)
        fired = fire_at(frames, torch.tensor([[20, 30, 40]]), torch.tensor([3]))
        state = student.start(fired, frames)
        expected, _ = student.decoder.step(state, torch.tensor([EOS]), fired.embeddings[:, 0])
        for frame in range(60):
            memory = [tuple(part.clone() for part in layer) for layer in state.memory]
            for layer in memory:
                for part in layer:
                    part[:, :, frame] += 1.0
            logits, _ = student.decoder.step(replace(state, memory=memory), torch.tensor([EOS]), fired.embeddings[:, 0])
            assert torch.equal(logits, expected) == (abs(frame - 20) > 3), frame


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize(("window", "spare", "fires"), [(0, 0, "accumulate"), (2, 4, "accumulate"), (3, 2, "ctc")])
def test_an_utterance_gives_the_same_in_any_batch(
    folder: Path, beam: int, window: int, spare: int, fires: str
) -> None:
    recogniser = build(folder, window, spare, fires)
    learned(student_of(recogniser)).double()
    features = [each.double() for each in some_features()]
    options = DecodingOptions(beam=beam)
    for each, found in zip(features, recogniser.search(features, options)):
        (alone,) = recogniser.search([each], options)
        assert [x.ids for x in alone] == [x.ids for x in found]
        for one, other in zip(alone, found):
            assert one.score == pytest.approx(other.score, abs=1e-8)
            assert one.ends == pytest.approx(other.ends)


def test_losses_do_not_depend_on_the_batch(folder: Path) -> None:
    student = learned(student_of(build(folder, 2))).double().eval()
    texts = [[5, 80, 90, EOS], [7, EOS], [9, 30, EOS]]
    features, sums = some_features(), dict.fromkeys(("ce", "ctc", "quantity", "alignment"), 0.0)
    for each, ids in zip(features, texts):
        given = torch.tensor([ids]), torch.tensor([len(ids)])
        for name, loss in student(each[None].double(), torch.tensor([len(each)]), *given).losses.items():
            sums[name] += float(loss.detach())
    padded = torch.nn.utils.rnn.pad_sequence(features, batch_first=True, padding_value=3.0).double()
    tokens = torch.tensor([ids + [PAD] * (4 - len(ids)) for ids in texts])
    lengths = torch.tensor([len(each) for each in features]), torch.tensor([len(ids) for ids in texts])
    together = student(padded, lengths[0], tokens, lengths[1]).losses
    assert {name: float(loss.detach()) for name, loss in together.items()} == pytest.approx(sums)


@pytest.mark.parametrize("beam", [1, 3])
def test_with_spare_fires_a_sentence_ends_where_the_decoder_ends_it(folder: Path, beam: int) -> None:
    """However few tokens CIF fires."""
    given, options = some_features(), DecodingOptions(beam=beam)
    found = []
    for bias in (-20.0, 20.0):
        recogniser = build(folder, 0, 30)
        torch.nn.init.constant_(student_of(recogniser).get_parameter("weights.linear.bias"), bias)
        torch.nn.init.zeros_(student_of(recogniser).get_parameter("weights.linear.weight"))
        found.append([each[0].ids for each in recogniser.search(given, options)])
    few, many = found
    assert [each[:15] for each in few] == [each[:15] for each in many]
    assert any(few)


def test_it_is_saved_and_opened(folder: Path, tmp_path: Path) -> None:
    recogniser = build(folder, 2, 3)
    learned(student_of(recogniser))
    recogniser.save(tmp_path / "model")
    opened, features = load(tmp_path / "model"), some_features()
    own = [unscored(each[0]) for each in recogniser.search(features, DecodingOptions())]
    assert [unscored(each[0]) for each in opened.search(features, DecodingOptions())] == own


def test_it_starts_from_one_with_fewer_tokens(folder: Path, tmp_path: Path) -> None:
    """The rows of tokens that both have are those of the other model, all others stay Whisper's."""
    smaller, larger = build(folder, size=4 + 256 + 3), build(folder)
    torch.nn.init.normal_(smaller.student.get_parameter("decoder.whisper.embedding.weight"))
    smaller.save(tmp_path / "smaller")
    found = fit(larger.student, larger.tokenizer, str(tmp_path / "smaller"))
    assert not found.left
    assert not found.dropped
    name = "decoder.whisper.embedding.weight"
    rows, before = found.taken[name], larger.student.state_dict()[name]
    theirs = {symbol: row for symbol, row in zip(smaller.tokenizer.symbols, smaller.student.state_dict()[name])}
    for symbol, row, whispers in zip(larger.tokenizer.symbols, rows, before):
        torch.testing.assert_close(row, theirs.get(symbol, whispers))


@given(st.lists(st.integers(0, 5), min_size=1, max_size=3), st.integers(0, 10**6))
def test_the_weight_between_two_tokens_should_be_one(counts: list[int], seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    lengths = [8 if count else 4 for count in counts]
    alphas = torch.rand(len(counts), 8, generator=generator, dtype=torch.float64)
    for row, length in enumerate(lengths):
        alphas[row, length:] = 0.0
    middles = torch.sort(torch.randint(0, 8, (len(counts), max(counts) or 1), generator=generator)).values
    expected = 0.0
    for row, count in enumerate(counts):
        places = [float(alphas[row, :frame].sum() + alphas[row, frame] / 2) for frame in middles[row, :count]]
        if not places:
            continue
        apart = [places[0] - 0.5, *(after - before - 1.0 for before, after in pairwise(places))]
        apart.append(float(alphas[row].sum()) - places[-1] - 0.5)
        expected += sum(0.5 * each**2 if abs(each) <= 0.5 else 0.5 * (abs(each) - 0.25) for each in apart)
    assert float(spacing_loss(alphas, middles, torch.tensor(counts))) == pytest.approx(expected)


def test_spacing_loss_of_perfect_weights_and_its_gradient() -> None:
    alphas = torch.full((1, 8), 0.5, dtype=torch.float64)
    assert float(spacing_loss(alphas[:, :7], torch.tensor([[1, 3, 5]]), torch.tensor([3]))) == pytest.approx(
        0.5 * 0.25**2 + 0.5 * 0.25**2
    )
    weights = torch.rand(2, 8, dtype=torch.float64, requires_grad=True)
    middles, lengths = torch.tensor([[1, 3, 5], [2, 6, 0]]), torch.tensor([3, 2])
    assert torch.autograd.gradcheck(lambda given: spacing_loss(given, middles, lengths), (weights,))


def test_middles_of_what_tokens_attend_to() -> None:
    weights = torch.full((2, 1, 3, 40), 1e-3)
    for token, (start, end) in enumerate(((0, 10), (10, 24), (24, 40))):
        weights[0, 0, token, start:end] = 1.0
    weights[1, 0, 0, :20] = weights[1, 0, 1, 20:30] = 1.0
    counts, lengths = torch.tensor([3, 2]), torch.tensor([40, 30])
    runs = token_runs(weights, counts, lengths)
    assert runs == [[10, 24, 40], [20, 30]]
    assert middle_frames(runs, lengths).tolist() == [[5, 17, 32], [10, 25, 0]]
    assert middle_frames(token_runs(weights, torch.tensor([0, 2]), torch.tensor([0, 0])), torch.tensor([0, 0])).tolist() == [
        [0, 0],
        [0, 0],
    ]
