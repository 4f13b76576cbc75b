from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from miniatures import make_aishell1, make_librispeech

from retort.common.errors import UserError
from retort.corpora import PREPARERS, probes
from retort.corpora.parts import Work, prepare_in_parts

MakeCorpus = Callable[..., Path]


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "prepared.json"}


def work_of(kind: str, root: Path, make_corpus: MakeCorpus) -> tuple[Path, dict[str, Any]]:
    if kind == "aishell1":
        corpus = make_aishell1(root)
        (corpus / "wav" / "train" / "S0002" / "BAC009S0002W0122.wav").write_bytes(b"not audio")
        return corpus, {}
    if kind == "librispeech":
        corpus = make_librispeech(root)
        (corpus / "train-clean-100" / "103" / "1240" / "103-1240-0000.flac").unlink()
        return corpus, {}
    corpus = make_corpus(root / "corpus", 12)
    (corpus / "wav" / "corpus-003.wav").write_bytes(b"")
    if kind == "kaldi":
        return corpus, {"maximum_hours": 24.0}
    lines = [f"corpus/wav/corpus-{number:03d}.wav,text {number}" for number in range(12)]
    (root / "table.csv").write_text("\n".join(["audio,text", *lines]) + "\n")
    return root / "table.csv", {"held_out": 0.2}


@pytest.mark.parametrize("kind", ["aishell1", "librispeech", "kaldi", "table"])
def test_parts_in_any_order_equal_one_process(kind: str, tmp_path: Path, make_corpus: MakeCorpus) -> None:
    source, options = work_of(kind, tmp_path, make_corpus)
    whole = PREPARERS[kind](source, tmp_path / "whole", **options)
    work = Work(kind, str(source), str(tmp_path / "parts"), options)
    assert [prepare_in_parts(work, (number, 3)) for number in (3, 1)] == [None, None]
    prepared = prepare_in_parts(work, (2, 3))
    assert prepared is not None
    assert files(tmp_path / "parts") == files(tmp_path / "whole")
    assert prepared.utterances == whole.utterances
    assert prepared.rejected == whole.rejected
    again = prepare_in_parts(work, (1, 3))  # what is there is reported once more
    assert again is not None
    assert (again.utterances, again.seconds) == (prepared.utterances, prepared.seconds)
    assert sorted(each.id for each in again.rejected) == sorted(each.id for each in prepared.rejected)


def test_two_processes_equal_one(tmp_path: Path, make_corpus: MakeCorpus) -> None:
    source, options = work_of("kaldi", tmp_path, make_corpus)
    PREPARERS["kaldi"](source, tmp_path / "whole", **options)
    prepare_in_parts(Work("kaldi", str(source), str(tmp_path / "parts"), options), processes=2)
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_every_file_is_read_once(
    tmp_path: Path, make_corpus: MakeCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, options = work_of("kaldi", tmp_path, make_corpus)
    opened = []
    original = probes.open_source

    def count(path: Path) -> Any:
        opened.append(path)
        return original(path)

    monkeypatch.setattr(probes, "open_source", count)
    work = Work("kaldi", str(source), str(tmp_path / "parts"), options)
    prepare_in_parts(work, (1, 2))
    prepare_in_parts(work, (1, 2))  # done: not read again
    prepare_in_parts(work, (2, 2))
    assert len(opened) == len(set(opened)) == 12


def test_an_interrupted_part_continues(
    tmp_path: Path, make_corpus: MakeCorpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, options = work_of("kaldi", tmp_path, make_corpus)
    PREPARERS["kaldi"](source, tmp_path / "whole", **options)
    original, opened = probes.open_source, []

    def stop_after_two(path: Path) -> Any:
        opened.append(path)
        if len(opened) == 3:
            raise KeyboardInterrupt
        return original(path)

    work = Work("kaldi", str(source), str(tmp_path / "parts"), options)
    monkeypatch.setattr(probes, "open_source", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        prepare_in_parts(work, (1, 2))
    for number in (1, 2):
        prepare_in_parts(work, (number, 2))
    assert not {*opened[:2]} & {*opened[3:]}  # what was recorded is not read again
    assert len(opened) == 13
    assert files(tmp_path / "parts") == files(tmp_path / "whole")


def test_a_corpus_that_is_not_there_is_reported_by_every_part(tmp_path: Path) -> None:
    for number in (1, 2):
        with pytest.raises(UserError, match="no such folder"):
            prepare_in_parts(Work("aishell1", str(tmp_path / "x"), str(tmp_path / "out"), {}), (number, 2))
