"""The symbols of a teacher whose positions are laid on frames: its own, for frames have none of the student's."""

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
    """What takes the place of the student's tokenizer where a teacher reads for frames.

    It goes into :func:`retort.teachers.open_teacher`, and cuts the texts for :func:`retort.teachers.token_signal`;
    ids of the soft labels are its own, so a head that learns them has `.size` outputs. Of a language model of
    `retort lm train` that is causal or over units it is that model's, whole. A Hugging Face model over text has far
    more pieces than a small corpus needs: of it those are taken that `texts` have, and what it gives to others is
    missing from the probabilities (:func:`retort.teachers.statistics.describe_teacher` says how much that is).

    Args:
        texts: in normal form, of the training data; read only for a Hugging Face model over text.

    Raises:
        UserError: the model cannot be found or opened, or is over another unit than the config says.
        ValueError: texts are needed, and there are none.
    """
    check_units(config)
    if is_causal_lm(folder := find_model(config.model)):
        root = Path(folder)
        return open_own_tokenizer(root / "tokenizer")
    pieces = open_tokenizer(config.model)
    if config.unit == "text":
        if texts is None:
            raise ValueError(f"{config.model} needs texts, whose pieces are taken of its many")
        return TeacherTokenizer.train(texts, pieces, config.case)
    special = set(pieces.all_special_ids)
    ordered = sorted(pieces.get_vocab().items(), key=lambda item: item[1])
    return WordTokenizer([symbol for symbol, number in ordered if number not in special])


def check_units(config: TeacherConfig, tree: SenoneTree | None = None) -> None:
    """Check that a teacher's model is over the unit that its config says.

    Args:
        tree: of the alignments that it is to read; None: any.

    Raises:
        UserError: it is over another unit, or over the units of other alignments.
    """
    units = read_units(find_model(config.model))
    found = "text" if units is None else units.unit
    if found != config.unit:
        raise UserError(
            f"it is over {found}, the recipe says unit: {config.unit}",
            where=config.model,
            remedy=f"Set unit: {found}, or give it a model that `retort lm train` made with units.unit={config.unit}",
        )
    if units is None:
        return
    if config.case != "keep":
        raise UserError(
            f"case is {config.case}, but {units.unit}s have none", where=config.model, remedy="Set case: keep"
        )
    if tree is not None and LmUnits.of(cast(AcousticUnit, units.unit), tree) != units:
        raise UserError(
            f"its {units.unit}s are those of other alignments",
            where=config.model,
            remedy="Remove its folder and train it again, with units.alignments naming these",
        )


def symbol_ids(tokenizer: Tokenizer, senones: int) -> Tensor:
    """Which senone each symbol of a teacher is, for a tap whose outputs are senones: `(V,)` int64, -1 for special ones.

    The end of a text is one of these: a causal teacher gives it a probability, for which such a tap has no output.

    Args:
        tokenizer: of a teacher over senones.
        senones: how many there are.

    Raises:
        UserError: a symbol is no senone, or one that is not there.
    """
    known = {senone_symbol(senone): senone for senone in range(senones)}
    symbols = tokenizer.symbols[len(SPECIAL) :]
    if strange := [symbol for symbol in symbols if symbol not in known]:
        raise UserError(
            f"'{strange[0]}' is none of the {senones} senones, {len(strange)} of its {len(symbols)} symbols are none",
            where="teacher",
            remedy="Give the tap `senones` a teacher over the senones of the same alignments",
        )
    return torch.tensor([-1] * len(SPECIAL) + [known[symbol] for symbol in symbols])
