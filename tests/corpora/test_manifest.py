"""A manifest that somebody else wrote is data: nothing in it is run, and one bad line costs one utterance."""

from __future__ import annotations

import contextlib
import copy
import gzip
import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from test_cuts import cut_line, write_lines
from waves import write_wave

from retort.audio.fbank import FbankConfig
from retort.common.errors import BadUtterance, UserError
from retort.corpora.cuts import write_rejected
from retort.corpora.features import CutFeatures
from retort.corpora.manifest import LONGEST_LINE
from retort.corpora.open_cuts import open_cuts


def recording(**source: Any) -> dict[str, Any]:
    found = copy.deepcopy(cut_line("a.wav", "r")["recording"])
    found["sources"][0] |= source
    return found


def features(**changes: Any) -> dict[str, Any]:
    return {
        "type": "fbank", "num_frames": 100, "num_features": 80, "frame_shift": 0.01, "sampling_rate": 16000,
        "start": 0.0, "duration": 1.0, "storage_type": "numpy_files", "storage_path": "x", "storage_key": "y.npy",
        "channels": 0, "recording_id": "r",
    } | changes  # fmt: skip


def reverb(rir: object) -> list[dict[str, Any]]:
    return [{"name": "ReverbWithImpulseResponse", "kwargs": {"rir": rir}}]


RUN = {"type": "command", "source": "touch PWNED; cat a.wav"}
LOADS = {"type": "url", "source": "http://127.0.0.1:9/a.wav"}
NESTED = cut_line("a.wav", "b", recording=recording() | {"transforms": reverb(recording(**RUN))})
REFUSED = {
    "command": cut_line("a.wav", "b", recording=recording(**RUN)),
    "url": cut_line("a.wav", "b", recording=recording(**LOADS)),
    "shar": cut_line("a.wav", "b", recording=recording(type="shar", source="")),
    "memory": cut_line("a.wav", "b", recording=recording(type="memory", source="UklGRg==")),
    "rir command": NESTED,
    "rir in a rir": cut_line(
        "a.wav",
        "b",
        recording=recording()
        | {"transforms": reverb(recording() | {"transforms": reverb(recording(**RUN))})},
    ),
    "rir as a cut": cut_line(
        "a.wav",
        "b",
        recording=recording() | {"transforms": reverb(cut_line("a.wav", recording=recording(**RUN)))},
    ),
    "unknown transform": cut_line(
        "a.wav", "b", recording=recording() | {"transforms": [{"name": "DereverbWPE", "kwargs": {}}]}
    ),
    "transform's arguments": cut_line(
        "a.wav", "b", recording=recording() | {"transforms": [{"name": "Speed", "kwargs": {"factor": "x"}}]}
    ),
    "endless speed": cut_line(
        "a.wav", "b", recording=recording() | {"transforms": [{"name": "Speed", "kwargs": {"factor": 1e-9}}]}
    ),
    "tracks": {"id": "b", "type": "MixedCut", "tracks": [{"type": "MonoCut", "cut": NESTED}]},
    "padding": {"id": "b", "type": "PaddingCut", "duration": 1.0, "sampling_rate": 16000, "feat_value": 0.0},
    "custom": cut_line("a.wav", "b", custom={"target": recording(**RUN)}),
    "custom of the supervision": cut_line(
        "a.wav", "b", supervisions=[cut_line("a.wav", "b")["supervisions"][0] | {"custom": recording(**RUN)}]
    ),
    "pickle": cut_line("a.wav", "b", features=features(storage_type="memory_raw")),
    "pipe": cut_line("a.wav", "b", features=features(storage_type="kaldiio", storage_key="touch PWNED |")),
    "fetched features": cut_line(
        "a.wav", "b", features=features(storage_type="lilcom_url", storage_path="http://127.0.0.1:9")
    ),
    "custom array": cut_line(
        "a.wav", "b", custom={"x": {"storage_type": "memory_raw", "storage_key": "", "shape": [1]}}
    ),
    "pipe as a path": cut_line("pipe:touch PWNED", "b"),
    "command as a path": cut_line("touch PWNED |", "b"),
}


@pytest.mark.parametrize("how", REFUSED)
def test_nothing_in_a_manifest_is_run_or_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_wave(tmp_path / "a.wav")
    found = open_cuts(write_lines(tmp_path / "x.jsonl", [REFUSED[how], cut_line("a.wav", "good")]))
    assert list(found.cuts.ids) == ["good"]
    assert len(found.rejected) == 1
    assert not (tmp_path / "PWNED").exists()


def test_an_impulse_response_in_a_file_is_taken(tmp_path: Path) -> None:
    for name in ("a.wav", "rir.wav"):
        write_wave(tmp_path / name)
    line = cut_line("a.wav", recording=recording() | {"transforms": reverb(recording(source="rir.wav"))})
    found = open_cuts(write_lines(tmp_path / "x.jsonl", [line]))
    [cut] = found.cuts
    assert cut.load_audio().shape == (1, 16000)


def changed(path: str, value: Any) -> dict[str, Any]:
    line: Any = cut_line("a.wav", "b", features=features())
    del line["features"]
    *way, last = path.split(".")
    place = line
    for step in way:
        place = place[int(step) if step.isdigit() else step]
    place[last] = value
    return dict(line)


VALUES: list[Any] = [None, True, -1, "x", [1], {"a": 1}, float("nan"), float("inf"), 10**400, "\ud800", "\0"]
FIELDS = [
    "id", "type", "start", "duration", "channel", "supervisions", "recording", "features", "custom",
    "supervisions.0.id", "supervisions.0.start", "supervisions.0.duration", "supervisions.0.channel",
    "supervisions.0.text", "supervisions.0.speaker", "supervisions.0.language", "supervisions.0.custom",
    "supervisions.0.alignment",
    "recording.id", "recording.sources", "recording.sampling_rate", "recording.num_samples", "recording.duration",
    "recording.channel_ids", "recording.transforms",
    "recording.sources.0.type", "recording.sources.0.channels", "recording.sources.0.source",
]  # fmt: skip


@pytest.mark.parametrize("field", FIELDS)
def test_a_field_of_any_type_costs_one_line_at_most(tmp_path: Path, field: str) -> None:
    write_wave(tmp_path / "a.wav")
    for value in VALUES:
        lines = [json.dumps(changed(field, value)), cut_line("a.wav", "good")]
        found = open_cuts(write_lines(tmp_path / "x.jsonl", lines))
        assert "good" in list(found.cuts.ids)
        assert len(found.cuts) + len(found.rejected) == 2
        for cut in found.cuts:
            # A channel that the file lacks is found, and listed, when its audio is read.
            late = field == "recording.sources.0.channels"
            with contextlib.suppress(BadUtterance) if late else contextlib.nullcontext():
                CutFeatures(FbankConfig())(cut)
        write_rejected(found.rejected, tmp_path / "rejected.tsv")


def test_foreign_features_are_files_of_numpy(tmp_path: Path) -> None:
    write_wave(tmp_path / "a.wav")
    (tmp_path / "y.npy").write_bytes(pickle.dumps({"a": 1}))
    line = cut_line("a.wav", features=features(storage_path=str(tmp_path)))
    [cut] = open_cuts(write_lines(tmp_path / "x.jsonl", [line])).cuts
    with pytest.raises(BadUtterance, match="stored features"):
        CutFeatures(FbankConfig())(cut)


def test_a_compressed_line_has_a_bound(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl.gz"
    path.write_bytes(gzip.compress(b" " * (LONGEST_LINE + 1)))
    assert path.stat().st_size < 100_000
    with pytest.raises(UserError, match="longer than"):
        open_cuts(path)
