from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
from miniatures import make_aishell1

from retort.common.errors import UserError
from retort.corpora.aishell1 import prepare
from retort.corpora.open_cuts import open_cuts


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    return make_aishell1(tmp_path)


@pytest.mark.parametrize("inner", [True, False])
def test_three_manifests(
    corpus: Path, tmp_path: Path, inner: bool, capfd: pytest.CaptureFixture[str]
) -> None:
    handlers = list(logging.root.handlers)
    prepared = prepare(corpus if inner else corpus.parent, tmp_path / "out")
    assert capfd.readouterr() == ("", "")
    assert logging.root.handlers == handlers
    assert prepared.utterances == {"train": 4, "dev": 2, "test": 2}
    assert prepared.rejected == []
    cuts = list(open_cuts(tmp_path / "out" / "train.jsonl.gz").cuts)
    assert [cut.id for cut in cuts] == [
        f"BAC009S000{each}W0{number}" for each in (2, 3) for number in (122, 123)
    ]
    assert cuts[0].supervisions[0].text == "而对楼市成交K122"
    assert [cut.supervisions[0].speaker for cut in cuts] == ["S0002", "S0002", "S0003", "S0003"]
    assert Path(cuts[0].recording.sources[0].source) == corpus / "wav/train/S0002/BAC009S0002W0122.wav"
    assert cuts[0].load_audio().shape == (1, 8000)


def test_bad_utterances_are_left_out_and_listed(corpus: Path, tmp_path: Path) -> None:
    (corpus / "wav/train/S0002/BAC009S0002W0122.wav").write_text("no audio in here, truly none")
    (corpus / "wav/train/S0003/BAC009S0003W0122.wav").rename(corpus / "wav/train/S0003/BAC009S0003W0999.wav")
    (corpus / "wav/dev/S0724/BAC009S0724W0122.wav").write_bytes(b"")
    transcript = corpus / "transcript" / "aishell_transcript_v0.8.txt"
    lines = [
        line if "S0764W0123" not in line else "BAC009S0764W0123"
        for line in transcript.read_text().splitlines()
    ]
    transcript.write_text("\n".join([*lines, "", "\n"]))
    prepared = prepare(corpus, tmp_path / "out")
    assert prepared.utterances == {"train": 2, "dev": 1, "test": 1}
    reasons = {entry.id: entry.reason for entry in prepared.rejected}
    assert len(reasons) == len(prepared.rejected) == 5
    assert "cannot be read" in reasons["BAC009S0002W0122"]
    assert reasons["BAC009S0003W0999"] == "no line in the transcript"
    assert reasons["BAC009S0003W0122"] == "in the transcript, but has no audio"
    assert "0 bytes" in reasons["BAC009S0724W0122"]
    assert "is empty" in reasons["BAC009S0764W0123"]
    assert "BAC009S0764W0123" in (tmp_path / "out" / "test.rejected.tsv").read_text()


def test_the_layout_is_asked_for(corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        prepare(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(
        UserError, match=r"not AISHELL-1: it has neither transcript/aishell_transcript_v0\.8\.txt"
    ):
        prepare(corpus / "wav", tmp_path / "out")
    shutil.rmtree(corpus / "wav" / "test" / "S0764")
    with pytest.raises(UserError, match="wav/test: no audio in it"):
        prepare(corpus, tmp_path / "out")
    shutil.rmtree(corpus / "wav" / "test")
    with pytest.raises(UserError, match="no folder test"):
        prepare(corpus, tmp_path / "out")
    shutil.rmtree(corpus / "wav")
    (corpus / "wav").mkdir()
    (corpus / "wav" / "S0002.tar.gz").touch()
    with pytest.raises(UserError, match="still packed"):
        prepare(corpus, tmp_path / "out")


def test_a_part_without_a_usable_utterance(corpus: Path, tmp_path: Path) -> None:
    for path in (corpus / "wav/dev").glob("*/*.wav"):
        path.write_bytes(b"")
    with pytest.raises(UserError, match="wav/dev: none of 2 utterances is usable"):
        prepare(corpus, tmp_path / "out")
