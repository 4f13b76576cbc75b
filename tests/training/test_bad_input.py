"""What goes wrong with long jobs: a full disk, a store that is another's, a shard cut short, another recipe."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from torch import Tensor

from retort.common.errors import UserError
from retort.config.schema import Recipe
from retort.engine import checkpoints
from retort.engine.checkpoints import read_weights
from retort.engine.folder import claim
from retort.engine.log import read_metrics
from retort.training.run import train

ReadRecipe = Callable[..., Recipe]
FULL = "No space left on device"


def trained(recipe: Recipe, root: Path) -> dict[str, Tensor]:
    """The weights that the run ends with."""
    outcome = train(recipe, root, lambda *_: None, lambda *_: None)
    return read_weights(outcome.folder / "model" / "model.safetensors")


def refused(recipe: Recipe, root: Path, reason: str) -> str:
    """The one line that the run ends with."""
    with pytest.raises(UserError, match=reason) as error:
        trained(recipe, root)
    line = str(error.value)
    assert "\n" not in line
    return line


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-5, msg=name)


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


class FullDisk:
    """Stands in for a function that writes: from its so-many-th call on half is written, and the disk is full."""

    def __init__(self, write: Callable[..., object], last: int, error: Exception) -> None:
        self.write, self.last, self.error, self.calls = write, last, error, 0

    def __call__(self, content: object, path: str | Path, *others: object) -> None:
        self.calls += 1
        if self.calls <= self.last:
            self.write(content, path, *others)
            return
        Path(path).write_bytes(b"half")
        raise self.error


class TestFullDisk:
    @pytest.mark.parametrize("last", [2, 5])  # four files a checkpoint, of which there are two
    def test_while_a_checkpoint_is_written(
        self, read_recipe: ReadRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, last: int
    ) -> None:
        error = SafetensorError(f"I/O error: {FULL} (os error 28)")  # as the library says it
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "save_file", FullDisk(checkpoints.save_file, last, error))
            line = refused(read_recipe(), tmp_path / "exp", f"checkpoint of step .* {FULL}")
        assert "Free space and run again" in line
        left = sorted(path.name for path in (tmp_path / "exp" / "tiny" / "checkpoints").iterdir())
        assert left == ([] if last < 4 else ["step-00000006"])
        trained(read_recipe(), tmp_path / "exp")
        steps = [line["step"] for line in read_metrics(tmp_path / "exp" / "tiny" / "metrics.jsonl")]
        assert steps == [2, 4, 6, 6, 8, 10, 12, 12]

    def test_while_the_metrics_are_written(
        self, read_recipe: ReadRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            write = Path.open

            def full(path: Path, mode: str = "r", *others: object, **more: object) -> object:
                # Its first four lines are those of the steps up to 6.
                if mode == "a" and path.exists() and len(path.read_text().splitlines()) == 4:
                    raise OSError(errno.ENOSPC, FULL)
                return write(path, mode, *others, **more)

            patch.setattr(Path, "open", full)
            line = refused(read_recipe(), tmp_path, f"metrics.jsonl: cannot be written .*{FULL}")
        assert "Free space and run again" in line
        trained(read_recipe(), tmp_path)
        steps = [line["step"] for line in read_metrics(tmp_path / "tiny" / "metrics.jsonl")]
        assert steps == [2, 4, 6, 6, 8, 10, 12, 12]

    @pytest.mark.parametrize("part", ["model", "tokenizer"])
    def test_while_a_folder_is_written(
        self, read_recipe: ReadRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
    ) -> None:
        from retort.decoding.recogniser import Recogniser
        from retort.text.tokenizers import Tokenizer

        def full(_: object, folder: Path, **options: object) -> None:
            folder.mkdir()
            (folder / "config.json").write_text("{")
            raise OSError(errno.ENOSPC, FULL)

        with monkeypatch.context() as patch:
            patch.setattr({"model": Recogniser, "tokenizer": Tokenizer}[part], "save", full)
            line = refused(read_recipe(), tmp_path, f"{part}: cannot be written .*{FULL}")
        assert "Free space and run again" in line
        assert not (tmp_path / "tiny" / part).exists()
        assert trained(read_recipe(), tmp_path)
        assert not list((tmp_path / "tiny").glob(f"{part}.*"))


class TestRecipe:
    def test_another_recipe_is_refused_and_nothing_is_touched(
        self, finished_root: Path, read_recipe: ReadRecipe
    ) -> None:
        experiment = finished_root / "tiny"
        expected, before = read_weights(experiment / "model" / "model.safetensors"), files(experiment)
        line = refused(read_recipe("training.steps=14"), finished_root, "a run of another recipe")
        assert "training.steps: 12 there, 14 here" in line
        assert "name=ANOTHER" in line
        assert files(experiment) == before
        same(trained(read_recipe(), finished_root), expected)

    def test_its_copy_is_never_half_written(
        self, read_recipe: ReadRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        claim(tmp_path / "tiny", read_recipe())
        before = (tmp_path / "tiny" / "recipe.json").read_bytes()

        def full(_: int) -> None:
            raise OSError(errno.ENOSPC, FULL)

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=FULL):
            claim(tmp_path / "tiny", read_recipe("seed=2"))
        assert (tmp_path / "tiny" / "recipe.json").read_bytes() == before


class TestStore:
    @pytest.fixture
    def recipe(self, read_recipe: ReadRecipe, tone_bert: Path) -> Callable[..., Recipe]:
        def read(*overrides: str, name: str = "taught") -> Recipe:
            extra = (
                f'teachers: {{bert: {{model: "{tone_bert}", case: lower, dim: 16, storage: disk}}}}\n'
                "distill: [{tap: acoustic, teacher: bert, loss: regression, reduce: mean}]\n"
            )
            return read_recipe(*overrides, extra=extra, name=name)

        return read

    def shards(self, root: Path) -> list[Path]:
        return sorted((root / "cache" / "teachers").rglob("*.safetensors"))

    def test_a_shard_cut_in_the_middle_is_read_again(
        self, recipe: Callable[..., Recipe], tmp_path: Path
    ) -> None:
        expected = trained(recipe(), tmp_path)
        (shard,) = self.shards(tmp_path)
        size = shard.stat().st_size
        os.truncate(shard, size // 2)
        same(trained(recipe(name="again"), tmp_path), expected)
        (made,) = self.shards(tmp_path)
        assert made.stat().st_size == size

    def test_a_store_of_another_layer_is_its_own_and_refused_in_this_ones_place(
        self, recipe: Callable[..., Recipe], tmp_path: Path
    ) -> None:
        trained(recipe(), tmp_path)
        (own,) = (path.parent for path in self.shards(tmp_path))
        output = files(own)
        trained(recipe("teachers.bert.layers=[1]", name="other"), tmp_path)
        assert files(own) == output
        (other,) = (path.parent for path in self.shards(tmp_path) if path.parent != own)
        shutil.rmtree(own)
        shutil.copytree(other, own)
        before = files(own)
        line = refused(recipe(name="third"), tmp_path, "belongs to another teacher, layer or tokenizer")
        assert "layers: " in line
        assert files(own) == before
