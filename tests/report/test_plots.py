from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest

from retort.common.errors import UserError
from retort.evaluation.scoring import Interval
from retort.report.firing import Firing
from retort.report.frame_view import FrameView, Span
from retort.report.plots import (
    curve_pictures,
    fires_picture,
    frames_picture,
    histogram_picture,
    panels,
    plot_latencies,
)

METRICS = {
    "a": [{"step": float(step), "ce": 9.0 / step, "lr": 1e-3, "epoch": 0.0} for step in range(1, 100)],
    "b": [{"step": 1.0, "ce": 2.0, "utterance.cosine": 0.5}, {"step": 2.0, "validation.cer": 0.4}],
}


@pytest.fixture
def firing() -> Firing:
    draw = np.random.default_rng(0)
    features = draw.standard_normal((120, 40)).astype(np.float32)
    alphas = np.full(30, 0.1, dtype=np.float32)
    times = np.array([10.0, 20.0, 30.0], dtype=np.float32)
    return Firing(features, alphas, times, ["我", "$x_", "<&"], 0.04)


def texts(svg: str) -> list[str]:
    root = ElementTree.fromstring(svg)
    return ["".join(each.itertext()).strip() for each in root.iter("{http://www.w3.org/2000/svg}text")]


def check(svg: str) -> None:
    """A picture that is part of a page: it scales, follows the page's ink, refers to nothing outside."""
    root = ElementTree.fromstring(svg)
    assert root.tag.endswith("}svg")
    assert root.get("width") is None
    assert root.get("viewBox") is not None
    labels = [each.get("style", "") for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert labels
    assert all("currentColor" in each for each in labels), "text that would be black in the dark"
    links = [value for each in root.iter() for key, value in each.attrib.items() if key.endswith("href")]
    assert all(link.startswith(("#", "data:")) for link in links)


def test_latencies(tmp_path: Path) -> None:
    rate = Interval(0.1, 0.08, 0.12, "speakers")
    points = {"160 ms": (0.2, 0.4, rate), "320 ms": (0.35, 0.6, rate), "whole": (3.0, 9.0, rate)}
    plain = tmp_path / "latencies.png"
    plot_latencies(points, "WER", plain)
    assert plain.stat().st_size > 1000


def test_an_alignment_and_what_was_recognised() -> None:
    features = np.random.default_rng(0).standard_normal((120, 40)).astype(np.float32)
    words = [Span("<&", 0.1, 0.4), Span("$x_", 0.5, 1.1)]
    phones = [Span("AA", 0.1, 0.4), Span("EH", 0.5, 0.51), Span("ZH", 0.51, 1.1)]
    predictions = [Span("AA", 0.1, 0.4, True), Span("UW", 0.5, 1.1, False)]
    svg = frames_picture(FrameView(features, words, phones, predictions, [Span("我", 0.1, 0.9)]))
    check(svg)
    shown = texts(svg)
    assert {"<&", "$x_", "AA", "ZH", "UW", "我", "reference", "its phones", "predicted", "recognised"} <= set(
        shown
    )
    assert "EH" not in shown  # a hundredth of a second has no room for it
    assert shown.count("AA") == 2
    assert svg.count("#e07b39") > 0 < svg.count("#3b82c4")
    check(frames_picture(FrameView(features, [], [], [], [])))


def test_panels_are_what_was_logged() -> None:
    assert list(panels(METRICS)) == ["ce", "validation.cer", "lr", "utterance.cosine"]


def test_a_picture_a_panel() -> None:
    found = curve_pictures(METRICS)
    assert list(found) == list(panels(METRICS).values())
    for svg in found.values():
        check(svg)
    assert found["cross-entropy"].count("<path") > found["utterance.cosine"].count("<path")


def test_fires_have_their_labels(firing: Firing) -> None:
    svg = fires_picture(firing)
    check(svg)
    shown = texts(svg)
    assert {"我", "$x_", "<&"} <= set(shown)
    assert len(svg) < 60_000, "the filter banks are kept at their own size"


def test_no_fire_at_all(firing: Firing) -> None:
    silent = Firing(firing.features, firing.alphas * 0, firing.fire_times[:0], [], 0.04)
    check(fires_picture(silent))


def test_histogram() -> None:
    svg = histogram_picture({"a": [0, 0, 1, -2], "b": [0, 3]})
    check(svg)
    # Bars of two runs over -2 to 3, the empty ones drawn too.
    bars = svg.count("#3b82c4") + svg.count("#e07b39")
    assert bars == 12
    check(histogram_picture({"a": [0, 0]}))


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UserError, match=r"pip install 'retort-asr\[plot\]'"):
        curve_pictures(METRICS)
