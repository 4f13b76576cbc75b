"""From a recipe's teacher to one that reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch

from retort.common.errors import UserError
from retort.config.schema import TeacherConfig
from retort.lm.factory import is_causal_lm, open_causal_lm
from retort.pretrained.hub import find_model, open_tokenizer
from retort.teachers.cache import CachedTeacher
from retort.teachers.masked_lm import MaskedLMTeacher
from retort.teachers.posteriors import PieceLMTeacher, PosteriorTeacher
from retort.teachers.pretrained_posteriors import CausalPosteriorTeacher, MaskedPosteriorTeacher
from retort.teachers.store import StoredTeacher
from retort.teachers.symbols import check_units, teacher_symbols
from retort.teachers.teacher import Teacher
from retort.teachers.whisper import SamplesOf, WhisperPosteriorTeacher
from retort.text.tokenizers import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FreshTeacher: TypeAlias = MaskedLMTeacher | PosteriorTeacher
"""A teacher that reads itself, and that has an identity."""


def open_teacher(
    config: TeacherConfig,
    device: torch.device | str = "cpu",
    *,
    tokenizer: Tokenizer | None = None,
    cache_bytes: int = 512 * 2**20,
    stores: Path | None = None,
    samples_of: SamplesOf | None = None,
) -> Teacher:
    """The teacher of a recipe: one that reads, its readings kept in memory, or its store on disk.

    Args:
        device: where it runs and its vectors stay; what a store holds is mapped into main memory.
        tokenizer: the student's, or for frames :func:`retort.teachers.symbols.teacher_symbols`; needed for soft
            labels of text.
        cache_bytes: of vectors kept in memory; a store keeps none.
        stores: folder of the stores; needed for `storage: disk`.
        samples_of: the audio, for a teacher that reads it.

    Raises:
        UserError: as :func:`open_fresh` and :class:`StoredTeacher`.
        ValueError: `storage: disk` without `stores`.
    """
    if config.storage == "online":
        return CachedTeacher(open_fresh(config, device, tokenizer, samples_of), cache_bytes)
    if stores is None:
        raise ValueError("a teacher with storage: disk needs the folder of the stores")
    # The model is opened for its fingerprint alone, and forgotten.
    return open_store(open_fresh(config, tokenizer=tokenizer, samples_of=samples_of), stores)


def open_fresh(
    config: TeacherConfig,
    device: torch.device | str = "cpu",
    tokenizer: Tokenizer | None = None,
    samples_of: SamplesOf | None = None,
) -> FreshTeacher:
    """The teacher of a recipe without any memory.

    Raises:
        UserError: an unknown kind, soft labels without the student's tokenizer, a model over another unit than the
            config's, or as the kind's class.
    """
    if config.unit != "text":
        check_units(config)
        tokenizer = tokenizer or teacher_symbols(config)
    if config.topk is None:
        if config.kind != "masked_lm":
            raise UserError(f"kind is '{config.kind}'", where=config.model, remedy="Choose masked_lm")
        return MaskedLMTeacher(config, device)
    if tokenizer is None:
        raise UserError(
            "it gives soft labels of the student's tokens, but there is no student yet",
            where=config.model,
            remedy="Run `retort train`, which makes the tokenizer and has the teacher read",
        )
    if config.kind == "whisper":
        if samples_of is None:
            raise UserError(
                "it reads audio, which is not at hand here", where=config.model, remedy="Run `retort train`"
            )
        return WhisperPosteriorTeacher(config, tokenizer, samples_of, device)
    if config.kind == "masked_lm":
        return MaskedPosteriorTeacher(config, tokenizer, device)
    if is_causal_lm(config.model):
        return PieceLMTeacher(config, tokenizer, open_causal_lm(config.model, device), device)
    return CausalPosteriorTeacher(config, tokenizer, device)


def check_there(config: TeacherConfig) -> None:
    """Check that a teacher's model can be found, without opening it.

    Raises:
        UserError: there is no such folder, or no model in it.
    """
    find_model(config.model)


def open_store(teacher: FreshTeacher, stores: Path) -> StoredTeacher:
    """What `teacher` has said so far, from its own folder in `stores`; made if missing.

    Raises:
        UserError: as :class:`StoredTeacher`.
    """
    return StoredTeacher(stores, teacher.identity())


def teacher_tokenizer(config: TeacherConfig) -> PreTrainedTokenizerFast:
    """The teacher's own Hugging Face tokenizer, without its model.

    Raises:
        UserError: it cannot be found or opened, or is not a fast one.
    """
    return open_tokenizer(config.model)
