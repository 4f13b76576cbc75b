"""A student whose encoder is a pretrained speech model: from its folder to a trained model that needs nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from retort.common.errors import UserError
from retort.config.schema import Recipe
from retort.decoding.recogniser import load
from retort.info.describe import describe
from retort.pretrained.speech import open_speech_encoder
from retort.students.factory import build_student
from retort.students.hybrid import HybridStudentConfig
from retort.training.run import train
from tiny_speech import DIM, make_speech_encoder

ReadRecipe = Callable[..., Recipe]
StartOf = Callable[[Recipe, Path], dict[str, Tensor]]
WAVE = ("features.kind=wave",)


def settings(folder: Path | str) -> tuple[str, ...]:
    encoder = {"kind": "pretrained", "model": folder, "layers": 1, "dim": DIM}
    return (*WAVE, *(f"student.encoder.{key}={value}" for key, value in encoder.items()))


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_speech_encoder(tmp_path_factory.mktemp("speech"), "wav2vec2", "group")


def test_a_trained_model_stands_alone(tmp_path: Path, corpus: Path, read_recipe: ReadRecipe) -> None:
    speech = make_speech_encoder(tmp_path / "speech", "hubert", "group")
    recipe = read_recipe(
        *settings(speech), "training.freeze=[encoder.frontend.extractor]", "training.rates={encoder: 0.1}",
        "augment.time_masks=2", "augment.speeds=[0.9,1.0]",
    )  # fmt: skip
    reported: dict[str, float] = {}

    def report(step: int, values: Mapping[str, float]) -> None:
        reported.update(values)

    outcome = train(recipe, tmp_path / "exp", lambda *_: None, report)
    own = open_speech_encoder(str(speech)).state_dict()
    assert reported["init.speech"] == len(own)
    trained = outcome.recogniser.student.state_dict()
    for name, value in own.items():
        kind, _, rest = name.partition(".")
        where = {"feature_extractor": "frontend.extractor", "feature_projection": "frontend.projection"}
        found = trained[f"encoder.{where.get(kind, 'layers.0.model')}.{rest}"]
        assert torch.equal(found, value) is (kind == "feature_extractor"), name
    wave = corpus / "test" / "wav" / "test-000.wav"
    recognised = outcome.recogniser.transcribe(wave)
    shutil.rmtree(speech)
    moved = shutil.copytree(outcome.folder / "model", tmp_path / "elsewhere")
    assert str(speech) not in (moved / "config.json").read_text()
    assert json.loads((moved / "config.json").read_text())["features"]["kind"] == "wave"
    again = load(moved)
    assert again.transcribe(wave) == recognised
    assert again.fingerprint() == outcome.recogniser.fingerprint()
    assert again.frame_seconds == 0.02
    features = [torch.randn(length, 160) for length in (90, 40)]
    alone = [again.encode([each]).hidden[0] for each in features]
    together = again.encode(features)
    for row, hidden in enumerate(alone):
        torch.testing.assert_close(together.hidden[row, : len(hidden)], hidden, atol=1e-5, rtol=1e-5)


def test_a_run_starts_from_its_weights(
    speech: Path, tmp_path: Path, read_recipe: ReadRecipe, start_of: StartOf
) -> None:
    first = start_of(read_recipe(*settings(speech)), tmp_path / "exp")
    weights = open_speech_encoder(str(speech)).state_dict()
    for name, value in weights.items():
        if name.startswith("encoder."):
            assert torch.equal(first[f"encoder.layers.0.model.{name.removeprefix('encoder.')}"], value)


def test_a_wave_that_the_model_does_not_know(
    speech: Path, tmp_path: Path, read_recipe: ReadRecipe, start_of: StartOf
) -> None:
    with pytest.raises(UserError, match=r"of unit variance\. Set features\.cmvn: true"):
        train(
            read_recipe(*settings(speech), "features.cmvn=false"),
            tmp_path / "exp", lambda *_: None, lambda *_: None,
        )  # fmt: skip
    plain = make_speech_encoder(tmp_path / "plain", "wavlm", normalise=False)
    with pytest.raises(UserError, match=r"without normalisation\. Set features\.cmvn: false"):
        train(read_recipe(*settings(plain)), tmp_path / "exp", lambda *_: None, lambda *_: None)
    with pytest.raises(UserError, match=r"Set student\.encoder\.dim: 16"):
        train(
            read_recipe(*settings(plain), "student.encoder.dim=32", "features.cmvn=false"),
            tmp_path / "exp", lambda *_: None, lambda *_: None,
        )  # fmt: skip
    assert not (tmp_path / "exp" / "tiny" / "tokenizer").exists()  # so that the mended recipe is taken
    start_of(read_recipe(*settings(plain), "features.cmvn=false"), tmp_path / "exp")


def test_a_hybrid_student_recognises_with_it(speech: Path, read_recipe: ReadRecipe) -> None:
    recipe = read_recipe(*settings(speech))
    student = build_student(HybridStudentConfig(encoder=recipe.student.encoder), 5, 160)
    output = student(torch.randn(2, 30, 160), torch.tensor([30, 9]), torch.full((2, 4), 3))
    assert output.taps["frames.1"].lengths.tolist() == [14, 4]
    assert student.positions(SimpleNamespace(senones=torch.full((2, 4), 3))) == 8
    assert set(student.tap_dims) == {"senones", "frames.1", "encoder"}


def test_info(speech: Path, read_recipe: ReadRecipe) -> None:
    described = describe(
        read_recipe(*settings(speech), "tokenizer.size=13", "student.encoder.pool_after=[1]")
    )
    model = open_speech_encoder(str(speech))
    assert described.parts["encoder"] == sum(each.numel() for each in model.parameters())
    assert described.lines[0] == "features   the wave, 16,000 samples a second"
    assert described.lines[1] == (f"encoder    {speech}, dim {DIM}, pooled after 1: one frame every 40 ms")
    with pytest.raises(UserError, match=r"no such folder.*facebook/hubert"):
        describe(read_recipe(*settings("/nowhere/at/all"), "tokenizer.size=13"))


@pytest.mark.parametrize(
    ("override", "wanted"),
    [
        ("features.kind=fbank", "Set features.kind: wave"),
        ("student.encoder.kind=conformer", "student.encoder.model"),
        ("features.bins=80", "kind wave"),
        ("augment.frequency_masks=2", "no frequency bins"),
        ("student.encoder.layers=2", "student.encoder.layers is 2"),
        ("student.cif.context_layers=1", "student.cif.context_layers is 1"),
        ("student.faithful=true", "encoder.kind is pretrained"),
        ("student.encoder.model=", "Set a model"),
        ("student.encoder.kind=tdnnf features.kind=fbank", "student.encoder.model"),
    ],
)
def test_what_does_not_go_with_it(speech: Path, read_recipe: ReadRecipe, override: str, wanted: str) -> None:
    with pytest.raises(UserError, match=wanted):
        read_recipe(*settings(speech), *override.split())
