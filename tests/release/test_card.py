from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from huggingface_hub import ModelCard

from retort.common.errors import UserError
from retort.config.schema import Recipe, RowConfig, SpokenConfig
from retort.decoding.recogniser import load
from retort.evaluation.bootstrap import compare
from retort.evaluation.evaluate import evaluate
from retort.release.card import Terms
from retort.release.lineage import distillation, inside, shown, trace, training_data
from retort.release.release import Released
from retort.report.experiment import open_experiment
from retort.teachers.masked_lm import MaskedLMConfig

Release = Callable[..., Released]


@pytest.fixture
def card(released: Released) -> str:
    return (released.folder / "README.md").read_text(encoding="utf-8")


def section(card: str, title: str) -> str:
    return card.split(f"\n## {title}\n")[1].split("\n## ")[0]


def test_the_head_is_what_the_hub_reads(card: str, released: Released, corpus: Path) -> None:
    data = ModelCard(card).data
    assert (data.license, data.language, data.library_name) == ("apache-2.0", "en", "retort")
    assert data.pipeline_tag == "automatic-speech-recognition"
    assert {"retort", "cif", "knowledge-distillation"} <= set(data.tags)
    assert data.metrics == ["wer", "cer"]
    assert data.model_name == "tones"
    (evaluation,) = released.evaluations
    found = {each.metric_type: each.metric_value for each in data.eval_results}
    assert found == {"wer": evaluation.score.wer, "cer": evaluation.score.cer}
    assert {each.dataset_name for each in data.eval_results} == {f"{corpus.name}/test"}


def test_its_numbers_are_those_of_evaluate(
    card: str, released: Released, corpus: Path, tmp_path: Path
) -> None:
    fresh = evaluate(load(released.folder), str(corpus / "test"), tmp_path, lambda *_: None)
    (row,) = re.findall(rf"^\| {corpus.name}/test \|.*$", section(card, "Errors"), flags=re.MULTILINE)
    cells = [cell.strip() for cell in row.split("|")[2:-1]]
    wer, cer = fresh.intervals["wer"], fresh.intervals["cer"]
    expected = [f"{wer.rate:.2%}", f"{wer.low:.2%} to {wer.high:.2%}"]
    expected += [f"{cer.rate:.2%}", f"{cer.low:.2%} to {cer.high:.2%}", "6", "3"]
    assert cells == expected
    assert wer.rate > 0.0
    assert fresh.reliability is not None
    assert f"| {fresh.reliability.ece:.2%} |" in section(card, "Confidence")


def test_a_model_that_it_is_compared_with(
    root: Path, corpus: Path, make_release: Release, tmp_path: Path
) -> None:
    """The other model is scored with its weights stored in the same way; int4 changes what a tiny model recognises."""
    out, source = tmp_path / "pair", str(corpus / "test")
    found = make_release(root / "second", out, source, root=root, stored="int4", compare=[root / "first"])
    other = make_release(root / "first", tmp_path / "plain", source, root=root, stored="int4")
    text = section((out / "README.md").read_text(encoding="utf-8"), "Comparison")
    (row,) = re.findall(r"^\| first \| none \|.*$", text, flags=re.MULTILINE)
    cells = [cell.strip() for cell in row.split("|")[3:-1]]
    (own,), (its,) = found.evaluations, other.evaluations
    assert cells[0] == f"{corpus.name}/test"
    for measure, (rate, difference) in zip(("wer", "cer"), (cells[1:3], cells[3:5]), strict=True):
        expected = compare(its.score, own.score, measure=measure)
        assert rate == f"{its.intervals[measure].rate:.2%}"
        assert difference.startswith(f"{own.intervals[measure].rate - its.intervals[measure].rate:+.2%} (")
        assert difference.endswith(f"p {expected.p:.2g}")
    assert (root / "models" / "pair" / "compared" / "first" / "evaluation").is_dir()


def test_it_is_compared_with_nothing_by_default(card: str) -> None:
    assert "## Comparison" not in card


def test_what_it_is_and_learned(card: str, released: Released, corpus: Path, tone_bert: Path) -> None:
    count = sum(each.numel() for each in load(released.folder).student.parameters())
    assert f"{count:,} parameters" in card
    training = section(card, "Training")
    teacher = f"{tone_bert.parent.name}/{tone_bert.name}"
    assert f"| first | {corpus.name}/train | 60 | 1 | none |" in training
    assert (
        f"| second | {corpus.name}/train | 60 | 7 | acoustic by {teacher} (contrastive, weight 0.5) |"
        in training
    )
    assert f"up to 2 checkpoints, the best on {corpus.name}/validation" in training
    assert "Licence of the weights: Apache-2.0." in section(card, "Data and licence")
    assert "- Tones, made for this test." in section(card, "Data and licence")
    assert "1 conformer layers, dim 32" in section(card, "Architecture")
    assert "in lower case, without punctuation except '" in section(card, "Limits")


def test_no_path_of_this_machine_is_on_it(card: str, tmp_path: Path) -> None:
    assert not re.findall(r"(?<![\w.:])/(?:\w+/)+\w+", card)
    assert str(tmp_path.parents[1]) not in card


def test_its_commands_are_whole(card: str, released: Released) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", card, flags=re.DOTALL)
    path = shown(str(released.folder))
    assert len([line for line in code.splitlines() if line]) == 3
    assert f'retort.load("{path}")' in code
    assert f"retort transcribe {path} a.flac" in card
    compile(code, "card", "exec")


@pytest.mark.parametrize(
    ("licence", "head"),
    [
        ("CC-BY-4.0", {"license": "cc-by-4.0", "license_name": None}),
        ('for study: "ask" us', {"license": "other", "license_name": "for-study-ask-us"}),
    ],
)
def test_a_licence_without_a_name(
    root: Path, make_release: Release, tmp_path: Path, licence: str, head: dict[str, str]
) -> None:
    found = make_release(root / "second", tmp_path / "out", root=root, terms=Terms(licence, "de"))
    text = (found.folder / "README.md").read_text()
    data = ModelCard(text).data
    assert {name: data.get(name) for name in head} == head
    assert f"Licence of the weights: {licence}." in text
    assert "other than de" in text


@pytest.mark.parametrize(("licence", "language"), [("", "en"), (" ", "en"), ("MIT", "English"), ("MIT", "")])
def test_terms_that_are_none(licence: str, language: str) -> None:
    with pytest.raises(UserError):
        Terms(licence, language)


def test_speech_that_was_read_aloud() -> None:
    recipe = Recipe("x")
    recipe.data.train = ["/abs/corpus/train", "other/dev.jsonl.gz"]
    assert training_data(recipe) == "corpus/train, other/dev"
    recipe.data.spoken = SpokenConfig(voices=4)
    read = "the transcripts of corpus/train, other/dev"
    assert training_data(recipe) == f"{read}, read by espeak-ng in 4 voices"
    recipe.data.spoken = SpokenConfig(voices=4, texts=["t/a.txt"], sentences=2000)
    assert training_data(recipe) == f"{read} and 2,000 sentences of t/a.txt, read by espeak-ng in 4 voices"
    recipe.data.spoken = replace(recipe.data.spoken, transcripts=False)
    assert training_data(recipe) == (
        "corpus/train, other/dev; 2,000 sentences of t/a.txt, read by espeak-ng in 4 voices"
    )


def test_rows_in_words() -> None:
    recipe = Recipe("x", teachers={"bert": MaskedLMConfig(model="bert-base-uncased")})
    assert distillation(recipe) == ""
    recipe.distill = [RowConfig("linguistic", "bert", "regression", 0.01)]
    assert distillation(recipe) == "linguistic by bert-base-uncased (regression, weight 0.01)"


def test_the_line_of_trainings(root: Path) -> None:
    second = open_experiment(root / "second")
    assert [each.name for each in trace(second, root).recipes] == ["first", "second"]
    second.recipe.training.init = str(root / "gone")
    found = trace(second, root)
    assert ([each.name for each in found.recipes], found.origin) == (["second"], f"{root.name}/gone")
    second.recipe.training.init = str(root / "second")
    assert trace(second, root).origin == f"{root.name}/second"


def test_models_inside_the_decoder_are_named() -> None:
    recipe = Recipe("x", teachers={"bert": MaskedLMConfig(model="bert-base-uncased")})
    assert inside(recipe) == ""
    recipe.student.decoder.init = "/home/me/exp/lm/mine"
    assert inside(recipe) == "lm/mine"
    recipe.student.decoder.output, recipe.tokenizer.teacher = "plm", "bert"
    assert inside(recipe) == "bert-base-uncased and lm/mine"
