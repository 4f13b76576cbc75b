"""What teachers know is a line each; measured once for the same teacher and texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from retort.alignment.tree import SenoneTree
from retort.common.errors import UserError
from retort.config.schema import Recipe, TeacherConfig
from retort.teachers import CachedTeacher, StoredTeacher, TeacherDescription
from retort.text.tokenizers import WordTokenizer
from retort.training import teacher_notes as module
from retort.training.frames import FrameReader
from retort.training.teacher_notes import describe_line, teacher_notes
from tiny_alignments import PHONES, senone_symbols

TREE = SenoneTree.monophone(PHONES, 3)
FOUND = TeacherDescription(
    1234,
    5,
    2.718,
    12.34,
    0.3456,
    0.98,
    0.876,
    [TeacherDescription(400, 0, entropy, 2.0, 0.5, 1.0, 0.9) for entropy in (3.0, 1.25, 0.5)],
)


class Named:
    """A teacher that says nothing but who it is."""

    dim = 5

    def __init__(self, name: str) -> None:
        self.name = name

    def identity(self) -> dict[str, object]:
        return {"model": "anywhere", "name": self.name, "dim": 5}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Sequence[str], SenoneTree | None]]:
    calls: list[Any] = []

    def describe(
        config: TeacherConfig, tokenizer: object, texts: Sequence[str], **more: Any
    ) -> TeacherDescription:
        calls.append((config.unit, list(texts), more["tree"]))
        if config.unit == "text":
            raise UserError("no sentence contains a token")
        return FOUND

    monkeypatch.setattr(module, "describe_teacher", describe)
    return calls


def lines(stores: Path, texts: Callable[[str], Sequence[str]], tree: SenoneTree = TREE) -> list[str]:
    recipe = Recipe(name="x")
    for name, unit, topk in (
        ("s", "senone", 10),
        ("p", "phone", 10),
        ("t", "text", 3),
        ("h", "text", None),
        ("n", "phone", 3),
    ):
        recipe.teachers[name] = TeacherConfig(kind="causal_lm", model=name, unit=unit, topk=topk)
    readers = {
        name: FrameReader(each.unit, WordTokenizer(senone_symbols()))  # type: ignore[arg-type]
        for name, each in recipe.teachers.items()
    }
    teachers: dict[str, Any] = {name: CachedTeacher(Named(name)) for name in recipe.teachers}  # type: ignore[arg-type]
    teachers["s"] = StoredTeacher(stores, Named("s").identity())
    device = torch.device("cpu")
    return list(teacher_notes(recipe, readers, teachers, texts, tree, stores, device, lambda *_: None))


def texts_of(name: str) -> list[str]:
    return [] if name == "n" else ["b c", "a", "b c", ""]


def test_a_line_each(tmp_path: Path, measured: list[Any]) -> None:
    found = lines(tmp_path, texts_of)
    assert [(unit, texts, tree) for unit, texts, tree in measured] == [
        ("senone", ["a", "b c"], TREE),
        ("phone", ["a", "b c"], None),
        ("text", ["a", "b c"], None),
    ]
    assert found[0] == (
        "teacher s: perplexity 12.3, entropy 2.72 nats, top-1 accuracy 34.6%, mass of the top 10 87.6%, "
        "2.0% missing, no prediction for 5 more, entropy by HMM state 3.00, 1.25, 0.50 (1,234 senones of 2 "
        "validation texts)"
    )
    assert found[1].startswith("teacher p: perplexity 12.3")
    assert found[2] == "teacher t: its statistics could not be measured (no sentence contains a token)"
    assert len(found) == 3  # one of hidden states has no distributions, one has no texts


def test_whole_probabilities_are_not_worth_a_word() -> None:
    plain = TeacherDescription(10, 0, 1.0, 2.0, 0.5, 0.99999, 0.9)
    assert describe_line(plain, TeacherConfig(model="x", unit="phone", topk=2), 4) == (
        "perplexity 2, entropy 1.00 nats, top-1 accuracy 50.0%, mass of the top 2 90.0% (10 phones of 4 "
        "validation texts)"
    )


def test_it_is_measured_once(tmp_path: Path, measured: list[Any]) -> None:
    first = lines(tmp_path, texts_of)
    kept = sorted(tmp_path.glob("*/about-*.json"))
    assert len(kept) == 2
    assert (kept[0].parent / "store.json").exists() or (kept[1].parent / "store.json").exists()
    count = len(measured)
    assert lines(tmp_path, texts_of) == first
    assert [unit for unit, *_ in measured[count:]] == ["text"]  # which could not be measured
    count = len(measured)
    kept[0].write_text("{")
    assert lines(tmp_path, texts_of) == first
    assert len(measured) == count + 2
    count = len(measured)
    lines(tmp_path, lambda name: [*texts_of(name), "c"])
    assert len(measured) == count + 4  # of `n` too, which has a text now
    count = len(measured)
    lines(tmp_path, texts_of, SenoneTree.monophone(PHONES, 1))
    assert [unit for unit, *_ in measured[count:]] == ["senone", "text"]


def test_of_many_texts_some_are_asked(
    tmp_path: Path, measured: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MEASURED", 4)
    many = [f"{number:03d}" for number in range(10)]
    lines(tmp_path, lambda name: many if name == "p" else [])
    assert [texts for _, texts, _ in measured] == [["000", "002", "005", "007"]]
