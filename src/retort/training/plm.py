"""A pretrained language model inside the decoder: its embeddings as the output layer, its layers to start from."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from retort.config import Recipe
from retort.errors import UserError
from retort.lm.pretrained import open_encoder, open_tokenizer
from retort.nn.decoder import CifDecoder
from retort.student_config import DecoderConfig
from retort.students.cif import CifStudent
from retort.text.tokenizers import EOS, PAD, SPECIAL, UNKNOWN, Tokenizer

_LINEAR = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "expand": "intermediate.dense",
    "contract": "output.dense",
    "feedforward_norm": "attention.output.LayerNorm",
}
"""Parts of a decoder layer, and what they are called in BERT and its kin."""


class _Layer(NamedTuple):
    """A layer of the PLM, and the norm of what it reads, which stands behind the layer before it."""

    layer: nn.Module
    before: nn.Module


def check_plm(recipe: Recipe) -> None:
    """Check that what `student.decoder` wants of PLMs is there and fits; nothing else is needed for that.

    Raises:
        UserError: a model cannot be opened, or its sizes do not fit.
    """
    decoder = recipe.student.decoder
    if decoder.output == "plm":
        _embeddings(recipe)
    if decoder.init:
        _layers(decoder)


def start_from_plm(student: CifStudent, recipe: Recipe, tokenizer: Tokenizer) -> int:
    """Copy what `student.decoder.output` and `student.decoder.init` ask for; the number of tensors that were copied.

    Raises:
        UserError: as :func:`check_plm`, or a token is no piece of the PLM.
    """
    config, taken, decoder = recipe.student.decoder, 0, student.decoder
    if not isinstance(decoder, CifDecoder):  # `check_recipe` lets no other start from a PLM
        return 0
    if config.output == "plm":
        taken += _take_embeddings(decoder, recipe, tokenizer)
    if config.init:
        taken += _take_layers(decoder, config)
    return taken


@torch.no_grad()
def _take_embeddings(decoder: CifDecoder, recipe: Recipe, tokenizer: Tokenizer) -> int:
    """Of the pieces that the tokens are; EOS takes [SEP], blank, of which the PLM knows nothing, zeros."""
    name, table = _output_model(recipe), _embeddings(recipe)
    pieces, symbols = open_tokenizer(name), tokenizer.symbols[len(SPECIAL) :]
    known = pieces.get_vocab()
    if strange := [symbol for symbol in symbols if symbol not in known]:
        raise UserError(
            f"it has no piece '{strange[0]}', which is a token of the student",
            where=name,
            remedy="Train the tokenizer of the student with this model",
        )
    rows = decoder.vocabulary.weight
    rows[len(SPECIAL) :] = table[[known[symbol] for symbol in symbols]]
    special = {PAD: pieces.pad_token_id, EOS: pieces.sep_token_id, UNKNOWN: pieces.unk_token_id}
    for own in range(len(SPECIAL)):
        there = special.get(own)
        rows[own] = 0.0 if there is None else table[there]
    decoder.vocabulary.bias.zero_()
    return 1


def _take_layers(decoder: CifDecoder, config: DecoderConfig) -> int:
    """Each norm goes before the part that reads what it normed in the PLM.

    The PLM norms behind its parts, the decoder before them, and it has GELU where the decoder has ReLU: a start, not
    the same function.
    """
    taken, sources = 0, _layers(config)
    for layer, source in zip(decoder.layers, sources):
        parts = {part: source.layer.get_submodule(path) for part, path in _LINEAR.items()}
        parts["attention_norm"] = source.before
        taken += sum(_copy(layer.get_submodule(part), there) for part, there in parts.items())
    return taken + _copy(decoder.norm, sources[-1].layer.get_submodule("output.LayerNorm"))


def _output_model(recipe: Recipe) -> str:
    return recipe.teachers[recipe.tokenizer.teacher].model


def _embeddings(recipe: Recipe) -> Tensor:
    """`(pieces, output_dim)`."""
    table: Tensor = open_encoder(_output_model(recipe)).get_input_embeddings().weight
    _check_size("output_dim", recipe.student.decoder.output_dim, table.shape[1], _output_model(recipe))
    return table


def _layers(config: DecoderConfig) -> list[_Layer]:
    """One for each of the decoder's."""
    name = config.init
    model = open_encoder(name)
    layers = getattr(getattr(model, "encoder", None), "layer", None)
    if layers is None or not hasattr(layers[0], "intermediate"):
        raise UserError(
            f"{type(model).__name__} has no layers of BERT's kind",
            where=name,
            remedy="Choose a BERT or RoBERTa for student.decoder.init",
        )
    _check_size("dim", config.dim, model.config.hidden_size, name)
    _check_size("heads", config.heads, model.config.num_attention_heads, name)
    _check_size("feedforward", config.feedforward, model.config.intermediate_size, name)
    numbers, count = config.init_layers or range(1, config.layers + 1), len(layers)
    for number in numbers:
        if not (1 <= number <= count or -count <= number <= -1):
            raise UserError(
                f"no layer {number}: it has {count}",
                where=name,
                remedy=f"Choose student.decoder.init_layers from 1 to {count}, or -1 (last) to -{count}",
            )
    norms = [model.embeddings.LayerNorm, *(layer.output.LayerNorm for layer in layers)]
    places = [number - 1 if number > 0 else count + number for number in numbers]
    return [_Layer(layers[place], norms[place]) for place in places]


def _copy(own: nn.Module, other: nn.Module) -> int:
    weights = other.state_dict()
    own.load_state_dict(weights)
    return len(weights)


def _check_size(key: str, own: int | None, other: int, name: str) -> None:
    if own != other:
        raise UserError(
            f"student.decoder.{key} is {own}, this model's is {other}",
            where=name,
            remedy=f"Set student.decoder.{key}: {other}, or choose another model",
        )
