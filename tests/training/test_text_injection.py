"""Text injection: the bank, pseudo-utterances, the loss, and runs that are interrupted."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lhotse import CutSet

from retort.common.errors import UserError
from retort.config.loading import load_recipe
from retort.config.schema import NormaliserConfig, Recipe, TextInjectionConfig
from retort.distill.objective import Objective
from retort.engine.checkpoints import read_weights
from retort.engine.log import read_metrics
from retort.students.fired import Segment
from retort.text.normalise import Normaliser
from retort.text.tokenizers import EOS, CharacterTokenizer
from retort.training.batches import Batch
from retort.training.module import TrainingModule
from retort.training.run import train
from retort.training.segment_bank import SegmentBank
from retort.training.text_injection import TextInjection
from tiny_trainers import NO_DROPOUT, batch_of, trainer_of

ReadRecipe = Callable[..., Recipe]
LETTERS = CharacterTokenizer(["▁", *"abcdefgh"])
EXACT = TextInjectionConfig(noise=0.0, mask=0.0, tokens=[1, 100])


def segment(frames: int, fires: int = 1, dim: int = 3) -> Segment:
    return Segment(torch.randn(frames, dim), torch.randn(fires, dim), torch.arange(fires))


def injection(path: Path, *sentences: str, seed: int = 1, excluded: tuple[str, ...] = (), **changes: Any) -> TextInjection:
    path.write_text("\n".join(sentences) + "\n", encoding="utf-8")
    config = replace(EXACT, texts=[str(path)], **changes)
    symbols = sorted({letter for text in sentences for letter in text} - {" "})
    tokenizer = CharacterTokenizer(["▁", *symbols])
    return TextInjection(config, seed, tokenizer, Normaliser(NormaliserConfig(case="lower")), excluded)


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 6)), max_size=30), st.integers(1, 4))
def test_the_bank_is_bounded_and_keeps_the_last(given_: list[tuple[str, int]], examples: int) -> None:
    bank, expected = SegmentBank(examples, 4), dict[str, list[Segment]]()
    for sound, frames in given_:
        each = segment(frames)
        bank.add(sound, each)
        if 0 < frames <= 4:
            expected.setdefault(sound, []).append(each)
    restored = SegmentBank(examples, 4)
    restored.load(bank.tensors())
    for held in (bank, restored):
        assert len(held) == len(expected)
        for sound, own in expected.items():
            assert sound in held
            assert len(held[sound]) == min(len(own), examples)
            for one, other in zip(held[sound], own[-examples:], strict=True):
                assert one.frames.dtype == one.fired.dtype == torch.float16
                assert torch.equal(one.frames, other.frames.half())
                assert torch.equal(one.fired, other.fired.half())
                assert torch.equal(one.places, other.places)


@pytest.mark.parametrize("name", ["sounds", "examples", "sizes", "places", "frames", "fired"])
def test_a_damaged_bank_is_not_loaded(name: str) -> None:
    bank = SegmentBank(2, 9)
    bank.add("a", segment(3))
    bank.add("b", segment(4, 2))
    tensors = bank.tensors()
    for damaged in ({**tensors, name: tensors[name][:-1]}, {key: each for key, each in tensors.items() if key != name}):
        with pytest.raises((ValueError, KeyError, RuntimeError)):
            SegmentBank(2, 9).load(damaged)
    assert "a" in bank


def test_a_pseudo_utterance_is_its_sounds_one_after_the_other(tmp_path: Path) -> None:
    """Against a slow reference: with one example of each sound nothing is left to chance."""
    texts = injection(tmp_path / "texts", "ab c", "bca", "xa", share=0.5)
    known = {f"#{texts.tokenizer.encode(letter)[0]}": segment(size) for size, letter in enumerate("abc", 2)}
    known["#4"], known["<eos>"] = segment(1), segment(5)
    for sound, each in known.items():
        texts.bank.add(sound, each)
    drawn = texts.draw(20)
    assert drawn.utterances is not None
    assert drawn.considered > drawn.used >= 2  # x has no example
    made = drawn.utterances
    assert made.frames.shape[1] % 16 == made.tokens.shape[1] % 8 == 0
    for row, count in enumerate(made.lengths.tolist()):
        ids = made.tokens[row, :count].tolist()
        assert texts.tokenizer.decode(ids[:-1]) in ("ab c", "bca")
        assert ids[-1] == EOS
        at = 0
        for token, number in enumerate(ids):
            own = known["<eos>" if number == EOS else f"#{number}"]
            torch.testing.assert_close(made.frames[row, at : at + len(own.frames)], own.frames.half().float())
            torch.testing.assert_close(made.fired[row, token], own.fired[0].half().float())
            assert made.places[row, token] == at + own.places[0]
            at += len(own.frames)
        assert made.frame_lengths[row] == at
        assert not made.frames[row, at:].any()
        assert not made.fired[row, count:].any()
    assert 10 <= int(made.lengths.sum()) < 10 + 5


def test_homophones_share_examples(tmp_path: Path) -> None:
    """A character without an example of its own, and one token of two characters."""
    texts = injection(tmp_path / "texts", "她她", sounds="pinyin")
    texts.bank.add("<eos>", segment(1))
    assert texts.draw(6).utterances is None
    texts.bank.add("ta1", segment(2))
    drawn = texts.draw(6).utterances
    assert drawn is not None
    assert drawn.frame_lengths.tolist()[0] == 5


def test_every_sentence_has_its_turn_and_the_validation_data_has_none(tmp_path: Path) -> None:
    sentences = [f"{one}{other}" for one in "abcd" for other in "abcd"]
    texts = injection(tmp_path / "texts", *sentences, "dddd", "abc", share=1.0, tokens=[2, 3], excluded=("ab",))
    for letter in "abcd":
        texts.bank.add(f"#{texts.tokenizer.encode(letter)[0]}", segment(1))
    texts.bank.add("<eos>", segment(1))
    seen = []
    for _ in range(3):
        start, found = texts.position, []
        while texts.position < start + 18:
            drawn = texts.draw(1).utterances
            assert drawn is not None
            found.append(texts.tokenizer.decode(drawn.tokens[0, : int(drawn.lengths[0]) - 1].tolist()))
        seen.append(found)
    usable = {*sentences, "abc"} - {"ab"}
    assert set(seen[0]) <= usable
    assert len(set(seen[0]) | set(seen[1]) | set(seen[2])) == len(usable)
    assert seen[0] != seen[1]


def test_noise_and_masks(tmp_path: Path) -> None:
    texts = injection(tmp_path / "texts", "aa", share=1.0, noise=0.5, mask=0.5)
    own = Segment(torch.tensor([[2.0, -2.0]]).repeat(200, 1), torch.ones(1, 2), torch.zeros(1, dtype=torch.int64))
    texts.bank = SegmentBank(1, 500)
    texts.bank.add(f"#{texts.tokenizer.encode('a')[0]}", own)
    texts.bank.add("<eos>", own)
    drawn = texts.draw(60).utterances
    assert drawn is not None
    frames = drawn.frames[:, :600].reshape(-1, 3, 200, 2)
    masked = (frames == 0.0).all(-1).all(-1)
    assert not masked[:, 2].any()  # the end is never masked
    assert 0.2 < masked[:, :2].float().mean() < 0.8
    noise = (frames - torch.tensor([2.0, -2.0]))[~masked]
    assert float(noise.std()) == pytest.approx(0.5 * 2.0, rel=0.05)
    assert abs(float(noise.mean())) < 0.05


def test_with_all_sounds_masked_no_example_is_needed(tmp_path: Path) -> None:
    texts = injection(tmp_path / "texts", "abc", share=1.0, mask=1.0)
    own = Segment(torch.ones(5, 2), torch.ones(1, 2), torch.zeros(1, dtype=torch.int64))
    assert texts.draw(4).utterances is None  # the end has no example
    texts.bank.add(f"#{texts.tokenizer.encode('a')[0]}", own)
    texts.bank.add("<eos>", own)
    drawn = texts.draw(4).utterances
    assert drawn is not None
    assert drawn.tokens[0, :4].tolist() == [*texts.tokenizer.encode("abc"), EOS]
    assert drawn.fired[0, :4].abs().sum(-1).tolist() == [0.0, 0.0, 0.0, 2.0]
    assert drawn.frames[0, :12].abs().sum(-1).tolist() == 7 * [0.0] + 5 * [2.0]


def module_of(recipe: Recipe, folder: Path, cuts: CutSet, texts: TextInjection | None) -> tuple[TrainingModule, Batch]:
    trainer = trainer_of(recipe, folder, cuts)
    batch = batch_of(trainer, cuts, 0, 1)
    student = trainer.module.student
    return TrainingModule(student, Objective([], student.tap_dims, {}), 1, texts).train(), batch


def test_the_text_of_the_only_utterance_has_its_loss(cuts: CutSet, read_recipe: ReadRecipe, tmp_path: Path) -> None:
    """Without noise, and with one example a sound, an utterance of different letters is put together as it was; up to the
    rounding to float16. Its loss reaches the decoder and nothing else."""
    distinct = [cut for cut in cuts if len(set(cut.supervisions[0].text)) == len(cut.supervisions[0].text)]
    cuts = CutSet.from_cuts(distinct[:1])
    text = distinct[0].supervisions[0].text.lower()
    recipe = read_recipe(*NO_DROPOUT, "student.label_smoothing=0")
    (tmp_path / "texts").write_text(text + "\n")
    config = replace(EXACT, texts=[str(tmp_path / "texts")], share=1.0, longest=1000, weight=0.25)
    texts = TextInjection(config, 1, LETTERS, Normaliser(NormaliserConfig(case="lower")))
    with_text, batch = module_of(recipe, tmp_path / "one", cuts, texts)
    output = with_text(batch, {}, 0)
    ce, of_text = output.tallies["ce"], output.tallies["text.ce"]
    assert float(of_text.sum / of_text.count) == pytest.approx(float(ce.sum / ce.count), rel=2e-3)
    without, _ = module_of(recipe, tmp_path / "two", cuts, None)
    plain = without(batch, {}, 0)
    difference = output.token_sum - plain.token_sum
    assert float(difference.detach()) == pytest.approx(0.25 * float(ce.sum), rel=2e-3)
    for each in (output, plain):
        each.token_sum.backward()
    pairs = zip(with_text.student.named_parameters(), without.student.parameters())
    changed = {
        name.split(".")[0]
        for (name, one), other in pairs
        if one.grad is not None and other.grad is not None and not torch.allclose(one.grad, other.grad, atol=1e-7)
    }
    assert changed == {"decoder"}
    with torch.autocast("cpu", torch.bfloat16):
        assert "text.ce" in with_text(batch, {}, 0).tallies
    assert "text.ce" not in with_text.eval()(batch, {}, 0).tallies


TEXTS = """
text_injection: {{texts: [{path}], share: 1.0}}
"""


def silent(step: int, values: Mapping[str, float]) -> None:
    pass


@pytest.fixture
def recipe(write_recipe: Callable[..., Path], tmp_path: Path) -> Recipe:
    draw = random.Random(1)
    words = ["".join(draw.choices("abcdefgh", k=3)) for _ in range(60)]
    (tmp_path / "texts.txt").write_text("\n".join(" ".join(draw.choices(words, k=3)) for _ in range(100)))
    path = write_recipe("tiny", TEXTS.format(path=tmp_path / "texts.txt"))
    return load_recipe(str(path), ["augment.time_masks=2", "training.log_steps=1"])


def test_a_resumed_run_ends_where_the_unbroken_run_ends(recipe: Recipe, tmp_path: Path) -> None:
    folders = []
    for stops in ((), (8,)):
        root = tmp_path / f"exp{len(stops)}"
        for stop in stops:

            def report(step: int, values: Mapping[str, float], last: int = stop) -> None:
                if step == last:
                    raise KeyboardInterrupt

            with pytest.raises(KeyboardInterrupt):
                train(recipe, root, lambda *_: None, report)
        train(recipe, root, lambda *_: None, silent)
        folders.append(root / "tiny")
    logs = [
        [{k: v for k, v in line.items() if k != "seconds"} for line in read_metrics(folder / "metrics.jsonl")]
        for folder in folders
    ]
    assert logs[0] == logs[1]
    last = [line for line in logs[0] if "text.ce" in line][-1]
    assert 0.0 < last["text.used"] <= 1.0
    assert last["text.tokens"] > 0.0
    for part in ("student", "memory"):
        expected, found = (read_weights(f / "checkpoints" / "step-00000012" / f"{part}.safetensors") for f in folders)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[name], found[name]) for name in expected)


@pytest.mark.parametrize(
    "override", ["student.kind=ctc", "student.decoder={kind: parallel}", "text_injection.sounds=spelling"]
)
def test_what_cannot_be_trained_on_text_is_one_line(
    write_recipe: Callable[..., Path], tmp_path: Path, override: str
) -> None:
    path = write_recipe("tiny", TEXTS.format(path=tmp_path / "texts.txt"))
    with pytest.raises(UserError):
        load_recipe(str(path), [override])


def test_a_missing_text_is_found_before_the_data_is_prepared(write_recipe: Callable[..., Path], tmp_path: Path) -> None:
    path = write_recipe("tiny", TEXTS.format(path=tmp_path / "nothing.txt"))
    with pytest.raises(UserError):
        train(load_recipe(str(path)), tmp_path, lambda *_: None, silent)
    assert not (tmp_path / "cache").exists()
