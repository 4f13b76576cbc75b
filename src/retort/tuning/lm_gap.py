"""The LM gap: gains of language models at run time, and the fraction that distillation achieves without them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from retort.common.errors import UserError
from retort.common.json_reader import read_json
from retort.decoding.options import GREEDY
from retort.evaluation.bootstrap import Share, intervals, pooled, share_of_gain
from retort.evaluation.evaluate import evaluation_name
from retort.evaluation.scoring import Score, read_score
from retort.report.document import Table

MEASURES = ("cer", "wer")
STUDENT, DISTILLED = "student", "distilled"


@dataclass(frozen=True)
class Cell:
    """One system with one decoding configuration, over its seeds.

    Attributes:
        name: name of system and configuration.
        score: pooled score of all seeds.
        factor: real-time factor of one worker, the mean over seeds; None if it is missing for a seed.
        parameters: number of parameters at run time, language models included; None if it is missing.
    """

    name: str
    score: Score
    factor: float | None
    parameters: int | None


@dataclass(frozen=True)
class Gap:
    """All scores of a student and of its distilled counterpart on the same data.

    Attributes:
        cells: cells in the order of the table, the student's first.
        shares: fractions of each language model's gain, by the name of its cell, for CER and WER.
        notes: remarks on the numbers.
    """

    cells: list[Cell]
    shares: list[tuple[str, Share]]
    notes: list[str]


def lm_gap(students: Sequence[Path], distilled: Sequence[Path], source: str) -> Gap:
    """Compare the evaluations of a student and of its distilled counterpart.

    The gain of a language model is relative to the student's search with the same beam without it, or to greedy
    decoding if that was not scored; the gain of distillation is that of the counterpart with the same plain decoding.

    Args:
        students: folders of results, one for each seed.
        distilled: the same for the counterpart.
        source: the data, as named in the evaluation.

    Raises:
        UserError: there is no score, a decoding configuration is missing, or the utterances differ.
    """
    own, twin = _cells(STUDENT, students, source), _cells(DISTILLED, distilled, source)
    shares, notes = [], []
    for label, cell in own.items():
        search, _, helpers = label.partition("+")
        if not helpers:
            continue
        plain = search if search in own and search in twin else GREEDY.label
        if plain not in own or plain not in twin:
            raise UserError(
                f"{cell.name} has no baseline: the plain {search} or greedy decoding of both "
                "systems was not scored",
                where=students[0],
                remedy="Run retort evaluate without a language model on both",
            )
        if plain != search:
            notes.append(
                f"{cell.name} is compared with greedy decoding: its plain beam search was not scored for both systems"
            )
        for measure in MEASURES:
            found = share_of_gain(own[plain].score, cell.score, twin[plain].score, measure=measure)
            shares.append((cell.name, found))
    if not shares:
        raise UserError(
            f"no score with a language model on {source}",
            where=students[0],
            remedy="Run retort evaluate with --lm, --rescore or --graph",
        )
    return Gap([*own.values(), *twin.values()], shares, notes)


def rates_table(gap: Gap) -> Table:
    """Errors, real-time factor and run-time parameters of every cell."""
    rows = []
    for cell in gap.cells:
        bounds = intervals(cell.score)
        rates = [
            text
            for measure in MEASURES
            for text in (
                bounds[measure].rate_text,
                bounds[measure].range_text,
            )
        ]
        factor = "" if cell.factor is None else f"{cell.factor:.3f}"
        parameters = "" if cell.parameters is None else f"{cell.parameters:,}"
        rows.append([cell.name, *rates, factor, parameters])
    return Table(("system", "CER", "95 %", "WER", "95 %", "RTF", "parameters"), rows)


def shares_table(gap: Gap) -> Table:
    """The fraction of the gain of each language model that distillation achieves without it."""
    rows = []
    for name, found in gap.shares:
        share = "no gain of the LM" if found.share is None else f"{found.share:.0%}"
        bounds = "" if found.share is None else "the gain is not significant"
        if found.low is not None and found.high is not None:
            bounds = f"{found.low:.0%} to {found.high:.0%}"
        rows.append([name, found.measure.upper(), share, bounds])
    return Table(("language model", "", "gain of distillation", "95 %"), rows)


def _cells(system: str, folders: Sequence[Path], source: str) -> dict[str, Cell]:
    """Decoding configurations that all folders have, by the label of their options."""
    base = evaluation_name(source, GREEDY)
    found: list[Mapping[str, Path]] = []
    for folder in folders:
        paths = {path.parent.name: path for path in sorted((folder / "evaluation").glob("*/score.json"))}
        found.append(
            {
                name.removeprefix(base).removeprefix("-"): path
                for name, path in paths.items()
                if name == base or name.startswith(f"{base}-beam")
            }
        )
        if not found[-1]:
            raise UserError(f"no score on {source}", where=folder, remedy="Run retort evaluate")
    shared = [label for label in found[0] if all(label in each for each in found)]
    return {label: _cell(f"{system}, {label or 'greedy'}", [each[label] for each in found]) for label in shared}


def _cell(name: str, paths: Sequence[Path]) -> Cell:
    scores = [read_score(path) for path in paths]
    factors = [each.core_seconds / 3600 for each in scores if each.core_seconds is not None]
    contents = [read_json(path) for path in paths]
    sizes = [sum(each["parameters"].values()) for each in contents if "parameters" in each]
    return Cell(
        name,
        pooled(scores),
        statistics.fmean(factors) if len(factors) == len(paths) else None,
        sizes[0] if sizes else None,
    )
