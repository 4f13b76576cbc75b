"""Report sections from an experiment's files: scores, recipes, sizes, curves, worst errors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from retort.common.errors import UserError
from retort.config.loading import recipe_to_dict
from retort.config.schema import Recipe
from retort.distill.objective import Objective
from retort.evaluation.bootstrap import compare, intervals
from retort.evaluation.scoring import UNDEFINED, Counts, UtteranceScore, alignment
from retort.report.document import Alignment, Block, Folded, Gallery, Paragraph, Section, Table
from retort.report.experiment import Experiment, Scored
from retort.report.plots import curve_pictures, panels, reliability_picture, style
from retort.students.factory import build_student

WORST = 10
"""Number of utterances shown for one experiment; half of it for each of several."""
MEASURES = ("cer", "wer")


def note(text: str) -> Paragraph:
    """A note on missing results or on the numbers."""
    return Paragraph(text, "note")


def scores(experiments: Sequence[Experiment]) -> Section:
    """Error rates with intervals, then paired comparisons with the first experiment."""
    section = Section("Scores")
    rows = [_score_row(each.name, scored) for each in experiments for scored in each.scored.values()]
    if rows:
        rates = ("CER", "95 %", "WER", "95 %")
        header = ("experiment", "data", *rates, "sub/del/ins", "utterances", "speakers", "RTF")
        section.blocks.append(Table(header, rows))
    section.blocks += [note(f"{each.name}: {line}") for each in experiments for line in each.missing]
    for each in experiments:
        for scored in each.scored.values():
            if scored.score.missing:
                section.blocks.append(
                    note(
                        f"{each.name}, {scored.name}: {len(scored.score.missing)} utterances have no "
                        "hypothesis and count as deleted."
                    )
                )
            if remark := intervals(scored.score, replicates=2)["wer"].note:
                section.blocks.append(note(f"{each.name}, {scored.name}: {remark}."))
    section.blocks += _comparisons(experiments)
    return section


def _score_row(name: str, scored: Scored) -> list[str]:
    score, bounds = scored.score, intervals(scored.score)
    words, factor = score.words, score.real_time_factor
    cells = [name, scored.name]
    for measure in MEASURES:
        found = bounds[measure]
        cells += [found.rate_text, found.range_text]
    cells += [f"{words.substitutions:,}/{words.deletions:,}/{words.insertions:,}"]
    cells += [f"{len(score.utterances):,}", f"{len(score.speakers):,}"]
    workers = f" ({score.workers} workers)" if score.workers > 1 else ""
    return [*cells, "" if factor is None else f"{factor:.3f}{workers}"]


def _comparisons(experiments: Sequence[Experiment]) -> list[Block]:
    first, rows, notes = experiments[0], [], []
    for other in experiments[1:]:
        shared = [name for name in first.scored if name in other.scored]
        if not shared and first.scored and other.scored:
            notes.append(note(f"{other.name} and {first.name} were not scored on the same data."))
        for name in shared:
            try:
                found = [
                    compare(first.scored[name].score, other.scored[name].score, measure=measure)
                    for measure in MEASURES
                ]
            except UserError as error:
                notes.append(note(f"{other.name} cannot be compared with {first.name} on {name}: {error}"))
                continue
            for each in found:
                change = f"{each.difference:+.2%}", f"{each.low:+.2%} to {each.high:+.2%}"
                rows.append([other.name, name, each.measure.upper(), *change, f"{each.p:.4f}"])
    if not rows:
        return list(notes)
    title = Paragraph(
        f"Compared with {first.name} on the same utterances, paired bootstrap over speakers; "
        "negative values mean that the other one is better."
    )
    return [title, Table(("experiment", "data", "", "difference", "95 %", "p"), rows), *notes]


def changes(experiments: Sequence[Experiment]) -> Section:
    """Changes of the error rates from the initial model on each test set; empty without an initial model."""
    section = Section("Before and after training")
    rows: list[list[str]] = []
    for each in experiments:
        for name in each.started.keys() & each.scored.keys():
            first, second = each.started[name].score, each.scored[name].score
            try:
                found = [compare(first, second, measure=measure) for measure in MEASURES]
            except UserError as error:
                section.blocks.append(note(f"{each.name}, {name}: {error}"))
                continue
            for row in found:
                rates = f"{row.first:.2%}", f"{row.second:.2%}", f"{row.difference:+.2%}"
                interval = f"{row.low:+.2%} to {row.high:+.2%}"
                rows.append([each.name, name, row.measure.upper(), *rates, interval, f"{row.p:.4f}"])
    if rows:
        text = Paragraph(
            "Each test set before training (the model of `training.init`) and after it, on the same utterances, paired "
            "bootstrap over speakers; negative differences are improvements."
        )
        header = ("experiment", "data", "", "before", "after", "difference", "95 %", "p")
        section.blocks[:0] = [text, Table(header, sorted(rows))]
    return section


def _teacher(recipe: Recipe, name: str) -> str:
    return f"{name} ({recipe.teachers[name].model})" if name else "none"


def recipes(experiments: Sequence[Experiment]) -> Section:
    """The rows of distillation, and all settings that differ from the defaults."""
    section = Section("Recipe")
    rows = [
        [each.name, row.tap, _teacher(each.recipe, row.teacher), row.loss, row.strength, row.average]
        for each in experiments
        for row in each.recipe.distill
    ]
    if rows:
        header = ("experiment", "tap", "teacher", "loss", "weight", "average over")
        section.blocks.append(Table(header, rows, prose=True))
    plain = [each.name for each in experiments if not each.recipe.distill]
    if plain:
        section.blocks.append(Paragraph(f"Without distillation: {', '.join(plain)}."))
    flat = [_flat(recipe_to_dict(each.recipe)) for each in experiments]
    defaults = _flat(recipe_to_dict(Recipe(name="")))
    keys = list(dict.fromkeys(key for settings in flat for key in settings))
    changed = [key for key in keys if any(each.get(key, "") != defaults.get(key, "") for each in flat)]
    table = Table(
        ("setting", *(each.name for each in experiments)),
        [[key, *(each.get(key, "") for each in flat)] for key in changed],
        prose=True,
    )
    section.blocks.append(Folded("Settings that differ from the defaults", [table]))
    return section


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    result: dict[str, str] = {}
    for key, value in values.items():
        if key == "distill":
            for index, row in enumerate(value):
                result |= _flat(row, f"distill[{index}].")
        elif isinstance(value, Mapping):
            result |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list):
            result[prefix + key] = ", ".join(map(str, value))
        else:
            result[prefix + key] = "" if value is None else str(value)
    return result


def sizes(experiments: Sequence[Experiment]) -> Section:
    """Parameters by part; training time."""
    section = Section("Sizes")
    counts: dict[str, dict[str, int]] = {}
    for each in experiments:
        try:
            counts[each.name] = _parameters(each)
        except UserError as error:
            section.blocks.append(note(f"{each.name}: its size is not known ({error})"))
    parts = list(dict.fromkeys(part for each in counts.values() for part in each))
    parts.sort(key=lambda part: part in ("shipped", "training only"))
    if parts:
        rows = [
            [part, *(f"{each[part]:,}" if part in each else "" for each in counts.values())] for part in parts
        ]
        section.blocks.append(Table(("parameters", *counts), rows))
    rows = []
    for each in experiments:
        if each.metrics:
            last = each.metrics[-1]
            seconds = max((line.get("seconds", 0.0) for line in each.metrics), default=0.0)
            epochs = int(max(line.get("epoch", 0.0) for line in each.metrics)) + 1
            rows.append([each.name, f"{int(last['step']):,}", f"{epochs:,}", f"{seconds / 60:.1f}"])
    if rows:
        section.blocks.append(Table(("experiment", "steps", "epochs begun", "minutes in updates"), rows))
    return section


def _parameters(experiment: Experiment) -> dict[str, int]:
    """Number of parameters by part of the student, `shipped` and `training only`.

    Raises:
        UserError: the tokenizer is missing.
    """
    recipe = experiment.recipe
    vocabulary = experiment.outputs
    with torch.device("meta"):
        student = build_student(recipe.student, vocabulary, recipe.features.bins)
    result = {
        name: sum(each.numel() for each in part.parameters()) for name, part in student.named_children()
    }
    result["shipped"] = sum(result.values())
    dims = {row.teacher: recipe.teachers[row.teacher].dim for row in recipe.distill if row.teacher}
    known = {name: dim for name, dim in dims.items() if dim is not None}
    if (tensors := experiment.projections()) is not None:
        result["training only"] = sum(
            each.numel() for name, each in tensors.items() if ".projection." in name or ".pool." in name
        )
    elif len(known) == len(dims):
        with torch.device("meta"):
            objective = Objective(recipe.distill, student.tap_dims, known)
        result["training only"] = sum(each.numel() for each in objective.parameters())
    return result


def curves(experiments: Sequence[Experiment]) -> Section:
    """Curves of all logged values of all experiments, and the last values."""
    section = Section("Curves")
    metrics = {each.name: each.metrics for each in experiments if each.metrics}
    if not metrics:
        section.blocks.append(note("No experiment has metrics yet."))
        return section
    legend = [(name, style(index)[0], style(index)[1] != "-") for index, name in enumerate(metrics)]
    section.blocks.append(Gallery(curve_pictures(metrics), legend))
    rows = []
    for key, title in panels(metrics).items():
        values = [[line[key] for line in lines if key in line] for lines in metrics.values()]
        rows.append([title, *(f"{each[-1]:.4g}" if each else "" for each in values)])
    section.blocks.append(Folded("Last values", [Table(("", *metrics), rows)]))
    return section


def confidences(experiments: Sequence[Experiment]) -> Section:
    """Reliability of word confidences, with a diagram; empty without results that have it."""
    section = Section("Confidences")
    found = {
        f"{each.name}, {scored.name}": scored.reliability
        for each in experiments
        for scored in each.scored.values()
        if scored.reliability is not None
    }
    if not found:
        return section
    rows = [
        [name, f"{each.ece:.2%}", "{:.2%} to {:.2%}".format(*each.ece_range)]
        + [f"{each.nce:.3f}", "{:.3f} to {:.3f}".format(*each.nce_range), f"{each.words:,}"]
        for name, each in found.items()
    ]
    legend = [(name, style(index)[0], style(index)[1] != "-") for index, name in enumerate(found)]
    section.blocks.append(Table(("", "ECE", "95 %", "NCE", "95 %", "words"), rows))
    section.blocks.append(Gallery({"reliability diagram": reliability_picture(found)}, legend))
    section.blocks.append(
        Paragraph(
            "ECE: mean distance between the confidence of words and the share of correct ones. NCE: normalised "
            "cross-entropy, 1 for perfect confidences, 0 for those that are the share of correct words. "
            "`retort tune --confidence` calibrates them."
        )
    )
    return section


def errors_of(experiments: Sequence[Experiment]) -> Section:
    """The worst utterances with aligned references and hypotheses."""
    section = Section("Worst utterances")
    count = WORST if len(experiments) == 1 else WORST // 2
    explained = False
    for each in experiments:
        for scored in each.scored.values():
            if not scored.texts:
                section.blocks.append(note(f"{each.name}, {scored.name}: hyp.jsonl is missing or empty."))
                continue
            if not explained:
                section.blocks.append(
                    Paragraph(
                        "By character error rate. The reference is above the hypothesis; "
                        "amber: substituted, red: deleted, blue: inserted."
                    )
                )
                explained = True
            unit = "words" if each.recipe.normaliser.spaces == "keep" else "characters"
            blocks = [_aligned(scored, name, unit) for name in by_error(scored)[:count]]
            section.blocks.append(Folded(f"{each.name}, {scored.name}", blocks, unfolded=True))
    if not section.blocks:
        section.blocks.append(note("No experiment is scored yet."))
    return section


def by_error(scored: Scored) -> list[UtteranceScore]:
    """Utterances with a stored hypothesis, the highest character error rate first."""
    there = [each for each in scored.score.utterances if each.id in scored.texts]
    return sorted(there, key=lambda each: (-each.characters.rate, -each.characters.errors, each.id))


def _rate(counts: Counts) -> str:
    return f"{counts.rate:.0%}" if counts.reference else UNDEFINED


def _aligned(scored: Scored, utterance: UtteranceScore, unit: str) -> Alignment:
    texts = scored.texts[utterance.id]
    title = (
        f"{utterance.id}, speaker {utterance.speaker}: CER {_rate(utterance.characters)}, "
        f"WER {_rate(utterance.words)}"
    )
    return Alignment(title, alignment(texts.reference, texts.hypothesis, unit=unit))
