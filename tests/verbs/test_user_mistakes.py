from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from answers import Retort, is_one_line

MakeCorpus = Callable[..., Path]
WriteRecipe = Callable[..., Path]
Say = Callable[..., np.ndarray]


class TestMistakes:
    def test_recipes(self, retort: Retort, write_recipe: WriteRecipe, tmp_path: Path) -> None:
        recipe = write_recipe()
        is_one_line(retort("train", "aishell1/cfi"), "aishell1/cfi", "Did you mean aishell1/cif?")
        is_one_line(retort("train", "nowhere.yaml"), "nowhere.yaml")
        is_one_line(retort("train", recipe, "training.stesp=3"), "training.stesp", "Did you mean 'steps'?")
        is_one_line(retort("train", recipe, "training.steps=many"), "training.steps")
        is_one_line(retort("train", recipe, "student.encoder=3"), "student.encoder")
        is_one_line(retort("train", recipe, "seed"), "seed")
        is_one_line(retort("train", recipe, "student.kind=whispering"), "student.kind", "Choose one of")
        (tmp_path / "broken.yaml").write_text("name: [x\n")
        is_one_line(retort("info", "broken.yaml"), "broken.yaml")
        (tmp_path / "key.yaml").write_text("name: x\nstuden: {kind: cif}\n")
        is_one_line(retort("info", "key.yaml"), "studen", "key.yaml")
        is_one_line(retort("info", recipe), "tokenizer.size")
        assert not (tmp_path / "exp").exists()

    def test_data(self, retort: Retort, write_recipe: WriteRecipe, tmp_path: Path) -> None:
        recipe = write_recipe()
        is_one_line(retort("train", recipe, "data.train=[no/such/folder]"), "no/such/folder", "RETORT_DATA")
        (tmp_path / "broken.jsonl").write_text("{not a line\n")
        is_one_line(retort("train", recipe, "data.train=[broken.jsonl]"), "broken.jsonl:1", "not valid JSON")
        (tmp_path / "empty.jsonl").write_text("")
        is_one_line(retort("train", recipe, "data.train=[empty.jsonl]"), "empty.jsonl")
        (tmp_path / "cut.jsonl.gz").write_bytes(b"\x1f\x8b\x08")
        is_one_line(retort("train", recipe, "data.train=[cut.jsonl.gz]"), "cut.jsonl.gz")

    def test_models(
        self, retort: Retort, experiment: Path, corpus: Path, tmp_path: Path, write_recipe: WriteRecipe
    ) -> None:
        is_one_line(retort("evaluate", "exp/nowhere", corpus / "test"), "exp/nowhere")
        is_one_line(retort("transcribe", "exp/nowhere", "a.wav"), "exp/nowhere")
        is_one_line(retort("evaluate", experiment, "no/such/data"), "no/such/data")
        extra = (
            "teachers: {bert: {model: ./no-such-model}}\n"
            "distill: [{tap: acoustic, teacher: bert, loss: contrastive}]\n"
        )
        is_one_line(retort("train", write_recipe("taught", extra)), "no-such-model")
        is_one_line(retort("train", write_recipe("start"), "training.init=exp/nowhere"), "exp/nowhere")

    def test_corpora(self, retort: Retort, corpus: Path, tmp_path: Path) -> None:
        (tmp_path / "data").mkdir()
        (tmp_path / "data" / "wav.scp").write_text("a sph2pipe -f wav a.sph |\n")
        (tmp_path / "data" / "text").write_text("a HELLO\n")
        is_one_line(retort("prepare", "kaldi", "data", "out"), "wav.scp", "are commands")
        (tmp_path / "t.csv").write_text("file,words\na.wav,hello\n")
        is_one_line(retort("prepare", "table", "t.csv", "out"), "no column audio and no column text")
        for kind in ("kaldi", "table", "aishell1", "librispeech", "synthetic"):
            is_one_line(retort("prepare", kind, "nowhere", "out"), "nowhere")
        is_one_line(retort("prepare", "kaldi", "-", "out"))

    def test_the_folder_of_another_recipe(self, retort: Retort, write_recipe: WriteRecipe) -> None:
        recipe = write_recipe()
        assert retort("train", recipe, "data.test=[]").code == 0
        answer = retort("train", recipe, "data.test=[]", "training.peak_lr=0.1")
        is_one_line(answer, "exp/tiny", "training.peak_lr: 0.003 there, 0.1 here", "name=ANOTHER")
