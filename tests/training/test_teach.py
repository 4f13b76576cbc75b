from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from retort.common.errors import UserError
from retort.config.schema import Recipe
from retort.corpora.open_cuts import open_cuts
from retort.engine.log import read_metrics
from retort.teachers import Estimate, MaskedLMTeacher, StoredTeacher, open_store, open_teacher
from retort.teachers.teacher import TeacherOutput
from retort.training.run import train
from retort.training.teach import (
    complete_stores,
    normalised_texts,
    store_root,
    teach,
    teach_in_processes,
    training_texts,
)

ReadRecipe = Callable[..., Recipe]
WriteRecipe = Callable[..., Path]


def taught(bert: Path, storage: str = "disk") -> str:
    return (
        f'teachers: {{bert: {{model: "{bert}", case: lower, storage: {storage}}}}}\n'
        "distill:\n"
        "  - {tap: acoustic, teacher: bert, loss: contrastive, temperature: 0.1}\n"
        "  - {tap: linguistic, teacher: bert, loss: regression, weight: 0.01}\n"
    )


def silent(*_: object) -> None:
    return None


@pytest.fixture
def recipe(read_recipe: ReadRecipe, tone_bert: Path) -> Recipe:
    return read_recipe("training.steps=6", extra=taught(tone_bert), name="disk")


def losses(folder: Path) -> list[float]:
    return [line["loss"] for line in read_metrics(folder / "metrics.jsonl") if "loss" in line]


def count_readings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    asked: list[str] = []
    read = MaskedLMTeacher.read

    def counted(teacher: MaskedLMTeacher, texts: list[str]) -> list[TeacherOutput]:
        asked.extend(texts)
        return read(teacher, texts)

    monkeypatch.setattr(MaskedLMTeacher, "read", counted)
    return asked


class TestTeach:
    def test_the_texts_are_the_students(self, recipe: Recipe, corpus: Path) -> None:
        lines = (corpus / "train" / "text").read_text().splitlines()
        assert set(training_texts(recipe)) == {line.split(" ", 1)[1].lower() for line in lines}

    def test_it_reads_once_and_says_what_it_will_take(
        self, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = count_readings(monkeypatch)
        reported: list[tuple[str, Path, Estimate]] = []
        (done,) = teach(recipe, tmp_path, silent, lambda *each: reported.append(each))
        texts = training_texts(recipe)
        assert (done.name, done.read, done.missing) == ("bert", len(texts), 0)
        assert done.store.folder.parent == store_root(tmp_path)
        assert [(name, folder) for name, folder, _ in reported] == [("bert", done.store.folder)]
        assert sorted(asked) == sorted(texts)
        (again,) = teach(recipe, tmp_path, silent, silent)
        assert (again.read, len(asked)) == (0, len(texts))

    def test_processes_of_torchrun_share_the_work(
        self, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("WORLD_SIZE", "2")
        counts = []
        for rank in ("0", "1"):
            monkeypatch.setenv("RANK", rank)
            (done,) = teach(recipe, tmp_path, silent, silent)
            counts.append((done.read, done.missing))
        total = len(training_texts(recipe))
        assert counts == [(total - counts[0][1], counts[0][1]), (counts[0][1], 0)]
        assert 0 < counts[0][0] < total

    @pytest.mark.parametrize(("rank", "world"), [("x", "2"), ("2", "2"), ("-1", "2")])
    def test_an_environment_that_makes_no_sense(
        self, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rank: str, world: str
    ) -> None:
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", world)
        with pytest.raises(UserError, match="RANK"):
            teach(recipe, tmp_path, silent, silent)

    def test_a_recipe_without_teachers_or_data(self, read_recipe: ReadRecipe, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no row of distill names a teacher"):
            teach(read_recipe(), tmp_path, silent, silent)
        with pytest.raises(UserError, match=r"data\.train is empty"):
            training_texts(read_recipe("data.train=[]"))
        with pytest.raises(UserError, match="no training utterance"):
            training_texts(read_recipe("batches.minimum_seconds=30"))


class TestTrain:
    def test_a_store_gives_the_same_losses_as_the_teacher(
        self, recipe: Recipe, read_recipe: ReadRecipe, tone_bert: Path, tmp_path: Path
    ) -> None:
        online = read_recipe("training.steps=6", extra=taught(tone_bert, "online"), name="online")
        for each in (recipe, online):
            train(each, tmp_path, silent, silent)
        stored, fresh = losses(tmp_path / "disk"), losses(tmp_path / "online")
        assert len(stored) == 3
        assert stored == pytest.approx(fresh, rel=2e-3)

    def test_missing_texts_are_read_first_and_only_once(
        self, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked = count_readings(monkeypatch)
        stages: list[str] = []
        train(recipe, tmp_path, lambda name, *_: stages.append(name), silent)
        assert sorted(asked) == sorted(training_texts(recipe))
        assert "teacher bert" in stages
        recipe.name = "second"
        train(recipe, tmp_path, silent, silent)
        assert len(asked) == len(training_texts(recipe))

    def test_whether_texts_were_missing_does_not_change_the_student(
        self, recipe: Recipe, tmp_path: Path
    ) -> None:
        train(recipe, tmp_path / "in one go", silent, silent)
        torch.manual_seed(99)
        teach(recipe, tmp_path / "taught before", silent, silent)
        train(recipe, tmp_path / "taught before", silent, silent)
        assert losses(tmp_path / "in one go" / "disk") == losses(tmp_path / "taught before" / "disk")


@pytest.mark.long
def test_the_verb_under_torchrun(
    write_recipe: WriteRecipe, read_recipe: ReadRecipe, tone_bert: Path, tmp_path: Path
) -> None:
    path = write_recipe("verb", taught(tone_bert, "online"))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone"]
    done = subprocess.run(
        [*torchrun, "-m", "retort.cli", "teach", str(path)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "300"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    recipe = read_recipe(extra=taught(tone_bert), name="verb")
    teacher = MaskedLMTeacher(recipe.teachers["bert"])
    store: StoredTeacher = open_store(teacher, store_root(tmp_path / "exp"))
    assert store.missing(training_texts(recipe)) == []
    assert done.stdout.count("texts to compute, about") == 1
    assert str(store.folder.relative_to(tmp_path)) in done.stdout
    assert "set teachers.bert.storage: disk" in done.stdout


def test_of_two_runs_that_lack_the_same_targets_one_reads(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    teachers = [open_teacher(recipe.teachers["bert"], torch.device("cpu"), stores=tmp_path) for _ in range(2)]
    cuts = list(open_cuts(recipe.data.train[0]).cuts)
    texts = normalised_texts(cuts, recipe.normaliser)
    asked = count_readings(monkeypatch)
    runs = [
        threading.Thread(
            target=complete_stores,
            args=(recipe, {"bert": each}, lambda _: texts, silent, Accelerator(cpu=True), lambda _: None),
        )
        for each in teachers
    ]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert sorted(asked) == sorted(texts)
    assert all(not each.missing(texts) for each in teachers if isinstance(each, StoredTeacher))


def outputs_of(recipe: Recipe, root: Path, texts: list[str]) -> list[tuple[torch.Tensor, list[tuple[int, int]]]]:
    (stored,) = teach(recipe, root, silent, silent)
    assert (stored.read, stored.missing) == (0, 0)
    return [(each.vectors, each.spans) for each in stored.store.read(texts)]


def test_parts_and_processes_equal_one(recipe: Recipe, tmp_path: Path) -> None:
    texts = training_texts(recipe)
    (alone,) = teach(recipe, tmp_path / "one", silent, silent)
    assert alone.read == len(texts)
    expected = outputs_of(recipe, tmp_path / "one", texts)

    left = [
        teach(recipe, tmp_path / "parts", silent, silent, place=(number, 3, 0))[0].missing for number in (2, 0, 1)
    ]
    assert sorted(left, reverse=True) == left
    assert left[-1] == 0
    teach_in_processes(recipe, tmp_path / "processes", (1, 1), 2, silent, silent)
    for folder in ("parts", "processes"):
        for (vectors, spans), (found, theirs) in zip(expected, outputs_of(recipe, tmp_path / folder, texts)):
            assert spans == theirs
            assert torch.allclose(vectors.float(), found.float(), rtol=2**-10, atol=1e-6)  # a step of float16
