"""w2v-BERT 2.0 and Parakeet: equal to transformers', and independent of padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    ParakeetCTCConfig,
    ParakeetEncoder,
    ParakeetEncoderConfig,
    ParakeetFeatureExtractor,
    ParakeetForCTC,
    SeamlessM4TFeatureExtractor,
    Wav2Vec2BertConfig,
    Wav2Vec2BertModel,
)

from retort.audio.features import make_extractor
from retort.audio.mel import ParakeetFeatureConfig, W2vBertFeatureConfig
from retort.common.errors import UserError
from retort.config.schema import FeatureConfig
from retort.nn.conformer_encoders import copy_conformer_weights
from retort.nn.encoder import Encoder, make_encoder
from retort.nn.frontend import Conv2dConfig
from retort.nn.pretrained import PretrainedEncoderConfig
from retort.pretrained.speech import open_conformer_encoder, speech_architecture
from retort.students.factory import build_student
from retort.training.init import check_pretrained, start_from_pretrained
from tiny_speech import DIM

SIZES: dict[str, Any] = {
    "hidden_size": DIM, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 24,
}  # fmt: skip
KINDS = ["parakeet", "parakeet_ctc", "relative_key", "relative", "rotary"]


def tiny(kind: str) -> Any:
    torch.manual_seed(0)
    if kind.startswith("parakeet"):
        config = ParakeetEncoderConfig(**SIZES, conv_kernel_size=5, subsampling_conv_channels=4)
        whole = ParakeetForCTC(ParakeetCTCConfig(vocab_size=9, pad_token_id=8, encoder_config=config))
        model = whole if kind == "parakeet_ctc" else ParakeetEncoder(config)
    else:
        model = Wav2Vec2BertModel(
            Wav2Vec2BertConfig(
                **SIZES, feature_projection_input_dim=160, conv_depthwise_kernel_size=5, layerdrop=0.0,
                position_embeddings_type=kind, apply_spec_augment=False,
            )
        )  # fmt: skip
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.data += torch.rand_like(buffer)
    return model.eval()


def encoder_of(folder: Path, layers: int = 3, pool_after: tuple[int, ...] = ()) -> Encoder:
    config = PretrainedEncoderConfig(
        architecture=speech_architecture(str(folder)), layers=layers, dim=DIM,
        pool_after=list(pool_after),
    )  # fmt: skip
    made = make_encoder(Conv2dConfig(), config, 80).eval()
    copy_conformer_weights(open_conformer_encoder(str(folder)), made.frontend, list(made.layers))  # type: ignore[arg-type]
    return made


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder, made = tmp_path_factory.mktemp("model"), tiny(request.param)
    made.save_pretrained(folder)
    return folder, getattr(made, "encoder", made) if request.param == "parakeet_ctc" else made


def expected(model: Any, features: torch.Tensor) -> torch.Tensor:
    if isinstance(model, ParakeetEncoder):
        mask = torch.ones(features.shape[:2], dtype=torch.long)
        result: torch.Tensor = model(features, attention_mask=mask).last_hidden_state
        return result
    pairs = features[:, : features.shape[1] // 2 * 2].unflatten(1, (-1, 2)).flatten(2)
    result = model(pairs).last_hidden_state
    return result


@torch.no_grad()
@pytest.mark.parametrize("frames", [24, 31, 90])
def test_it_is_what_transformers_computes(model: tuple[Path, Any], frames: int) -> None:
    made, features = encoder_of(model[0]), torch.randn(1, frames, 80)
    hidden, lengths = made(features, torch.tensor([frames]))
    wanted = expected(model[1], features)
    assert int(lengths) == wanted.shape[1]
    torch.testing.assert_close(hidden, wanted, atol=1e-5, rtol=1e-4)


@torch.no_grad()
@pytest.mark.parametrize("pool_after", [(), (1,), (1, 3)])
def test_an_utterance_gives_the_same_in_any_batch(
    model: tuple[Path, Any], pool_after: tuple[int, ...]
) -> None:
    made = encoder_of(model[0], pool_after=pool_after).double()
    sizes = [57, 16, 120, 2, 119]
    batch = torch.full((len(sizes), 131, 80), float("nan"), dtype=torch.float64)
    for row, size in enumerate(sizes):
        batch[row, :size] = torch.randn(size, 80, dtype=torch.float64)
    for mode in (False, True):  # BatchNorm and all else: in training, too
        made.train(mode)
        for module in made.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = 0.0
            for name in ("activation_dropout", "attention_dropout"):
                if isinstance(getattr(module, name, None), float):
                    setattr(module, name, 0.0)
        together, lengths = made(batch, torch.tensor(sizes))
        for row, size in enumerate(sizes):
            alone, length = made(batch[row : row + 1, :size], torch.tensor([size]))
            count = int(length)
            assert count == int(lengths[row]) == int(made.output_lengths(torch.tensor([size])))
            # Parakeet computes its softmax in float32.
            torch.testing.assert_close(together[row, :count], alone[0, :count], atol=1e-6, rtol=1e-6)
            assert not together[row, count:].any()


@torch.no_grad()
def test_the_first_layers(model: tuple[Path, Any]) -> None:
    whole, part = encoder_of(model[0]), encoder_of(model[0], layers=2)
    given = torch.randn(2, 60, 80), torch.tensor([60, 43])
    torch.testing.assert_close(list(whole.each_layer(*given))[2][0], list(part.each_layer(*given))[2][0])
    lower, after = whole.lower(*given, 1)
    assert torch.equal(list(whole.each_layer(lower, after, 1))[-1][0], list(whole.each_layer(*given))[-1][0])


def test_gradients_in_training_under_autocast(model: tuple[Path, Any]) -> None:
    made = encoder_of(model[0]).train()
    with torch.autocast("cpu", torch.bfloat16):
        hidden, _ = made(torch.randn(2, 60, 80), torch.tensor([60, 43]))
    hidden.square().sum().backward()
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    nothing, none = made(torch.zeros(1, 1, 80), torch.tensor([0]))
    assert int(none) == 0
    assert not nothing.any()


@pytest.mark.parametrize("changed", [{"layers": 4}, {"dim": 8}, {"bins": 40}])
def test_sizes_that_it_does_not_have(model: tuple[Path, Any], changed: dict[str, int]) -> None:
    sizes = {"layers": 3, "dim": DIM, "bins": 80} | changed
    config = PretrainedEncoderConfig(
        architecture=speech_architecture(str(model[0])),
        layers=sizes["layers"],
        dim=sizes["dim"],
    )
    with pytest.raises(UserError):
        make_encoder(Conv2dConfig(), config, sizes["bins"])


@pytest.mark.parametrize("samples", [16000, 16079, 52345])
def test_features_are_those_of_transformers(samples: int) -> None:
    wave = np.random.default_rng(samples).normal(0, 0.1, samples).astype(np.float32)
    own = torch.from_numpy(make_extractor(ParakeetFeatureConfig())(wave))
    other = ParakeetFeatureExtractor()(wave, sampling_rate=16000, return_tensors="pt")
    assert len(own) == int(other.attention_mask.sum())
    torch.testing.assert_close(own, other.input_features[0, : len(own)])
    own = torch.from_numpy(make_extractor(W2vBertFeatureConfig())(wave))
    other = SeamlessM4TFeatureExtractor()(wave, sampling_rate=16000, return_tensors="pt")
    pairs = own[: len(own) // 2 * 2].unflatten(0, (-1, 2)).flatten(1)
    count = int(other.attention_mask.sum())
    assert len(pairs) == count
    torch.testing.assert_close(pairs, other.input_features[0, :count], atol=1e-4, rtol=1e-3)


@pytest.mark.parametrize("config", [ParakeetFeatureConfig(), W2vBertFeatureConfig()])
@pytest.mark.parametrize("samples", [0, 100, 250, 450])
def test_features_of_next_to_nothing(config: FeatureConfig, samples: int) -> None:
    made = make_extractor(config)(np.ones(samples, np.float32))
    assert made.shape[1] == 80
    assert np.isfinite(made).all()


def test_a_run_starts_from_its_weights(
    model: tuple[Path, Any], read_recipe: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = "parakeet" if isinstance(model[1], ParakeetEncoder) else "w2v_bert"
    settings = (
        "student.encoder.kind=pretrained",
        f"student.encoder.model={model[0]}", "student.encoder.layers=2", f"student.encoder.dim={DIM}",
    )  # fmt: skip
    recipe = read_recipe(f"features.kind={kind}", *settings)
    check_pretrained(recipe)
    student = build_student(recipe.student, 13, 80)
    assert start_from_pretrained(student, recipe.student.encoder.model) > 0
    made = encoder_of(model[0], layers=2).state_dict()
    for name, value in student.encoder.state_dict().items():
        assert torch.equal(value, made[name]), name
    for other in ("whisper", "wave"):
        with pytest.raises(UserError):
            check_pretrained(read_recipe(f"features.kind={other}", *settings))
