from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch

from retort.config import RowConfig, TeacherConfig
from retort.distill import Objective
from retort.errors import UserError
from retort.students.taps import Tap
from retort.teachers import (
    Estimate,
    MaskedLMTeacher,
    Reading,
    StoredTeacher,
    Teacher,
    fill,
    open_fresh,
    open_store,
    open_teacher,
    token_signal,
    utterance_signal,
)
from retort.teachers.filling import STALE_SECONDS, own_share
from retort.teachers.shards import shard_bytes, write_shard
from retort.teachers.store import MANIFEST
from retort.text.tokenizers import Piece

MakeBert = Callable[..., Path]
DIM = 4
IDENTITY = {"model": "letters", "dim": DIM}
TEXTS = [f"{first}{second}" * (1 + index % 3) for index, first in enumerate("abcdefgh") for second in "xyz"]


class Letters:
    """A teacher of letters: its vectors are of the text alone."""

    dim = DIM

    def __init__(self, scale: float = 1.0) -> None:
        self.scale = scale
        self.asked: list[str] = []

    def read(self, texts: Sequence[str]) -> list[Reading]:
        self.asked += texts
        return [self.reading(text) for text in texts]

    def reading(self, text: str) -> Reading:
        numbers = torch.tensor([1, *(ord(letter) % 97 for letter in text), 2], dtype=torch.float32)[:, None]
        vectors = self.scale * numbers * torch.arange(1, DIM + 1) / 8
        return Reading(vectors, [(place, place + 1) for place in range(len(text))], text)


class Dies(Letters):
    """Is killed while it reads its so-many-th text."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last = last

    def read(self, texts: Sequence[str]) -> list[Reading]:
        readings = super().read(texts)
        if len(self.asked) > self.last:
            raise KeyboardInterrupt
        return readings


def store_at(root: Path, **others: object) -> StoredTeacher:
    return StoredTeacher(root, {**IDENTITY, **others})


def check(store: StoredTeacher, texts: Sequence[str]) -> None:
    letters = Letters()
    for reading, text in zip(store.read(texts), texts, strict=True):
        expected = letters.reading(text)
        assert reading.vectors.dtype == torch.float32
        assert torch.equal(reading.vectors, expected.vectors)  # its numbers are exact in float16
        assert reading.spans == expected.spans
        assert all(type(span) is tuple for span in reading.spans)
        assert reading.text == text


def shards(store: StoredTeacher) -> list[Path]:
    return sorted(store.folder.glob("*.safetensors"))


class TestReading:
    def test_what_was_read_is_there_in_every_order(self, tmp_path: Path) -> None:
        texts = [*TEXTS, "", "我爱你", "a\ud800b", "line\nbreak\x00"]
        assert fill(store_at(tmp_path), Letters(), texts, shard_texts=5) == len(texts)
        store = store_at(tmp_path)
        check(store, texts)
        check(store, [texts[3], *reversed(texts), texts[3]])
        assert store.read([]) == []
        assert store.dim == DIM
        assert len(store) == len(texts)

    def test_equal_texts_are_asked_and_stored_once(self, tmp_path: Path) -> None:
        store, letters = store_at(tmp_path), Letters()
        assert fill(store, letters, ["ab", "c", "ab"]) == 2
        assert sorted(letters.asked) == ["ab", "c"]
        first, second, again = store.read(["ab", "c", "ab"])
        assert again is first
        assert second.text == "c"

    def test_the_vectors_are_mapped_and_half(self, tmp_path: Path) -> None:
        store = store_at(tmp_path)
        fill(store, Letters(), ["ab", "c"])
        one, two = store.vectors(["ab"])[0], store.vectors(["ab"])[0]
        assert one.dtype == torch.float16
        assert one.data_ptr() == two.data_ptr()
        maps = Path("/proc/self/maps")
        if maps.exists():
            assert str(shards(store)[0]) in maps.read_text()

    def test_a_reading_may_be_changed_without_touching_the_store(self, tmp_path: Path) -> None:
        store = store_at(tmp_path)
        fill(store, Letters(), ["ab"])
        store.read(["ab"])[0].vectors.zero_()
        check(store, ["ab"])

    def test_autocast_changes_nothing(self, tmp_path: Path) -> None:
        store = store_at(tmp_path)
        fill(store, Letters(), ["one", "two"])
        expected = store.read(["two", "one"])
        with torch.autocast("cpu", torch.bfloat16):
            found = store.read(["two", "one"])
        assert all(torch.equal(a.vectors, b.vectors) for a, b in zip(expected, found, strict=True))

    def test_a_missing_text_names_itself_and_the_command(self, tmp_path: Path) -> None:
        store = store_at(tmp_path)
        fill(store, Letters(), ["ab"])
        with pytest.raises(UserError, match=r"no 'other text'.*retort teach") as error:
            store.read(["ab", "other text"])
        assert str(store.folder) in str(error.value)
        assert "\n" not in str(error.value)


class TestFilling:
    def test_shards_end_at_a_number_of_texts_or_bytes(self, tmp_path: Path) -> None:
        texts = [f"{number:04d}" for number in range(1000)]
        fill(by_texts := store_at(tmp_path / "a"), Letters(), texts, shard_texts=100)
        assert len(shards(by_texts)) == 10
        fill(by_bytes := store_at(tmp_path / "b"), Letters(), texts, shard_limit=20_000)
        size = shard_bytes(1, 6, DIM, 4)
        assert len(shards(by_bytes)) == pytest.approx(1000 * size / 20_000, abs=3)
        check(by_bytes, texts)
        assert by_bytes.bytes == pytest.approx(1000 * size, rel=0.15)  # the rest is headers

    def test_a_second_call_reads_only_what_is_new(self, tmp_path: Path) -> None:
        fill(store_at(tmp_path), Letters(), TEXTS)
        letters = Letters()
        assert fill(store_at(tmp_path), letters, [*TEXTS, "new"]) == 1
        assert letters.asked == ["new"]
        assert fill(store_at(tmp_path), letters, TEXTS) == 0

    def test_a_death_loses_only_the_shard_it_was_at(self, tmp_path: Path) -> None:
        texts = [f"{number:04d}" for number in range(400)]
        with pytest.raises(KeyboardInterrupt):
            fill(store_at(tmp_path), Dies(250), texts, shard_texts=40)
        there = len(store_at(tmp_path))
        assert there >= 250 - 2 * 72
        letters = Letters()
        assert fill(store_at(tmp_path), letters, texts) == 400 - there
        assert len(letters.asked) == 400 - there
        check(store_at(tmp_path), texts)

    def test_shares_cover_all_once_whoever_looks_when(self) -> None:
        texts = [str(number) for number in range(1000)]
        shares = [own_share(texts, rank, 3) for rank in range(3)]
        assert sorted(text for share in shares for text in share) == sorted(texts)
        assert all(250 < len(share) < 420 for share in shares)
        later = own_share(texts[100:], 1, 3)  # another process has stored the first hundred by now
        assert set(later) == set(shares[1]) & set(texts[100:])

    def test_a_dead_ranks_share_is_done_at_the_next_call(self, tmp_path: Path) -> None:
        for rank in (0, 2):
            fill(store_at(tmp_path), Letters(), TEXTS, rank=rank, world=3)
        store = store_at(tmp_path)
        assert 0 < len(left := store.missing(TEXTS)) < len(TEXTS)
        assert fill(store, Letters(), TEXTS) == len(left)
        check(store, TEXTS)

    def test_what_another_process_stores_meanwhile_is_not_read_again(self, tmp_path: Path) -> None:
        texts = [f"{number:04d}" for number in range(500)]

        class Meanwhile(Letters):
            def read(self, texts_: Sequence[str]) -> list[Reading]:
                if not self.asked:
                    fill(store_at(tmp_path), Letters(), texts)
                return super().read(texts_)

        letters = Meanwhile()
        fill(store_at(tmp_path), letters, texts, shard_texts=100)
        assert len(letters.asked) <= 100
        check(store_at(tmp_path), texts)

    def test_several_processes_at_once(self, tmp_path: Path) -> None:
        texts = [f"{number:05d}" for number in range(3000)]
        context = multiprocessing.get_context("fork")
        processes = [
            context.Process(target=_fill_share, args=(tmp_path, texts, rank, world))
            for rank, world in ((0, 1), (0, 1), (0, 2), (1, 2))  # two pairs that know nothing of each other
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
        store = store_at(tmp_path)
        assert store.missing(texts) == []
        assert store.broken == []
        check(store, texts)
        assert not list(store.folder.glob("*.partial"))

    def test_the_estimate_comes_first_and_is_near(self, tmp_path: Path) -> None:
        texts = [f"{number:04d}" for number in range(1000)]
        seen: list[Estimate] = []
        asked: list[int] = []
        letters = Letters()

        def announce(estimate: Estimate) -> None:
            seen.append(estimate)
            asked.append(len(letters.asked))

        fill(store := store_at(tmp_path), letters, texts, announce=announce)
        assert len(seen) == 1
        assert asked[0] < 100
        assert seen[0].texts == 1000
        assert seen[0].bytes == pytest.approx(store.bytes, rel=0.02)
        assert 0 < seen[0].seconds < 60
        assert str(seen[0]).startswith("1,000 texts to read, about")

    def test_the_estimate_counts_the_shares_of_all(self, tmp_path: Path) -> None:
        texts = [f"{number:04d}" for number in range(1000)]
        seen: list[Estimate] = []
        fill(store_at(tmp_path), Letters(), texts, rank=1, world=4, announce=seen.append)
        assert seen[0].texts == 1000
        assert seen[0].bytes == pytest.approx(1000 * shard_bytes(1, 6, DIM, 4), rel=0.01)

    def test_librispeech_with_bert_base(self) -> None:
        # 281,241 utterances of 9.4 million words; 1.11 pieces and 5.2 characters a word, as counted in books.
        texts, words = 281_241, 9_400_000
        vectors = round(1.11 * words) + 2 * texts
        assert shard_bytes(texts, vectors, 768, round(5.2 * words)) == pytest.approx(17e9, rel=0.01)

    def test_progress_ends_at_the_share(self, tmp_path: Path) -> None:
        calls: list[tuple[int, int]] = []
        fill(store_at(tmp_path), Letters(), TEXTS, progress=lambda *call: calls.append(call))
        assert calls == [(len(TEXTS), len(TEXTS))]
        texts = [str(number) for number in range(300)]
        fill(store_at(tmp_path), Letters(), texts, progress=lambda *call: calls.append(call), shard_texts=100)
        assert calls[1:] == [(100, 300), (200, 300), (300, 300)]

    def test_the_students_random_numbers_are_left_alone(self, tmp_path: Path) -> None:
        before = torch.get_rng_state()
        fill(store_at(tmp_path), Letters(), TEXTS)
        assert torch.equal(torch.get_rng_state(), before)


def _fill_share(root: Path, texts: list[str], rank: int, world: int) -> None:
    fill(store_at(root), Letters(), texts, rank=rank, world=world, shard_texts=128)


class TestBadInput:
    @pytest.mark.parametrize("kept", [0, 5, 40, 0.5, -1])
    def test_a_shard_cut_short_is_made_again(self, tmp_path: Path, kept: float) -> None:
        texts = [f"{number:04d}" for number in range(300)]
        fill(store := store_at(tmp_path), Letters(), texts, shard_texts=100)
        victim = shards(store)[0]
        content = victim.read_bytes()
        length = int(len(content) * kept) if isinstance(kept, float) else kept
        victim.write_bytes(content[:length])
        cut = store_at(tmp_path)
        assert cut.broken == [victim]
        missing = cut.missing(texts)
        assert len(missing) == 100
        with pytest.raises(UserError, match="1 of its shards are cut short"):
            cut.read(missing)
        letters = Letters()
        assert fill(cut, letters, texts) == len(missing)
        assert sorted(letters.asked) == sorted(missing)
        assert not victim.exists()
        check(store_at(tmp_path), texts)

    def test_a_shard_grown_too_long_is_made_again(self, tmp_path: Path) -> None:
        fill(store := store_at(tmp_path), Letters(), TEXTS)
        (victim,) = shards(store)
        victim.write_bytes(victim.read_bytes() + b"\0" * 8)
        assert store_at(tmp_path).broken == [victim]

    def test_a_shard_of_another_teacher_is_an_error(self, tmp_path: Path) -> None:
        fill(other := store_at(tmp_path, case="upper"), Letters(), TEXTS)
        store = store_at(tmp_path, case="lower")
        assert store.folder != other.folder
        assert len(store) == 0
        shutil.copy(shards(other)[0], store.folder)
        with pytest.raises(UserError, match="made for another teacher, layer or tokenizer") as error:
            store_at(tmp_path, case="lower")
        assert "\n" not in str(error.value)
        assert shards(store)  # it is not removed

    def test_a_store_of_another_teacher_in_this_ones_place(self, tmp_path: Path) -> None:
        other, store = store_at(tmp_path, layers=[3]), store_at(tmp_path, layers=[4])
        shutil.rmtree(store.folder)
        other.folder.rename(store.folder)
        with pytest.raises(UserError, match=r"layers: \[3\] there, \[4\] here"):
            store_at(tmp_path, layers=[4])

    @pytest.mark.parametrize("content", ["", "{", "[1]", "null"])
    def test_a_manifest_that_is_none(self, tmp_path: Path, content: str) -> None:
        fill(store := store_at(tmp_path), Letters(), TEXTS)
        (store.folder / MANIFEST).write_text(content)
        if content != "null":
            with pytest.raises(UserError) as error:
                store_at(tmp_path)
            assert "\n" not in str(error.value)
            (store.folder / MANIFEST).unlink()
        check(store_at(tmp_path), TEXTS)
        assert json.loads((store.folder / MANIFEST).read_text())["key"] == store.key

    def test_a_disk_too_small(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        letters = Letters()
        with pytest.raises(UserError, match=r"needs .* more, 1 kB are free"):
            fill(store := store_at(tmp_path), letters, [str(number) for number in range(1000)])
        assert len(letters.asked) < 100
        assert shards(store) == []

    def test_a_disk_that_fills_up(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        texts = [f"{number:04d}" for number in range(500)]
        store = store_at(tmp_path)
        flush, calls = os.fsync, []

        def full(descriptor: int) -> None:
            calls.append(descriptor)
            if len(calls) > 4:
                raise OSError(28, "No space left on device")
            flush(descriptor)

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match="No space left on device") as error:
            fill(store, Letters(), texts, shard_texts=100)
        assert "\n" not in str(error.value)
        monkeypatch.undo()
        assert not list(store.folder.glob("*.partial"))
        there = store_at(tmp_path)
        assert 0 < len(there) < 500
        assert fill(there, Letters(), texts) == 500 - len(store)
        check(there, texts)

    @pytest.mark.parametrize("scale", [1e5, float("nan"), float("inf")])
    def test_vectors_beyond_float16(self, tmp_path: Path, scale: float) -> None:
        with pytest.raises(UserError, match="do not fit float16"):
            fill(store := store_at(tmp_path), Letters(scale), ["abc"])
        assert shards(store) == []

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="cannot be used"):
            store_at(tmp_path / "file")

    def test_what_the_dead_left_goes_and_what_the_living_write_stays(self, tmp_path: Path) -> None:
        store = store_at(tmp_path)
        dead, living = store.folder / "dead.partial", store.folder / "living.partial"
        for path in (dead, living):
            path.write_bytes(b"x")
        long_ago = time.time() - 2 * STALE_SECONDS
        os.utime(dead, (long_ago, long_ago))
        fill(store, Letters(), TEXTS)
        assert not dead.exists()
        assert living.exists()


class TestIdentity:
    def test_a_moved_model_keeps_its_store(self, uncased: Path, tmp_path: Path) -> None:
        moved = tmp_path / "elsewhere"
        shutil.copytree(uncased, moved)
        first, second = (MaskedLMTeacher(TeacherConfig(model=str(each))) for each in (uncased, moved))
        assert open_store(first, tmp_path).folder == open_store(second, tmp_path).folder

    def test_reading_does_not_change_it(self, uncased: Path) -> None:
        teacher = MaskedLMTeacher(TeacherConfig(model=str(uncased)))
        before = teacher.identity()
        teacher.read(["hello", "hello world " * 20])
        assert teacher.identity() == before
        assert json.loads(json.dumps(before)) == before

    def test_weights_layers_case_and_tokenizer_make_another(
        self, uncased: Path, cased: Path, make_bert: MakeBert, tmp_path: Path
    ) -> None:
        heavier = tmp_path / "heavier"
        shutil.copytree(uncased, heavier)
        from safetensors.torch import load_file, save_file

        weights = load_file(heavier / "model.safetensors")
        name = next(name for name in weights if "layer.1.output.dense.weight" in name)
        weights[name][0, 0] += 1e-3
        save_file(weights, heavier / "model.safetensors", {"format": "pt"})
        configs = [
            TeacherConfig(model=str(uncased)),
            TeacherConfig(model=str(cased)),  # the same weights, another tokenizer
            TeacherConfig(model=str(heavier)),
            TeacherConfig(model=str(uncased), layers=[1]),
            TeacherConfig(model=str(uncased), case="lower"),
        ]
        folders = [open_store(open_fresh(config), tmp_path).folder for config in configs]
        assert len(set(folders)) == len(configs)

    def test_a_model_without_a_pooler_has_one_name(self, uncased: Path, tmp_path: Path) -> None:
        from safetensors.torch import load_file, save_file

        bare = tmp_path / "bare"
        shutil.copytree(uncased, bare)
        weights = load_file(bare / "model.safetensors")
        save_file(
            {name: value for name, value in weights.items() if "pooler" not in name},
            bare / "model.safetensors",
            {"format": "pt"},
        )
        keys = set()
        for seed in (1, 2):
            torch.manual_seed(seed)
            keys.add(str(open_fresh(TeacherConfig(model=str(bare))).identity()["weights"]))
        assert len(keys) == 1


class TestAgainstOnLine:
    SENTENCES = (
        "hello world",
        "unfair games",
        "it's a world !",
        "我爱python编程",
        "hello hello hello hello hello",
    )

    @pytest.fixture
    def both(self, uncased: Path, tmp_path: Path) -> tuple[Teacher, Teacher]:
        online = TeacherConfig(model=str(uncased), layers=[1, -1], case="lower")
        disk = TeacherConfig(model=str(uncased), layers=[1, -1], case="lower", storage="disk")
        store = open_teacher(disk, stores=tmp_path)
        assert isinstance(store, StoredTeacher)
        fill(store, open_fresh(disk), self.SENTENCES)
        return open_teacher(online), store

    def test_the_readings_differ_by_float16_alone(self, both: tuple[Teacher, Teacher]) -> None:
        for online, stored in zip(*(each.read(self.SENTENCES) for each in both), strict=True):
            assert stored.spans == online.spans
            torch.testing.assert_close(stored.vectors, online.vectors, rtol=2**-10, atol=1e-5)

    @pytest.mark.parametrize("loss", ["contrastive", "regression", "cosine"])
    def test_the_losses_and_gradients_are_the_same(self, both: tuple[Teacher, Teacher], loss: str) -> None:
        results = [self.objective_of(teacher, loss) for teacher in both]
        (online, online_gradient), (stored, stored_gradient) = results
        assert float(online) > 0
        torch.testing.assert_close(stored, online, rtol=2e-3, atol=1e-4)
        difference = (stored_gradient - online_gradient).norm() / online_gradient.norm()
        assert float(difference) < 0.01

    def objective_of(self, teacher: Teacher, loss: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Sum of the rows over a batch of the sentences, student pieces being characters."""
        pieces = [
            [Piece(5 + ord(letter) % 20, place, place + 1) for place, letter in enumerate(text)]
            for text in self.SENTENCES
        ]
        lengths = torch.tensor([len(each) + 1 for each in pieces])
        generator = torch.Generator().manual_seed(3)
        values = torch.randn(len(pieces), int(lengths.max()), 8, generator=generator, requires_grad=True)
        tokens = torch.randint(4, 30, values.shape[:2], generator=generator)
        torch.manual_seed(0)
        rows = [RowConfig(tap=tap, teacher="bert", loss=loss) for tap in ("acoustic", "utterance")]
        objective = Objective(rows, {"acoustic": 8, "utterance": 8}, {"bert": teacher.dim})
        readings = teacher.read(self.SENTENCES)
        signals = {
            ("bert", "token"): token_signal(readings, self.SENTENCES, pieces),
            ("bert", "utterance"): utterance_signal(readings, self.SENTENCES),
        }
        taps = {
            "acoustic": Tap(values, lengths, "token"),
            "utterance": Tap(values[:, :1], torch.ones_like(lengths), "utterance"),
        }
        torch.manual_seed(1)
        result = objective(taps, signals, tokens, 0)
        total = result.token_sum + result.utterance_sum
        total.backward()
        assert values.grad is not None
        return total.detach(), values.grad


def test_a_stored_teacher_needs_a_place() -> None:
    with pytest.raises(ValueError, match="folder of the stores"):
        open_teacher(TeacherConfig(storage="disk"))


def test_a_shard_needs_no_texts_of_other_shards(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    write_shard(store.folder, Letters().read(["a", "b"]), store.key)
    write_shard(store.folder, Letters().read(["b", "c"]), store.key)  # two processes that met
    store.refresh()
    check(store, ["a", "b", "c"])
