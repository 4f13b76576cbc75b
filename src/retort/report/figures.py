"""Figures of matplotlib, and the two forms that they are given: a file, and SVG to be put into a page.

The SVG's text stays text, and its ink is `currentColor`, so that a page in the dark turns it light.
"""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import Any

from retort.common.errors import UserError

INK = "#010203"
"""Stands for the page's own ink until the SVG is written."""


def _pyplot() -> Any:
    try:
        import matplotlib
    except ImportError:
        raise UserError("matplotlib is not installed", remedy="pip install 'retort-asr[plot]'") from None
    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot


def new_figure(
    width: float, height: float, rows: int = 1, columns: int = 1, ink: str = INK, **options: Any
) -> tuple[Any, Any]:
    """A figure of so many inches with axes `(rows, columns)`, transparent where its ink is the page's."""
    pyplot = _pyplot()
    names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
    settings = {**dict.fromkeys(names, ink), "axes.spines.top": False, "axes.spines.right": False}
    with pyplot.rc_context(settings):
        figure, axes = pyplot.subplots(
            rows, columns, figsize=(width, height), squeeze=False, layout="constrained", **options
        )
    for axis in axes.flat:
        axis.tick_params(labelsize=8)
        axis.grid(alpha=0.25, color=ink, lw=0.5)
        axis.set_axisbelow(True)
        # Text that is added later is black otherwise.
        for each in (axis.title, axis.xaxis.label, axis.yaxis.label):
            each.set_color(ink)
    return figure, axes


def to_svg(figure: Any, salt: str) -> str:
    """The figure as an `<svg>` that scales with its place; figures of one page need salts of their own."""
    pyplot = _pyplot()
    for text in figure.findobj(pyplot.Text):
        if text.get_color() in ("black", "k"):
            text.set_color(INK)
    out = io.StringIO()
    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # the reader's fonts draw it, not ours
        figure.savefig(out, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator")))
    pyplot.close(figure)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # nothing refers to groups, and a page may have an id once only
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    return re.sub(
        r'(<svg [^>]*?)width="([\d.]+)pt" height="[\d.]+pt"', r'\1style="max-width:\2pt"', svg, count=1
    )


def save_figure(figure: Any, path: Path) -> None:
    """Write the figure into a file, whose folder is made; the suffix chooses the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    _pyplot().close(figure)
