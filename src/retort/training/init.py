"""Initialisation of a student with the weights of another model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from retort.common.checksums import verify
from retort.common.errors import UserError
from retort.common.files import opening_model, write_whole
from retort.common.json_reader import read_json
from retort.common.locks import is_first_process
from retort.common.weights import AGAIN, read_weights, unpack
from retort.config.schema import Recipe
from retort.engine.checkpoints import CheckpointFolder
from retort.engine.parameters import check_parts, is_within
from retort.nn.conformer_encoders import (
    CONFORMER_KINDS,
    ParakeetFrontend,
    W2vBertFrontend,
    conformer_parts,
    copy_conformer_weights,
)
from retort.nn.decoder import AutoregressiveConfig, CifDecoder
from retort.nn.pretrained import (
    PretrainedEncoderConfig,
    SpeechFrontend,
    SpeechTransformer,
    copy_speech_weights,
    speech_parts,
)
from retort.nn.whisper import WhisperFrontend, WhisperLayer, copy_whisper_weights, whisper_parts
from retort.nn.whisper_decoder import WhisperDecoderSizes
from retort.pretrained import hub
from retort.pretrained.speech import (
    FEATURES,
    normalises_wave,
    open_conformer_encoder,
    open_speech_encoder,
    open_whisper_encoder,
    speech_architecture,
)
from retort.pretrained.whisper import open_whisper, whisper_architecture
from retort.students.cif import CifStudent
from retort.students.student import Student
from retort.students.whisper import copy_whisper, whisper_decoder
from retort.text.homophones import fold
from retort.text.tokenizer_io import open_tokenizer
from retort.text.tokenizers import EOS, PAD, SPECIAL, UNKNOWN, Tokenizer
from retort.text.whisper_pieces import WhisperTokenizer

NEW_OUTPUT = "new_output"
"""In `training.allow` and `--allow`: the output layer of the initial model may be dropped."""
RECORD = "init.json"
"""File of an experiment: which tensors of the initial model were copied, and why others were not."""
_SHOWN = 8


@dataclass(frozen=True)
class Fit:
    """The weights that a student can copy from another model.

    Attributes:
        taken: tensors that fit.
        left: names of the other model's tensors that are not copied, with the reason.
        fresh: names of the student's tensors that keep their random initialisation.
        dropped: names among `left` that belong to the output layer and vocabulary of both models.
    """

    taken: dict[str, Tensor]
    left: dict[str, str]
    fresh: list[str]
    dropped: list[str]

    @property
    def counts(self) -> dict[str, int]:
        """Numbers of tensors that are copied, not copied and random."""
        return {"taken": len(self.taken), "not_used": len(self.left), "fresh": len(self.fresh)}

    def lines(self, origin: str) -> list[str]:
        """Messages about tensors that are not copied or stay random; of many the first."""
        reasons: dict[str, list[str]] = {}
        for name, reason in self.left.items():
            reasons.setdefault(reason, []).append(name)
        lines = [f"not copied from {origin} ({reason}): {_listed(names)}" for reason, names in reasons.items()]
        return lines + (
            [f"not in {origin}, so they start at random: {_listed(self.fresh)}"] if self.fresh else []
        )


def take_start(
    student: Student,
    recipe: Recipe,
    folder: Path,
    origin: str,
    report: Callable[[int, dict[str, Any]], None],
    *,
    tokenizer: Tokenizer | None = None,
    graph: str = "",
) -> None:
    """Initialise a run's student from `origin`; tensors that are not copied are reported and recorded.

    A run with checkpoints is resumed from those instead.

    Args:
        tokenizer, graph: as for :func:`fit`.

    Raises:
        UserError: as :func:`fit`, or the output layer would be dropped and the recipe does not allow it.
    """
    found = fit(student, tokenizer, origin, graph, recipe.training.init_parts)
    begun = bool(CheckpointFolder(folder / "checkpoints").steps())
    if found.dropped and not begun and NEW_OUTPUT not in recipe.training.allow:
        raise UserError(
            f"its output layer does not match and would be dropped: {_listed(found.dropped)} "
            f"({found.left[found.dropped[0]]})",
            where=origin,
            remedy=f"Use its vocabulary (tokenizer.kind=init; the same alignments), or give --allow {NEW_OUTPUT}",
        )
    student.load_state_dict(found.taken, strict=False)
    report(0, {f"init.{key}": value for key, value in found.counts.items()})
    for line in found.lines(origin):
        report(0, {"note": line})
    if is_first_process() and not begun:
        content = {
            "from": origin,
            "taken": sorted(found.taken),
            "not_taken": found.left,
            "fresh": found.fresh,
        }
        write_whole(folder / RECORD, json.dumps(content, indent=1) + "\n")


def fit(
    student: Student,
    tokenizer: Tokenizer | None,
    experiment: str,
    graph: str = "",
    parts: Sequence[str] = (),
) -> Fit:
    """Find the weights of another model that match a student by name and shape.

    Weights of the vocabulary (:attr:`Student.vocabulary_parts`) are copied only from a model with the same
    vocabulary in the same order. From a model with `normaliser.homophones: fold`, a student with other characters copies
    for each character the row of its homophones. A student with Whisper's tokenizer copies the rows of the tokens that
    both vocabularies have and keeps its own for the others.

    Args:
        tokenizer: tokenizer of the student; None if its outputs are senones.
        experiment: folder of the other model.
        graph: :attr:`~retort.graph.build.About.key` of the student's decoding graph, if it has one: senones are the
            same where the graphs are.
        parts: name prefixes of the other model's parts that are copied; all if empty.

    Raises:
        UserError: there is no model, it has no such part, or none of its weights match.
    """
    path = model_folder(experiment)
    weights, own = unpack(read_weights(path / "model.safetensors")), student.state_dict()
    check_parts(weights, parts, "training.init_parts")
    if tokenizer is None:
        other = not graph or _graph(path) != graph
    else:
        theirs = open_tokenizer(path / "tokenizer").symbols
        other = theirs != tokenizer.symbols
        if other and isinstance(tokenizer, WhisperTokenizer):
            weights = _with_rows_of(weights, own, student.vocabulary_parts, theirs, tokenizer.symbols)
            other = False
        if other and _folded(path):
            weights = _unfolded(weights, student.vocabulary_parts, theirs, tokenizer.symbols)
            other = False
    taken: dict[str, Tensor] = {}
    left: dict[str, str] = {}
    for name, value in weights.items():
        if name not in own:
            left[name] = "this student has no such tensor"
        elif parts and not is_within(name, parts):
            left[name] = "not among training.init_parts"
        elif other and name.startswith(student.vocabulary_parts):
            left[name] = (
                "its rows belong to other tokens" if tokenizer is not None else "its senones may differ"
            )
        elif own[name].shape != value.shape:
            left[name] = f"its shape is {_shape(value)}, this student's {_shape(own[name])}"
        else:
            taken[name] = value
    if not taken:
        raise UserError("none of its weights match this student", where=experiment)
    dropped = [
        name
        for name in left
        if name in own and name.startswith(student.vocabulary_parts) and (not parts or is_within(name, parts))
    ]
    return Fit(taken, left, [name for name in own if name not in taken], dropped)


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more, all in {RECORD}" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "a single number"


def check_pretrained(recipe: Recipe) -> None:
    """Check that the pretrained speech encoder of the recipe, if it has one, matches its settings.

    Raises:
        UserError: it cannot be opened, has other sizes, or was trained with another normalisation of the wave.
    """
    config = recipe.student.encoder
    if not isinstance(config, PretrainedEncoderConfig) or not config.model:
        return
    architecture = speech_architecture(config.model)
    kind, reads = architecture["model_type"], recipe.features.kind
    if (wanted := FEATURES.get(kind, "wave")) != reads:
        raise UserError(
            f"features.kind is {reads}, this model is a {kind}",
            where=config.model,
            remedy=f"Set features.kind: {wanted}",
        )
    if kind == "whisper":
        if recipe.student.has_whisper_decoder:
            WhisperDecoderSizes.read(whisper_architecture(config.model))
        with torch.device("meta"):
            whisper_parts(architecture, config.layers, recipe.features.bins, 0.0)
        if architecture["d_model"] != config.dim:
            raise UserError(
                f"student.encoder.dim is {config.dim}, this Whisper has {architecture['d_model']}",
                where=config.model,
                remedy=f"Set student.encoder.dim: {architecture['d_model']}",
            )
        return
    if kind in CONFORMER_KINDS:
        with torch.device("meta"):
            conformer_parts(architecture, config.layers, recipe.features.bins, config.dim)
        return
    with torch.device("meta"):
        speech_parts(replace(config, architecture=architecture), recipe.features.bins)
    cmvn = normalises_wave(config.model)
    if cmvn is not None and cmvn != recipe.features.cmvn:
        raise UserError(
            f"it was trained on waves {'of unit variance' if cmvn else 'without normalisation'}",
            where=config.model,
            remedy=f"Set features.cmvn: {str(cmvn).lower()}",
        )
    open_speech_encoder(config.model)


def start_from_pretrained(student: Student, name: str, tokenizer: Tokenizer | None = None) -> int:
    """Copy the weights of a speech encoder to the student; return the number of tensors, 0 without a name.

    For a student with Whisper's decoder, the decoder is copied as well.

    Args:
        tokenizer: tokenizer of the student.

    Raises:
        UserError: as :func:`check_pretrained`.
    """
    if not name:
        return 0
    if isinstance(student.encoder.frontend, WhisperFrontend):
        layers = [layer for layer in student.encoder.layers if isinstance(layer, WhisperLayer)]
        norm = student.encoder.norm
        assert isinstance(norm, nn.LayerNorm)
        decoder = whisper_decoder(student)
        if decoder is not None and isinstance(tokenizer, WhisperTokenizer):
            return copy_whisper(student, decoder, open_whisper(name), tokenizer)
        return copy_whisper_weights(open_whisper_encoder(name), student.encoder.frontend, layers, norm)
    if isinstance(student.encoder.frontend, ParakeetFrontend | W2vBertFrontend):
        weights = open_conformer_encoder(name)
        return copy_conformer_weights(weights, student.encoder.frontend, list(student.encoder.layers))
    frontend, transformer = student.encoder.frontend, student.encoder.layers[0]
    assert isinstance(frontend, SpeechFrontend)
    assert isinstance(transformer, SpeechTransformer)
    return copy_speech_weights(open_speech_encoder(name), frontend, transformer)


def _folded(path: Path) -> bool:
    return bool(_config(path)["normaliser"].get("homophones") == "fold")


def _graph(path: Path) -> str:
    return str(_config(path).get("graph", {}).get("key", ""))


def _config(path: Path) -> dict[str, Any]:
    with opening_model(path, AGAIN):
        verify(path, "config.json", "tokenizer", editable=("config.json",), remedy=AGAIN)
        config = read_json(path / "config.json")
        if not isinstance(config, dict) or not isinstance(config["normaliser"], dict):
            raise ValueError("config.json does not describe a model")
        return config


def _unfolded(
    weights: dict[str, Tensor], parts: tuple[str, ...], theirs: Sequence[str], ours: Sequence[str]
) -> dict[str, Tensor]:
    """Map rows of a folded vocabulary to another one: homophones share the probability of their syllable.

    Symbols that the folded one lacks get the row of the unknown token.
    """
    numbers = {symbol: number for number, symbol in enumerate(theirs)}
    rows = torch.tensor([numbers.get(fold(symbol), UNKNOWN) for symbol in ours])
    sharing = torch.bincount(rows, minlength=len(theirs))[rows].float().log()
    result = dict(weights)
    for name, value in weights.items():
        if name.startswith(parts) and len(value) == len(theirs):
            result[name] = value[rows] - sharing if value.dim() == 1 else value[rows]
    return result


def _with_rows_of(
    weights: dict[str, Tensor],
    own: Mapping[str, Tensor],
    parts: tuple[str, ...],
    theirs: Sequence[str],
    ours: Sequence[str],
) -> dict[str, Tensor]:
    """The weights for another vocabulary of Whisper's tokens: the rows of shared tokens, and `own` rows otherwise."""
    numbers = {symbol: number for number, symbol in enumerate(theirs)}
    shared = [(row, numbers[symbol]) for row, symbol in enumerate(ours) if symbol in numbers]
    mine, others = torch.tensor(shared).T
    result = dict(weights)
    for name, value in weights.items():
        if name.startswith(parts) and name in own and len(value) == len(theirs):
            result[name] = own[name].clone()
            result[name][mine] = value[others].to(own[name].dtype)
    return result


def model_folder(experiment: str) -> Path:
    """The folder of a trained model: `model` of an experiment, or the folder itself.

    Raises:
        UserError: there is no model.
    """
    root = Path(experiment)
    for path in (root / "model", root):
        if (path / "model.safetensors").is_file():
            return path
    raise UserError(
        "no trained model here", where=experiment, remedy="Set training.init to an experiment's folder"
    )


_LINEAR = {
    "query": "attention.self.query",
    "key": "attention.self.key",
    "value": "attention.self.value",
    "output": "attention.output.dense",
    "expand": "intermediate.dense",
    "contract": "output.dense",
    "feedforward_norm": "attention.output.LayerNorm",
}
"""Parts of a decoder layer, and their names in BERT models."""


class _Layer(NamedTuple):
    """A layer of the PLM, and the norm of its input, which is the last one of the previous layer."""

    layer: nn.Module
    before: nn.Module


def check_plm(recipe: Recipe) -> None:
    """Check that the PLMs in `student.decoder` exist and have matching sizes.

    Raises:
        UserError: a model cannot be opened, or its sizes do not fit.
    """
    decoder = recipe.student.decoder_config
    if not isinstance(decoder, AutoregressiveConfig):
        return
    if decoder.output == "plm":
        _embeddings(recipe)
    if decoder.init:
        _layers(decoder)


def start_from_plm(student: CifStudent, recipe: Recipe, tokenizer: Tokenizer) -> int:
    """Copy the weights for `student.decoder.output` and `student.decoder.init`; return the number of tensors.

    Raises:
        UserError: as :func:`check_plm`, or a token is not a piece of the PLM.
    """
    config, taken, decoder = recipe.student.decoder_config, 0, student.decoder
    if not isinstance(decoder, CifDecoder) or not isinstance(config, AutoregressiveConfig):
        return 0
    if config.output == "plm":
        taken += _take_embeddings(decoder, recipe, tokenizer)
    if config.init:
        taken += _take_layers(decoder, config)
    return taken


@torch.no_grad()
def _take_embeddings(decoder: CifDecoder, recipe: Recipe, tokenizer: Tokenizer) -> int:
    """Copy the PLM's embeddings of the tokens; EOS gets that of [SEP], blank gets zeros."""
    name, table = _output_model(recipe), _embeddings(recipe)
    pieces, symbols = hub.open_tokenizer(name), tokenizer.symbols[len(SPECIAL) :]
    known = pieces.get_vocab()
    if strange := [symbol for symbol in symbols if symbol not in known]:
        raise UserError(
            f"the student's token '{strange[0]}' is not one of its pieces",
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


def _take_layers(decoder: CifDecoder, config: AutoregressiveConfig) -> int:
    """Copy layers; each norm is placed before the part whose input it normalises in the PLM.

    The PLM is post-norm with GELU, the decoder pre-norm with ReLU: this is an initialisation, not
    an equivalent function.
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
    table: Tensor = hub.open_encoder(_output_model(recipe)).get_input_embeddings().weight
    own = getattr(recipe.student.decoder_config, "output_dim", None)
    _check_size("output_dim", own, table.shape[1], _output_model(recipe))
    return table


def _layers(config: AutoregressiveConfig) -> list[_Layer]:
    """The PLM layers for the decoder's layers."""
    name = config.init
    model = hub.open_encoder(name)
    layers = getattr(getattr(model, "encoder", None), "layer", None)
    if layers is None or not hasattr(layers[0], "intermediate"):
        raise UserError(
            f"{type(model).__name__} has no BERT layers",
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
                f"there is no layer {number}, the model has {count}",
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
            f"student.decoder.{key} is {own}, but {other} in this model",
            where=name,
            remedy=f"Set student.decoder.{key}: {other}, or choose another model",
        )
