"""Metrics by step: `metrics.jsonl`, and TensorBoard if it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from retort.common.errors import UserError
from retort.common.files import write_whole
from retort.common.json_reader import parse_json

REMEDY = "Free space and run again: training resumes from the last checkpoint"


class MetricsLog:
    """Appends one JSON object per line; lines after the step that a resumed run starts from are dropped.

    Raises:
        UserError: the disk is full, here and in :meth:`write`; earlier lines remain.
    """

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        self.path = folder / "metrics.jsonl"
        if self.path.exists():
            previous = [line for line in read_metrics(self.path) if line["step"] <= first_step]
            write_whole(self.path, "".join(json.dumps(line) + "\n" for line in previous), remedy=REMEDY)
        self._board = _tensorboard(folder, first_step)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Log `values` under `step`; numbers also go to TensorBoard."""
        try:
            with self.path.open("a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
        except OSError as error:
            raise UserError(
                f"cannot be written ({error.strerror or error})", where=self.path, remedy=REMEDY
            ) from None
        if self._board is not None:
            for key, value in values.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(key, value, step)

    def close(self) -> None:
        """Close TensorBoard's writer."""
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl` up to the first damaged one, such as the last line of a killed run."""
    lines: list[dict[str, Any]] = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n"):
        try:
            found = parse_json(line)
        except ValueError:
            break
        if not isinstance(found, dict) or type(found.get("step")) is not int:
            break
        lines.append(found)
    return lines


def _tensorboard(folder: Path, first_step: int) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"), purge_step=first_step + 1)
