from __future__ import annotations

from collections.abc import Sequence

import torch

from retort.teachers.cache import CachedTeacher
from retort.teachers.teacher import TeacherOutput

DIM = 4


class Counting:
    """Reads a text as a word a character; notes what it was asked."""

    dim = DIM

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def read(self, texts: Sequence[str]) -> list[TeacherOutput]:
        self.asked.append(list(texts))
        return [
            TeacherOutput(torch.randn(len(text) + 2, DIM), [(i, i + 1) for i in range(len(text))], text)
            for text in texts
        ]


def test_only_what_is_missing_is_asked_and_once() -> None:
    inner = Counting()
    teacher = CachedTeacher(inner)
    first = teacher.read(["ab", "c", "ab"])
    second = teacher.read(["c", "d", "ab", "d"])
    assert inner.asked == [["ab", "c"], ["d"]]
    assert [output.text for output in first] == ["ab", "c", "ab"]
    assert [output.text for output in second] == ["c", "d", "ab", "d"]
    assert second[0] is first[1]
    assert second[2] is first[0]
    assert teacher.dim == DIM
    assert teacher.read([]) == []


def test_the_least_recently_used_goes_first() -> None:
    inner = Counting()
    one = 3 * DIM * 4  # bytes of a text of one character
    teacher = CachedTeacher(inner, limit=2 * one)
    for text in ("a", "b", "a", "c"):
        teacher.read([text])
    assert teacher.bytes == 2 * one
    teacher.read(["a", "c"])
    assert inner.asked == [["a"], ["b"], ["c"]]
    teacher.read(["b"])
    assert inner.asked[-1] == ["b"]


def test_a_batch_larger_than_the_cache_is_read_all_the_same() -> None:
    teacher = CachedTeacher(Counting(), limit=100)
    texts = ["a" * count for count in range(1, 9)]
    assert [output.text for output in teacher.read(texts)] == texts
    assert teacher.bytes <= 100
    nothing = CachedTeacher(Counting(), limit=0)
    assert nothing.read(["a"])[0].text == "a"
    assert nothing.bytes == 0


def test_autocast_readings_are_stored_separately() -> None:
    inner = Counting()
    teacher = CachedTeacher(inner)
    plain = teacher.read(["a"])[0]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = teacher.read(["a"])[0]
        assert teacher.read(["a"])[0] is rough
    assert len(inner.asked) == 2
    assert teacher.read(["a"])[0] is plain
