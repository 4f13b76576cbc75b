from __future__ import annotations

import builtins
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from retort.common.errors import UserError
from retort.engine.log import MetricsLog, read_metrics


def steps(path: Path) -> list[int]:
    return [line["step"] for line in read_metrics(path)]


def write(folder: Path, wanted: range, first: int = 0) -> Path:
    log = MetricsLog(folder, first)
    for step in wanted:
        log.write(step, {"loss": 1.0 / step, "name": "x"})
    log.close()
    return folder / "metrics.jsonl"


@pytest.fixture(autouse=True)
def _no_board(monkeypatch: pytest.MonkeyPatch) -> None:
    """TensorBoard takes seconds to import; one test below asks for it."""
    real = builtins.__import__

    def refuse(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("torch.utils.tensorboard"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)


def test_without_tensorboard_every_line_is_written(tmp_path: Path) -> None:
    path = write(tmp_path, range(1, 4))
    assert read_metrics(path)[1] == {"step": 2, "loss": 0.5, "name": "x"}
    assert not (tmp_path / "tensorboard").exists()


def test_lines_beyond_the_resumed_step_are_dropped(tmp_path: Path) -> None:
    write(tmp_path, range(1, 10))
    path = write(tmp_path, range(5, 7), first=4)
    assert steps(path) == [1, 2, 3, 4, 5, 6]


def test_a_run_from_the_start_drops_all(tmp_path: Path) -> None:
    write(tmp_path, range(1, 10))
    assert steps(write(tmp_path, range(1, 3))) == [1, 2]


def test_a_cut_last_line_is_tolerated(tmp_path: Path) -> None:
    path = write(tmp_path, range(1, 5))
    path.write_bytes(path.read_bytes()[:-9])
    assert steps(path) == [1, 2, 3]
    assert steps(write(tmp_path, range(4, 6), first=3)) == [1, 2, 3, 4, 5]


def test_a_whole_line_without_its_end_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = write(tmp_path, range(1, 3))
    path.write_bytes(path.read_bytes().rstrip(b"\n"))
    assert steps(write(tmp_path, range(3, 5), first=2)) == [1, 2, 3, 4]


def test_tensorboard_forgets_what_a_killed_run_did_past_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[dict[str, int]] = []
    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = lambda _, **options: asked.append(options)  # type: ignore[attr-defined]
    monkeypatch.undo()  # the import is allowed again
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    MetricsLog(tmp_path, 4)
    assert asked == [{"purge_step": 5}]


def test_tensorboard_gets_the_numbers_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, float, int]] = []

    class Board:
        def add_scalar(self, key: str, value: float, step: int) -> None:
            seen.append((key, value, step))

        def close(self) -> None:
            seen.append(("closed", 0.0, 0))

    monkeypatch.setattr("retort.engine.log._tensorboard", lambda *_: Board())
    write(tmp_path, range(1, 3))
    assert seen == [("loss", 1.0, 1), ("loss", 0.5, 2), ("closed", 0.0, 0)]


def test_a_full_disk_is_one_line_and_keeps_what_was_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path, range(1, 10))
    before = path.read_bytes()

    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("retort.common.files.os.fsync", full)
    with pytest.raises(UserError, match=r"No space left on device.*Free space and run again") as error:
        MetricsLog(tmp_path, 4)
    assert "\n" not in str(error.value)
    assert path.read_bytes() == before
