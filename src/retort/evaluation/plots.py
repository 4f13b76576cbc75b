"""Pictures of a run: its curves, and what CIF does with one utterance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from retort.errors import UserError

PANELS = {
    "cross-entropy": "ce",
    "CTC": "ctc",
    "quantity": "quantity",
    "accuracy, true history": "correct",
    "ACD": "acoustic.contrastive",
    "ACD accuracy": "acoustic.contrastive.accuracy",
    "LRD": "linguistic.regression",
    "CER, free-running": "validation.cer",
    "CER of the CTC head": "validation.ctc_cer",
}


def plot_curves(metrics: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> None:
    """One panel a quantity, one line a run; quantities that no run has are left out.

    Args:
        metrics: lines of `metrics.jsonl` by the run's name.
        path: of the picture; its suffix chooses the format.
    """
    pyplot = _pyplot()
    panels = {title: key for title, key in PANELS.items() if any(key in line for run in metrics.values() for line in run)}
    columns = min(3, len(panels))
    rows = -(-len(panels) // columns)
    figure, axes = pyplot.subplots(rows, columns, figsize=(4.2 * columns, 2.9 * rows), squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    for axis, (title, key) in zip(axes.flat, panels.items()):
        for name, lines in metrics.items():
            points = [(line["step"], line[key]) for line in lines if key in line]
            if points:
                steps, values = zip(*points)
                dense = len(points) > 60
                axis.plot(steps, _smoothed(values) if dense else values, label=name, lw=1.2, marker="" if dense else ".")
        axis.set_title(title, fontsize=10)
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.3)
    handles, labels = axes.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=max(len(labels), 1), fontsize=9, frameon=False)
    figure.tight_layout(rect=(0, 0.05, 1, 1))
    _save(figure, path)


def plot_fires(
    features: np.ndarray, alphas: np.ndarray, fire_times: np.ndarray, labels: Sequence[str], subsampling: int, path: Path
) -> None:
    """An utterance's filter banks with its CIF weights and the places where tokens were complete.

    Args:
        features: `(T, bins)`.
        alphas: `(T / subsampling,)`.
        fire_times: `(U,)` encoder frames.
        labels: `U` texts.
        subsampling: feature frames in one encoder frame.
    """
    pyplot = _pyplot()
    figure, (top, bottom) = pyplot.subplots(2, 1, figsize=(10, 4.6), sharex=True, height_ratios=(3, 2))
    seconds = features.shape[0] / 100
    top.imshow(features.T, origin="lower", aspect="auto", extent=(0, seconds, 0, features.shape[1]), cmap="magma")
    top.set_ylabel("bin")
    frame = subsampling / 100
    bottom.step(np.arange(len(alphas)) * frame, alphas, where="post", lw=1.0)
    bottom.set_ylabel("weight")
    bottom.set_xlabel("seconds")
    for time, label in zip(fire_times * frame, labels):
        for axis in (top, bottom):
            axis.axvline(time, color="tab:cyan", lw=0.6)
        bottom.text(time, bottom.get_ylim()[1], label, ha="right", va="top", fontsize=8)
    figure.tight_layout()
    _save(figure, path)


def _smoothed(values: Sequence[float]) -> np.ndarray:
    width = max(1, len(values) // 60)
    padded = np.pad(np.asarray(values, dtype=float), (width // 2, width - 1 - width // 2), mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise UserError("matplotlib is not installed", remedy="pip install 'retort-asr[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    _pyplot().close(figure)
