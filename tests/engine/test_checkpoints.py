from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from retort.common.errors import UserError
from retort.engine.checkpoints import CheckpointFolder, average_weights, read_weights


class Parts:
    """A student with BatchNorm, an objective and an optimizer over both, after some updates."""

    def __init__(self, seed: int, updates: int = 0) -> None:
        torch.manual_seed(seed)
        self.student = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), nn.Linear(6, 3))
        self.objective = nn.ModuleList([nn.Linear(3, 2)])
        parameters = [*self.student.parameters(), *self.objective.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=0.01, fused=True)
        for _ in range(updates):
            self.update()

    def update(self) -> float:
        inputs = torch.randn(8, 4)
        loss: Tensor = self.objective[0](self.student(inputs)).square().sum()
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(loss.detach())

    def save(self, folder: CheckpointFolder, step: int, **state: Any) -> None:
        folder.save(step, self.student, self.objective, self.optimizer, state)

    def restore(self, folder: CheckpointFolder) -> dict[str, Any] | None:
        return folder.restore(self.student, self.objective, self.optimizer)[0]


def test_a_restored_run_goes_on_as_the_saved_one(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    saved = Parts(seed=1, updates=3)
    saved.save(folder, 3, epoch=2, scores={"3": 0.5})
    expected = [saved.update() for _ in range(4)]
    fresh = Parts(seed=9)
    assert fresh.restore(folder) == {"step": 3, "epoch": 2, "scores": {"3": 0.5}}
    assert [fresh.update() for _ in range(4)] == expected  # weights, moments, dropout, BatchNorm
    for name, value in saved.student.state_dict().items():
        assert torch.equal(fresh.student.state_dict()[name], value), name


def test_the_optimizer_comes_back_whole(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    saved = Parts(seed=1, updates=3)
    saved.save(folder, 3)
    fresh = Parts(seed=2)
    fresh.restore(folder)
    before, after = saved.optimizer.state_dict(), fresh.optimizer.state_dict()
    assert before["param_groups"] == after["param_groups"]
    assert before["state"].keys() == after["state"].keys()
    for index, entries in before["state"].items():
        for name, value in entries.items():
            assert torch.equal(after["state"][index][name], value), (index, name)


def test_an_objective_without_rows(tmp_path: Path) -> None:
    parts = Parts(seed=1, updates=1)
    folder = CheckpointFolder(tmp_path)
    folder.save(1, parts.student, nn.ModuleList(), parts.optimizer, {})
    assert folder.restore(parts.student, nn.ModuleList(), parts.optimizer) == ({"step": 1}, [])


def test_half_a_checkpoint_is_never_used(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    parts = Parts(seed=1, updates=1)
    parts.save(folder, 5)
    (tmp_path / "partial-00000009").mkdir()
    (tmp_path / "partial-00000009" / "student.safetensors").write_bytes(b"half")
    (tmp_path / "step-backup").mkdir()
    assert folder.steps() == [5]
    parts.save(folder, 9)
    assert folder.steps() == [5, 9]
    assert not (tmp_path / "partial-00000009").exists()
    parts.restore(folder)


def test_a_save_that_is_broken_off_leaves_no_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CheckpointFolder(tmp_path)
    parts = Parts(seed=1, updates=1)
    parts.save(folder, 5)

    def stop(*_: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("retort.engine.checkpoints.json.dumps", stop)
    with pytest.raises(KeyboardInterrupt):
        parts.save(folder, 6)
    assert folder.steps() == [5]
    assert (tmp_path / "partial-00000006").exists()


def test_a_full_disk_is_one_line_and_the_checkpoint_before_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CheckpointFolder(tmp_path)
    parts = Parts(seed=1, updates=1)
    parts.save(folder, 5)

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(UserError, match=r"step 6 .*No space left.*Free space and run again") as error:
            parts.save(folder, 6)
    assert "\n" not in str(error.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000005"]
    assert parts.restore(folder) == {"step": 5}


@pytest.mark.skipif(not hasattr(signal, "SIGXFSZ"), reason="needs a limit on the size of files")
def test_what_the_library_says_of_a_write_that_fails_is_understood(tmp_path: Path) -> None:
    import resource

    folder = CheckpointFolder(tmp_path)
    parts = Parts(seed=1, updates=1)
    parts.save(folder, 5)
    before, ignored = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    try:
        with pytest.raises(UserError, match=r"step 6 cannot be written \(.*File too large"):
            parts.save(folder, 6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert parts.restore(folder) == {"step": 5}


def test_a_kill_while_one_is_removed_leaves_no_half_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CheckpointFolder(tmp_path)
    parts = Parts(seed=1, updates=1)
    parts.save(folder, 5)
    parts.save(folder, 6)

    def killed(path: Path, **_: object) -> None:
        if path.exists():
            (path / "student.safetensors").unlink()
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("retort.engine.checkpoints.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            folder.remove(5)
    assert folder.steps() == [6]
    folder.tidy()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000006"]


@pytest.mark.parametrize("part", ["student", "objective", "optimizer", "random"])
def test_a_checkpoint_cut_short_gives_way_to_the_one_before(tmp_path: Path, part: str) -> None:
    folder = CheckpointFolder(tmp_path)
    parts = Parts(seed=1, updates=1)
    parts.save(folder, 5)
    expected = parts.student.state_dict()["0.weight"].clone()
    parts.update()
    parts.save(folder, 9)
    path = folder.path(9) / f"{part}.safetensors"
    path.write_bytes(path.read_bytes()[:-7])
    fresh = Parts(seed=2)
    state, passed_over = folder.restore(fresh.student, fresh.objective, fresh.optimizer)
    assert state == {"step": 5}
    assert len(passed_over) == 1
    assert passed_over[0].startswith("step-00000009 is incomplete")
    assert torch.equal(fresh.student.state_dict()["0.weight"], expected)
    assert folder.steps() == [5]


def test_no_whole_checkpoint_is_an_error_and_none_at_all_is_not(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    parts = Parts(seed=1, updates=1)
    assert parts.restore(folder) is None
    parts.save(folder, 5)
    (folder.path(5) / "state.json").write_text("{")
    with pytest.raises(UserError, match="no checkpoint is complete"):
        parts.restore(folder)


def test_dropping_the_training_state_keeps_the_student(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    Parts(seed=1, updates=1).save(folder, 5)
    folder.drop_training_state(5)
    folder.drop_training_state(5)
    names = sorted(path.name for path in folder.path(5).iterdir())
    assert names == ["checksums.json", "state.json", "student.safetensors"]
    assert folder.average([5])
    folder.remove(5)
    assert folder.steps() == []


def test_the_average_is_the_mean_and_counters_are_the_last(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    parts, states = Parts(seed=1), []
    for step in (1, 2, 3):
        for _ in range(step):
            parts.update()
        parts.save(folder, step)
        states.append({name: value.clone() for name, value in parts.student.state_dict().items()})
    averaged = folder.average([1, 2, 3])
    assert averaged.keys() == states[0].keys()
    for name, value in averaged.items():
        if value.is_floating_point():
            torch.testing.assert_close(value, sum(state[name] for state in states) / 3)
            assert value.dtype == states[0][name].dtype
    assert not torch.equal(states[0]["1.running_var"], states[2]["1.running_var"])
    assert int(averaged["1.num_batches_tracked"]) == 6


def test_an_average_of_one_is_itself_and_bf16_does_not_lose_small_shares() -> None:
    state = {"a": torch.randn(5), "count": torch.tensor(3)}
    assert all(torch.equal(average_weights([state])[name], value) for name, value in state.items())
    states = [{"a": torch.full((1,), 1.0 + index / 256, dtype=torch.float16)} for index in range(4)]
    assert float(average_weights(states)["a"]) == pytest.approx(1.0 + 1.5 / 256, abs=1e-3)


def test_weights_round_trip_whatever_their_layout(tmp_path: Path) -> None:
    folder, parts = CheckpointFolder(tmp_path), Parts(seed=1)
    weight = parts.student.get_parameter("0.weight")
    weight.data = torch.randn(4, 6).T
    parts.save(folder, 1)
    assert torch.equal(read_weights(folder.path(1) / "student.safetensors")["0.weight"], weight)


@pytest.mark.parametrize("content", [None, b"", b"not a tensor", b"\xff" * 64])
def test_a_broken_file_is_one_line(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "w.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(UserError) as error:
        read_weights(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_the_state_is_plain_json(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    Parts(seed=1, updates=1).save(folder, 7, seconds=1.5)
    assert json.loads((folder.path(7) / "state.json").read_text()) == {"step": 7, "seconds": 1.5}


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    state = json.loads(path.read_text())
    change(state)
    path.write_text(json.dumps(state))


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 16
    path.write_bytes(content)


def not_finite(path: Path) -> None:
    weights = load_file(path)
    next(each for each in weights.values() if each.is_floating_point()).view(-1)[0] = float("nan")
    save_file(weights, path)


NAMES = ("student", "objective", "optimizer", "random")
DAMAGE: dict[str, Callable[[Path], object]] = {
    **{
        f"a bit of {name}": partial(lambda name, step: flip(step / f"{name}.safetensors"), name)
        for name in NAMES
    },
    **{
        f"{name} gone": partial(lambda name, step: (step / f"{name}.safetensors").unlink(), name)
        for name in NAMES
    },
    **{
        f"zeros in {name}": partial(
            lambda name, step: (step / name).write_bytes(bytes((step / name).stat().st_size)),
            f"{name}.safetensors",
        )
        for name in NAMES
    },
    "a bit of the state": lambda step: flip(step / "state.json"),
    "no state": lambda step: (step / "state.json").unlink(),
    "another file for random": lambda step: shutil.copy(
        step / "student.safetensors", step / "random.safetensors"
    ),
    "another file for the optimizer": lambda step: shutil.copy(
        step / "student.safetensors", step / "optimizer.safetensors"
    ),
    "another file for the student": lambda step: shutil.copy(
        step / "random.safetensors", step / "student.safetensors"
    ),
    "NaN": lambda step: not_finite(step / "student.safetensors"),
    "the state is a list": lambda step: (step / "state.json").write_text("[1]"),
    "the state of another step": lambda step: edit(step / "state.json", lambda state: state.update(step=1)),
}


@pytest.mark.parametrize("sums", [True, False])
@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(tmp_path: Path, how: str, sums: bool) -> None:
    if not sums and how.startswith("a bit"):
        pytest.skip("only a checksum tells")
    folder = CheckpointFolder(tmp_path)
    parts = Parts(seed=1, updates=2)
    parts.save(folder, 5)
    before = {name: each.clone() for name, each in parts.student.state_dict().items()}
    parts.update()
    parts.save(folder, 9)
    if not sums:
        (folder.path(9) / "checksums.json").unlink()
        (folder.path(5) / "checksums.json").unlink()
    DAMAGE[how](folder.path(9))
    state, passed_over = folder.restore(parts.student, parts.objective, parts.optimizer)
    assert state == {"step": 5}
    assert len(passed_over) == 1
    assert "\n" not in passed_over[0]
    assert folder.steps() == [5]
    for name, value in parts.student.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_state_that_cannot_be_gone_on_from_is_passed_over(tmp_path: Path) -> None:
    folder = CheckpointFolder(tmp_path)
    parts = Parts(seed=1, updates=1)
    parts.save(folder, 5)
    parts.save(folder, 9, epoch="x")

    def check(state: dict[str, Any]) -> None:
        if "epoch" in state:
            raise ValueError("its epoch is no number")

    state, passed_over = folder.restore(parts.student, parts.objective, parts.optimizer, check)
    assert state == {"step": 5}
    assert "its epoch is no number" in passed_over[0]
