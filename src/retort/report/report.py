"""`retort report`: a report on one run, or on several in comparison."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from retort.common.errors import UserError
from retort.common.files import write_whole
from retort.common.progress import StageProgress
from retort.report.chapters import changes, confidences, curves, errors_of, recipes, scores, sizes
from retort.report.document import Document, Paragraph, Section, to_html, to_markdown
from retort.report.experiment import Experiment, open_experiments
from retort.report.model_sections import model_sections

REPORT = "report"


@dataclass(frozen=True)
class Report:
    """Path of the report, and notes on omitted parts."""

    html: Path
    markdown: Path
    missing: list[str]


def write_report(folders: Sequence[Path], out: Path | None, progress: StageProgress, root: Path) -> Report:
    """Write `report.html` and `report.md` of the experiments to `out`, by default to the results folder of the first one.

    The report notes missing parts of an experiment (metrics, score, model, test data).

    Args:
        folders: each `EXP` or a release; the others are compared with the first.
        progress: called with the name of a stage, the amount done and the total amount.
        root: folder of the experiments, with the scores of releases.

    Raises:
        UserError: a folder is not an experiment, matplotlib is missing, or the report cannot be written.
    """
    if not folders:
        raise UserError("no experiment is named", remedy="Name one or more folders exp/NAME")
    experiments = open_experiments(list(folders), root)
    chapters: list[Callable[[list[Experiment]], Section]] = [scores, changes, recipes, sizes, curves, confidences]
    sections = [section for chapter in chapters if (section := chapter(experiments)).blocks]
    sections += model_sections(experiments, progress)
    sections.append(errors_of(experiments))
    names = [each.name for each in experiments]
    document = Document(
        f"Retort: {names[0]}" if len(names) == 1 else f"Retort: {names[0]} and {len(names) - 1} more",
        _lead(experiments),
        sections,
    )
    target = out or experiments[0].home
    html, markdown = target / f"{REPORT}.html", target / f"{REPORT}.md"
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"cannot be written ({error.strerror or error})", where=target) from None
    write_whole(html, to_html(document))
    write_whole(markdown, to_markdown(document))
    notes = (
        block.text
        for section in sections
        for block in section.blocks
        if isinstance(block, Paragraph) and block.kind
    )
    return Report(html, markdown, list(dict.fromkeys(notes)))


def _lead(experiments: Sequence[Experiment]) -> str:
    parts = []
    for each in experiments:
        wanted = each.recipe.training.steps
        steps = int(each.metrics[-1]["step"]) if each.metrics else wanted if each.released else 0
        parts.append(f"{each.name} ({each.recipe.system}, {steps:,} of {wanted:,} steps)")
    return "; ".join(parts) + "."
