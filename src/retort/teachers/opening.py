"""From a recipe's teacher to one that reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from retort.config import TeacherConfig
from retort.errors import UserError
from retort.teachers.cache import CachedTeacher
from retort.teachers.masked_lm import MaskedLMTeacher
from retort.teachers.pretrained import open_tokenizer
from retort.teachers.teacher import Teacher

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def open_teacher(
    config: TeacherConfig, device: torch.device | str = "cpu", *, cache_bytes: int = 512 * 2**20
) -> Teacher:
    """The teacher of a recipe, its readings kept in memory.

    Args:
        device: where it runs and its vectors stay.
        cache_bytes: of vectors kept.

    Raises:
        UserError: an unknown kind, or as :class:`MaskedLMTeacher`.
    """
    if config.kind != "masked_lm":
        raise UserError(f"kind is '{config.kind}'", where=config.model, remedy="Choose masked_lm")
    return CachedTeacher(MaskedLMTeacher(config, device), cache_bytes)


def teacher_tokenizer(config: TeacherConfig) -> PreTrainedTokenizerFast:
    """The teacher's own Hugging Face tokenizer, without its model.

    Raises:
        UserError: it cannot be found or opened, or is not a fast one.
    """
    return open_tokenizer(config.model)
