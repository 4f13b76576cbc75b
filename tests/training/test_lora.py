"""LoRA while training; what is evaluated and saved is an ordinary student."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from retort.common.errors import UserError
from retort.config.schema import LoraConfig, Recipe
from retort.decoding.recogniser import load
from retort.engine.checkpoints import CheckpointFolder, average_weights, read_weights
from retort.engine.parameters import freeze
from retort.info.describe import describe
from retort.nn.lora import merge_lora
from retort.students.factory import build_student
from retort.training.lora import adapted_layers, add_lora, lora_parameters
from retort.training.run import Outcome, train
from tiny_speech import DIM, make_speech_encoder, make_whisper, tiny_whisper, whisper_settings

ReadRecipe = Callable[..., Recipe]
SHORT = ("training.steps=3", "training.evaluate_steps=1", "training.log_steps=1", "batches.seconds=8")
LORA = ("training.lora.parts=[encoder]", "training.lora.rank=3")


@pytest.fixture(scope="module")
def whisper(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_whisper(tmp_path_factory.mktemp("whisper"))


def run(recipe: Recipe, root: Path) -> Outcome:
    return train(recipe, root, lambda *_: None, lambda *_: None)


def weights(outcome: Outcome) -> dict[str, torch.Tensor]:
    return read_weights(outcome.folder / "model" / "model.safetensors")


@pytest.mark.parametrize("kind", ["whisper", "wav2vec2", "wavlm", "conformer"])
def test_merged_weights_compute_what_the_adapters_do(
    kind: str, tmp_path: Path, read_recipe: ReadRecipe
) -> None:
    bins = 80
    if kind == "whisper":
        recipe = read_recipe(*whisper_settings(make_whisper(tmp_path / kind)))
    elif kind == "conformer":
        recipe, bins = read_recipe(), 40
    else:
        bins = 160
        recipe = read_recipe(
            "features.kind=wave", "student.encoder.kind=pretrained",
            f"student.encoder.model={make_speech_encoder(tmp_path / kind, kind)}", "student.encoder.layers=1",
            f"student.encoder.dim={DIM}",
        )  # fmt: skip
    torch.manual_seed(0)
    student = build_student(recipe.student, 13, bins).eval()
    plain = build_student(recipe.student, 13, bins).eval()
    plain.load_state_dict(student.state_dict())
    config = LoraConfig(["encoder.layers", "decoder.layers"], rank=2, alpha=5.0)
    before = {name for name, each in student.named_parameters() if each.requires_grad}
    count = lora_parameters(adapted_layers(student, config), config)
    add_lora(student, config)
    given = torch.randn(2, 40, bins), torch.tensor([40, 33])
    with torch.no_grad():
        found, expected = student.encode(*given).hidden, plain.encode(*given).hidden
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    learning = {name: each for name, each in student.named_parameters() if each.requires_grad}
    adapters = {name: each for name, each in learning.items() if "lora" in name}
    assert sum(each.numel() for each in adapters.values()) == count
    others = {name for name in before if not name.startswith(("encoder.layers", "decoder.layers"))}
    assert learning.keys() - adapters.keys() == others
    for each in adapters.values():
        torch.nn.init.normal_(each, std=0.3)
    tokens, counts = torch.randint(4, 13, (2, 4)), torch.tensor([4, 3])
    losses = student(*given, tokens, counts).losses
    sum(losses.values(), torch.zeros(())).backward()
    for name, each in adapters.items():
        assert each.grad is not None, name
        assert each.grad.any(), name
    merged = merge_lora(student.state_dict(), config)
    assert merged.keys() == plain.state_dict().keys()
    plain.load_state_dict(merged)
    with torch.no_grad():
        for name, loss in plain(*given, tokens, counts).losses.items():
            torch.testing.assert_close(loss, losses[name].detach(), rtol=1e-4, atol=1e-4)


def test_a_trained_model_knows_nothing_of_adapters(
    whisper: Path, tmp_path: Path, read_recipe: ReadRecipe
) -> None:
    recipe = read_recipe(*whisper_settings(whisper), *LORA, *SHORT)
    outcome = run(recipe, tmp_path / "exp")
    model, own = weights(outcome), tiny_whisper().encoder.state_dict()
    assert not [name for name in model if "lora" in name or "base_layer" in name]
    assert not torch.equal(model["encoder.layers.0.expand.weight"], own["layers.0.fc1.weight"])
    for name, other in (
        ("layers.0.expand.bias", "layers.0.fc1.bias"),
        ("frontend.conv1.weight", "conv1.weight"),
    ):
        assert torch.equal(model[f"encoder.{name}"], own[other])
    recogniser = load(outcome.folder)
    assert recogniser.student.state_dict().keys() == build_student(recipe.student, 13, 80).state_dict().keys()
    folder = CheckpointFolder(outcome.folder / "checkpoints")
    each = [
        merge_lora(read_weights(folder.path(step) / "student.safetensors"), recipe.training.lora)
        for step in outcome.averaged
    ]
    for name, value in average_weights(each).items():
        assert torch.equal(model[name], value), name

    shutil.rmtree(outcome.folder / "model")
    shutil.rmtree(folder.path(3))
    for name, value in weights(run(recipe, tmp_path / "exp")).items():
        assert torch.equal(model[name], value), name


def test_with_stored_layers_the_upper_ones_get_adapters(
    whisper: Path, tmp_path: Path, read_recipe: ReadRecipe
) -> None:
    recipe = read_recipe(*whisper_settings(whisper), *LORA, *SHORT, "training.stored_layers=2")
    model, own = weights(run(recipe, tmp_path / "exp")), tiny_whisper().encoder.state_dict()
    assert torch.equal(model["encoder.layers.1.expand.weight"], own["layers.1.fc1.weight"])
    assert not torch.equal(model["encoder.layers.2.expand.weight"], own["layers.2.fc1.weight"])
    with pytest.raises(UserError):
        run(
            read_recipe(*whisper_settings(whisper), *LORA, *SHORT, "training.stored_layers=3", "name=x"),
            tmp_path,
        )


def test_info_counts_the_adapters(whisper: Path, read_recipe: ReadRecipe) -> None:
    described = describe(read_recipe(*whisper_settings(whisper), *LORA, "tokenizer.size=13"))
    count = (
        3 * 3 * (4 * (DIM + DIM) + 2 * (DIM + 32))
    )  # rank, layers, four projections and two of the feed-forward
    assert any(line.startswith("adapters") and f"{count:,}" in line for line in described.lines)


@pytest.mark.parametrize(
    ("part", "frozen"),
    [("encoder.frontend", []), ("encoder.norm", []), ("nothing", []), ("encoder", ["encoder"])],
)
def test_parts_without_linear_layers(
    whisper: Path, read_recipe: ReadRecipe, part: str, frozen: list[str]
) -> None:
    student = build_student(read_recipe(*whisper_settings(whisper)).student, 13, 80)
    freeze(student, frozen)
    with pytest.raises(UserError):
        add_lora(student, LoraConfig([part]))


@pytest.mark.parametrize("override", ["rank=0", "alpha=0", "dropout=1", "dropout=-0.1"])
def test_numbers_that_cannot_be(read_recipe: ReadRecipe, override: str) -> None:
    with pytest.raises(UserError):
        read_recipe(f"training.lora.{override}")
