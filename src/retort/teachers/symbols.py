"""The symbols of a teacher whose targets are expanded to frames: its own, not the student's tokens."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from retort.alignment.tree import SenoneTree
from retort.alignment.unit_text import AcousticUnit, senone_symbol
from retort.common.errors import UserError
from retort.config.schema import TeacherConfig
from retort.lm.factory import is_causal_lm
from retort.lm.units import LmUnits, read_units
from retort.pretrained.hub import find_model, open_tokenizer
from retort.text.teacher_pieces import TeacherTokenizer
from retort.text.tokenizer_io import open_tokenizer as open_own_tokenizer
from retort.text.tokenizers import SPECIAL, Tokenizer, WordTokenizer


def teacher_symbols(config: TeacherConfig, texts: Iterable[str] | None = None) -> Tokenizer:
    """The tokenizer that replaces the student's for a teacher of frames.

    It is passed to :func:`retort.teachers.open_teacher` and tokenises the texts for
    :func:`retort.teachers.token_targets`. The ids of the soft labels are its own, so that a head for them has `.size`
    outputs. For a causal language model of `retort lm train`, or one over units, it is the tokenizer of that model. A
    Hugging Face model over text has far more pieces than a small corpus needs: only those that occur in `texts` are
    used, and the probability of the others is dropped.

    Args:
        texts: normalised texts of the training data; used only for a Hugging Face model over text.

    Raises:
        UserError: the model cannot be found or opened, or is over another unit than the config says.
        ValueError: texts are required but missing.
    """
    check_units(config)
    if is_causal_lm(folder := find_model(config.model)):
        root = Path(folder)
        return open_own_tokenizer(root / "tokenizer")
    pieces = open_tokenizer(config.model)
    if config.unit == "text":
        if texts is None:
            raise ValueError(f"{config.model} needs texts to select its pieces")
        return TeacherTokenizer.train(texts, pieces, config.case)
    special = set(pieces.all_special_ids)
    ordered = sorted(pieces.get_vocab().items(), key=lambda item: item[1])
    return WordTokenizer([symbol for symbol, number in ordered if number not in special])


def check_units(config: TeacherConfig, tree: SenoneTree | None = None) -> None:
    """Check that a teacher's model is over the unit of its config.

    Args:
        tree: of the alignments in use; None accepts any.

    Raises:
        UserError: the model is over another unit, or over the units of other alignments.
    """
    units = read_units(find_model(config.model))
    found = "text" if units is None else units.unit
    if found != config.unit:
        raise UserError(
            f"the model is over {found}, but the recipe has unit: {config.unit}",
            where=config.model,
            remedy=f"Set unit: {found}, or choose a model that `retort lm train` made with units.unit={config.unit}",
        )
    if units is None:
        return
    if config.case != "keep":
        raise UserError(
            f"case is {config.case}, but {units.unit}s have no case", where=config.model, remedy="Set case: keep"
        )
    if tree is not None and LmUnits.of(cast(AcousticUnit, units.unit), tree) != units:
        raise UserError(
            f"its {units.unit}s belong to other alignments",
            where=config.model,
            remedy="Remove its folder and train it again with units.alignments set to these",
        )


def symbol_ids(tokenizer: Tokenizer, senones: int) -> Tensor:
    """The senone of each symbol of a teacher: `(V,)` int64, -1 for special symbols.

    EOS is one of the special symbols: a tap of senones has no output for it.

    Args:
        tokenizer: of a teacher over senones.
        senones: number of senones.

    Raises:
        UserError: a symbol is not one of the senones.
    """
    known = {senone_symbol(senone): senone for senone in range(senones)}
    symbols = tokenizer.symbols[len(SPECIAL) :]
    if strange := [symbol for symbol in symbols if symbol not in known]:
        raise UserError(
            f"'{strange[0]}' is none of the {senones} senones ({len(strange)} of its {len(symbols)} symbols are not)",
            where="teacher",
            remedy="Choose a teacher over the senones of the same alignments for the tap `senones`",
        )
    return torch.tensor([-1] * len(SPECIAL) + [known[symbol] for symbol in symbols])
