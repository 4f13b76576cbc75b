"""Saving and loading of causal language models."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file

from retort.common.checksums import seal, verify, verify_file
from retort.common.errors import UserError
from retort.common.files import check_format, opening_model
from retort.common.json_reader import read_json
from retort.common.weights import fit, read_weights
from retort.config.schema import NormaliserConfig
from retort.lm.arpa import write_arpa
from retort.lm.causal import CausalLM
from retort.lm.config import ModelConfig
from retort.lm.neural import NETWORKS, NeuralLM
from retort.lm.ngram import NgramLM, NgramTable, check_table
from retort.lm.units import FILE as UNITS
from retort.lm.units import read_units
from retort.text.normalise import Normaliser
from retort.text.tokenizer_io import open_tokenizer
from retort.text.tokenizers import WordTokenizer

FORMAT = 1
KINDS = ("causal", "ngram")
ARPA = "lm.arpa.gz"
_AGAIN = "Train or fetch it again"
_REMEDY = "Give an experiment of `retort lm train`, kind causal or ngram"
_REMEDY_WORDS = "Give an experiment of `retort lm train`, kind ngram, tokenizer.kind words, without units"


def save_causal_lm(model: NeuralLM | NgramLM, folder: Path) -> None:
    """Save a model for :func:`open_causal_lm`: weights, sizes, tokenizer, normaliser.

    For n-grams, `lm.arpa.gz` is also written, for other tools.
    """
    config: dict[str, Any]
    if isinstance(model, NeuralLM):
        weights = {name: value.contiguous().cpu() for name, value in model.network.state_dict().items()}
        config = {"kind": "causal", "model": asdict(model.network.config)}
    else:
        arrays = {name: getattr(model.table, name) for name in ("keys", "log_probs", "backoffs")}
        weights = {name: torch.from_numpy(value) for name, value in arrays.items()}
        config = {"kind": "ngram", "counts": model.table.counts}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    model.tokenizer.save(folder / "tokenizer")
    common = {"format": FORMAT, "vocabulary": model.tokenizer.size}
    normaliser = {"normaliser": asdict(model.normalise.config)}
    (folder / "config.json").write_text(json.dumps({**common, **config, **normaliser}, indent=2) + "\n")
    if isinstance(model, NgramLM):
        write_arpa(model.table, model.symbols, folder / ARPA)
    seal(folder)


def is_causal_lm(name: str | Path) -> bool:
    """Whether :func:`open_causal_lm` can open it, rather than transformers."""
    folder = _folder(name)
    if folder is None:
        return False
    try:
        return bool(read_json(folder / "config.json").get("kind") in KINDS)
    except (OSError, ValueError, AttributeError):
        return False


def open_causal_lm(folder: str | Path, device: torch.device | str = "cpu") -> CausalLM:
    """Open a causal or n-gram model of `retort lm train`.

    Args:
        folder: `EXP` or `EXP/model`.

    Raises:
        UserError: there is no such model, or files are missing, damaged or of another format.
    """
    root = _folder(folder)
    if root is None or not is_causal_lm(root):
        raise UserError("there is no causal language model here", where=folder, remedy=_REMEDY)
    with opening_model(root, _AGAIN):
        config = read_json(root / "config.json")
        check_format(config["format"], FORMAT, root)
        verify(root, "config.json", "tokenizer", UNITS, editable=("config.json",), remedy=_AGAIN)
        weights = read_weights(root / "model.safetensors", _AGAIN)
        normaliser = _config(NormaliserConfig, config["normaliser"])
        normalise = Normaliser(normaliser)
        tokenizer = open_tokenizer(root / "tokenizer")
        vocabulary = int(config["vocabulary"])
        if tokenizer.size != vocabulary:
            raise ValueError(f"the tokenizer has {tokenizer.size} ids, the model {vocabulary}")
        model: CausalLM
        if config["kind"] == "ngram":
            arrays = {name: value.numpy() for name, value in weights.items()}
            table = NgramTable(vocabulary, config["counts"], **arrays)
            check_table(table)
            model = NgramLM(table, tokenizer, normalise)
        else:
            sizes = _config(ModelConfig, config["model"])
            network = NETWORKS[sizes.kind](sizes, vocabulary)
            fit(network, weights)
            network.load_state_dict(weights)
            model = NeuralLM(network, tokenizer, normalise)
    model.start(0, torch.device(device))
    return model


def word_arpa(name: str | Path) -> Path:
    """The ARPA file of a word n-gram model, for a decoding graph; it is written if it is missing.

    Args:
        name: `EXP` or `EXP/model`.

    Raises:
        UserError: there is no n-gram model, or it is not over words.
    """
    root = _folder(name)
    if root is None or not is_causal_lm(root):
        raise UserError("there is no n-gram model here", where=name, remedy=_REMEDY_WORDS)
    tokenizer = open_tokenizer(root / "tokenizer")
    kind = read_json(root / "config.json")["kind"]
    over = f"{units.unit}s" if (units := read_units(root)) else tokenizer.kind
    if (kind, over) != ("ngram", WordTokenizer.kind):
        raise UserError(f"its kind is {kind}, over {over}", where=name, remedy=_REMEDY_WORDS)
    path = root / ARPA
    if not _is_whole(path):
        model = open_causal_lm(root)
        assert isinstance(model, NgramLM), kind
        write_arpa(model.table, model.symbols, path)
    return path


def _is_whole(path: Path) -> bool:
    try:
        verify_file(path, _AGAIN)
    except UserError:
        return False
    return path.exists()


def _folder(name: str | Path) -> Path | None:
    for folder in (Path(name), Path(name) / "model"):
        if (folder / "config.json").is_file():
            return folder
    return None


def _config(schema: Any, values: dict[str, Any]) -> Any:
    return OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), values))
