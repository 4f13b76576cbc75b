from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from retort import demo
from retort.config import Recipe
from retort.corpora.opening import open_cuts
from retort.errors import UserError
from retort.recipe import load_recipe

pytest.importorskip("espeakng_loader")


@pytest.fixture
def console(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Console:
    """The demo with a handful of sentences and steps, run in `tmp_path`."""

    def small(name: str) -> Recipe:
        return load_recipe(
            name,
            ["training.steps=2", "training.evaluate_steps=2", "tokenizer.size=40", "batches.seconds=10",
             "training.precision=fp32", "training.threads=1"],
        )  # fmt: skip

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "SENTENCES", {"train": 24, "validation": 3, "test": 4})
    monkeypatch.setattr(demo, "load_recipe", small)
    return Console(file=io.StringIO(), width=160)


def text_of(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_from_nothing_to_sentences_never_heard(
    console: Console, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo.run_demo(console, Path("exp"))
    heard = {
        split: {cut.supervisions[0].text for cut in open_cuts(f"exp/demo/data/{split}.jsonl.gz").cuts}
        for split in ("train", "validation", "test")
    }
    assert [len(each) for each in heard.values()] == [24, 3, 4]
    assert not heard["test"] & (heard["train"] | heard["validation"])
    shown = text_of(console)
    assert sum(sentence in shown for sentence in heard["test"]) == demo.SHOWN
    assert not any(sentence in shown for sentence in heard["train"])
    assert re.search(r"CER \d+\.\d+%, WER \d+\.\d+% on 4 sentences", shown)
    assert (tmp_path / "exp/demo/cif/model/model.safetensors").is_file()
    command = shown[shown.index("retort transcribe") :].split()
    assert Path(command[3]).is_dir()
    assert Path(command[4]).is_file()

    # A second call makes nothing again.
    first = Path("exp/demo/cif/model/model.safetensors").read_bytes()
    monkeypatch.setattr(demo, "PREPARERS", {})
    demo.run_demo(console, Path("exp"))
    assert Path("exp/demo/cif/model/model.safetensors").read_bytes() == first


def test_a_sentence_that_cannot_be_spoken_stops_it(console: Console, monkeypatch: pytest.MonkeyPatch) -> None:
    from retort.corpora.cuts import Prepared, Rejected

    def broken(*_: object, **__: object) -> Prepared:
        return Prepared(rejected=[Rejected("train-00000", "nothing to speak")])

    monkeypatch.setattr(demo, "PREPARERS", {"synthetic": broken})
    with pytest.raises(UserError, match="1 sentences could not be spoken"):
        demo.run_demo(console, Path("exp"))
