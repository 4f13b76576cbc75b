"""What happened, step by step: `metrics.jsonl` always, TensorBoard where it is installed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


class MetricsLog:
    """Appends one JSON object a line; lines past the step that a resumed run starts from are dropped."""

    def __init__(self, folder: Path, first_step: int = 0) -> None:
        self.path = folder / "metrics.jsonl"
        if self.path.exists():
            kept = [line for line in read_metrics(self.path) if line["step"] <= first_step]
            partial = self.path.with_suffix(".partial")
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
            partial.replace(self.path)
        self._board = _tensorboard(folder)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Log `values` under `step`; numbers also go to TensorBoard."""
        with self.path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        if self._board is not None:
            for key, value in values.items():
                if isinstance(value, (int, float)):
                    self._board.add_scalar(key, value, step)

    def close(self) -> None:
        """Flush what TensorBoard holds back."""
        if self._board is not None:
            self._board.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; a last line that was cut short is left out."""
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines


def _tensorboard(folder: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(folder / "tensorboard"))
