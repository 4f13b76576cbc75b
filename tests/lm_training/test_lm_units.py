"""`retort lm train` over senones and phones."""

from __future__ import annotations

import itertools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from retort.alignment.store import AlignmentStore
from retort.alignment.unit_text import UnitPronouncer, pause_share, unit_symbols
from retort.cli import app
from retort.common.errors import UserError
from retort.corpora import pronunciations
from retort.lm.factory import open_causal_lm
from retort.lm.masked_scoring import open_masked_scorer, score_sentences
from retort.lm.scoring import score_text
from retort.lm.units import LmUnits, read_units
from retort.lm_training.data import open_text
from retort.lm_training.run import LmOutcome, train_lm
from retort.lm_training.units import LeftOut, open_units
from tiny_units import LEXICON, tiny_alignments, tiny_tree

RECIPE = """
kind: causal
name: toy
text:
  - {{source: {folder}/large.txt}}
  - {{source: {folder}/small.txt, repeat: 2}}
held_out: [{folder}/held_out.txt]
normaliser: {{case: lower}}
units: {{unit: phone, alignments: "{folder}/alignments"}}
tokenizer: {{kind: words}}
model: {{kind: lstm, layers: 1, dim: 24, heads: 2, feedforward: 32, dropout: 0.0}}
ngram: {{order: 3}}
batches: {{pieces: 1024, longest: 128}}
training: {{steps: 6, schedule: cosine, peak_lr: 1.0e-2, warmup_steps: 4, precision: fp32, device: cpu,
            evaluate_steps: 6, log_steps: 3}}
"""

Read = Callable[..., Any]
TREE = tiny_tree()


@pytest.fixture
def read(counting_recipe: Callable[[str], Read], tmp_path: Path) -> Read:
    tiny_alignments(tmp_path / "alignments")
    return counting_recipe(RECIPE)


def run(recipe: Any, root: Path) -> LmOutcome:
    return train_lm(recipe, root, lambda stage, done, total: None, lambda step, values: None)


def lines(path: Path) -> list[list[str]]:
    return [line.lower().split() for line in path.read_text().splitlines()]


@pytest.mark.parametrize("unit", ["senone", "phone"])
@pytest.mark.parametrize("kind", ["ngram", "lstm", "masked"])
def test_it_learns_how_counting_sounds(read: Read, tmp_path: Path, kind: str, unit: str) -> None:
    overrides = {
        "ngram": ["kind=ngram"],
        "lstm": ["training.steps=40"],
        "masked": ["kind=masked", "model.kind=transformer", "training.steps=40"],
    }[kind]
    recipe = read(f"units.unit={unit}", *overrides, "training.evaluate_steps=20")
    held_out = (tmp_path / "held_out.txt").read_text().splitlines(keepends=True)
    (tmp_path / "held_out.txt").write_text("".join(held_out[:3]))
    outcome = run(recipe, tmp_path / "exp")
    symbols = unit_symbols(TREE, unit)  # type: ignore[arg-type]
    # Of the many symbols few can follow; a masked model has learned less of them in so few steps.
    assert outcome.score.perplexity < (0.8 * len(symbols) if kind == "masked" else 5.0)
    assert outcome.score.unknown == 0

    texts = open_text(recipe, outcome.folder).held_out
    assert outcome.score.pieces == sum(len(each.split()) for each in texts)
    speaker = UnitPronouncer(LEXICON, TREE, unit)  # type: ignore[arg-type]
    sentences = dict.fromkeys(tuple(each) for each in lines(tmp_path / "held_out.txt"))
    for text, words in zip(texts, sentences, strict=True):
        silent = itertools.product((False, True), repeat=len(words) - 1)
        assert text in {speaker(words, pauses=apart) for apart in silent}
    folder = outcome.folder / "model"
    assert read_units(folder) == LmUnits.of(unit, TREE)  # type: ignore[arg-type]
    if kind == "masked":
        masked_lm, tokenizer, _ = open_masked_scorer(str(folder))
        assert tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))[5:] == symbols
        again = score_sentences(masked_lm, tokenizer, texts, 128)
    else:
        model = open_causal_lm(folder)
        assert model.symbols[4:] == symbols
        again = score_text(model, texts)
        assert model.normalise(texts[0]) == texts[0]
    assert again.perplexity == pytest.approx(outcome.score.perplexity, rel=1e-4)


def test_senones_have_as_many_pauses_as_the_alignments_have(read: Read, tmp_path: Path) -> None:
    store = AlignmentStore(tmp_path / "alignments")
    share = pause_share(store[name] for name in store)
    assert 0.1 < share < 0.9
    recipe = read("kind=ngram", "units.unit=senone")
    pairs = [f"{first} {second}" for first, second in itertools.product(LEXICON.words, repeat=2)]
    texts = open_units(recipe, lambda: pairs, tmp_path / "kept")
    (tmp_path / "kept" / "tokenizer").touch()
    speaker = UnitPronouncer(LEXICON, TREE, "senone")
    tell = [pair for pair in pairs if speaker(pair.split(), pauses=[True]) != speaker(pair.split())]
    silent = [texts(pair) == speaker(pair.split(), pauses=[True]) for pair in tell]
    assert abs(sum(silent) / len(silent) - share) < 4 * (share * (1 - share) / len(silent)) ** 0.5
    shutil.rmtree(tmp_path / "alignments")
    again = open_units(recipe, lambda: pairs, tmp_path / "kept")
    assert (again.fingerprint, [*map(again, pairs)]) == (texts.fingerprint, [*map(texts, pairs)])


def test_what_cannot_be_pronounced_is_left_out_and_reported(read: Read, tmp_path: Path) -> None:
    recipe = read("kind=ngram")
    with (tmp_path / "large.txt").open("a") as file:
        file.write("one nine\nNINE ten, nine\n")
    with (tmp_path / "held_out.txt").open("a") as file:
        file.write("one ten\n")
    outcome = run(recipe, tmp_path / "exp")
    total = sum(len(lines(tmp_path / f"{name}.txt")) for name in ("large", "small", "held_out"))
    assert outcome.summary.endswith(
        f"; 3 of {total} sentences have words without a pronunciation (nine, ten)"
    )
    assert run(recipe, tmp_path / "exp").summary == outcome.summary, "it is told by a run that goes on, too"
    text = open_text(recipe, outcome.folder)
    assert text.units is not None
    assert text.units.left_out.words == {"nine": 2, "ten": 2}
    assert len(list(text.sentences())) == sum(
        " ".join(each) not in {" ".join(other) for other in lines(tmp_path / "held_out.txt")}
        and not {"nine", "ten"} & set(each)
        for name in ("large", "small")
        for each in lines(tmp_path / f"{name}.txt")
    )


def test_the_report_of_many_words_is_short() -> None:
    assert str(LeftOut(0, 9, {})) == ""
    reported = str(LeftOut(1234, 56789, {"a": 9, "b": 8, "c": 7, "d": 1}))
    assert reported == "1,234 of 56,789 sentences have words without a pronunciation (a, b, c, ...)"


def test_lexicons_and_rules_for_words_that_are_new(
    read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = read("kind=ngram", f"units.lexicon=[{tmp_path}/more.txt]", "units.pronounce=true")
    (tmp_path / "more.txt").write_text(
        "nine N AY1 N\none X\neleven X\n"
    )  # a word that is known stays as it was
    (tmp_path / "large.txt").write_text("one nine\nten one\neleven\ntwelve\nthirteen\n")
    asked: list[str] = []

    def rules(words: list[str]) -> dict[str, list[tuple[str, ...]]]:
        asked.extend(words)
        return {"ten": [("T", "EH", "N")], "eleven": [("EH", "V", "N")], "thirteen": [("XX",)]}

    monkeypatch.setattr(pronunciations, "find_spec", lambda name: None)
    monkeypatch.setattr(pronunciations, "espeak_pronunciations", rules)
    text = open_text(recipe)
    assert list(text.training(text.sources[0][0])) == ["W AH N N AY N", "T EH N W AH N", "EH V N"]
    assert asked == ["eleven", "ten", "thirteen", "twelve"]
    assert text.units is not None
    assert text.units.left_out.words == {"thirteen": 1, "twelve": 1}


def test_sampled_pronunciations_hang_on_the_sentence_alone(read: Read, tmp_path: Path) -> None:
    tiny_alignments(tmp_path / "alignments", words=["one", "three"])
    sampled = ("units.sample=true", f"units.lexicon=[{tmp_path}/more.txt]", "kind=ngram")
    recipe = read(*sampled)
    (tmp_path / "more.txt").write_text("two T UW\ntwo T AH\n")
    (tmp_path / "large.txt").write_text("two one\n" * 3 + "".join(f"{'one ' * n}two\n" for n in range(1, 21)))
    (tmp_path / "small.txt").write_text("three two\n")
    (tmp_path / "held_out.txt").write_text("three\n")
    text = open_text(recipe)
    texts = list(text.training(text.sources[0][0]))
    assert len(set(texts[:3])) == 1
    assert {each.split()[-1] for each in texts[3:]} == {"UW", "AH"}
    assert list(text.training(text.sources[0][0])) == texts
    other = open_text(read(*sampled, "seed=2"))
    assert list(other.training(other.sources[0][0])) != texts
    assert text.units is not None
    assert other.units is not None
    assert text.units.fingerprint != other.units.fingerprint


def test_what_sounds_like_a_held_out_sentence_is_not_learned_from(read: Read, tmp_path: Path) -> None:
    recipe = read("kind=ngram", f"units.lexicon=[{tmp_path}/more.txt]")
    (tmp_path / "more.txt").write_text("too T UW\n")
    (tmp_path / "large.txt").write_text("one too\none two\ntwo two\n")
    (tmp_path / "held_out.txt").write_text("one two\n")
    text = open_text(recipe)
    assert list(text.training(text.sources[0][0])) == ["T UW T UW"]


def test_a_run_that_goes_on_reads_the_same_units(read: Read, tmp_path: Path) -> None:
    recipe = read("kind=ngram", "units.unit=senone")
    open_text(recipe, tmp_path / "exp" / "toy")
    shutil.rmtree(tmp_path / "alignments")
    tiny_alignments(tmp_path / "alignments", seed=1)  # nothing was learned yet: these are taken
    outcome = run(recipe, tmp_path / "exp")
    assert (
        read_units(outcome.folder / "model")
        == LmUnits.of("senone", tiny_tree(1))
        != LmUnits.of("senone", TREE)
    )
    shutil.rmtree(tmp_path / "alignments")
    tiny_alignments(tmp_path / "alignments", seed=2)
    assert run(recipe, tmp_path / "exp").score == outcome.score
    shutil.rmtree(tmp_path / "alignments")
    assert run(recipe, tmp_path / "exp").score == outcome.score
    (outcome.folder / "units" / "about.json").write_text("{}")
    with pytest.raises(UserError, match=r"units.*(cannot be read|damaged)"):
        run(recipe, tmp_path / "exp")
    with pytest.raises(UserError, match="contains no alignments"):
        run(read("kind=ngram", "units.unit=senone", "name=other"), tmp_path / "exp")


def test_other_units_are_cut_again(read: Read, tmp_path: Path) -> None:
    cache = tmp_path / "exp" / "cache" / "lm"
    run(read("kind=ngram"), tmp_path / "exp")
    run(read("kind=ngram", "name=again"), tmp_path / "exp")
    assert len(list(cache.iterdir())) == 2
    run(read("kind=ngram", "name=senones", "units.unit=senone"), tmp_path / "exp")
    assert len(list(cache.iterdir())) == 4


def test_no_word_with_a_pronunciation_is_one_line(read: Read, tmp_path: Path) -> None:
    recipe = read("normaliser.case=upper")
    with pytest.raises(UserError, match=r"none of the 8 words of the text .*with the case of the") as caught:
        run(recipe, tmp_path / "exp")
    assert "\n" not in str(caught.value)
    (tmp_path / "held_out.txt").write_text("nine\n")
    with pytest.raises(UserError, match="every text of held_out lacks a pronunciation"):
        run(read(), tmp_path / "exp")


def test_words_of_a_masked_model_without_units(read: Read, tmp_path: Path) -> None:
    masked = (
        "kind=masked",
        "model.kind=transformer",
        "units.unit=",
        "units.alignments=",
        "tokenizer.size=11",
    )
    outcome = run(read(*masked), tmp_path / "exp")
    tokenizer = open_masked_scorer(str(outcome.folder))[1]
    assert len(tokenizer) == 11
    assert tokenizer.tokenize("one two,") == ["one", "[UNK]"]
    assert outcome.score.unknown > 0
    assert read_units(outcome.folder / "model") is None


def test_the_verbs(read: Read, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read()
    monkeypatch.chdir(tmp_path)
    for kind in ("ngram", "masked"):
        more = [f"kind={kind}", f"name={kind}", "model.kind=transformer", "training.steps=3"]
        trained = CliRunner().invoke(app, ["lm", "train", "toy.yaml", *more], catch_exceptions=False)
        assert trained.exit_code == 0
        (tmp_path / "asked.txt").write_text("W AH N T UW\nW AH XX N\n")
        scored = CliRunner().invoke(app, ["lm", "score", f"exp/{kind}", "asked.txt"], catch_exceptions=False)
        assert scored.exit_code == 0
        assert "11.11%" in scored.output  # of nine symbols one is unknown
