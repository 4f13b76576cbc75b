"""The weights of another model that a student starts from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from retort.config import Recipe
from retort.errors import UserError
from retort.lm.speech import (
    FEATURES,
    hears_normalised,
    open_conformer_encoder,
    open_speech_encoder,
    open_whisper_encoder,
    speech_architecture,
)
from retort.nn.conformer_encoders import (
    CONFORMER_KINDS,
    ParakeetFrontend,
    W2vBertFrontend,
    conformer_parts,
    copy_conformer_weights,
)
from retort.nn.pretrained import SpeechFrontend, SpeechTransformer, copy_speech_weights, speech_parts
from retort.nn.whisper import WhisperFrontend, WhisperLayer, copy_whisper_weights, whisper_parts
from retort.students.student import Student
from retort.text.homophones import fold
from retort.text.opening import open_tokenizer
from retort.text.tokenizers import UNKNOWN, Tokenizer
from retort.training.checkpoints import read_weights
from retort.training.parts import check_parts, is_within


def start_from(
    student: Student,
    tokenizer: Tokenizer | None,
    experiment: str,
    graph: str = "",
    parts: Sequence[str] = (),
) -> dict[str, int]:
    """Copy the weights of another model that fit by name and shape; counts of tensors taken and left.

    What belongs to the vocabulary (:attr:`Student.vocabulary_parts`) is taken only from a model with the same
    vocabulary in the same order. Of a model with `normaliser.homophones: fold` a student with other characters takes
    for each of them what stands for all that sound like it.

    Args:
        tokenizer: of the student; None if its outputs are senones.
        experiment: folder of the other model.
        graph: :attr:`~retort.hybrid.graph.About.key` of the student's decoding graph, if it has one: senones are the
            same where the graphs are.
        parts: of the other model that are taken, by the first words of their names; all if empty.

    Raises:
        UserError: no model there, it has no such part, or nothing of it fits.
    """
    path = model_folder(experiment)
    weights, own = read_weights(path / "model.safetensors"), student.state_dict()
    check_parts(weights, parts, "training.init_parts")
    if tokenizer is None:
        other = not graph or _graph(path) != graph
    else:
        theirs = open_tokenizer(path / "tokenizer").symbols
        other = theirs != tokenizer.symbols
        if other and _folded(path):
            weights = _unfolded(weights, student.vocabulary_parts, theirs, tokenizer.symbols)
            other = False
    fitting = {
        name: value
        for name, value in weights.items()
        if name in own
        and own[name].shape == value.shape
        and (not parts or is_within(name, parts))
        and not (other and name.startswith(student.vocabulary_parts))
    }
    if not fitting:
        raise UserError("none of its weights fit this student", where=experiment)
    student.load_state_dict(fitting, strict=False)
    return {"taken": len(fitting), "not_used": len(weights) - len(fitting), "fresh": len(own) - len(fitting)}


def check_pretrained(recipe: Recipe) -> None:
    """Open the speech encoder that the recipe names, if it names one, and see whether it fits.

    Raises:
        UserError: it cannot be opened, has other sizes, or was trained on waves that are normalised otherwise.
    """
    config = recipe.student.encoder
    if config.kind != "pretrained" or not config.model:
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
    cmvn = hears_normalised(config.model)
    if cmvn is not None and cmvn != recipe.features.cmvn:
        raise UserError(
            f"it was trained on waves {'of unit variance' if cmvn else 'as they are'}",
            where=config.model,
            remedy=f"Set features.cmvn: {str(cmvn).lower()}",
        )
    open_speech_encoder(config.model)


def start_from_pretrained(student: Student, name: str) -> int:
    """Copy the weights of a speech encoder into that of the student; how many tensors, 0 without a name.

    Raises:
        UserError: as :func:`check_pretrained`.
    """
    if not name:
        return 0
    if isinstance(student.encoder.frontend, WhisperFrontend):
        layers = [layer for layer in student.encoder.layers if isinstance(layer, WhisperLayer)]
        norm = student.encoder.norm
        assert isinstance(norm, nn.LayerNorm)
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
    return json.loads((path / "config.json").read_text())


def _unfolded(
    weights: dict[str, Tensor], parts: tuple[str, ...], theirs: Sequence[str], ours: Sequence[str]
) -> dict[str, Tensor]:
    """Rows of a folded vocabulary for another one: characters that sound alike share the probability of their syllable.

    What the folded one does not have takes the row of the unknown token.
    """
    numbers = {symbol: number for number, symbol in enumerate(theirs)}
    rows = torch.tensor([numbers.get(fold(symbol), UNKNOWN) for symbol in ours])
    sharing = torch.bincount(rows, minlength=len(theirs))[rows].float().log()
    result = dict(weights)
    for name, value in weights.items():
        if name.startswith(parts) and len(value) == len(theirs):
            result[name] = value[rows] - sharing if value.dim() == 1 else value[rows]
    return result


def model_folder(experiment: str) -> Path:
    """The folder of a trained model: that of an experiment, or the folder itself.

    Raises:
        UserError: there is none.
    """
    root = Path(experiment)
    for path in (root / "model", root):
        if (path / "model.safetensors").is_file():
            return path
    raise UserError(
        "no trained model here", where=experiment, remedy="training.init takes an experiment's folder"
    )
