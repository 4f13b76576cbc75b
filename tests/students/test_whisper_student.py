"""Whisper as a student: equal to transformers where it is untouched, the same in any batch, saved and loaded whole."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import WhisperForConditionalGeneration

from retort.decoding.options import DecodingOptions
from retort.decoding.recogniser import Recogniser, load
from retort.decoding.whisper_search import Suppression, beam_whisper, greedy_whisper
from retort.students.student import Encoded
from retort.students.whisper import WhisperStudent
from retort.text.tokenizers import EOS, PAD
from retort.text.whisper_pieces import WhisperTokenizer
from tiny_students import unscored
from tiny_whispers import POSITIONS, tiny_whisper_folder, tiny_whisper_recogniser


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper_folder(tmp_path_factory.mktemp("whisper"))


def parts(recogniser: Recogniser) -> tuple[WhisperStudent, WhisperTokenizer]:
    assert isinstance(recogniser.student, WhisperStudent)
    assert isinstance(recogniser.tokenizer, WhisperTokenizer)
    return recogniser.student, recogniser.tokenizer


def some_features(sizes: tuple[int, ...] = (120, 33, 71), seed: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, 80, generator=generator) for size in sizes]


@pytest.mark.parametrize("multilingual", [True, False])
@pytest.mark.parametrize("beam", [1, 3])
def test_untouched_it_gives_the_tokens_of_generate(tmp_path: Path, multilingual: bool, beam: int) -> None:
    different = set()
    for seed in range(3):
        path = tiny_whisper_folder(tmp_path / str(seed), multilingual=multilingual, seed=seed)
        reference = WhisperForConditionalGeneration.from_pretrained(path).eval()
        student, tokenizer = parts(tiny_whisper_recogniser(path))
        features = torch.stack(some_features((120, 120), seed))
        prompt = torch.tensor([tokenizer.prompt]).expand(2, -1)
        language = {"language": "en", "task": "transcribe"} if multilingual else {}
        made = reference.generate(
            features.transpose(1, 2), **language, num_beams=beam, renormalize_logits=True
        )
        with torch.inference_mode():
            encoded = student.encode(features, torch.tensor([120, 120]))
            given, limits = (student, encoded), torch.tensor([POSITIONS - prompt.shape[1]] * 2)
            suppression = Suppression.of(tokenizer)
            if beam == 1:
                found = [each.ids for each in greedy_whisper(*given, suppression, limits)]
            else:
                lists = beam_whisper(*given, beam, suppression, limits=limits)
                found = [each[0].ids for each in lists]
        end = tokenizer.pieces_of_whisper[EOS]
        for ids, row in zip(found, made.tolist()):
            row = row[len(tokenizer.prompt) :] if row[: len(tokenizer.prompt)] == tokenizer.prompt else row
            expected = row[: row.index(end)] if end in row else row
            own = [tokenizer.pieces_of_whisper[each] for each in ids]
            assert own == expected
            different.add(tuple(own))
    assert len(different) > 3


def test_teacher_forcing_equals_transformers(folder: Path) -> None:
    reference = WhisperForConditionalGeneration.from_pretrained(folder).eval()
    student, tokenizer = parts(tiny_whisper_recogniser(folder))
    features = torch.stack(some_features((120, 120)))
    ids = tokenizer.encode("the show")
    own = torch.tensor([EOS, *ids]).expand(2, -1)
    given = [*tokenizer.prompt, *(tokenizer.pieces_of_whisper[each] for each in ids)]
    with torch.inference_mode():
        expected = reference(
            input_features=features.transpose(1, 2), decoder_input_ids=torch.tensor([given]).expand(2, -1)
        ).logits[:, len(tokenizer.prompt) - 1 :]
        encoded = student.encode(features, torch.tensor([120, 120]))
        logits = student.decoder.logits(student.decoder(own, encoded.hidden, encoded.lengths).states)
    rows = torch.tensor(tokenizer.pieces_of_whisper)
    assert (logits - expected[..., rows]).abs().max() < 1e-4


def test_steps_equal_all_at_once(folder: Path) -> None:
    student, tokenizer = parts(tiny_whisper_recogniser(folder))
    ids = tokenizer.encode("all the rest")
    with torch.inference_mode():
        encoded = student.encode(torch.stack(some_features((60, 60))), torch.tensor([60, 41]))
        previous = torch.tensor([EOS, *ids]).expand(2, -1)
        together = student.decoder.logits(student.decoder(previous, encoded.hidden, encoded.lengths).states)
        state = student.decoder.start(encoded.hidden, encoded.lengths)
        for step in range(previous.shape[1]):
            logits, state = student.decoder.step(state, previous[:, step])
            assert (logits - together[:, step]).abs().max() < 1e-4


@pytest.mark.parametrize("beam", [1, 3])
@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
def test_an_utterance_gives_the_same_in_any_batch(folder: Path, beam: int, ctc_weight: float) -> None:
    recogniser = tiny_whisper_recogniser(folder, ctc_weight=ctc_weight)
    recogniser.student.double()
    features = [each.double() for each in some_features()]
    options = DecodingOptions(beam=beam)
    together = recogniser.search(features, options)
    for each, found in zip(features, together):
        (alone,) = recogniser.search([each], options)
        assert [x.ids for x in alone] == [x.ids for x in found]
        for one, other in zip(alone, found):
            assert one.score == pytest.approx(other.score, abs=1e-5)
            assert one.starts == other.starts
            assert one.ends == other.ends


@pytest.mark.parametrize("ctc_weight", [0.0, 0.3])
def test_tokens_and_words_have_times_in_order(folder: Path, ctc_weight: float) -> None:
    recogniser = tiny_whisper_recogniser(folder, ctc_weight=ctc_weight)
    found = recogniser.search(some_features(), DecodingOptions(beam=2, nbest=2))
    for candidates, frames in zip(found, (60, 17, 36)):
        for each in candidates:
            hypothesis = each
            assert hypothesis.starts is not None
            assert len(hypothesis.ids) == len(hypothesis.starts) == len(hypothesis.ends)
            assert all(0 <= start <= end <= frames for start, end in zip(hypothesis.starts, hypothesis.ends))
            assert hypothesis.starts == sorted(hypothesis.starts)
            assert all(-100 < each <= 0 for each in hypothesis.log_probs)


def batch(tokenizer: WhisperTokenizer, texts: tuple[str, ...]) -> tuple[Tensor, Tensor]:
    rows = [[*tokenizer.encode(text), EOS] for text in texts]
    lengths = torch.tensor([len(row) for row in rows])
    padded = torch.full((len(rows), int(lengths.max()) + 3), PAD)
    for index, row in enumerate(rows):
        padded[index, : len(row)] = torch.tensor(row)
    return padded, lengths


def test_losses_and_taps_do_not_depend_on_the_batch(folder: Path) -> None:
    recogniser = tiny_whisper_recogniser(folder, ctc_weight=0.3)
    student, tokenizer = parts(recogniser)
    student.double()
    texts = ("the show", "a", "all well")
    features = [each.double() for each in some_features()]
    padded = torch.nn.utils.rnn.pad_sequence(features, batch_first=True)
    sizes = torch.tensor([len(each) for each in features])
    whole = student(padded, sizes, *batch(tokenizer, texts))
    sums: dict[str, float] = dict.fromkeys(whole.losses, 0.0)
    for row, (each, text) in enumerate(zip(features, texts)):
        alone = student(each[None], sizes[row : row + 1], *batch(tokenizer, (text,)))
        for name, loss in alone.losses.items():
            sums[name] += float(loss)
        for name, tap in alone.taps.items():
            size = int(tap.lengths[0])
            assert int(whole.taps[name].lengths[row]) == size
            difference = whole.taps[name].values[row, :size] - tap.values[0, :size]
            assert float(difference.abs().max()) < 1e-6, name
    for name, total in sums.items():
        assert float(whole.losses[name]) == pytest.approx(total, rel=1e-5), name
    assert whole.taps["acoustic"].values.shape[-1] == student.tap_dims["acoustic"] == 16
    assert set(whole.taps) == set(student.tap_dims)


def test_it_learns_a_sentence(folder: Path) -> None:
    recogniser = tiny_whisper_recogniser(folder, ctc_weight=0.3)
    student, tokenizer = parts(recogniser)
    features, sizes = torch.stack(some_features((80, 80))), torch.tensor([80, 80])
    tokens = batch(tokenizer, ("the show", "a sea"))
    optimiser = torch.optim.Adam(student.parameters(), 3e-3)
    student.train()
    for _ in range(40):
        output = student(features, sizes, *tokens)
        loss = sum(student.loss_weights[name] * each for name, each in output.losses.items())
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    student.eval()
    found = recogniser.decode(list(features))
    assert [tokenizer.decode(each.ids) for each in found] == ["the show", "a sea"]


def test_a_saved_model_decodes_the_same(folder: Path, tmp_path: Path) -> None:
    recogniser = tiny_whisper_recogniser(folder, size=4 + 256 + 6, texts=("the show",))
    recogniser.save(tmp_path / "model")
    again = load(tmp_path / "model")
    features = some_features()
    for before, after in zip(recogniser.search(features), again.search(features)):
        assert unscored(before[0]) == unscored(after[0])
    assert again.fingerprint() == recogniser.fingerprint()


def test_an_utterance_without_frames_has_no_tokens(folder: Path) -> None:
    student, tokenizer = parts(tiny_whisper_recogniser(folder))
    encoded = Encoded(torch.zeros(2, 5, 16), torch.tensor([0, 5]))
    suppression = Suppression.of(tokenizer)
    assert greedy_whisper(student, encoded, suppression)[0].ids == []
    assert beam_whisper(student, encoded, 2, suppression)[0][0].ids == []
