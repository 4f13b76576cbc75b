from __future__ import annotations

from pathlib import Path

import pytest
import torch

from retort.common.errors import UserError
from retort.config.schema import TeacherConfig
from retort.teachers import MaskedLMTeacher, open_teacher, teacher_tokenizer
from retort.teachers.masked_lm import MaskedLMConfig


def test_cached_and_fresh_are_identical(uncased: Path) -> None:
    config = MaskedLMConfig(model=str(uncased))
    teacher = open_teacher(config)
    (first,), (again,) = teacher.read(["hello world"]), teacher.read(["hello world"])
    (fresh,) = MaskedLMTeacher(config).read(["hello world"])
    assert again is first
    assert torch.equal(first.vectors, fresh.vectors)
    assert teacher.dim == 16


def test_nothing_is_kept_when_asked_so(uncased: Path) -> None:
    teacher = open_teacher(MaskedLMConfig(model=str(uncased)), cache_bytes=0)
    assert teacher.read(["hello"])[0] is not teacher.read(["hello"])[0]


def test_an_unknown_kind() -> None:
    with pytest.raises(UserError, match="kind is 'oracle'"):
        open_teacher(TeacherConfig(kind="oracle"))


def test_the_tokenizer_alone(cased: Path) -> None:
    tokenizer = teacher_tokenizer(MaskedLMConfig(model=str(cased)))
    encoded = tokenizer("unfair", add_special_tokens=False, return_offsets_mapping=True)
    assert tokenizer.convert_ids_to_tokens(encoded["input_ids"]) == ["un", "##fair"]
    assert encoded["offset_mapping"] == [(0, 2), (2, 6)]


def test_a_stored_teacher_needs_a_place() -> None:
    with pytest.raises(ValueError, match="folder of the stores"):
        open_teacher(MaskedLMConfig(storage="disk"))
