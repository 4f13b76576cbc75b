from __future__ import annotations

from pathlib import Path

import pytest
from miniatures import make_librispeech

from retort.common.errors import UserError
from retort.corpora.librispeech import prepare
from retort.corpora.open_cuts import open_cuts


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return make_librispeech(tmp_path)


@pytest.mark.parametrize("inner", [True, False])
def test_a_manifest_a_part(
    corpus: Path, tmp_path: Path, inner: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    prepared = prepare(corpus if inner else corpus.parent, tmp_path / "out")
    assert capfd.readouterr() == ("", "")
    assert prepared.utterances == {"dev-other": 2, "train-clean-100": 6}
    assert prepared.seconds == {"dev-other": 1.0, "train-clean-100": 3.0}
    assert prepared.rejected == []
    cuts = list(open_cuts(tmp_path / "out" / "train-clean-100.jsonl.gz").cuts)
    assert [cut.id for cut in cuts] == sorted(cut.id for cut in cuts)
    assert cuts[0].id == "103-1240-0000"
    assert cuts[0].supervisions[0].text == "CHAPTER 1240 MISSUS LYNDE'S"
    assert [cut.supervisions[0].speaker for cut in cuts] == ["103"] * 4 + ["1034"] * 2
    assert Path(cuts[0].recording.sources[0].source) == corpus / "train-clean-100/103/1240/103-1240-0000.flac"
    assert cuts[0].load_audio().shape == (1, 8000)


def test_bad_utterances_are_left_out_and_listed(corpus: Path, tmp_path: Path) -> None:
    folder = corpus / "train-clean-100" / "103" / "1240"
    (folder / "103-1240-0000.flac").write_text("no audio in here, truly none")
    (folder / "103-1240-0001.flac").rename(folder / "103-1240-0009.flac")
    (corpus / "train-clean-100/103/1241/103-1241.trans.txt").write_text(
        "103-1241-0000\n\n103-1241-0001 GOOD\n"
    )
    prepared = prepare(corpus, tmp_path / "out")
    assert prepared.utterances == {"dev-other": 2, "train-clean-100": 3}
    reasons = {entry.id: entry.reason for entry in prepared.rejected}
    assert len(reasons) == len(prepared.rejected) == 4
    assert "cannot be read" in reasons["103-1240-0000"]
    assert "no such file" in reasons["103-1240-0001"]
    assert reasons["103-1240-0009"] == "no line in 103-1240.trans.txt"
    assert "is empty" in reasons["103-1241-0000"]


def test_the_layout_is_asked_for(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        prepare(tmp_path / "nowhere", tmp_path / "out")
    for source in (corpus / "dev-other", corpus / "train-clean-100"):
        with pytest.raises(UserError, match=f"one part of LibriSpeech. Choose its parent folder: {corpus}"):
            prepare(source, tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="not LibriSpeech: none of dev-clean, dev-other"):
        prepare(tmp_path / "empty", tmp_path / "out")


def test_a_part_without_a_usable_utterance(corpus: Path, tmp_path: Path) -> None:
    for path in (corpus / "dev-other").glob("*/*/*.flac"):
        path.unlink()
    with pytest.raises(UserError, match="dev-other: none of 2 utterances is usable"):
        prepare(corpus, tmp_path / "out")
