"""Configurations of earlier versions, without kinds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from retort.audio.fbank import FbankConfig
from retort.audio.wave import WaveConfig
from retort.audio.whisper import WhisperFeatureConfig
from retort.config.earlier_formats import by_kind, is_flat
from retort.config.kinds import STUDENTS
from retort.config.loading import read_dict, read_saved, recipe_to_dict
from retort.config.schema import Recipe
from retort.nn.conformer import ConformerConfig
from retort.nn.cross_decoder import CrossDecoderConfig
from retort.nn.decoder import AutoregressiveConfig
from retort.nn.parallel_decoder import ParallelConfig
from retort.nn.predictor import TransducerConfig
from retort.nn.pretrained import PretrainedEncoderConfig
from retort.nn.zipformer import ZipformerConfig
from retort.students.cif import CifConfig

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
    saved = recipe_to_dict(recipe)
    assert not is_flat(saved)
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


def test_features_had_the_keys_of_all_kinds() -> None:
    flat = {
        "bins": 64, "sampling_rate": 16000, "pad_seconds": 3.0, "floor": -16.0, "cmvn": False, "statistics": "utterance",
        "storage": "online",
    }  # fmt: skip
    for kind, expected in (
        ("fbank", FbankConfig(bins=64, cmvn=False, storage="online")),
        ("whisper", WhisperFeatureConfig(bins=64, pad_seconds=3.0)),
        ("wave", WaveConfig(cmvn=False)),
    ):
        values = {"name": "x", "features": {"kind": kind, **flat}}
        assert is_flat(values)
        recipe = read_dict(Recipe, values, "x")
        assert recipe.features == expected
        saved = recipe_to_dict(recipe)
        assert not is_flat(saved)
        assert read_dict(Recipe, saved, "x") == recipe


@pytest.mark.parametrize("kind", list(STUDENTS))
def test_a_student_had_the_keys_of_all_kinds(kind: str) -> None:
    flat = {
        "kind": kind, "faithful": False, "cif": {"tail": 0.3, "spare": 0}, "decoder": {"history_dropout": 0.2, "window": 0},
        "transducer": {"dim": 64}, "ctc_weight": 0.4, "ce_weight": 0.6, "quantity_weight": 0.7,
    }  # fmt: skip
    values = {"name": "x", "student": flat}
    assert is_flat(values)
    recipe = read_dict(Recipe, values, "x")
    given: dict[str, object] = {
        "cif": CifConfig(tail=0.3), "transducer": TransducerConfig(dim=64), "ctc_weight": 0.4, "ce_weight": 0.6,
        "quantity_weight": 0.7, "history_dropout": 0.2,
    }  # fmt: skip
    given["decoder"] = (CrossDecoderConfig if kind == "attention" else AutoregressiveConfig)(history_dropout=0.2)
    assert recipe.student.kind == kind
    known = vars(recipe.student).keys() & given.keys()
    assert known
    assert {key: getattr(recipe.student, key) for key in known} == {key: given[key] for key in known}
    saved = recipe_to_dict(recipe)
    assert not is_flat(saved)
    assert read_dict(Recipe, saved, "x") == recipe
