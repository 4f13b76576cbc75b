"""Configurations of earlier versions, without kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from retort.config.earlier_formats import by_kind, is_flat
from retort.config.loading import read_dict, read_saved, recipe_to_dict
from retort.config.schema import Recipe
from retort.nn.conformer import ConformerConfig
from retort.nn.parallel_decoder import ParallelConfig
from retort.nn.pretrained import PretrainedEncoderConfig
from retort.nn.zipformer import ZipformerConfig

MODELS = Path(__file__).parents[2] / "models"
FLAT: dict[str, Any] = {
    "kind": "zipformer", "layers": 2, "dim": 8, "dropout": 0.2, "heads": 4, "feedforward": 2048, "kernel": 15,
    "bottleneck": 128, "dilations": [1], "attention_dropout": 0.3, "pool_after": [2],
    "zipformer": {
        "blocks": [1, 1], "downsampling": [1, 2], "dims": [4, 8], "heads": [1, 2], "feedforward": [8, 8], "kernels": [3, 3]
    },
}  # fmt: skip


@pytest.mark.parametrize("name", ["english", "mandarin", "speechocean762_cif", "speechocean762_lrd"])
def test_committed_models(name: str) -> None:
    config = json.loads((MODELS / name / "config.json").read_text())
    recipe = json.loads((MODELS / name / "recipe.json").read_text())
    assert config["format"] < 4
    parts = {key: config[key] for key in ("student", "features", "normaliser")}
    student = read_saved(Recipe, {**by_kind(parts, Recipe), "name": "model"}, name).student
    assert is_flat(recipe)
    trained = read_dict(Recipe, recipe, name).student.encoder
    if isinstance(student.encoder, ConformerConfig):
        assert trained == student.encoder
        assert (student.encoder.layers, student.encoder.dim, student.encoder.convolution_norm) == (6, 144, "layer")
    else:
        assert isinstance(student.encoder, PretrainedEncoderConfig)
        assert student.encoder.architecture["model_type"] == "whisper"
        assert student.encoder.layers == student.encoder.architecture["encoder_layers"]


def test_a_zipformer_had_its_sizes_in_a_part_of_their_own() -> None:
    recipe = read_dict(Recipe, {"name": "x", "student": {"encoder": FLAT}}, "x")
    assert recipe.student.encoder == ZipformerConfig(
        **FLAT["zipformer"], dropout=0.2, attention_dropout=0.3, pool_after=[2]
    )
    assert not is_flat(saved := recipe_to_dict(recipe))
    assert read_dict(Recipe, saved, "x") == recipe


def test_values_that_an_earlier_version_left_out_had_its_defaults() -> None:
    encoder = {key: FLAT[key] for key in ("heads", "kernel", "bottleneck", "dilations")}
    found = read_dict(Recipe, {"name": "x", "student": {"encoder": encoder}}, "x").student.encoder
    assert found == ConformerConfig(pool_after=[5, 10])


def test_a_decoder_had_the_keys_of_all_kinds() -> None:
    decoder = {"kind": "parallel", "glancing": 0.5, "layers": 3, "window": 0, "history_dropout": 0.0, "init_layers": []}
    values = {"name": "x", "student": {"encoder": {"kind": "conformer"}, "decoder": decoder}}
    assert is_flat(values)
    assert read_dict(Recipe, values, "x").student.decoder == ParallelConfig(glancing=0.5, layers=3)
