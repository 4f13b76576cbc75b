from __future__ import annotations

import json
import multiprocessing
import os
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, BinaryIO

import numpy as np
import pytest
import soundfile
import torch
from lhotse import CutSet, Recording, SupervisionSegment
from lhotse.cut import Cut
from lhotse.utils import fastcopy
from torch import Tensor

from retort.audio.fbank import FbankConfig
from retort.common.errors import BadUtterance, UserError
from retort.corpora.cuts import make_cut, open_recording
from retort.corpora.features import CutFeatures, features_key, load_samples, store_features
from retort.corpora.open_cuts import open_cuts

CONFIG = FbankConfig(bins=40)
MakeCorpus = Callable[..., Path]
Say = Callable[..., np.ndarray]


@pytest.fixture
def cuts(tmp_path: Path, make_corpus: MakeCorpus) -> CutSet:
    return open_cuts(make_corpus(tmp_path / "data", 6)).cuts


def wave_of(cuts: CutSet, index: int) -> Path:
    return Path(list(cuts)[index].recording.sources[0].source)


def test_stored_features_are_those_made_on_the_fly(cuts: CutSet, tmp_path: Path) -> None:
    stored, rejected = store_features(cuts, tmp_path / "cache", CONFIG)
    assert rejected == []
    assert list(stored.ids) == list(cuts.ids)
    features = CutFeatures(CONFIG)
    for plain, kept in zip(cuts, stored):
        assert kept.has_features
        torch.testing.assert_close(features(kept), features(plain), atol=1e-4, rtol=0)
        assert features(kept).mean(0).abs().max() < 1e-4


def test_stores_that_are_there_keep_their_names() -> None:
    assert features_key("x", [], FbankConfig()) == "175cb9467ac82ef8"


def test_speeds_and_stretches_of_a_recording_are_stored_separately(tmp_path: Path, say: Say) -> None:
    soundfile.write(tmp_path / "long.wav", say("abc def gh ab"), 16000)
    recording = open_recording("long", tmp_path / "long.wav")
    cuts = CutSet.from_cuts(
        make_cut(f"long/{start}", recording, "A", "s", start, start + 0.5) for start in (0.0, 0.25, 0.7)
    )
    all_cuts = (cuts + cuts.perturb_speed(0.9) + cuts.perturb_speed(0.95)).to_eager()
    stored, _ = store_features(all_cuts, tmp_path / "cache", CONFIG)
    features = CutFeatures(CONFIG)
    assert len(stored) == 9
    for plain, kept in zip(all_cuts, stored):
        torch.testing.assert_close(features(kept), features(plain), atol=1e-4, rtol=0)


class TestBrokenOff:
    def stop_after(self, count: int) -> Callable[[int, int], None]:
        def progress(done: int, total: int) -> None:
            if done == count:
                raise KeyboardInterrupt

        return progress

    def test_it_goes_on_where_it_stopped(self, cuts: CutSet, tmp_path: Path) -> None:
        folder = tmp_path / "cache"
        with pytest.raises(KeyboardInterrupt):
            store_features(cuts, folder, CONFIG, self.stop_after(4))
        kept = {path: path.stat().st_mtime_ns for path in folder.rglob("*.npy")}
        assert len(kept) == 4
        stored, _ = store_features(cuts, folder, CONFIG)
        assert list(stored.ids) == list(cuts.ids)
        assert {path: path.stat().st_mtime_ns for path in kept} == kept
        assert len(list(folder.rglob("*.npy"))) == 6

    def test_a_line_cut_by_a_kill_is_made_again(self, cuts: CutSet, tmp_path: Path) -> None:
        folder = tmp_path / "cache"
        with pytest.raises(KeyboardInterrupt):
            store_features(cuts, folder, CONFIG, self.stop_after(3))
        manifest = next(folder.glob("cuts.*"))
        manifest.write_bytes(manifest.read_bytes()[:-40])
        stored, _ = store_features(cuts, folder, CONFIG)
        assert list(stored.ids) == list(cuts.ids)

    def test_a_finished_one_is_not_made_again(
        self, cuts: CutSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store_features(cuts, tmp_path / "cache", CONFIG)
        monkeypatch.setattr(CutFeatures, "made", lambda *_: pytest.fail("made again"))
        stored, _ = store_features(cuts, tmp_path / "cache", CONFIG)
        assert len(stored) == 6


class Full:
    """A file whose disk fills up: after so many writes one stops halfway, and closing it fails again."""

    def __init__(self, file: IO[str], last: int) -> None:
        self.file, self.left = file, last

    def write(self, text: str) -> None:
        self.left -= 1
        if self.left < 0:
            self.file.write(text[: len(text) // 2])
            self.file.flush()
            raise OSError(28, "No space left on device")
        self.file.write(text)

    def __enter__(self) -> Full:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def fileno(self) -> int:
        return self.file.fileno()

    def flush(self) -> None:
        self.file.flush()

    def close(self) -> None:
        self.file.close()
        if self.left < 0:
            raise OSError(28, "No space left on device")


class TestFullDisk:
    def refused(self, cuts: CutSet, folder: Path) -> None:
        with pytest.raises(UserError, match=r"No space left on device.*Free space and run again") as error:
            store_features(cuts, folder, CONFIG)
        assert "\n" not in str(error.value)

    def goes_on(self, cuts: CutSet, folder: Path, kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
        made = CutFeatures.made
        asked: list[str] = []

        def counted(features: CutFeatures, cut: Cut) -> Tensor:
            asked.append(cut.id)
            return made(features, cut)

        monkeypatch.setattr(CutFeatures, "made", counted)
        stored, rejected = store_features(cuts, folder, CONFIG)
        assert rejected == []
        assert list(stored.ids) == list(cuts.ids)
        assert asked == list(cuts.ids)[kept:]
        for plain, there in zip(cuts, stored):
            torch.testing.assert_close(
                CutFeatures(CONFIG)(there), CutFeatures(CONFIG)(plain), atol=1e-4, rtol=0
            )

    def test_while_an_array_is_written(
        self, cuts: CutSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        save = np.save
        calls: list[str] = []

        def full(file: BinaryIO, array: np.ndarray, **others: bool) -> None:
            calls.append(file.name)
            if len(calls) > 3:
                file.write(b"half")
                raise OSError(28, "No space left on device")
            save(file, array, **others)

        with monkeypatch.context() as patch:
            patch.setattr(np, "save", full)
            self.refused(cuts, tmp_path / "cache")
        assert len(calls) == 4
        self.goes_on(cuts, tmp_path / "cache", 3, monkeypatch)

    def test_while_the_manifest_is_written(
        self, cuts: CutSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opened = Path.open

        def open_full(path: Path, mode: str = "r", **options: Any) -> Any:
            file = opened(path, mode, **options)
            return Full(file, 2) if (path.name, mode) == ("cuts.jsonl", "a") else file

        with monkeypatch.context() as patch:
            patch.setattr(Path, "open", open_full)
            self.refused(cuts, tmp_path / "cache")
        manifest = tmp_path / "cache" / "cuts.jsonl"
        assert not manifest.read_bytes().endswith(b"\n")
        self.goes_on(cuts, tmp_path / "cache", 2, monkeypatch)


def test_the_bad_are_listed_and_stay_listed(cuts: CutSet, tmp_path: Path) -> None:
    names = list(cuts.ids)
    wave_of(cuts, 0).write_bytes(b"not audio")
    wave_of(cuts, 1).write_bytes(b"")
    wave_of(cuts, 2).unlink()
    samples, _ = soundfile.read(wave_of(cuts, 3))
    soundfile.write(wave_of(cuts, 3), np.zeros(len(samples)), 16000)
    samples, _ = soundfile.read(wave_of(cuts, 4))
    soundfile.write(wave_of(cuts, 4), samples[::2], 8000)
    for _ in range(2):
        stored, rejected = store_features(cuts, tmp_path / "cache", CONFIG)
        assert list(stored.ids) == names[5:]
        reasons = {each.id: each.reason for each in rejected}
        assert list(reasons) == names[:5]
        for name, word in zip(names, ["Format not recognised", "0 bytes", "no such file", "silence"]):
            assert word in reasons[name]
        assert "8000 Hz, its manifest has" in reasons[names[4]]
        assert not any("\n" in reason for reason in reasons.values())


def test_nothing_left_is_an_error(cuts: CutSet, tmp_path: Path) -> None:
    for index in range(6):
        wave_of(cuts, index).write_bytes(b"not audio")
    with pytest.raises(UserError, match="no utterance has usable audio"):
        store_features(cuts, tmp_path / "cache", CONFIG)


def file_of(cut: Cut) -> Path:
    return Path(cut.features.storage_path) / cut.features.storage_key


def other_array(path: Path) -> None:
    np.save(path, np.zeros((3, 40), np.float32))


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut short": lambda path: os.truncate(path, 50),
    "its end cut off": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "zeros at the end": lambda path: path.write_bytes(path.read_bytes()[:-400] + bytes(400)),
    "one bit": lambda path: path.write_bytes(path.read_bytes()[:-7] + b"\x10" + path.read_bytes()[-6:]),
    "another array": other_array,
    "another dtype": lambda path: np.save(path, np.load(path).astype(np.float64)),
    "a pickle": lambda path: path.write_bytes(pickle.dumps(np.zeros(3))),
    "an archive": lambda path: path.write_bytes(b"PK\x03\x04" + bytes(200)),
}


@pytest.mark.parametrize("how", DAMAGE)
def test_damaged_features_are_made_again(cuts: CutSet, tmp_path: Path, how: str) -> None:
    stored, _ = store_features(cuts, tmp_path / "cache", CONFIG)
    first = next(iter(stored))
    before = CutFeatures(CONFIG)(first)
    DAMAGE[how](file_of(first))
    torch.testing.assert_close(CutFeatures(CONFIG)(first), before, atol=0, rtol=0)  # while it is in use
    again, rejected = store_features(cuts, tmp_path / "cache", CONFIG)
    assert rejected == []
    assert list(again.ids) == list(cuts.ids)
    torch.testing.assert_close(CutFeatures(CONFIG)(next(iter(again))), before, atol=0, rtol=0)


def test_swapped_features_are_noticed(cuts: CutSet, tmp_path: Path) -> None:
    stored, _ = store_features(cuts, tmp_path / "cache", CONFIG)
    (first, second), features = list(stored)[:2], CutFeatures(CONFIG)
    before = features(first), features(second)
    one, other = file_of(first).read_bytes(), file_of(second).read_bytes()
    file_of(first).write_bytes(other)
    file_of(second).write_bytes(one)
    again, _ = store_features(cuts, tmp_path / "cache", CONFIG)
    for cut, expected in zip(again, before):
        torch.testing.assert_close(features(cut), expected, atol=0, rtol=0)


@pytest.mark.parametrize(
    "content", [None, b"", b"{}\n[1]\n5\n", b"\xff\xfe\n", b'{"id": "x", "features": {"storage_path": 1}}\n']
)
def test_a_damaged_list_of_features_is_made_again(
    cuts: CutSet, tmp_path: Path, content: bytes | None
) -> None:
    store_features(cuts, tmp_path / "cache", CONFIG)
    manifest = tmp_path / "cache" / "cuts.jsonl"
    manifest.unlink() if content is None else manifest.write_bytes(content)
    stored, rejected = store_features(cuts, tmp_path / "cache", CONFIG)
    assert (list(stored.ids), rejected) == (list(cuts.ids), [])


def test_a_list_of_features_names_no_file_elsewhere(cuts: CutSet, tmp_path: Path) -> None:
    store_features(cuts, tmp_path / "cache", CONFIG)
    manifest = tmp_path / "cache" / "cuts.jsonl"
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    elsewhere = tmp_path / "elsewhere.npy"
    other_array(elsewhere)
    for line in lines:
        line["features"] |= {"storage_path": str(tmp_path), "storage_key": "../../elsewhere.npy"}
    manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    stored, _ = store_features(cuts, tmp_path / "cache", CONFIG)
    assert all((tmp_path / "cache").resolve() in file_of(cut).resolve().parents for cut in stored)


def test_damaged_features_of_somebody_else_are_a_bad_utterance(cuts: CutSet, tmp_path: Path) -> None:
    stored, _ = store_features(cuts, tmp_path / "cache", CONFIG)
    first = next(iter(stored))
    first.custom = None
    file_of(first).write_bytes(file_of(first).read_bytes()[:50])
    with pytest.raises(BadUtterance, match="stored features cannot be read") as error:
        CutFeatures(CONFIG)(first)
    assert "\n" not in str(error.value)


class TestKey:
    def test_the_same_is_the_same(self, cuts: CutSet) -> None:
        assert features_key("train", cuts, CONFIG) == features_key("train", list(cuts), CONFIG)

    def test_settings_change_it(self, cuts: CutSet) -> None:
        others = replace(CONFIG, bins=41), replace(CONFIG, sampling_rate=8000)
        assert len({features_key("train", cuts, config) for config in (CONFIG, *others)}) == 3

    def test_what_is_applied_on_reading_does_not(self, cuts: CutSet) -> None:
        other = replace(CONFIG, cmvn=False, storage="online")
        assert features_key("train", cuts, CONFIG) == features_key("train", cuts, other)

    def test_other_cuts_change_it(self, cuts: CutSet) -> None:
        keys = {
            features_key("train", each, CONFIG)
            for each in (cuts, cuts.subset(first=5), cuts.perturb_speed(0.9), list(cuts)[::-1])
        }
        assert len(keys) == 4

    def test_another_recording_under_the_same_name_changes_it(self, cuts: CutSet) -> None:
        before = features_key("train", cuts, CONFIG)
        status = wave_of(cuts, 0).stat()
        os.utime(wave_of(cuts, 0), ns=(status.st_atime_ns, status.st_mtime_ns + 10**9))
        assert features_key("train", cuts, CONFIG) != before


def two_channels(folder: Path, rate: int = 8000) -> tuple[np.ndarray, np.ndarray]:
    left, right = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 8000))
    soundfile.write(folder / "two.wav", np.stack([left, right], 1), rate, subtype="FLOAT")
    return left, right


def test_our_cuts_are_the_mean_of_all_channels(tmp_path: Path) -> None:
    left, right = two_channels(tmp_path)
    cut = make_cut("two", open_recording("two", tmp_path / "two.wav"), "A", "s")
    np.testing.assert_allclose(load_samples(cut, 8000), (left + right) / 2, atol=1e-6)
    assert load_samples(cut, 16000).shape == (16000,)
    faster = load_samples(cut.perturb_speed(2.0), 8000)  # through lhotse, with its transforms
    assert faster.shape == (4000,)
    recording = Recording.from_file(tmp_path / "two.wav")
    mean = load_samples(make_cut("two", recording, "A", "s").perturb_speed(2.0), 8000)
    np.testing.assert_allclose(faster, mean, atol=1e-6)


@pytest.mark.parametrize("stored", [False, True])
def test_a_cut_of_a_channel_is_that_channel(tmp_path: Path, stored: bool) -> None:
    channels = two_channels(tmp_path)
    recording = Recording.from_file(tmp_path / "two.wav", recording_id="call")
    cuts = []
    for number, name in enumerate(("agent", "client")):
        cut = recording.to_cut().to_mono()[number]
        text = SupervisionSegment(
            name, "call", 0.0, recording.duration, channel=number, text=name, speaker=name
        )
        cuts.append(fastcopy(cut, id=name, supervisions=[text]))
    CutSet.from_cuts(cuts).to_file(tmp_path / "cuts.jsonl.gz")
    opened = open_cuts(tmp_path / "cuts.jsonl.gz").cuts
    for cut, wave in zip(opened, channels):
        np.testing.assert_allclose(load_samples(cut, 8000), wave, atol=1e-6)
    if stored:
        features, _ = store_features(opened, tmp_path / "cache", replace(CONFIG, sampling_rate=8000))
        first, second = (CutFeatures(replace(CONFIG, sampling_rate=8000))(cut) for cut in features)
        assert not torch.allclose(first, second)


def test_a_cut_of_all_channels_of_lhotse_is_their_mean(tmp_path: Path) -> None:
    left, right = two_channels(tmp_path)
    recording = Recording.from_file(tmp_path / "two.wav")
    cut = recording.to_cut()
    cut.supervisions = [
        SupervisionSegment("a", recording.id, 0.0, 1.0, channel=[0, 1], text="A", speaker="s")
    ]
    CutSet.from_cuts([cut]).to_file(tmp_path / "cuts.jsonl")
    (opened,) = open_cuts(tmp_path / "cuts.jsonl").cuts
    np.testing.assert_allclose(load_samples(opened, 8000), (left + right) / 2, atol=1e-6)


def test_noise_is_laid_over_the_mean_of_all_channels(tmp_path: Path) -> None:
    left, right = two_channels(tmp_path)
    cut = make_cut("two", open_recording("two", tmp_path / "two.wav"), "A", "s")
    noise = make_cut("n", open_recording("n", tmp_path / "two.wav"), None, "")
    (mixed,) = CutSet.from_cuts([cut]).mix(CutSet.from_cuts([noise]), snr=300, preserve_id="left")
    np.testing.assert_allclose(load_samples(mixed, 8000), (left + right) / 2, atol=1e-5)


def test_sphere_and_odd_names_are_read_without_a_shell(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "x;touch MADE;.sph"
    wave = np.random.default_rng(0).uniform(-0.5, 0.5, 16000)
    soundfile.write(path, wave, 16000, format="NIST")
    cut = make_cut("a", open_recording("a", path), "A", "s")
    np.testing.assert_allclose(load_samples(cut, 16000), wave, atol=1e-4)
    assert len(load_samples(cut.perturb_speed(0.5), 16000)) == 32000
    assert not (tmp_path / "MADE").exists()


def test_rejected_lines_are_json(cuts: CutSet, tmp_path: Path) -> None:
    wave_of(cuts, 0).write_bytes(b"not audio")
    store_features(cuts, tmp_path / "cache", CONFIG)
    (line,) = (tmp_path / "cache" / "rejected.jsonl").read_text().splitlines()
    assert json.loads(line)[0] == next(iter(cuts.ids))


def test_two_processes_at_once_make_them_once(cuts: CutSet, tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [
        context.Process(target=store_features, args=(cuts, tmp_path / "cache", CONFIG)) for _ in "ab"
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0]
    lines = (tmp_path / "cache" / "cuts.jsonl").read_text().splitlines()
    assert sorted(json.loads(line)["id"] for line in lines) == sorted(cuts.ids)
