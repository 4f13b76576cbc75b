from __future__ import annotations

import io
import json
import shutil
import tarfile
from collections.abc import Callable
from pathlib import Path

import fsspec
import numpy as np
import pytest
import soundfile
from lhotse import CutSet, MonoCut

from retort.common.errors import BadUtterance, UserError
from retort.corpora.cuts import make_cut, open_recording
from retort.corpora.open_cuts import open_cuts
from retort.corpora.shards import Shards
from retort.corpora.waves import load_samples
from retort.corpora.write_shards import write_shards

Say = Callable[..., np.ndarray]


@pytest.fixture(scope="module")
def cuts(corpus: Path) -> list[MonoCut]:
    return list(open_cuts(corpus / "train").cuts)[:23]


@pytest.fixture(scope="module")
def shards(cuts: list[MonoCut], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shards") / "train"
    assert write_shards(cuts, folder, shard_cuts=5).complete
    return folder


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def same(first: MonoCut, second: MonoCut) -> bool:
    return bool(np.array_equal(load_samples(first, 16000), load_samples(second, 16000)))


def test_cuts_and_audio_are_those_of_the_files(cuts: list[MonoCut], shards: Path) -> None:
    opened = Shards(str(shards))
    assert [len(each.rows) for each in opened.shards] == [5, 5, 5, 5, 3]
    for number, cut in enumerate(cuts):
        found = opened.open(number)
        assert (found.id, found.duration) == (cut.id, cut.duration)
        assert found.supervisions == cut.supervisions
        assert same(cut, found)
        assert same(cut.perturb_speed(1.1), found.perturb_speed(1.1))


def test_texts_are_read_in_order(cuts: list[MonoCut], shards: Path) -> None:
    chosen = np.array([0, 3, 5, 22])
    found = list(Shards(str(shards)).transcripts(chosen))
    assert found == [cuts[number].supervisions[0].text for number in chosen]


def test_lhotse_reads_them(cuts: list[MonoCut], shards: Path) -> None:
    fields = {"cuts": "cuts.*.jsonl.gz", "recording": "recording.*.tar"}
    read = CutSet.from_shar(fields={name: sorted(shards.glob(each)) for name, each in fields.items()})
    for cut, found in zip(cuts, read, strict=True):
        assert found.id == cut.id
        expected, _ = soundfile.read(cut.recording.sources[0].source, dtype="float32")
        assert np.array_equal(found.load_audio()[0], expected)


@pytest.mark.parametrize("processes", [1, 2])
def test_parts_in_any_order_equal_one_process(
    cuts: list[MonoCut], shards: Path, tmp_path: Path, processes: int
) -> None:
    for number in (2, 3, 1):
        written = write_shards(cuts, tmp_path / "train", shard_cuts=5, part=(number, 3), processes=processes)
        assert written.complete == (number == 1)
    assert files(tmp_path / "train") == files(shards)


def test_an_interrupted_call_is_continued(cuts: list[MonoCut], shards: Path, tmp_path: Path) -> None:
    folder = tmp_path / "train"
    write_shards(cuts, folder, shard_cuts=5, part=(1, 2))
    there = {path.name: path.stat().st_mtime_ns for path in folder.glob("recording.*")}
    assert len(there) == 3
    assert write_shards(cuts, folder, shard_cuts=5).complete
    assert {name: (folder / name).stat().st_mtime_ns for name in there} == there
    assert files(folder) == files(shards)
    stamps = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert write_shards(cuts, folder, shard_cuts=5).complete  # nothing to do
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == stamps


def test_another_corpus_replaces_what_differs(cuts: list[MonoCut], tmp_path: Path) -> None:
    folder = tmp_path / "train"
    write_shards(cuts, folder, shard_cuts=5)
    write_shards(cuts[:7], folder, shard_cuts=5)
    assert len(Shards(str(folder)).shards) == 2
    assert len(list(folder.glob("recording.*"))) == 2


def test_shards_are_bounded_by_duration(cuts: list[MonoCut], tmp_path: Path) -> None:
    write_shards(cuts, tmp_path / "train", shard_seconds=6.0)
    opened = Shards(str(tmp_path / "train"))
    sizes = [sum(opened.rows()["duration"][list(each.rows)]) for each in opened.shards]
    assert max(sizes) <= 6.0
    assert min(sizes[:-1]) > 6.0 - max(cut.duration for cut in cuts)


class TestRangesAndFormats:
    @pytest.fixture
    def recording(self, tmp_path: Path, say: Say) -> Path:
        path = tmp_path / "long.wav"
        wave = say("abcd abcd abcd")
        soundfile.write(path, np.stack([wave, wave[::-1]], axis=1), 16000)
        return path

    @pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
    @pytest.mark.parametrize("audio", ["stored", "flac"])
    def test_a_range_of_all_channels_is_exact(
        self, tmp_path: Path, recording: Path, subtype: str, audio: str
    ) -> None:
        samples, rate = soundfile.read(recording)
        soundfile.write(recording, samples * 0.7, rate, subtype=subtype)
        opened = open_recording("long", recording)
        cuts = [make_cut(f"u{n}", opened, "abc", "s", n / 10, n / 10 + 0.35) for n in range(3)]
        write_shards(cuts, tmp_path / "train", audio=audio)
        for number, cut in enumerate(cuts):
            assert same(cut, Shards(str(tmp_path / "train")).open(number))

    def test_opus_is_smaller(self, cuts: list[MonoCut], tmp_path: Path, shards: Path) -> None:
        write_shards(cuts, tmp_path / "opus", audio="opus", shard_cuts=5)
        opened = Shards(str(tmp_path / "opus"))
        assert sum(opened.rows()["size"]) < sum(Shards(str(shards)).rows()["size"]) / 3
        samples = load_samples(opened.open(0), 16000)
        assert len(samples) == len(load_samples(cuts[0], 16000))

    def test_unreadable_audio_is_listed(self, tmp_path: Path, recording: Path) -> None:
        whole = open_recording("long", recording)
        cuts = [make_cut("good", whole, "abc", "s"), make_cut("gone", whole, "abc", "s")]
        cuts[1] = MonoCut.from_dict(
            json.loads(json.dumps(cuts[1].to_dict()).replace("long.wav", "missing.wav"))
        )
        written = write_shards(cuts, tmp_path / "train")
        assert [each.id for each in written.rejected] == ["gone"]
        assert len(Shards(str(tmp_path / "train")).rows()) == 1


class TestDamage:
    @pytest.fixture
    def copy(self, shards: Path, tmp_path: Path) -> Path:
        shutil.copytree(shards, tmp_path / "copy")
        return tmp_path / "copy"

    @pytest.mark.parametrize("name", ["index.npy", "shards.json"])
    def test_index_and_list_are_checked_when_opened(self, copy: Path, name: str) -> None:
        content = bytearray((copy / name).read_bytes())
        content[-3] ^= 1
        (copy / name).write_bytes(content)
        with pytest.raises(UserError):
            Shards(str(copy))

    @pytest.mark.parametrize("name", ["checksums.json", "index.npy"])
    def test_missing_files_are_reported(self, copy: Path, name: str) -> None:
        (copy / name).unlink()
        with pytest.raises(UserError):
            Shards(str(copy))

    def test_damaged_audio_is_one_bad_utterance(self, copy: Path) -> None:
        row = Shards(str(copy)).rows()[1]
        path = copy / "recording.000000.tar"
        content = bytearray(path.read_bytes())
        content[int(row["offset"]) + 100] ^= 1
        path.write_bytes(content)
        opened = Shards(str(copy))
        opened.open(0)
        with pytest.raises(BadUtterance):
            opened.open(1)
        opened.open(2)

    def test_damaged_cuts_stop_the_run(self, copy: Path) -> None:
        path = copy / "cuts.000001.jsonl.gz"
        content = bytearray(path.read_bytes())
        content[20] ^= 1
        path.write_bytes(content)
        with pytest.raises(UserError) as error:
            Shards(str(copy)).open(6)
        assert not isinstance(error.value, BadUtterance)

    def test_a_truncated_shard_stops_the_run(self, copy: Path) -> None:
        path = copy / "recording.000001.tar"
        path.write_bytes(path.read_bytes()[:-512])
        with pytest.raises(UserError, match=r"recording\.000001"):
            Shards(str(copy)).open(6)

    def test_other_verbs_say_that_they_need_a_manifest(self, copy: Path) -> None:
        with pytest.raises(UserError, match="shards"):
            open_cuts(copy)


class TestRemote:
    @pytest.fixture
    def address(self, shards: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
        monkeypatch.setenv("RETORT_CACHE", str(tmp_path / "cache"))
        memory = fsspec.filesystem("memory")
        for path in shards.iterdir():
            memory.pipe(f"/{tmp_path.name}/train/{path.name}", path.read_bytes())
        return f"memory://{tmp_path.name}/train"

    def test_it_equals_the_folder(self, address: str, shards: Path) -> None:
        local, remote = Shards(str(shards)), Shards(address)
        for number in range(len(local.rows())):
            assert same(local.open(number), remote.open(number))

    def test_files_are_read_once_and_the_cache_is_bounded(
        self, address: str, shards: Path, tmp_path: Path
    ) -> None:
        most = max(path.stat().st_size for path in shards.glob("*.tar"))
        opened = Shards(address, cache=2 * most)
        for number in range(len(opened.rows())):
            opened.open(number)
        kept = list((tmp_path / "cache").rglob("*-*"))
        assert kept
        assert sum(path.stat().st_size for path in kept) <= 2 * most
        assert Shards(address, cache=2 * most).open(0).id

    def test_a_damaged_upload_is_reported(self, address: str, tmp_path: Path) -> None:
        memory = fsspec.filesystem("memory")
        name = f"/{tmp_path.name}/train/recording.000000.tar"
        memory.pipe(name, memory.cat(name)[:-1] + b"x")
        with pytest.raises(UserError, match="damaged"):
            Shards(address).open(0)

    def test_nothing_at_the_address(self, address: str) -> None:
        with pytest.raises(UserError):
            Shards(f"{address}/nowhere")

    def test_an_unknown_kind_of_storage(self) -> None:
        with pytest.raises(UserError, match="nonsense"):
            Shards("nonsense://bucket/train")


def test_an_index_with_pickles_is_refused(shards: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(shards, copy)
    content = io.BytesIO()
    np.save(content, np.array([{"a": 1}], object), allow_pickle=True)
    (copy / "index.npy").write_bytes(content.getvalue())
    with pytest.raises(UserError):
        Shards(str(copy))


def test_members_are_named_by_their_ids(cuts: list[MonoCut], shards: Path) -> None:
    with tarfile.open(shards / "recording.000000.tar") as tar:
        names = tar.getnames()
    assert names == [f"{cut.id}.{end}" for cut in cuts[:5] for end in ("wav", "json")]
