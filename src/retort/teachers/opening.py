"""From a recipe's teacher to one that reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from retort.config import TeacherConfig
from retort.errors import UserError
from retort.lm.pretrained import open_tokenizer
from retort.teachers.cache import CachedTeacher
from retort.teachers.masked_lm import MaskedLMTeacher
from retort.teachers.store import StoredTeacher
from retort.teachers.teacher import Teacher

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def open_teacher(
    config: TeacherConfig,
    device: torch.device | str = "cpu",
    *,
    cache_bytes: int = 512 * 2**20,
    stores: Path | None = None,
) -> Teacher:
    """The teacher of a recipe: one that reads, its readings kept in memory, or its store on disk.

    Args:
        device: where it runs and its vectors stay; what a store holds is mapped into main memory.
        cache_bytes: of vectors kept in memory; a store keeps none.
        stores: folder of the stores; needed for `storage: disk`.

    Raises:
        UserError: an unknown kind, or as :class:`MaskedLMTeacher` and :class:`StoredTeacher`.
        ValueError: `storage: disk` without `stores`.
    """
    if config.storage == "online":
        return CachedTeacher(open_fresh(config, device), cache_bytes)
    if stores is None:
        raise ValueError("a teacher with storage: disk needs the folder of the stores")
    # The model is opened for its fingerprint alone, and forgotten.
    return open_store(open_fresh(config), stores)


def open_fresh(config: TeacherConfig, device: torch.device | str = "cpu") -> MaskedLMTeacher:
    """The teacher of a recipe without any memory.

    Raises:
        UserError: an unknown kind, or as :class:`MaskedLMTeacher`.
    """
    if config.kind != "masked_lm":
        raise UserError(f"kind is '{config.kind}'", where=config.model, remedy="Choose masked_lm")
    return MaskedLMTeacher(config, device)


def open_store(teacher: MaskedLMTeacher, stores: Path) -> StoredTeacher:
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
