"""Checkpoints without pickle: tensors in safetensors, other state in JSON; and averaging."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from retort.common.checksums import seal, verify_file
from retort.common.errors import UserError
from retort.common.files import flush
from retort.common.json_reader import read_json
from retort.common.weights import fit, read_weights
from retort.config.schema import LoopConfig
from retort.engine.sharding import load_optimizer, load_weights, whole_optimizer, whole_weights
from retort.nn.collectives import process_index, wait_for_processes

_REMEDY = "Remove this checkpoint, run again"
_PARTS = ("student", "objective", "optimizer", "random")
_MEMORY = "memory"


class Memory(Protocol):
    """Further state of a training, whose tensors may have other sizes in each checkpoint."""

    def tensors(self) -> dict[str, Tensor]:
        """The state."""
        ...

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Replace the state; a ValueError or KeyError if the tensors do not match."""
        ...


class CheckpointFolder:
    """`checkpoints/step-N` of an experiment: the student, and the state for resuming.

    Each is written under a temporary name and then renamed, so that a folder named `step-N` is always complete. All
    processes save and restore together, since each may hold only a part of the parameters; the first one writes.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def steps(self) -> list[int]:
        """Steps of the complete checkpoints, ascending."""
        return sorted(int(path.name[5:]) for path in self.folder.glob("step-*") if path.name[5:].isdigit())

    def save(
        self,
        step: int,
        student: nn.Module,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        state: dict[str, Any],
        memory: Memory | None = None,
    ) -> None:
        """Write checkpoint `step`; `state` must be JSON-serialisable. Every process must call this.

        Raises:
            UserError: it cannot be written (disk full); earlier checkpoints are not changed.
        """
        parts = whole_weights(student), whole_weights(objective), whole_optimizer(optimizer), _random_states()
        if process_index() > 0:
            return
        self.tidy()
        partial = self.folder / f"partial-{step:08d}"
        try:
            partial.mkdir(parents=True)
            named = dict(zip(_PARTS, parts)) | ({_MEMORY: memory.tensors()} if memory is not None else {})
            for name, tensors in named.items():
                save_file(tensors, partial / f"{name}.safetensors")
            (partial / "state.json").write_text(json.dumps({"step": step, **state}))
            seal(partial)  # the content must be on disk before the rename
            self.remove(step)
            partial.rename(self.path(step))
            flush([self.path(step)])
        except (OSError, SafetensorError, UserError) as error:  # SafetensorError: safetensors on a full disk
            shutil.rmtree(partial, ignore_errors=True)
            reason = error.what if isinstance(error, UserError) else error
            raise UserError(
                f"the checkpoint of step {step} cannot be written ({reason})",
                where=self.folder,
                remedy="Free space and run again: training resumes from the previous checkpoint",
            ) from None

    def state(self, step: int) -> dict[str, Any]:
        """The `state` of checkpoint `step`.

        Raises:
            OSError, ValueError, UserError: it is incomplete.
        """
        path = self.path(step) / "state.json"
        verify_file(path, _REMEDY)
        state: Any = read_json(path)
        if not isinstance(state, dict) or state.get("step") != step:
            raise ValueError(f"state.json is not that of step {step}")
        return state

    def restore(
        self,
        student: nn.Module,
        objective: nn.Module,
        optimizer: torch.optim.Optimizer,
        check_state: Callable[[dict[str, Any]], object] = lambda state: None,
        memory: Memory | None = None,
    ) -> tuple[dict[str, Any] | None, list[str]]:
        """Load the newest complete checkpoint into the modules and the optimiser. Every process must call this.

        Args:
            check_state: raises a ValueError, KeyError or TypeError if a `state` is invalid.

        Returns:
            Its `state`, or None without a checkpoint, and a message for every incomplete one that was skipped.

        Raises:
            UserError: there are checkpoints, but none is complete.
        """
        passed_over: list[str] = []
        steps = self.steps()
        resumable = [step for step in steps if (self.path(step) / "optimizer.safetensors").exists()]
        if steps and steps[-1] not in resumable:  # the newest one must have it, so it is damaged
            resumable.append(steps[-1])
        for step in reversed(resumable):
            path = self.path(step)
            try:
                names = _PARTS if memory is None else (*_PARTS, _MEMORY)
                tensors = {name: read_weights(path / f"{name}.safetensors", _REMEDY) for name in names}
                state = self.state(step)
                check_state(state)
                fit(student, tensors["student"])
                fit(objective, tensors["objective"])
                _check_optimizer(optimizer, tensors["optimizer"])
                _check_random(tensors["random"])
                if memory is not None:
                    memory.load(tensors[_MEMORY])
                load_optimizer(optimizer, tensors["optimizer"])
            except (
                UserError,
                OSError,
                ValueError,
                KeyError,
                TypeError,
                AttributeError,
                RuntimeError,
            ) as error:
                reason = error.what if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
                passed_over.append(f"{path.name} is incomplete ({reason}); resuming from the previous one")
                continue
            load_weights(student, tensors["student"])
            load_weights(objective, tensors["objective"])
            torch.set_rng_state(tensors["random"]["cpu"])
            if "cuda" in tensors["random"] and torch.cuda.is_available():
                torch.cuda.set_rng_state(tensors["random"]["cuda"])
            wait_for_processes()  # another may still be reading what is removed here
            if process_index() == 0:
                for later in passed_over:
                    self.remove(int(later.split()[0][5:]))
            return state, passed_over
        if passed_over:
            raise UserError(
                f"no checkpoint is complete; {passed_over[0].rpartition(';')[0]}",
                where=self.folder,
                remedy="Remove the folder to start from the beginning",
            )
        return None, []

    def drop_training_state(self, step: int) -> None:
        """Keep only the student of a checkpoint that is not resumed from."""
        for name in ("objective", "optimizer", "random", _MEMORY):
            (self.path(step) / f"{name}.safetensors").unlink(missing_ok=True)

    def remove(self, step: int) -> None:
        """Remove a checkpoint; it is renamed first, so that an interruption leaves no incomplete one."""
        doomed = self.folder / f"partial-{step:08d}-removed"
        shutil.rmtree(doomed, ignore_errors=True)
        with contextlib.suppress(FileNotFoundError):
            self.path(step).rename(doomed)
        shutil.rmtree(doomed, ignore_errors=True)

    def tidy(self) -> None:
        """Remove the partial checkpoints of killed runs."""
        for path in self.folder.glob("partial-*"):
            shutil.rmtree(path, ignore_errors=True)

    def average(
        self, steps: Sequence[int], merge: Callable[[dict[str, Tensor]], dict[str, Tensor]] = dict
    ) -> dict[str, Tensor]:
        """Mean of the students of these checkpoints, each merged first; BatchNorm statistics too, counters from the last."""
        return average_weights(
            [merge(read_weights(self.path(step) / "student.safetensors", _REMEDY)) for step in steps]
        )


def chosen_steps(steps: Sequence[int], scores: Mapping[str, float], config: LoopConfig) -> list[int]:
    """The best or the last of `steps`, ascending, according to `config`: the model is their average."""
    scored = [step for step in steps if str(step) in scores]
    if config.keep == "best":
        scored.sort(key=lambda step: (scores[str(step)], -step))
        return sorted(scored[: config.checkpoints])
    return scored[-config.checkpoints :]


def average_weights(states: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Mean of floating-point tensors in float64; whole-number tensors are taken from the last state."""
    averaged = {}
    for name, last in states[-1].items():
        if last.is_floating_point():
            total = sum(
                (state[name].double() for state in states), torch.zeros_like(last, dtype=torch.float64)
            )
            averaged[name] = (total / len(states)).to(last.dtype)
        else:
            averaged[name] = last
    return averaged


def _random_states() -> dict[str, Tensor]:
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state()
    return states


def _check_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Raise a ValueError if a tensor belongs to no parameter."""
    count = sum(len(group["params"]) for group in optimizer.param_groups)
    for key in tensors:
        index, _, name = key.partition(".")
        if not index.isdigit() or int(index) >= count or not name:
            raise ValueError(f"{key} is not a state of the optimiser")


def _check_random(states: Mapping[str, Tensor]) -> None:
    """Raise an error if a generator state is invalid."""
    torch.Generator().set_state(states["cpu"])
    if "cuda" in states and torch.cuda.is_available():
        torch.Generator("cuda").set_state(states["cuda"])
