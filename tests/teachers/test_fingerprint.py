"""What makes a teacher another one, and its store another store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from retort.teachers import MaskedLMTeacher, open_store, open_teacher_model
from retort.teachers.masked_lm import MaskedLMConfig

MakeBert = Callable[..., Path]


def test_a_moved_model_keeps_its_store(uncased: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    shutil.copytree(uncased, moved)
    first, second = (MaskedLMTeacher(MaskedLMConfig(model=str(each))) for each in (uncased, moved))
    assert open_store(first, tmp_path).folder == open_store(second, tmp_path).folder


def test_reading_does_not_change_it(uncased: Path) -> None:
    teacher = MaskedLMTeacher(MaskedLMConfig(model=str(uncased)))
    before = teacher.identity()
    teacher.read(["hello", "hello world " * 20])
    assert teacher.identity() == before
    assert json.loads(json.dumps(before)) == before


def test_weights_layers_case_and_tokenizer_make_another(
    uncased: Path, cased: Path, make_bert: MakeBert, tmp_path: Path
) -> None:
    heavier = tmp_path / "heavier"
    shutil.copytree(uncased, heavier)
    weights = load_file(heavier / "model.safetensors")
    name = next(name for name in weights if "layer.1.output.dense.weight" in name)
    weights[name][0, 0] += 1e-3
    save_file(weights, heavier / "model.safetensors", {"format": "pt"})
    configs = [
        MaskedLMConfig(model=str(uncased)),
        MaskedLMConfig(model=str(cased)),  # the same weights, another tokenizer
        MaskedLMConfig(model=str(heavier)),
        MaskedLMConfig(model=str(uncased), layers=[1]),
        MaskedLMConfig(model=str(uncased), case="lower"),
    ]
    folders = [open_store(open_teacher_model(config), tmp_path).folder for config in configs]
    assert len(set(folders)) == len(configs)


def test_a_model_without_a_pooler_has_one_name(uncased: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(uncased, bare)
    weights = load_file(bare / "model.safetensors")
    save_file(
        {name: value for name, value in weights.items() if "pooler" not in name},
        bare / "model.safetensors",
        {"format": "pt"},
    )
    keys = set()
    for seed in (1, 2):
        torch.manual_seed(seed)
        keys.add(str(open_teacher_model(MaskedLMConfig(model=str(bare))).identity()["weights"]))
    assert len(keys) == 1
