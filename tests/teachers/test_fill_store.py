"""Filling a store: in shards, by several processes, after an estimate, until the disk is full."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from letters import DIM, TEXTS, Letters, check, shards, store_at

from retort.common.errors import UserError
from retort.teachers import Estimate, TeacherOutput, fill
from retort.teachers.fill_store import STALE_SECONDS, own_share
from retort.teachers.shards import shard_bytes


class Dies(Letters):
    """Is killed while it reads its so-many-th text."""

    def __init__(self, last: int) -> None:
        super().__init__()
        self.last = last

    def read(self, texts: Sequence[str]) -> list[TeacherOutput]:
        outputs = super().read(texts)
        if len(self.asked) > self.last:
            raise KeyboardInterrupt
        return outputs


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

    def test_progress_ends_at_the_share(self, tmp_path: Path) -> None:
        calls: list[tuple[int, int]] = []
        fill(store_at(tmp_path), Letters(), TEXTS, progress=lambda *call: calls.append(call))
        assert calls == [(len(TEXTS), len(TEXTS))]
        texts = [str(number) for number in range(300)]
        fill(store_at(tmp_path), Letters(), texts, progress=lambda *call: calls.append(call), shard_texts=100)
        assert calls[1:] == [(100, 300), (200, 300), (300, 300)]
        calls.clear()
        texts = [f"within a shard {number}" for number in range(600)]
        fill(store_at(tmp_path), Letters(), texts, progress=lambda *call: calls.append(call))
        assert len(calls) > 2
        assert calls == sorted(calls)
        assert calls[-1] == (600, 600)

    def test_the_students_random_numbers_are_left_alone(self, tmp_path: Path) -> None:
        before = torch.get_rng_state()
        fill(store_at(tmp_path), Letters(), TEXTS)
        assert torch.equal(torch.get_rng_state(), before)


def fill_share(root: Path, texts: list[str], rank: int, world: int) -> None:
    fill(store_at(root), Letters(), texts, rank=rank, world=world, shard_texts=128)


class TestShares:
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
            def read(self, texts_: Sequence[str]) -> list[TeacherOutput]:
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
            context.Process(target=fill_share, args=(tmp_path, texts, rank, world))
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


class TestEstimate:
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
        assert str(seen[0]).startswith("1,000 texts to compute, about")

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


class TestBadInput:
    def test_a_disk_too_small(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        usage = shutil.disk_usage(tmp_path)._replace(free=1000)
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        letters = Letters()
        with pytest.raises(UserError, match=r"needs another .*1 kB are free"):
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
