"""What a store gives back, and what it makes of shards and manifests that are not its own or not whole."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from letters import DIM, TEXTS, Letters, check, shards, store_at

from retort.common.errors import UserError
from retort.teachers import fill
from retort.teachers.shards import write_shard
from retort.teachers.store import MANIFEST
from retort.teachers.targets import token_targets, utterance_targets
from retort.text.tokenizers import Piece


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
        one, two = store.read(["ab"])[0].vectors, store.read(["ab"])[0].vectors
        assert one.dtype == torch.float16
        assert one.data_ptr() == two.data_ptr()
        maps = Path("/proc/self/maps")
        if maps.exists():
            assert str(shards(store)[0]) in maps.read_text()

    def test_the_disk_does_not_change_with_a_reading(self, tmp_path: Path) -> None:
        store = store_at(tmp_path)
        fill(store, Letters(), ["ab"])
        store.read(["ab"])[0].vectors.zero_()
        check(store_at(tmp_path), ["ab"])

    @pytest.mark.parametrize("autocast", [False, True])
    def test_a_signal_of_it_is_float32(self, tmp_path: Path, autocast: bool) -> None:
        texts = ["two", "one"]
        pieces = [[Piece(5, place, place + 1) for place in range(3)] for _ in texts]
        store = store_at(tmp_path)
        fill(store, Letters(), texts)
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            for say in (
                lambda read: token_targets(read, texts, pieces),
                lambda read: utterance_targets(read, texts),
            ):
                found, expected = say(store.read(texts)), say(Letters().read(texts))
                assert found.vectors.dtype == torch.float32
                assert torch.equal(found.vectors, expected.vectors)

    def test_a_missing_text_names_itself_and_the_command(self, tmp_path: Path) -> None:
        store = store_at(tmp_path)
        fill(store, Letters(), ["ab"])
        with pytest.raises(UserError, match=r"not contain 'other text'.*retort teach") as error:
            store.read(["ab", "other text"])
        assert str(store.folder) in str(error.value)
        assert "\n" not in str(error.value)

    def test_a_shard_needs_no_texts_of_other_shards(self, tmp_path: Path) -> None:
        store = store_at(tmp_path)
        write_shard(store.folder, Letters().read(["a", "b"]), store.key)
        write_shard(store.folder, Letters().read(["b", "c"]), store.key)  # two processes that met
        store.refresh()
        check(store, ["a", "b", "c"])


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
        with pytest.raises(UserError, match="1 of its shards are incomplete"):
            cut.read(missing)
        letters = Letters()
        assert fill(cut, letters, texts) == len(missing)
        assert sorted(letters.asked) == sorted(missing)
        assert store_at(tmp_path).broken == []
        check(store_at(tmp_path), texts)

    @pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
    def test_a_flipped_bit_is_noticed_and_the_shard_made_again(self, tmp_path: Path, share: float) -> None:
        fill(store := store_at(tmp_path), Letters(), TEXTS)
        (victim,) = shards(store)
        content = bytearray(victim.read_bytes())
        content[int(len(content) * share)] ^= 16
        victim.write_bytes(content)
        damaged = store_at(tmp_path)
        assert damaged.broken == [victim]
        fill(damaged, Letters(), TEXTS)
        check(store_at(tmp_path), TEXTS)

    def test_a_shard_of_an_earlier_version_is_read(self, tmp_path: Path) -> None:
        fill(store := store_at(tmp_path), Letters(), TEXTS)
        (shard,) = shards(store)
        shard.rename(shard.with_name(f"{'0' * 32}.safetensors"))
        check(store_at(tmp_path), TEXTS)

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
        with pytest.raises(UserError, match="belongs to another teacher, layer or tokenizer") as error:
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

    def test_a_folder_that_cannot_be_made(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(UserError, match="cannot be used"):
            store_at(tmp_path / "file")
