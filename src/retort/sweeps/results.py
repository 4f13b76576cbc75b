"""Results of a sweep: tables, plots and JSON, rewritten after every finished run."""

from __future__ import annotations

import json
from pathlib import Path

from rich.console import Console

from retort.common.errors import UserError
from retort.common.files import write_whole
from retort.decoding.options import GREEDY
from retort.evaluation.results import add_entries, decoded_entry, read_results
from retort.evaluation.scoring import defined
from retort.report.document import Block, Document, Paragraph, Section, Table, to_markdown, to_screen
from retort.report.plots import Point, plot_rates, plot_setting
from retort.sweeps.config import Run, Sweep, View, plain
from retort.sweeps.scored import Scored, scored
from retort.sweeps.table import (
    Line,
    comparison_table,
    line_to_dict,
    lines_of,
    rates_table,
    remarks,
    runs_table,
)

RESULTS = "results.json"
"""In an experiment's folder: its own rows. Only the process of the sweep writes the common file."""
EXPLAINED = (
    "CER and WER are over all seeds, with 95 % bootstrap intervals over speakers, each with all its seeds; "
    "differences are over the same speakers and seeds, and negative values mean that the system is better. Seen from: "
    "a true difference of that size would be significant (p below 0.05) with probability 0.8. Intervals, p and "
    "seen from are about other speakers, with these trainings. The deviation over seeds shows the effect of chance in "
    "training, and p over seeds (paired t-test) is about other trainings, with these speakers."
)


class SweepResults:
    """Finished and failed runs of a sweep.

    Args:
        root: folder of the experiments; table and plots are written to `root/NAME`.
        results: JSON list that the rows of every run are added to.
    """

    def __init__(self, sweep: Sweep, root: Path, results: Path) -> None:
        self.sweep, self.root, self.results = sweep, root, results
        self.folder = root / sweep.name
        self.done: dict[str, Scored] = {}
        self.failed: dict[str, UserError] = {}
        self.missing = ""
        """Why there are no plots."""

    def load_run(self, run: Run) -> bool:
        """Load the scores of a run; return whether it is trained and scored. Its rows are added to the results."""
        found = scored(run.recipe, self.root, self.sweep.views)
        path = self.root / run.recipe.name / RESULTS
        if found is None or not path.is_file():
            return False
        entries = read_results(path)
        scores = {(entry.get("split"), entry.get("cer")): entry for entry in entries}
        if not scores.keys() >= {(each.split, defined(each.score.cer)) for each in found.evaluations}:
            return False  # they belong to an earlier evaluation; `retort train` writes them again
        trained = {each.split: scores[each.split, defined(each.score.cer)] for each in found.evaluations}
        for view, each in zip(self.sweep.views, found.views):
            if each is not None and view.options != GREEDY:
                entries.append(decoded_entry(trained[each.split], each, view.name))
        add_entries(self.results, entries)
        self.done[run.recipe.name] = found
        return True

    def missing_views(self, run: Run) -> list[View]:
        """Views that the run has not been scored in, except those that are part of its training."""
        found = self.done.get(run.recipe.name)
        views = [view for view in self.sweep.views_of(run) if view.options != GREEDY]
        return [view for view in views if found is None or found.views[self.sweep.views.index(view)] is None]

    @property
    def complete(self) -> int:
        """Number of runs that are scored in every view."""
        return sum(run.recipe.name in self.done and not self.missing_views(run) for run in self.sweep.runs)

    def write(self) -> None:
        """Write `table.md`, `table.json` and the plots."""
        self.folder.mkdir(parents=True, exist_ok=True)
        sections, content = [], []
        for view in self.sweep.views:
            lines = lines_of(self.sweep, view, self.done, self.failed)
            plots = self._draw(lines, view)
            blocks: list[Block] = [Paragraph(f"![{name}]({name})", markdown=True) for name in plots]
            sections.append(Section(view.title, [*_tables(lines, self.sweep.against_in(view)), *blocks]))
            systems = [line_to_dict(line) for line in lines]
            about = {"data": view.source, "decoding": view.name, "against": self.sweep.against_in(view)}
            content.append({**about, "systems": systems})
        lead = f"{self.complete} of {len(self.sweep.runs)} runs are done. {EXPLAINED}"
        document = Document(f"Sweep {self.sweep.name}", lead, sections)
        write_whole(self.folder / "table.md", to_markdown(document, html_name=""))
        write_whole(self.folder / "table.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def show(self, console: Console) -> None:
        """Print the tables and their notes."""
        for view in self.sweep.views:
            lines = lines_of(self.sweep, view, self.done, self.failed)
            for block in _tables(lines, self.sweep.against_in(view)):
                if isinstance(block, Table):
                    console.print(to_screen(block, view.title))
                elif isinstance(block, Paragraph):
                    console.print(block.text, style="yellow", markup=False, soft_wrap=True)
        if self.missing:
            console.print(self.missing, style="yellow", markup=False, soft_wrap=True)

    def _draw(self, lines: list[Line], view: View) -> list[str]:
        """Draw the plots of a view and return their names."""
        parts = [plain(view.source), view.name] if len(self.sweep.views) > 1 else []
        suffix = "".join(f"-{part}" for part in parts if part)
        names = []
        rates = {line.name: (line.rates["cer"], list(line.seeds.values())) for line in lines if line.rates}
        try:
            if rates:
                names.append(f"table{suffix}.png")
                plot_rates(rates, "CER", self.folder / names[-1])
            for curve in dict.fromkeys(name for row in self.sweep.rows for name in row.curves):
                if self._draw_curve(curve, lines, name := f"grid-{plain(curve)}{suffix}.png"):
                    names.append(name)
        except UserError as error:  # matplotlib is optional
            self.missing = f"no plots: {error}"
            return []
        return names

    def _draw_curve(self, curve: str, lines: list[Line], name: str) -> bool:
        """Draw the curve of a grid; return False if fewer than two of its values are done."""
        places = {row.name: row.curves[curve] for row in self.sweep.rows if curve in row.curves}
        done = {line.name: line for line in lines if line.rates}
        points = [
            Point(value, done[row].rates["cer"], list(done[row].seeds.values()))
            for row, (_, value) in places.items()
            if row in done
        ]
        if len(points) < 2:
            return False
        against = self.sweep.against
        reference = (against, done[against].rates["cer"]) if against in done and against not in places else None
        key = next(iter(places.values()))[0]
        plot_setting(points, f"{curve} ({key})", "CER", self.folder / name, reference)
        return True


def _tables(lines: list[Line], against: str) -> list[Block]:
    tables = [rates_table(lines), runs_table(lines), comparison_table(lines, against)]
    notes = [Paragraph(text, "note") for text in remarks(lines)]
    return [*(table for table in tables if table is not None), *notes]
