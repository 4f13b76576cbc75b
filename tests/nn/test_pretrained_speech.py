from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from retort.common.errors import UserError
from retort.nn.encoder import Encoder, make_encoder
from retort.nn.frontend import Conv2dConfig
from retort.nn.pretrained import (
    PretrainedEncoderConfig,
    SpeechFrontend,
    SpeechTransformer,
    copy_speech_weights,
)
from retort.pretrained.speech import normalises_wave, open_speech_encoder, speech_architecture
from tiny_speech import DIM, KERNELS, KINDS, STRIDES, make_speech_encoder

SAMPLES = 160
Built = dict[tuple[str, str], tuple[Encoder, Any]]


def make(folder: Path, pool_after: tuple[int, ...] = (), dim: int = DIM, samples: int = SAMPLES) -> Encoder:
    config = PretrainedEncoderConfig(
        model=str(folder), architecture=speech_architecture(str(folder)), layers=1, dim=dim,
        pool_after=list(pool_after),
    )  # fmt: skip
    return make_encoder(Conv2dConfig(), config, samples)


def with_weights(encoder: Encoder, model: Any) -> Encoder:
    frontend, transformer = encoder.frontend, encoder.layers[0]
    assert isinstance(frontend, SpeechFrontend)
    assert isinstance(transformer, SpeechTransformer)
    taken = copy_speech_weights(model, frontend, transformer)
    assert taken == len(encoder.state_dict())
    return encoder


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """By kind and norm: the encoder with the model's weights, and the model as transformers opens it."""
    from transformers import AutoModel

    found = {}
    for kind, norm in KINDS:
        folder = make_speech_encoder(tmp_path_factory.mktemp("speech"), kind, norm)
        torch.manual_seed(0)
        encoder = with_weights(make(folder), open_speech_encoder(str(folder))).eval()
        found[kind, norm] = (encoder, AutoModel.from_pretrained(folder).eval())
    return found


@pytest.mark.parametrize("kind", KINDS, ids=str)
@torch.no_grad()
def test_an_utterance_alone_is_what_transformers_makes_of_it(built: Built, kind: tuple[str, str]) -> None:
    encoder, model = built[kind]
    for frames in (3, 4, 31):
        features = torch.randn(1, frames, SAMPLES)
        hidden, lengths = encoder(features, torch.tensor([frames]))
        expected = model(features.flatten(1)).last_hidden_state
        assert hidden.shape == expected.shape
        assert int(lengths) == expected.shape[1]
        torch.testing.assert_close(hidden, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS, ids=str)
@pytest.mark.parametrize("garbage", [0.0, 1e4, float("nan")])
@torch.no_grad()
def test_an_utterance_gives_the_same_alone_and_in_a_batch(
    built: Built, kind: tuple[str, str], garbage: float
) -> None:
    encoder, _ = built[kind]
    utterances = [torch.randn(length, SAMPLES) for length in (40, 0, 23, 1, 7, 41)]
    lengths = torch.tensor([len(each) for each in utterances])
    features = torch.full((len(utterances), 64, SAMPLES), garbage)
    for row, utterance in enumerate(utterances):
        features[row, : len(utterance)] = utterance
    hidden, frames = encoder(features, lengths)
    assert frames.tolist() == encoder.output_lengths(lengths).tolist()
    for row, utterance in enumerate(utterances):
        alone, count = encoder(utterance[None], lengths[row : row + 1])
        size = int(count)
        assert size == int(frames[row])
        torch.testing.assert_close(hidden[row, :size], alone[0, :size], atol=1e-5, rtol=1e-5)
        assert (hidden[row, size:] == 0).all()


@torch.no_grad()
def test_a_group_norm_over_a_padded_batch_would_include_the_padding(built: Built) -> None:
    _, model = built["wav2vec2", "group"]
    wave = torch.randn(1, 30 * SAMPLES)
    padded = torch.nn.functional.pad(wave, (0, 30 * SAMPLES))
    alone = model.feature_extractor(wave)
    together = model.feature_extractor(padded)[..., : alone.shape[-1]]
    assert (alone - together).abs().max() > 0.05


def test_lengths_are_a_loop_over_convolutions(built: Built) -> None:
    encoder, model = built["hubert", "layer"]
    counts = list(range(60))
    expected = []
    for count in counts:
        size = count * SAMPLES
        for kernel, stride in zip(KERNELS, STRIDES):
            size = len(range(0, size - kernel + 1, stride))
        expected.append(size)
    assert encoder.output_lengths(torch.tensor(counts)).tolist() == expected
    assert encoder.subsampling == 2
    assert isinstance(encoder.frontend, SpeechFrontend)
    shortest = encoder.frontend.shortest
    assert model.feature_extractor(torch.zeros(1, shortest)).shape[-1] == 1
    with pytest.raises(RuntimeError, match="ernel size"):
        model.feature_extractor(torch.zeros(1, shortest - 1))


def test_pooling_after_it(built: Built, tmp_path: Path) -> None:
    encoder = make(make_speech_encoder(tmp_path), pool_after=(1,)).eval()
    features, lengths = torch.randn(2, 40, SAMPLES), torch.tensor([40, 9])
    layers = list(encoder.each_layer(features, lengths))
    hidden, frames = encoder(features, lengths)
    assert encoder.subsampling == 4
    assert [each.tolist() for _, each in layers] == [[19, 4], [10, 2]]
    assert torch.equal(layers[-1][1], frames)
    assert hidden.shape == (2, 10, DIM)


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_weight_learns_and_padding_gets_no_gradient(built: Built, kind: tuple[str, str]) -> None:
    encoder = copy.deepcopy(built[kind][0]).train()
    features = torch.randn(2, 40, SAMPLES, requires_grad=True)
    hidden, _ = encoder(features, torch.tensor([40, 21]))
    (hidden * torch.randn_like(hidden)).sum().backward()
    assert [name for name, each in encoder.named_parameters() if each.grad is None] == []
    assert features.grad is not None
    assert (features.grad[1, 21:] == 0).all()
    assert (features.grad[0, :39].abs().sum(-1) > 0).all()


def test_nothing_is_kept_for_the_gradient_of_what_is_frozen(built: Built) -> None:
    encoder = copy.deepcopy(built["wav2vec2", "group"][0]).train().requires_grad_(False)
    hidden, _ = encoder(torch.randn(1, 20, SAMPLES), torch.tensor([20]))
    assert not hidden.requires_grad


def test_training_draws_from_torch_alone(built: Built) -> None:
    """Masks of transformers come from numpy, which no checkpoint keeps."""
    encoder = copy.deepcopy(built["wavlm", "layer"][0]).train()
    features, lengths = torch.randn(2, 60, SAMPLES), torch.tensor([60, 50])

    def outputs() -> Tensor:
        torch.manual_seed(3)
        return encoder(features, lengths)[0].detach()

    assert torch.equal(outputs(), outputs())


def test_it_is_rebuilt_without_its_folder(built: Built, tmp_path: Path) -> None:
    import json
    import shutil

    folder = make_speech_encoder(tmp_path / "there", "wavlm", "layer", num_buckets=40)
    values = json.loads(json.dumps(speech_architecture(str(folder))))
    encoder = with_weights(make(folder), open_speech_encoder(str(folder))).eval()
    shutil.rmtree(folder)
    config = PretrainedEncoderConfig(architecture=values, layers=1, dim=DIM, pool_after=[])
    again = make_encoder(Conv2dConfig(), config, SAMPLES).eval()
    again.load_state_dict(encoder.state_dict())
    features, lengths = torch.randn(1, 25, SAMPLES), torch.tensor([25])
    assert torch.equal(encoder(features, lengths)[0], again(features, lengths)[0])


def test_it_can_be_counted_without_memory(tmp_path: Path) -> None:
    folder = make_speech_encoder(tmp_path)
    with torch.device("meta"):
        encoder = make(folder)
    model = open_speech_encoder(str(folder))
    assert all(each.is_meta for each in encoder.parameters())
    assert sum(each.numel() for each in encoder.parameters()) == sum(e.numel() for e in model.parameters())


class TestOpening:
    def test_a_head_is_left_out(self, tmp_path: Path) -> None:
        from transformers import HubertConfig, HubertForCTC

        folder = make_speech_encoder(tmp_path / "bare", "hubert", "layer")
        model = HubertForCTC(HubertConfig.from_pretrained(folder))
        model.save_pretrained(tmp_path / "ctc")
        opened = open_speech_encoder(str(tmp_path / "ctc")).state_dict()
        wanted = {name: value for name, value in model.hubert.state_dict().items() if "masked" not in name}
        assert opened.keys() == wanted.keys()
        assert all(torch.equal(opened[name], value) for name, value in wanted.items())

    def test_weights_under_their_names_of_old(self, tmp_path: Path) -> None:
        """The checkpoints that most people use were saved before weight norm was a parametrisation."""
        from safetensors.torch import load_file, save_file

        folder = make_speech_encoder(tmp_path)
        wanted = open_speech_encoder(str(folder)).state_dict()
        start = "encoder.pos_conv_embed.conv"
        old = {
            f"{start}.parametrizations.weight.original{place}": f"{start}.weight_{name}"
            for place, name in enumerate("gv")
        }
        weights = load_file(folder / "model.safetensors")
        assert old.keys() <= weights.keys()
        renamed = {old.get(name, name): value for name, value in weights.items()}
        save_file(renamed, folder / "model.safetensors", {"format": "pt"})
        opened = open_speech_encoder(str(folder)).state_dict()
        assert all(torch.equal(opened[name], value) for name, value in wanted.items())

    def test_normalisation_of_the_wave(self, tmp_path: Path) -> None:
        for normalise in (True, False):
            folder = make_speech_encoder(tmp_path / str(normalise), normalise=normalise)
            assert normalises_wave(str(folder)) is normalise
        (folder / "preprocessor_config.json").unlink()
        assert normalises_wave(str(folder)) is None

    def test_models_with_other_inputs(self, tmp_path: Path, uncased_folder: Path) -> None:
        with pytest.raises(UserError, match=r"is bert\. Choose one of wav2vec2, hubert"):
            speech_architecture(str(uncased_folder))
        folder = make_speech_encoder(tmp_path, "hubert", conv_pos_batch_norm=True)
        with pytest.raises(UserError, match="BatchNorm, whose statistics"):
            speech_architecture(str(folder))
        with pytest.raises(UserError, match=r"no such folder.*facebook/hubert"):
            speech_architecture("./nowhere")

    def test_weights_that_are_missing(self, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        folder = make_speech_encoder(tmp_path)
        weights = load_file(folder / "model.safetensors")
        del weights["encoder.layers.1.attention.q_proj.weight"]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        with pytest.raises(UserError, match=r"weights lack encoder\.layers\.1\.attention\.q_proj\.weight"):
            open_speech_encoder(str(folder))

    def test_sizes_that_do_not_fit(self, tmp_path: Path) -> None:
        folder = make_speech_encoder(tmp_path)
        with pytest.raises(UserError, match=r"Set student\.encoder\.dim: 16"):
            make(folder, dim=32)
        with pytest.raises(UserError, match="stride of the speech encoder is 320 samples, but frames have 220"):
            make(folder, samples=220)


@pytest.fixture
def uncased_folder(make_bert: Any) -> Path:
    folder: Path = make_bert()
    return folder
