"""Counters and histograms in the text format of Prometheus (version 0.0.4)."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable

SECONDS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)
SIZES = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0)

Labels = tuple[tuple[str, str], ...]


class Metrics:
    """Values by name and labels, safe for several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._help: dict[str, tuple[str, str]] = {}
        self._counters: dict[str, dict[Labels, float]] = defaultdict(lambda: defaultdict(float))
        self._histograms: dict[str, tuple[tuple[float, ...], dict[Labels, list[float]]]] = {}
        self._gauges: dict[str, list[tuple[Labels, Callable[[], float]]]] = defaultdict(list)

    def count(self, name: str, about: str, amount: float = 1.0, **labels: str) -> None:
        """Add to a counter."""
        with self._lock:
            self._help[name] = ("counter", about)
            self._counters[name][tuple(sorted(labels.items()))] += amount

    def observe(
        self, name: str, about: str, value: float, bounds: tuple[float, ...] = SECONDS, **labels: str
    ) -> None:
        """Add a value to a histogram."""
        with self._lock:
            self._help[name] = ("histogram", about)
            bounds, rows = self._histograms.setdefault(name, (bounds, {}))
            row = rows.setdefault(tuple(sorted(labels.items())), [0.0] * (len(bounds) + 2))
            row[bisect_left(bounds, value)] += 1
            row[-1] += value

    def gauge(self, name: str, about: str, value: Callable[[], float], **labels: str) -> None:
        """Register a value that is read when the metrics are requested."""
        with self._lock:
            self._help[name] = ("gauge", about)
            self._gauges[name].append((tuple(sorted(labels.items())), value))

    def text(self) -> str:
        """All values."""
        lines = []
        with self._lock:
            for name, (kind, about) in sorted(self._help.items()):
                lines += [f"# HELP {name} {about}", f"# TYPE {name} {kind}"]
                if kind == "counter":
                    lines += [
                        f"{name}{_labels(key)} {value:.10g}" for key, value in self._counters[name].items()
                    ]
                elif kind == "gauge":
                    lines += [f"{name}{_labels(key)} {value():.10g}" for key, value in self._gauges[name]]
                else:
                    lines += self._histogram(name)
        return "\n".join(lines) + "\n"

    def _histogram(self, name: str) -> list[str]:
        bounds, rows = self._histograms[name]
        lines = []
        for key, row in rows.items():
            total = 0.0
            for bound, number in zip([*(f"{each:g}" for each in bounds), "+Inf"], row):
                total += number
                lines.append(f"{name}_bucket{_labels((*key, ('le', bound)))} {total:.10g}")
            lines += [f"{name}_sum{_labels(key)} {row[-1]:.10g}", f"{name}_count{_labels(key)} {total:.10g}"]
        return lines


def _labels(labels: Labels) -> str:
    if not labels:
        return ""
    escaped = (
        (name, value.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")) for name, value in labels
    )
    return "{" + ",".join(f'{name}="{value}"' for name, value in escaped) + "}"
