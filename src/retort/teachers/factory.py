"""Builds the teachers of a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import torch

from retort.common.errors import UserError
from retort.config.schema import TeacherConfig
from retort.lm.factory import is_causal_lm, open_causal_lm
from retort.pretrained.hub import find_model, open_tokenizer
from retort.teachers.cache import CachedTeacher
from retort.teachers.masked_lm import MaskedLMConfig, MaskedLMTeacher
from retort.teachers.posteriors import PieceLMTeacher, PosteriorTeacher
from retort.teachers.pretrained_posteriors import CausalPosteriorTeacher, MaskedPosteriorTeacher
from retort.teachers.recogniser import OpenRecogniser, RecogniserPosteriorTeacher, RecogniserTeacherConfig
from retort.teachers.store import StoredTeacher
from retort.teachers.symbols import check_units, teacher_symbols
from retort.teachers.teacher import Teacher
from retort.teachers.whisper import SamplesOf, WhisperPosteriorTeacher, WhisperTeacherConfig
from retort.text.tokenizers import Tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

TeacherModel: TypeAlias = MaskedLMTeacher | PosteriorTeacher
"""A teacher that runs its own model, and that has an identity."""


def open_teacher(
    config: TeacherConfig,
    device: torch.device | str = "cpu",
    *,
    tokenizer: Tokenizer | None = None,
    cache_bytes: int = 512 * 2**20,
    stores: Path | None = None,
    samples_of: SamplesOf | None = None,
    open_recogniser: OpenRecogniser | None = None,
) -> Teacher:
    """Build the teacher of a recipe: a model with a cache in memory, or a store on disk.

    Args:
        device: device of the model and of its vectors; a store is mapped into main memory.
        tokenizer: tokenizer of the student, or for frames :func:`retort.teachers.symbols.teacher_symbols`; required
            for soft labels of text.
        cache_bytes: size of the cache in memory; a store has no cache.
        stores: folder of the stores; required for `storage: disk`.
        samples_of: returns the audio, for a teacher whose input is audio.
        open_recogniser: opens a trained recogniser, for a teacher that is one.

    Raises:
        UserError: as :func:`open_teacher_model` and :class:`StoredTeacher`.
        ValueError: `storage: disk` without `stores`.
    """
    if config.storage == "online":
        model = open_teacher_model(config, device, tokenizer, samples_of, open_recogniser)
        return CachedTeacher(model, cache_bytes)
    if stores is None:
        raise ValueError("a teacher with storage: disk needs the folder of the stores")
    # The model is opened only to compute its fingerprint.
    model = open_teacher_model(
        config, tokenizer=tokenizer, samples_of=samples_of, open_recogniser=open_recogniser
    )
    return open_store(model, stores)


def open_teacher_model(
    config: TeacherConfig,
    device: torch.device | str = "cpu",
    tokenizer: Tokenizer | None = None,
    samples_of: SamplesOf | None = None,
    open_recogniser: OpenRecogniser | None = None,
) -> TeacherModel:
    """Build the model of a recipe's teacher, without a cache or store.

    Raises:
        UserError: the kind is unknown, soft labels lack the student's tokenizer, the model is over another unit than
            the config says, or an error of the teacher's class.
    """
    if config.unit != "text":
        check_units(config)
        tokenizer = tokenizer or teacher_symbols(config)
    if config.topk is None:
        if not isinstance(config, MaskedLMConfig):
            raise UserError(f"kind is '{config.kind}'", where=config.model, remedy="Choose masked_lm")
        return MaskedLMTeacher(config, device)
    if tokenizer is None:
        raise UserError(
            "its soft labels are over the student's tokens, but the student's tokenizer does not exist yet",
            where=config.model,
            remedy="Run `retort train`, which builds the tokenizer and fills the teacher's store",
        )
    if isinstance(config, WhisperTeacherConfig | RecogniserTeacherConfig):
        if samples_of is None or (isinstance(config, RecogniserTeacherConfig) and open_recogniser is None):
            raise UserError(
                "its input is audio, which is not available here",
                where=config.model,
                remedy="Run `retort train`",
            )
        if isinstance(config, WhisperTeacherConfig):
            return WhisperPosteriorTeacher(config, tokenizer, samples_of, device)
        assert open_recogniser is not None
        recogniser = open_recogniser(config.model, device)
        return RecogniserPosteriorTeacher(config, tokenizer, samples_of, recogniser, device)
    if isinstance(config, MaskedLMConfig):
        return MaskedPosteriorTeacher(config, tokenizer, device)
    if is_causal_lm(config.model):
        return PieceLMTeacher(config, tokenizer, open_causal_lm(config.model, device), device)
    return CausalPosteriorTeacher(config, tokenizer, device)


def check_there(config: TeacherConfig) -> None:
    """Check that a teacher's model exists, without opening it.

    Raises:
        UserError: the folder does not exist or contains no model.
    """
    find_model(config.model)


def open_store(teacher: TeacherModel, stores: Path) -> StoredTeacher:
    """Open the store of a teacher's outputs below `stores`; it is created if it does not exist.

    Raises:
        UserError: as :class:`StoredTeacher`.
    """
    return StoredTeacher(stores, teacher.identity())


def teacher_tokenizer(config: TeacherConfig) -> PreTrainedTokenizerFast:
    """Open the teacher's Hugging Face tokenizer, without its model.

    Raises:
        UserError: the tokenizer cannot be found or opened, or is not a fast one.
    """
    return open_tokenizer(config.model)
