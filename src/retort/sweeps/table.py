"""The tables of a sweep: every system over its seeds, and compared with one of them."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from retort.common.errors import UserError
from retort.evaluation.bootstrap import Comparison, compare, intervals, pooled
from retort.evaluation.scoring import Interval, Score, percent
from retort.evaluation.seeds import seeds_p
from retort.report.document import Table
from retort.sweeps.config import Row, Sweep, View
from retort.sweeps.scored import Scored

MEASURES = ("cer", "wer")


@dataclass(frozen=True)
class Line:
    """One system on one set of data; rates are fractions.

    Attributes:
        name: name of the row.
        seeds: CER of every finished seed.
        unfinished: state or error of the other seeds.
        rates: `cer` and `wer` over the finished seeds, with intervals over speakers; empty if there is none.
        deviation: sample standard deviation of the seeds' CER; None for fewer than two seeds.
        against: differences of `cer` and `wer` from the row that all are compared with, over `shared` seeds.
        by_seed: these differences for every one of the `shared` seeds.
        params: number of parameters of the exported model.
        minutes: training time, mean over seeds.
        note: why there is no comparison, or a remark on it.
    """

    name: str
    seeds: dict[int, float]
    unfinished: dict[int, str]
    rates: dict[str, Interval]
    deviation: float | None
    against: dict[str, Comparison]
    by_seed: dict[str, list[float]]
    shared: list[int]
    params: int | None
    minutes: float | None
    note: str


def lines_of(
    sweep: Sweep, view: View, done: Mapping[str, Scored], failed: Mapping[str, UserError]
) -> list[Line]:
    """The lines of one view from the finished runs; both mappings are by names of experiments.

    Args:
        failed: errors of trainings, and of scorings by the names of :meth:`Sweep.scoring`.
    """
    rows, against = sweep.rows_in(view), sweep.against_in(view)
    first = next(row for row in rows if row.name == against)
    return [_line(sweep, row, first, view, done, failed) for row in rows]


def _line(
    sweep: Sweep,
    row: Row,
    first: Row,
    view: View,
    done: Mapping[str, Scored],
    failed: Mapping[str, UserError],
) -> Line:
    place = sweep.views.index(view)
    scores, unfinished = _scores(row, place, done), {}
    for run in row.runs:
        if run.recipe.seed not in scores:
            error = failed.get(run.recipe.name) or failed.get(sweep.scoring(run, view))
            unfinished[run.recipe.seed] = f"failed: {error}" if error else "not finished"
    runs = [done[run.recipe.name] for run in row.runs if run.recipe.name in done]
    cers = {seed: score.cer for seed, score in scores.items()}
    rates, against, by_seed, note = {}, {}, {}, ""
    theirs = _scores(first, place, done)
    shared = [] if row is first else [seed for seed in scores if seed in theirs]
    try:
        if scores:
            rates = intervals(pooled(list(scores.values())))
            note = rates["cer"].note
        if shared:
            pair = [pooled([each[seed] for seed in shared]) for each in (theirs, scores)]
            against = {measure: compare(pair[0], pair[1], measure=measure) for measure in MEASURES}
            by_seed = {
                measure: [getattr(scores[seed], measure) - getattr(theirs[seed], measure) for seed in shared]
                for measure in MEASURES
            }
    except UserError as error:
        note = str(error)
    return Line(
        name=row.name,
        seeds=cers,
        unfinished=unfinished,
        rates=rates,
        deviation=statistics.stdev(cers.values()) if len(cers) > 1 and rates and rates["cer"].range_text else None,
        against=against,
        by_seed=by_seed,
        shared=shared,
        params=runs[0].params if runs else None,
        minutes=statistics.fmean(run.seconds for run in runs) / 60 if runs else None,
        note=note,
    )


def _scores(row: Row, place: int, done: Mapping[str, Scored]) -> dict[int, Score]:
    """Available scores by seed."""
    found = {
        run.recipe.seed: done[run.recipe.name].views[place] for run in row.runs if run.recipe.name in done
    }
    return {seed: evaluation.score for seed, evaluation in found.items() if evaluation is not None}


def rates_table(lines: Sequence[Line]) -> Table:
    """Error rates of the systems over the finished seeds."""
    rows = []
    for line in lines:
        cells = ["", "", "", ""]
        if line.rates:
            bounds = [line.rates[measure] for measure in MEASURES]
            cells = [text for b in bounds for text in (b.rate_text, b.range_text)]
        rows.append([line.name, *cells])
    return Table(("system", "CER", "95 %", "WER", "95 %"), rows)


def runs_table(lines: Sequence[Line]) -> Table:
    """CER of each seed, number of parameters and training time of the systems."""
    rows = []
    for line in lines:
        seeds = {seed: percent(rate) for seed, rate in line.seeds.items()}
        seeds |= {seed: why.split(":")[0] for seed, why in line.unfinished.items()}
        deviation = "" if line.deviation is None else f"{line.deviation:.2%}"
        params = "" if line.params is None else f"{line.params:,}"
        minutes = "" if line.minutes is None else f"{line.minutes:.1f}"
        rows.append([line.name, ", ".join(seeds[seed] for seed in sorted(seeds)), deviation, params, minutes])
    names = ", ".join(map(str, sorted({**lines[0].seeds, **lines[0].unfinished})))
    return Table(("system", f"CER, seeds {names}", "deviation", "params", "minutes"), rows)


def comparison_table(lines: Sequence[Line], against: str) -> Table | None:
    """Differences from the row `against`; None if there is nothing to compare yet."""
    rows = []
    for line in lines:
        for measure, found in line.against.items():
            relative = f"{found.difference / found.first:+.1%}" if found.first else ""
            bounds = f"{found.low:+.2%} to {found.high:+.2%}"
            seen = f"{found.detectable:.2%}"
            differences = line.by_seed[measure]
            by_seed = ", ".join(f"{seed}: {each:+.2%}" for seed, each in zip(line.shared, differences, strict=True))
            over_seeds = "" if (p := seeds_p(differences)) is None else f"{p:.2g}"
            change = f"{found.difference:+.2%}", bounds, f"{found.p:.4f}", relative, seen
            rows.append([line.name, measure.upper(), *change, by_seed, over_seeds])
    header = ("system", "", f"less {against}", "95 %", "p", "relative", "seen from", "by seed", "p over seeds")
    return Table(header, rows) if rows else None


def remarks(lines: Sequence[Line]) -> list[str]:
    """Failed runs and notes on the numbers."""
    failures = [
        f"{line.name}, seed {seed}, {why}"
        for line in lines
        for seed, why in line.unfinished.items()
        if why.startswith("failed")
    ]
    return failures + [f"{line.name}: {line.note}" for line in lines if line.note]


def line_to_dict(line: Line) -> dict[str, Any]:
    """The entry of a line in `table.json`."""
    content = asdict(line)
    for measure, found in line.against.items():
        content["against"][measure]["relative"] = found.difference / found.first if found.first else None
        content["against"][measure]["p_over_seeds"] = seeds_p(line.by_seed[measure])
    return content
