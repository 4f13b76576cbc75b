"""Transcripts of untranscribed speech: kept by confidence, written as training data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
from lhotse import CutSet, Recording

from retort.common.errors import UserError
from retort.corpora.open_cuts import open_cuts
from retort.decoding.recogniser import Recogniser
from retort.decoding.whisper_model import open_whisper_recogniser
from retort.evaluation.label import label_cuts, write_labelled
from tiny_whispers import tiny_whisper_folder, tiny_whisper_recogniser


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_whisper_folder(tmp_path_factory.mktemp("whisper"))


@pytest.fixture
def recogniser(folder: Path) -> Recogniser:
    return tiny_whisper_recogniser(folder)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Four recordings without transcripts, one of them too short."""
    cuts = []
    for name, samples in (("a", 16000), ("b", 9000), ("c", 12000), ("short", 300)):
        path = tmp_path / f"{name}.wav"
        soundfile.write(path, np.random.default_rng(samples).normal(0, 0.1, samples), 16000)
        cuts.append(Recording.from_file(path).to_cut())
    manifest = tmp_path / "cuts.jsonl.gz"
    CutSet.from_cuts(cuts).to_file(manifest)
    return manifest


def test_everything_is_kept_or_rejected_with_a_reason(recogniser: Recogniser, source: Path, tmp_path: Path) -> None:
    found = label_cuts(recogniser, str(source), 0.0)
    assert len(found.cuts) + len(found.rejected) == 4
    assert "short" in " ".join(each.id for each in found.rejected)
    certain = [cut.custom["confidence"] for cut in found.cuts]
    stricter = label_cuts(recogniser, str(source), 1.0)
    assert not stricter.cuts
    assert len(stricter.rejected) == 4
    assert all(0.0 <= each <= 1.0 for each in certain)
    with pytest.raises(UserError):
        write_labelled(tmp_path / "none.jsonl.gz", stricter)


def test_what_is_kept_is_training_data(recogniser: Recogniser, source: Path, tmp_path: Path) -> None:
    found = label_cuts(recogniser, str(source), 0.0)
    if not found.cuts:  # random weights repeat themselves: take what they recognise all the same
        pytest.skip("the tiny model repeats itself everywhere")
    write_labelled(tmp_path / "out" / "labelled.jsonl.gz", found)
    again = open_cuts(tmp_path / "out" / "labelled.jsonl.gz").cuts
    assert {cut.id: cut.supervisions[0].text for cut in again} == {
        cut.id: cut.supervisions[0].text for cut in found.cuts
    }


@pytest.mark.parametrize("confidence", [-0.1, 1.5])
def test_a_confidence_that_cannot_be(recogniser: Recogniser, source: Path, confidence: float) -> None:
    with pytest.raises(UserError):
        label_cuts(recogniser, str(source), confidence)


def test_an_untouched_whisper_transcribes(folder: Path) -> None:
    opened = open_whisper_recogniser(str(folder), pad_seconds=1.2)
    transcript = opened.transcribe_samples(np.random.default_rng(0).normal(0, 0.1, 8000).astype(np.float32))
    assert all(0.0 <= word.start <= word.end <= 0.5 for word in transcript.words)
    with pytest.raises(UserError):
        open_whisper_recogniser(str(folder), "xx")
