"""What a sweep has so far, written again after every run that ends: tables, pictures, results."""

from __future__ import annotations

import json
import re
from pathlib import Path

from rich.console import Console

from retort.errors import UserError
from retort.evaluation.document import Block, Document, Paragraph, Section, Table, to_markdown, to_screen
from retort.evaluation.plots import plot_rates, plot_setting
from retort.evaluation.results import add_entries, read_results
from retort.files import write_whole
from retort.sweeps.config import Run, Sweep
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
"""In an experiment's folder: its own rows, which the sweep gathers. One process alone writes the common file."""
EXPLAINED = (
    "CER and WER are those of all seeds together, with 95 % intervals from drawing speakers, each with all its "
    "seeds; differences are over the same speakers and seeds, below zero the system is better. How much chance in "
    "training adds is the deviation over seeds."
)


class Board:
    """Runs of a sweep that are done, and what went wrong with others.

    Args:
        root: of the experiments; table and pictures go to `root/NAME`.
        results: JSON list that every run adds its rows to.
    """

    def __init__(self, sweep: Sweep, root: Path, results: Path) -> None:
        self.sweep, self.root, self.results = sweep, root, results
        self.folder = root / sweep.name
        self.done: dict[str, Scored] = {}
        self.failed: dict[str, UserError] = {}
        self.missing = ""
        """Why there are no pictures."""

    def look(self, run: Run) -> bool:
        """Whether the run is done; if so it stands in the table and in the results."""
        found = scored(run.recipe, self.root)
        path = self.root / run.recipe.name / RESULTS
        if found is None or not path.is_file():
            return False
        entries = read_results(path)
        told = {(entry.get("split"), entry.get("cer")) for entry in entries}
        if not told.issuperset((each.split, each.score.cer) for each in found.evaluations):
            return False  # they tell of another time; the verb writes them again
        add_entries(self.results, entries)
        self.done[run.recipe.name] = found
        return True

    def write(self) -> None:
        """Write `table.md`, `table.json` and the pictures."""
        self.folder.mkdir(parents=True, exist_ok=True)
        sections, content = [], []
        for index, source in enumerate(self.sweep.sources):
            lines = lines_of(self.sweep, index, self.done, self.failed)
            pictures = self._draw(lines, source)
            blocks: list[Block] = [Paragraph(f"![{name}]({name})") for name in pictures]
            sections.append(Section(source, [*_tables(lines, self.sweep.against), *blocks]))
            systems = [line_to_dict(line) for line in lines]
            content.append({"data": source, "against": self.sweep.against, "systems": systems})
        lead = f"{len(self.done)} of {len(self.sweep.runs)} runs are done. {EXPLAINED}"
        document = Document(f"Sweep {self.sweep.name}", lead, sections)
        write_whole(self.folder / "table.md", to_markdown(document, html_name=""))
        write_whole(self.folder / "table.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")

    def show(self, console: Console) -> None:
        """Print the tables, and what is to be known of them."""
        for index, source in enumerate(self.sweep.sources):
            lines = lines_of(self.sweep, index, self.done, self.failed)
            for block in _tables(lines, self.sweep.against):
                if isinstance(block, Table):
                    console.print(to_screen(block, source))
                elif isinstance(block, Paragraph):
                    console.print(block.text, style="yellow", markup=False, soft_wrap=True)
        if self.missing:
            console.print(self.missing, style="yellow", markup=False, soft_wrap=True)

    def _draw(self, lines: list[Line], source: str) -> list[str]:
        """Names of the pictures that could be drawn; of several data each has its own."""
        behind = f"-{_plain(source)}" if len(self.sweep.sources) > 1 else ""
        names = []
        rates = {line.name: (line.rates["cer"], list(line.seeds.values())) for line in lines if line.rates}
        try:
            if rates:
                names.append(f"table{behind}.png")
                plot_rates(rates, "CER", self.folder / names[-1])
            for system in dict.fromkeys(row.system for row in self.sweep.rows):
                if self._draw_grid(system, lines, name := f"grid-{_plain(system)}{behind}.png"):
                    names.append(name)
        except UserError as error:  # matplotlib is not everywhere; the tables are
            self.missing = f"no pictures: {error}"
            return []
        return names

    def _draw_grid(self, system: str, lines: list[Line], name: str) -> bool:
        """Whether there is a curve to draw: a grid over one number, of which two values are done."""
        places = {row.name: row.point for row in self.sweep.rows if row.system == system and row.point}
        found = [
            (place, line.rates["cer"]) for line in lines if line.rates and (place := places.get(line.name))
        ]
        if len(found) < 2:
            return False
        against = next((line for line in lines if line.name == self.sweep.against and line.rates), None)
        beside = None
        if against is not None and against.name not in places:
            beside = against.name, against.rates["cer"]
        points = [(value, bounds) for (_, value), bounds in found]
        plot_setting(points, found[0][0][0], "CER", self.folder / name, beside)
        return True


def _tables(lines: list[Line], against: str) -> list[Block]:
    tables = [rates_table(lines), runs_table(lines), comparison_table(lines, against)]
    notes = [Paragraph(text, "note") for text in remarks(lines)]
    return [*(table for table in tables if table is not None), *notes]


def _plain(name: str) -> str:
    return re.sub(r"[^\w.+-]+", "-", name)
