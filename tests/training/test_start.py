"""A student that starts from one to which all characters of a sound are the same."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from retort.audio.fbank import FbankConfig
from retort.common.errors import UserError
from retort.config.schema import NormaliserConfig
from retort.decoding.recogniser import Recogniser
from retort.students.cif import CifStudent, CifStudentConfig
from retort.text.homophones import fold
from retort.text.tokenizers import SPECIAL, CharacterTokenizer
from tiny_students import DECODER, ENCODER, FRONTEND, start_from

CONFIG = CifStudentConfig(frontend=FRONTEND, encoder=ENCODER, decoder=DECODER)
CHARACTERS = "你好妮泥号世"


@pytest.fixture
def origin(tmp_path: Path) -> Recogniser:
    tokenizer = CharacterTokenizer.train([fold("你好")])
    student = CifStudent(CONFIG, tokenizer.size, 20)
    config = NormaliserConfig(spaces="drop", homophones="fold")
    recogniser = Recogniser(student, tokenizer, FbankConfig(bins=20), config)
    recogniser.save(tmp_path / "origin")
    return recogniser


def test_characters_share_what_their_syllable_had(origin: Recogniser, tmp_path: Path) -> None:
    tokenizer = CharacterTokenizer(list(CHARACTERS))
    student = CifStudent(CONFIG, tokenizer.size, 20)
    taken = start_from(student, tokenizer, str(tmp_path / "origin"))
    assert taken == {"taken": len(student.state_dict()), "not_used": 0, "fresh": 0}

    hidden = torch.randn(5, student.ctc.in_features)
    before = origin.student.ctc(hidden).softmax(-1)  # type: ignore[operator]
    after = student.ctc(hidden).softmax(-1)
    row = {symbol: number for number, symbol in enumerate(origin.tokenizer.symbols)}
    for sound in ("你妮泥", "好号"):
        theirs = before[:, row[fold(sound[0])]]
        ours = after[:, [len(SPECIAL) + CHARACTERS.index(each) for each in sound]]
        torch.testing.assert_close(ours.sum(-1), theirs)
        torch.testing.assert_close(ours, ours[:, :1].expand_as(ours))
    torch.testing.assert_close(after[:, 0], before[:, 0])
    # What no syllable of the start is, shares with the unknown.
    torch.testing.assert_close(after[:, [3, len(SPECIAL) + 5]].sum(-1), before[:, 3])


def test_only_the_named_parts_are_taken(origin: Recogniser, tmp_path: Path) -> None:
    student = CifStudent(CONFIG, origin.tokenizer.size, 20)
    fresh = {name: value.clone() for name, value in student.state_dict().items()}
    start_from(student, origin.tokenizer, str(tmp_path / "origin"), parts=["encoder", "ctc.weight"])
    for name, value in student.state_dict().items():
        taken = name == "ctc.weight" or name.startswith("encoder.")
        assert torch.equal(value, (origin.student.state_dict() if taken else fresh)[name])
    assert not torch.equal(fresh["ctc.weight"], origin.student.state_dict()["ctc.weight"])


def test_a_part_that_the_model_lacks_is_named(origin: Recogniser, tmp_path: Path) -> None:
    student = CifStudent(CONFIG, origin.tokenizer.size, 20)
    with pytest.raises(UserError, match=r"training.init_parts has the unknown part 'joiner'"):
        start_from(student, origin.tokenizer, str(tmp_path / "origin"), parts=["joiner"])


def test_the_same_folded_vocabulary_is_taken_as_it_is(origin: Recogniser, tmp_path: Path) -> None:
    student = CifStudent(CONFIG, origin.tokenizer.size, 20)
    start_from(student, origin.tokenizer, str(tmp_path / "origin"))
    for name, value in student.state_dict().items():
        assert torch.equal(value, origin.student.state_dict()[name])
