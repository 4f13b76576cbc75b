"""Plots of runs: curves, fires or frames of one utterance, length errors.

Each is written to a file or as SVG for a page. Text in the SVG is not converted to paths, and its colour
is `currentColor`, which follows the dark mode of a page.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retort.evaluation.reliability import Reliability
from retort.evaluation.scoring import Interval
from retort.report.figures import new_figure, save_figure, to_svg
from retort.report.firing import Firing
from retort.report.frame_view import FrameView, Span

PANELS = {
    "loss": "loss, weighted sum",
    "ce": "cross-entropy",
    "ctc": "CTC",
    "quantity": "quantity loss",
    "alignment": "distance of the fires from the alignment",
    "quantity_total": "length: fired weight per token (target 1)",
    "correct": "accuracy under teacher forcing",
    "acoustic.contrastive": "acoustic contrastive (ACD)",
    "acoustic.contrastive.accuracy": "ACD accuracy",
    "linguistic.regression": "linguistic regression (LRD)",
    "linguistic.regression.power": "LRD: loss of predicting zeros",
    "validation.cer": "CER, validation, free-running",
    "validation.wer": "WER, validation, free-running",
    "validation.ctc_cer": "CER of the CTC head, validation",
    "validation.frames": "frame accuracy, validation",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
}
"""Titles of logged values in the order of the panels; losses of other rows follow under their keys."""

COLOURS = ("#3b82c4", "#e07b39", "#3fa66b", "#c2549d", "#8a7bd8", "#b09a2a")
STROKES = ("-", "--", "-.", ":")
"""Line styles in addition to colours, for colour-blind readers."""

Metrics = Mapping[str, Sequence[Mapping[str, float]]]
"""Lines of `metrics.jsonl` by the name of the run."""

_MANY = 60
"""Number of points from which a curve is smoothed."""


def panels(metrics: Metrics) -> dict[str, str]:
    """Keys that any run has logged, with their titles, in order."""
    logged = {key: None for lines in metrics.values() for line in lines for key in line}
    rows = [key for key in logged if "." in key and key not in PANELS and not key.startswith("init.")]
    return {key: PANELS.get(key, key) for key in [*PANELS, *sorted(rows)] if key in logged}


def style(index: int) -> tuple[str, str]:
    """Colour and stroke (matplotlib's names) of the run with this index."""
    return COLOURS[index % len(COLOURS)], STROKES[index % len(STROKES)]


def curve_pictures(metrics: Metrics) -> dict[str, str]:
    """One SVG per quantity, by its title, with the curves of all runs; without a legend."""
    pictures = {}
    for key, title in panels(metrics).items():
        figure, axes = new_figure(4.2, 2.6)
        _draw_curve(axes[0][0], metrics, key)
        pictures[title] = to_svg(figure, key)
    return pictures


def fires_picture(firing: Firing) -> str:
    """SVG of an utterance's filter banks, its CIF weights, and the times of complete tokens."""
    figure, axes = new_figure(_width(firing), 4.4, 2, sharex=True, height_ratios=(3, 2))
    _draw_fires(axes[0][0], axes[1][0], firing)
    return to_svg(figure, f"fires {firing.fire_times.tolist()}")


def frames_picture(view: FrameView) -> str:
    """SVG of an utterance's filter banks, and below its aligned words and phones, its predicted phones and its
    recognised words, over the same time axis."""
    seconds = len(view.features) / 100
    width = max(9.0, 2.4 * seconds, 0.22 * max(len(view.phones), len(view.guesses)))
    figure, axes = new_figure(min(width, 60.0), 4.4, 2, sharex=True, height_ratios=(3, 2))
    top, bottom = axes[0][0], axes[1][0]
    _draw_banks(top, view.features)
    inches = figure.get_figwidth() / max(seconds, 1e-3)
    for place, (spans, size) in enumerate(
        ((view.words, 10), (view.phones, 8), (view.guesses, 8), (view.recognised, 10))
    ):
        _draw_spans(bottom, spans, -place, size, inches)
    top.vlines([each.start for each in view.words], 0, view.features.shape[1], color="#5fd3e8", lw=0.8)
    bottom.set_yticks([0, -1, -2, -3], ["reference", "its phones", "predicted", "recognised"])
    bottom.set_ylim(-3.5, 0.5)
    bottom.set_xlim(0, seconds)
    bottom.set_xlabel("seconds")
    return to_svg(figure, f"frames {view.guesses} {view.recognised} {seconds}")


def histogram_picture(errors: Mapping[str, Sequence[int]]) -> str:
    """SVG of the distribution of length errors, with grouped bars of several runs."""
    figure, axes = new_figure(6.4, 3.0)
    axis = axes[0][0]
    low = min(min(each) for each in errors.values())
    high = max(max(each) for each in errors.values())
    positions, width = np.arange(low, high + 1), 0.8 / len(errors)
    for index, values in enumerate(errors.values()):
        shares = np.bincount(np.asarray(values) - low, minlength=len(positions)) / len(values)
        offset = (index - (len(errors) - 1) / 2) * width
        axis.bar(positions + offset, 100 * shares, width, color=style(index)[0])
    axis.set_xlabel("tokens fired minus tokens of the reference")
    axis.set_ylabel("% of utterances")
    axis.xaxis.get_major_locator().set_params(integer=True)
    return to_svg(figure, f"lengths {list(errors)}")


def reliability_picture(found: Mapping[str, Reliability]) -> str:
    """SVG of a reliability diagram: the share of correct words over the confidence, a curve for each result.

    The area of a point is proportional to the share of the words in its bin.
    """
    figure, axes = new_figure(4.2, 3.6)
    axis = axes[0][0]
    axis.plot((0, 1), (0, 1), color="grey", lw=0.8, ls=":")
    for index, each in enumerate(found.values()):
        colour, stroke = style(index)
        counts, means, shares = zip(*each.bins)
        axis.plot(means, shares, color=colour, ls=stroke, lw=1.2)
        axis.scatter(
            means, shares, [200 * count / each.words + 4 for count in counts], color=colour, alpha=0.6
        )
    axis.set_xlim(0, 1)
    axis.set_ylim(0, 1)
    axis.set_xlabel("mean confidence of the words in a bin")
    axis.set_ylabel("share of correct words")
    return to_svg(figure, f"reliability {list(found)}")


def plot_rates(rates: Mapping[str, tuple[Interval, Sequence[float]]], label: str, path: Path) -> None:
    """A file with a row for each system: its error rate with the interval, and single runs as dots.

    Args:
        rates: the interval over all runs and the rates of each, as fractions, by the system's name.
        label: name of the rates.
    """
    figure, axes = new_figure(6.4, 1.2 + 0.36 * len(rates), ink="black")
    axis = axes[0][0]
    for place, (bounds, runs) in enumerate(rates.values()):
        _draw_bounds(axis, bounds, place, vertical=False)
        axis.plot([100 * rate for rate in runs], [place] * len(runs), ".", color=COLOURS[1], zorder=3)
    axis.set_yticks(range(len(rates)), list(rates))
    axis.set_ylim(len(rates) - 0.5, -0.5)
    axis.set_xlabel(f"{label}, %; the small dots are single runs")
    save_figure(figure, path)


class Point(NamedTuple):
    """A value of a setting, its error rate over all runs, and those of single runs."""

    value: float
    rate: Interval
    runs: Sequence[float]


def plot_setting(
    points: Sequence[Point],
    key: str,
    label: str,
    path: Path,
    reference: tuple[str, Interval] | None = None,
) -> None:
    """A file with an error rate and its interval over the values of one setting, single runs as dots.

    Args:
        points: the axis is logarithmic if the values span a factor of ten.
        key: key of the setting.
        label: name of the rates.
        reference: name and rate of a system without the setting, drawn as a band.
    """
    figure, axes = new_figure(5.6, 3.6, ink="black")
    axis = axes[0][0]
    points = sorted(points, key=lambda point: point.value)
    values = [point.value for point in points]
    axis.plot(values, [100 * point.rate.rate for point in points], color=COLOURS[0], lw=1.2)
    for point in points:
        _draw_bounds(axis, point.rate, point.value, vertical=True)
        dots = [100 * rate for rate in point.runs]
        axis.plot([point.value] * len(dots), dots, ".", color=COLOURS[1], zorder=3)
    if reference is not None:
        name, bounds = reference
        axis.axhspan(100 * bounds.low, 100 * bounds.high, color=COLOURS[2], alpha=0.15, lw=0)
        axis.axhline(100 * bounds.rate, color=COLOURS[2], ls="--", lw=1.2, label=name)
        axis.legend(frameon=False)
    if values[0] > 0 and values[-1] >= 10 * values[0]:
        axis.set_xscale("log")
    axis.set_xticks(values, [f"{value:g}" for value in values])
    axis.minorticks_off()
    axis.set_xlabel(f"{key}; the small dots are single runs")
    axis.set_ylabel(f"{label}, %")
    save_figure(figure, path)


def plot_latencies(points: Mapping[str, tuple[float, float, Interval]], label: str, path: Path) -> None:
    """A file with the error rates of a model over the latencies of its words.

    Args:
        points: median and 95th percentile of the latency in seconds, and the error rate, by the name of the chunk.
        label: name of the rates.
    """
    figure, axes = new_figure(5.6, 3.6, ink="black")
    axis = axes[0][0]
    ordered = sorted(points.items(), key=lambda item: item[1][0])
    medians = [1000 * median for _, (median, _, _) in ordered]
    axis.plot(medians, [100 * rate.rate for _, (_, _, rate) in ordered], color=COLOURS[0], lw=1.2)
    for name, (median, late, rate) in ordered:
        _draw_bounds(axis, rate, 1000 * median, vertical=True)
        axis.hlines(100 * rate.rate, 1000 * median, 1000 * late, color=COLOURS[1], lw=1.2, zorder=1)
        axis.annotate(name, (1000 * median, 100 * rate.rate), (5, 5), textcoords="offset points", fontsize=8)
    if medians[0] > 0 and medians[-1] >= 10 * medians[0]:
        axis.set_xscale("log")
    axis.set_xlabel("latency of words, ms: median (dot) to 95th percentile")
    axis.set_ylabel(f"{label}, %")
    save_figure(figure, path)


def _draw_bounds(axis: Any, bounds: Interval, place: float, *, vertical: bool) -> None:
    """Draw a rate with its interval in per cent at a position of the other axis."""
    rate, reach = 100 * bounds.rate, [[100 * (bounds.rate - bounds.low)], [100 * (bounds.high - bounds.rate)]]
    settings: dict[str, Any] = {"fmt": "o", "color": COLOURS[0], "capsize": 3, "markersize": 4, "lw": 1.5}
    if vertical:
        axis.errorbar(place, rate, yerr=reach, **settings)
    else:
        axis.errorbar(rate, place, xerr=reach, **settings)


def _width(firing: Firing) -> float:
    """Width in inches with enough space for the labels of tokens."""
    seconds = len(firing.features) / 100
    return float(min(max(9.0, 1.6 * seconds, 0.16 * len(firing.labels)), 40.0))


def _draw_curve(axis: Any, metrics: Metrics, key: str) -> None:
    for index, lines in enumerate(metrics.values()):
        points = [(line["step"], line[key]) for line in lines if key in line]
        if not points:
            continue
        steps, values = zip(*points)
        colour, stroke = style(index)
        if len(points) > _MANY:
            axis.plot(steps, values, color=colour, lw=0.6, alpha=0.25)
            axis.plot(steps, _smoothed(values), color=colour, ls=stroke, lw=1.5)
        else:
            axis.plot(steps, values, color=colour, ls=stroke, lw=1.5, marker=".", markersize=4)
    axis.set_xlabel("step", fontsize=9)


def _draw_fires(top: Any, bottom: Any, firing: Firing) -> None:
    seconds, frame = len(firing.features) / 100, firing.frame_seconds
    _draw_banks(top, firing.features)
    edges = np.arange(len(firing.alphas) + 1) * frame
    bottom.stairs(firing.alphas, edges, fill=True, color=COLOURS[0], alpha=0.35, lw=0)
    bottom.stairs(firing.alphas, edges, lw=1.0, color=COLOURS[0])
    peak = max(float(firing.alphas.max(initial=0.0)), 1e-3)
    bottom.set_ylim(0, 1.45 * peak)
    bottom.set_xlim(0, seconds)
    bottom.set_ylabel("CIF weight")
    bottom.set_xlabel("seconds")
    fires = np.minimum(firing.fire_times * frame, seconds)
    top.vlines(fires, 0, firing.features.shape[1], color="#5fd3e8", lw=0.8)
    bottom.vlines(fires, 0, 1.45 * peak, color=COLOURS[1], lw=0.7, alpha=0.8)
    for number, (time, label) in enumerate(zip(fires, firing.labels)):
        # Three alternating heights, because neighbours are often closer than the width of a letter.
        height = (1.40, 1.27, 1.14)[number % 3] * peak
        bottom.text(time, height, label.replace("$", r"\$"), ha="right", va="top", fontsize=9)


def _draw_banks(axis: Any, features: NDArray[np.float32]) -> None:
    low, high = np.percentile(features, [1, 99.5])
    axis.imshow(
        features.T,
        origin="lower",
        aspect="auto",
        extent=(0, len(features) / 100, 0, features.shape[1]),
        cmap="magma",
        vmin=low,
        vmax=high,
        interpolation="none",  # otherwise the SVG contains the rendered image, which is twenty times as large
    )
    axis.set_ylabel("filter bank")


def _draw_spans(axis: Any, spans: Sequence[Span], place: float, size: float, inches: float) -> None:
    """Draw boxes at a height, with their texts if they fit; `inches` per second."""
    for span in spans:
        colour = COLOURS[1] if span.right is False else COLOURS[0]
        bar = [(span.start, span.end - span.start)]
        axis.broken_barh(bar, (place - 0.4, 0.8), facecolor=colour, edgecolor=colour, alpha=0.3, lw=0.5)
        if (span.end - span.start) * inches > 0.6 * size / 72 * len(span.text):
            middle = (span.start + span.end) / 2
            axis.text(middle, place, span.text.replace("$", r"\$"), ha="center", va="center", fontsize=size)


def _smoothed(values: Sequence[float]) -> NDArray[np.float64]:
    width = max(1, len(values) // _MANY)
    padded = np.pad(np.asarray(values, dtype=float), (width // 2, width - 1 - width // 2), mode="edge")
    return np.convolve(padded, np.ones(width) / width, mode="valid")
