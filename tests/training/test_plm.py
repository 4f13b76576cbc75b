"""A pretrained language model inside the decoder: its embeddings, its layers, and what of it is shipped."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, AutoModelForMaskedLM

from retort.common.errors import UserError
from retort.config.schema import Recipe
from retort.decoding.recogniser import load
from retort.info.describe import describe
from retort.nn.decoder import AutoregressiveConfig, CausalLayer, CifDecoder
from retort.students.factory import build_student
from retort.text.tokenizers import CharacterTokenizer
from retort.training.init import check_plm, start_from_plm
from retort.training.run import train
from tiny_lms import causal_gpt, masked_bert

ReadRecipe = Callable[..., Recipe]
StartOf = Callable[[Recipe, Path], dict[str, Tensor]]
SPECIAL, LETTERS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "abcdefgh"
VOCABULARY = [*SPECIAL, *LETTERS, *(f"##{letter}" for letter in LETTERS)]
DIM = 32
"""Of the decoder of the tiny recipe, which has 2 heads and a feed-forward of 64, as the BERT below."""


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return masked_bert(tmp_path_factory.mktemp("masked"), VOCABULARY, DIM)


def with_plm(bert: Path) -> tuple[str, ...]:
    return (
        "tokenizer.kind=teacher", "tokenizer.teacher=bert", f"teachers.bert={{model: '{bert}'}}",
        "student.decoder.output=plm", f"student.decoder.output_dim={DIM}",
    )  # fmt: skip


def silent(*_: object) -> None:
    return None


class TestOutput:
    def test_the_rows_are_the_plms(
        self, bert: Path, read_recipe: ReadRecipe, tmp_path: Path, start_of: StartOf
    ) -> None:
        weights = start_of(read_recipe(*with_plm(bert), name="plm"), tmp_path)
        table = AutoModel.from_pretrained(bert).get_input_embeddings().weight
        symbols = json.loads((tmp_path / "plm" / "tokenizer" / "tokenizer.json").read_text())["symbols"]
        rows = weights["decoder.vocabulary.weight"]
        assert rows.shape == (4 + len(symbols), DIM)
        assert torch.equal(rows[4:], table[[VOCABULARY.index(symbol) for symbol in symbols]])
        assert torch.equal(rows[1:4], table[[0, 3, 1]])  # [PAD], [SEP], [UNK]
        assert (rows[0] == 0).all()
        assert (weights["decoder.vocabulary.bias"] == 0).all()

    @pytest.mark.parametrize("frozen", [True, False])
    def test_it_learns_unless_frozen_and_is_opened_without_the_plm(
        self, bert: Path, read_recipe: ReadRecipe, tmp_path: Path, frozen: bool
    ) -> None:
        plm = shutil.copytree(bert, tmp_path / "bert")
        freeze = ["training.freeze=[decoder.vocabulary.weight]"] if frozen else []
        recipe = read_recipe(
            "training.steps=4", *with_plm(plm), *freeze, "student.decoder.init=" + str(plm), name="plm"
        )
        outcome = train(recipe, tmp_path / "exp", silent, silent)
        shutil.rmtree(plm)
        shutil.move(outcome.folder / "model", tmp_path / "moved")
        model = load(tmp_path / "moved")
        assert model.fingerprint() == outcome.recogniser.fingerprint()
        table = AutoModel.from_pretrained(bert).get_input_embeddings().weight
        rows = load_file(tmp_path / "moved" / "model.safetensors")["decoder.vocabulary.weight"]
        assert torch.equal(rows[1], table[0]) == frozen
        assert str(tmp_path) not in (tmp_path / "moved" / "config.json").read_text()

    def test_info_counts_it(self, bert: Path, read_recipe: ReadRecipe) -> None:
        size, dim = 13, 24
        options = ("tokenizer.kind=teacher", "tokenizer.teacher=bert", "teachers.bert={model: nowhere}")
        plain = describe(read_recipe(*options, f"tokenizer.size={size}"))
        plm = describe(
            read_recipe(
                *options,
                f"tokenizer.size={size}",
                "student.decoder.output=plm",
                f"student.decoder.output_dim={dim}",
            )
        )
        assert plm.shipped - plain.shipped == DIM * dim + dim + size * dim + size - size * DIM

    def test_a_token_that_is_no_piece_is_one_line(self, bert: Path, read_recipe: ReadRecipe) -> None:
        recipe = read_recipe(*with_plm(bert))
        student = build_student(recipe.student, 6, recipe.features.bins)
        with pytest.raises(UserError, match=r"token 'x' is not one of its pieces"):
            start_from_plm(student, recipe, CharacterTokenizer("ax"))

    def test_another_width_is_one_line(self, bert: Path, read_recipe: ReadRecipe) -> None:
        recipe = read_recipe(*with_plm(bert), "student.decoder.output_dim=24", name="wide")
        with pytest.raises(UserError, match=r"output_dim is 24, but 32 in this model.*output_dim: 32"):
            check_plm(recipe)

    def test_a_step_equals_the_whole(self) -> None:
        torch.manual_seed(0)
        config = AutoregressiveConfig(layers=1, dim=8, heads=2, feedforward=16, output="plm", output_dim=5)
        decoder = CifDecoder(config, 11, 6).eval()
        previous, embeddings = torch.randint(2, 11, (2, 4)), torch.randn(2, 4, 6)
        states, logits = decoder(previous, embeddings)
        assert states.shape == (2, 4, 8)
        expected = states @ decoder.projection.weight.T + decoder.projection.bias
        expected = expected @ decoder.vocabulary.weight.T + decoder.vocabulary.bias
        torch.testing.assert_close(logits, expected)
        state = decoder.start(2, embeddings)
        for step in range(4):
            each, state = decoder.step(state, previous[:, step], embeddings[:, step])
            torch.testing.assert_close(each, logits[:, step])


class TestLayers:
    @pytest.mark.parametrize(("chosen", "number"), [("[]", 0), ("[2]", 1), ("[-1]", 2)])
    def test_a_layer_starts_as_the_plms(
        self, bert: Path, read_recipe: ReadRecipe, tmp_path: Path, start_of: StartOf, chosen: str, number: int
    ) -> None:
        plain = start_of(read_recipe(name="plain"), tmp_path)
        recipe = read_recipe(
            f"student.decoder.init={bert}", f"student.decoder.init_layers={chosen}", name="init"
        )
        weights = start_of(recipe, tmp_path)
        model = AutoModelForMaskedLM.from_pretrained(bert).bert
        source = model.encoder.layer[number]
        before = (
            model.embeddings.LayerNorm if number == 0 else model.encoder.layer[number - 1].output.LayerNorm
        )
        expected = {
            "layers.0.query.weight": source.attention.self.query.weight,
            "layers.0.key.bias": source.attention.self.key.bias,
            "layers.0.value.weight": source.attention.self.value.weight,
            "layers.0.output.weight": source.attention.output.dense.weight,
            "layers.0.attention_norm.weight": before.weight,
            "layers.0.feedforward_norm.bias": source.attention.output.LayerNorm.bias,
            "layers.0.expand.weight": source.intermediate.dense.weight,
            "layers.0.contract.weight": source.output.dense.weight,
            "norm.weight": source.output.LayerNorm.weight,
        }
        for name, value in expected.items():
            assert torch.equal(weights[f"decoder.{name}"], value), name
        others = [name for name in plain if not name.startswith(("decoder.layers.", "decoder.norm."))]
        assert all(torch.equal(weights[name], plain[name]) for name in others)
        assert not torch.equal(
            weights["decoder.layers.0.query.weight"], plain["decoder.layers.0.query.weight"]
        )

    def test_attention_of_the_layer_is_the_plms(self, bert: Path, read_recipe: ReadRecipe) -> None:
        """What the copied weights compute of what the norm lets through, is what BERT computes of it."""
        recipe = read_recipe(f"student.decoder.init={bert}")
        student = build_student(recipe.student, 9, recipe.features.bins).eval()
        assert start_from_plm(student, recipe, CharacterTokenizer("abc")) == 18
        layer, source = (
            student.decoder.layers[0],
            AutoModel.from_pretrained(bert).eval().encoder.layer[0].attention,
        )
        assert isinstance(layer, CausalLayer)
        hidden = torch.randn(1, 1, DIM)
        query, key, value = (layer.split(part(hidden)) for part in (layer.query, layer.key, layer.value))
        attended = layer.attend(query, key, value, None)
        torch.testing.assert_close(attended, source.output.dense(source.self(hidden)[0]))

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            (["student.decoder.dim=16"], r"decoder.dim is 16, but 32 in this model.*dim: 32"),
            (["student.decoder.heads=4"], "heads is 4"),
            (["student.decoder.feedforward=32"], "feedforward is 32"),
            (["student.decoder.init_layers=[4]"], r"no layer 4, the model has 3.*from 1 to 3"),
            (["student.decoder.layers=4"], "no layer 4"),
        ],
    )
    def test_what_does_not_fit_is_one_line(
        self, bert: Path, read_recipe: ReadRecipe, tmp_path: Path, options: list[str], reason: str
    ) -> None:
        recipe = read_recipe(f"student.decoder.init={bert}", *options, name="x")
        with pytest.raises(UserError, match=reason) as error:  # before the data are read
            train(recipe, tmp_path, lambda *_: pytest.fail("features were made first"), silent)
        assert "\n" not in str(error.value)

    def test_a_model_of_another_kind(self, read_recipe: ReadRecipe, tmp_path: Path) -> None:
        gpt = causal_gpt(tmp_path / "gpt", ["one"])
        with pytest.raises(UserError, match=r"GPT2Model has no BERT layers"):
            check_plm(read_recipe(f"student.decoder.init={gpt}", name="x"))
