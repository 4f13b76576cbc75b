"""Matplotlib figures, written to a file or as SVG for a page.

Text in the SVG is not converted to paths, and its colour is `currentColor`, which follows the dark mode of a page.
"""

from __future__ import annotations

import io
import re
import warnings
from pathlib import Path
from typing import Any

from retort.common.errors import UserError

INK = "#010203"
"""Placeholder for the page's text colour until the SVG is written."""


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
    """A figure in inches with axes `(rows, columns)`; transparent with the page's text colour."""
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
        # Without this, text that is added later is black.
        for each in (axis.title, axis.xaxis.label, axis.yaxis.label):
            each.set_color(ink)
    return figure, axes


def to_svg(figure: Any, salt: str) -> str:
    """The figure as a scalable `<svg>`; figures of one page need different salts."""
    pyplot = _pyplot()
    for text in figure.findobj(pyplot.Text):
        if text.get_color() in ("black", "k"):
            text.set_color(INK)
    out = io.StringIO()
    with pyplot.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # it is drawn with the reader's fonts
        figure.savefig(out, format="svg", transparent=True, metadata=dict.fromkeys(("Date", "Creator")))
    pyplot.close(figure)
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)  # ids of groups are not used, and must be unique in a page
    svg = re.sub(r"<!--.*?-->\s*", "", svg, flags=re.DOTALL)
    return re.sub(
        r'(<svg [^>]*?)width="([\d.]+)pt" height="[\d.]+pt"', r'\1style="max-width:\2pt"', svg, count=1
    )


def save_figure(figure: Any, path: Path) -> None:
    """Write the figure to a file and create its folder; the suffix determines the format."""
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    _pyplot().close(figure)
