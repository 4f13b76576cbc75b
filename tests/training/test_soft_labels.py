"""Soft labels through `retort train` and `retort teach`: of a language model over the student's pieces, and of BERT."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from retort.common.errors import UserError
from retort.config.schema import Recipe
from retort.engine.log import read_metrics
from retort.text.tokenizer_io import open_tokenizer
from retort.text.tokenizers import CharacterTokenizer
from retort.training.run import train
from retort.training.teach import teach, training_texts
from tiny_lms import TableLM, masked_bert

ReadRecipe = Callable[..., Recipe]
SPECIAL, LETTERS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "abcdefgh"


def silent(*_: object) -> None:
    return None


def soft(kind: str, model: Path, storage: str = "online") -> str:
    return (
        f'teachers: {{lm: {{kind: {kind}, model: "{model}", topk: 4, storage: {storage}}}}}\n'
        "distill:\n  - {tap: tokens, teacher: lm, loss: soft_label, weight: 0.5, temperature: 2}\n"
    )


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return masked_bert(
        tmp_path_factory.mktemp("masked"), [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
    )


@pytest.fixture
def piece_lm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, corpus: Path) -> Path:
    """The folder of a language model over the characters of the corpus."""
    folder = tmp_path / "lm"
    folder.mkdir()
    (folder / "config.json").write_text('{"kind": "causal"}')
    lines = (corpus / "train" / "text").read_text().splitlines()
    tokenizer = CharacterTokenizer.train(dict.fromkeys(line.split(" ", 1)[1].lower() for line in lines))
    monkeypatch.setattr("retort.teachers.factory.is_causal_lm", lambda name: name == str(folder))
    monkeypatch.setattr("retort.teachers.factory.open_causal_lm", lambda name, device: TableLM(tokenizer))
    return folder


def logged(folder: Path) -> list[dict[str, Any]]:
    lines = [line for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]
    return [{name: value for name, value in line.items() if name != "seconds"} for line in lines]


def test_lst_trains_resumes_and_ships_nothing(
    read_recipe: ReadRecipe, tmp_path: Path, piece_lm: Path
) -> None:
    recipe = read_recipe(extra=soft("causal_lm", piece_lm), name="lst")
    outcome = train(recipe, tmp_path / "whole", silent, silent)
    lines = logged(outcome.folder)
    assert len(lines) == 6
    for line in lines:
        assert line["tokens.soft_label.spoken"] == 1.0  # EOS and spaces too
        assert 0.5 < line["tokens.soft_label.mass"] < 1.0
    assert lines[-1]["tokens.soft_label"] < lines[0]["tokens.soft_label"]
    assert outcome.params == train(read_recipe(name="cif"), tmp_path / "whole", silent, silent).params

    def stop(step: int, values: Mapping[str, Any]) -> None:
        if step == 8 and "loss" in values:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(recipe, tmp_path / "broken", silent, stop)
    again = train(recipe, tmp_path / "broken", silent, silent)
    assert logged(again.folder) == lines
    first, second = (load_file(each.folder / "model" / "model.safetensors") for each in (outcome, again))
    assert all(torch.equal(value, second[name]) for name, value in first.items())


def test_a_store_gives_the_same_losses_and_teach_fills_it(
    read_recipe: ReadRecipe, tmp_path: Path, piece_lm: Path
) -> None:
    stages: list[str] = []
    losses = []
    for storage in ("online", "disk"):
        recipe = read_recipe("training.steps=4", extra=soft("causal_lm", piece_lm, storage), name=storage)
        train(recipe, tmp_path, lambda name, *_: stages.append(name), silent)
        losses.append([line["loss"] for line in logged(tmp_path / storage)])
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)
    assert "teacher lm" in stages
    (done,) = teach(recipe, tmp_path, silent, silent)
    assert (done.read, len(done.store)) == (0, len(training_texts(recipe)))
    fresh = read_recipe(extra=soft("causal_lm", piece_lm), name="fresh")
    with pytest.raises(UserError, match=r"not exist yet.*retort train"):
        teach(fresh, tmp_path, silent, silent)


def test_bert_soft_labels_on_its_own_pieces(read_recipe: ReadRecipe, tmp_path: Path, bert: Path) -> None:
    recipe = read_recipe(
        "training.steps=4", "tokenizer.kind=teacher", "tokenizer.teacher=lm",
        extra=soft("masked_lm", bert, "disk"), name="bert_soft",
    )  # fmt: skip
    outcome = train(recipe, tmp_path, silent, silent)
    for line in logged(outcome.folder):
        assert line["tokens.soft_label.spoken"] == 1.0
        assert 0.1 < line["tokens.soft_label.mass"] < 1.0
        assert line["tokens.soft_label"] > 0


def test_with_vectors_of_another_teacher(
    read_recipe: ReadRecipe, tmp_path: Path, piece_lm: Path, tone_bert: Path
) -> None:
    extra = soft("causal_lm", piece_lm).replace(
        "teachers: {", f'teachers: {{bert: {{model: "{tone_bert}"}}, '
    )
    extra += "  - {tap: linguistic, teacher: bert, loss: regression, weight: 0.01}\n"
    outcome = train(read_recipe("training.steps=4", extra=extra, name="both"), tmp_path, silent, silent)
    assert {"tokens.soft_label", "linguistic.regression"} <= logged(outcome.folder)[-1].keys()


def test_another_students_lm_is_one_line(
    read_recipe: ReadRecipe, tmp_path: Path, piece_lm: Path, corpus: Path
) -> None:
    recipe = read_recipe(
        "tokenizer.kind=bpe", "tokenizer.size=20", extra=soft("causal_lm", piece_lm), name="other"
    )
    with pytest.raises(UserError, match="pieces differ from the 20 pieces of the student"):
        train(recipe, tmp_path, silent, silent)
    assert open_tokenizer(tmp_path / "other" / "tokenizer").size == 20


def test_a_missing_model_is_reported_before_the_data_is_read(read_recipe: ReadRecipe, tmp_path: Path) -> None:
    recipe = read_recipe(extra=soft("causal_lm", tmp_path / "nowhere"))
    with pytest.raises(UserError, match="no such folder"):
        train(recipe, tmp_path, lambda *_: pytest.fail("features were made first"), silent)
