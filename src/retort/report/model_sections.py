"""Report sections that run the model on test data: fires, alignments, lengths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from lhotse.cut import Cut

from retort.alignment.store import AlignmentStore
from retort.common.errors import UserError
from retort.common.progress import StageProgress
from retort.corpora.open_cuts import find_data, open_cuts
from retort.decoding.recogniser import Recogniser, load
from retort.evaluation.aligned import open_aligned
from retort.report.chapters import by_error, note
from retort.report.document import Block, Gallery, Paragraph, Picture, Section, Table
from retort.report.experiment import Experiment, Scored
from retort.report.firing import END, compute_firing, length_errors
from retort.report.frame_view import compute_frame_view
from retort.report.plots import fires_picture, frames_picture, histogram_picture, style

MEASURED = 1000
"""Maximum number of test utterances for the length errors, chosen evenly."""


@dataclass(frozen=True)
class _Opened:
    """An experiment with its model, its test cuts by id, and its score on them, if there is one."""

    experiment: Experiment
    recogniser: Recogniser
    cuts: dict[str, Cut]
    scored: Scored | None


def model_sections(experiments: Sequence[Experiment], progress: StageProgress) -> list[Section]:
    """One section on alignments if any student is hybrid, two if any is not, with notes on missing results."""
    opened: dict[tuple[str, ...], dict[str, Cut]] = {}
    hybrid = [each for each in experiments if each.recipe.student.kind == "hybrid"]
    others = [each for each in experiments if each.recipe.student.kind != "hybrid"]
    sections = []
    if others:
        silent: list[Block] = [
            note(f"{each.name}: a {each.recipe.student.kind} student does not fire tokens.")
            for each in others
            if each.recipe.student.kind != "cif"
        ]
        models, missing = _open([each for each in others if each.recipe.student.kind == "cif"], opened)
        missing = [*silent, *missing]
        sections += [
            Section("Weights and fires", [*missing, *_fires(models, progress)]),
            Section("Lengths", [*missing, *_lengths(models, progress)]),
        ]
    if hybrid:
        models, missing = _open(hybrid, opened)
        sections.append(Section("Alignments", [*_frames(hybrid), *missing, *_alignments(models, progress)]))
    return sections


def _open(
    experiments: Sequence[Experiment], opened: dict[tuple[str, ...], dict[str, Cut]]
) -> tuple[list[_Opened], list[Block]]:
    """Experiments with a model and test data, and notes on the others."""
    models, missing = [], []
    for each in experiments:
        try:
            cuts = _test_cuts(each, opened)
            models.append(_Opened(each, load(each.folder), cuts, _scored_on(each, cuts)))
        except UserError as error:
            missing.append(note(f"{each.name} was not run on its test data: {error}"))
    return models, list(missing)


def _test_cuts(experiment: Experiment, opened: dict[tuple[str, ...], dict[str, Cut]]) -> dict[str, Cut]:
    """The cuts of `data.test`; `opened` caches them.

    Raises:
        UserError: the recipe has none, or they cannot be found.
    """
    sources = tuple(experiment.recipe.data.test)
    if not sources:
        raise UserError("its recipe has no data.test")
    if sources not in opened:
        opened[sources] = {cut.id: cut for source in sources for cut in open_cuts(find_data(source)).cuts}
    return opened[sources]


def _scored_on(experiment: Experiment, cuts: Mapping[str, Cut]) -> Scored | None:
    """The score with the most utterances in common with these cuts."""
    shared = {name: len(cuts.keys() & scored.texts.keys()) for name, scored in experiment.scored.items()}
    best = max(shared, key=lambda name: shared[name], default=None)
    return experiment.scored[best] if best is not None and shared[best] else None


def _choose(opened: _Opened) -> dict[str, str]:
    """Ids of a typical and the worst utterance; without a score, of one of median length."""
    if opened.scored is not None:
        worst = [each for each in by_error(opened.scored) if each.id in opened.cuts]
        middle = float(np.median([each.characters.rate for each in worst]))
        length = float(np.median([each.characters.reference for each in worst]))
        typical = min(
            worst,
            key=lambda each: (
                abs(each.characters.rate - middle),
                abs(each.characters.reference - length),
                each.id,
            ),
        )
        return {"typical": typical.id, "worst": worst[0].id}
    return {"typical": _of_middle_length(opened.cuts).id}


def _of_middle_length(cuts: Mapping[str, Cut]) -> Cut:
    return sorted(cuts.values(), key=lambda cut: (cut.duration, cut.id))[len(cuts) // 2]


def _fires(models: Sequence[_Opened], progress: StageProgress) -> list[Block]:
    if not models:
        return []
    blocks: list[Block] = [
        Paragraph(
            "Filter banks above, CIF weights below. Lines mark complete tokens, with the token "
            f"before it ({END} is EOS), without the reference length."
        )
    ]
    chosen = _choose(models[0])
    for index, each in enumerate(models):
        own = chosen if all(name in each.cuts for name in chosen.values()) else _choose(each)
        for kind, name in own.items():
            try:
                firing = compute_firing(each.recogniser, each.cuts[name])
            except UserError as error:
                blocks.append(note(f"{each.experiment.name}: {error}"))
                continue
            caption = f"{each.experiment.name}, {kind} utterance {name}. {_texts(each, name)}"
            blocks.append(Picture(fires_picture(firing), caption, wide=True))
        progress("fires", index + 1, len(models))
    if len(models) > 1:
        blocks.append(
            Paragraph(f"Typical and worst refer to {models[0].experiment.name}; the same two utterances are shown for all.")
        )
    return blocks


def _frames(experiments: Sequence[Experiment]) -> list[Block]:
    """Frame accuracies from the scores."""
    rows = [
        [each.name, name, f"{found.rate:.2%}", f"{found.frames:,}", f"{found.utterances:,}"]
        for each in experiments
        for name, scored in each.scored.items()
        if (found := scored.frames) is not None
    ]
    header = ("experiment", "data", "frame accuracy", "frames", "utterances")
    return [Table(header, rows)] if rows else []


def _alignments(models: Sequence[_Opened], progress: StageProgress) -> list[Block]:
    if not models:
        return []
    blocks: list[Block] = [
        Paragraph(
            "Filter banks above. Below: aligned words and phones of the transcript; the phones "
            "of the student's most likely senones (amber where the alignment has "
            "another); the recognised words."
        )
    ]
    chosen = _choose(models[0])
    for index, each in enumerate(models):
        name_of = each.experiment.name
        own = chosen if all(name in each.cuts for name in chosen.values()) else _choose(each)
        try:
            stores = _aligned(each)
        except UserError as error:
            stores = []
            blocks.append(note(f"{name_of}: {error}"))
        if not stores:
            blocks.append(
                note(f"{name_of}: there is no alignment of its test data (`retort train` creates it).")
            )
        for kind, name in own.items():
            store = next((each for each in stores if name in each), stores[0] if stores else None)
            try:
                view = compute_frame_view(each.recogniser, each.cuts[name], store)
            except UserError as error:
                blocks.append(note(f"{name_of}: {error}"))
                continue
            caption = f"{name_of}, {kind} utterance {name}. {_texts(each, name)}"
            blocks.append(Picture(frames_picture(view), caption, wide=True))
        progress("alignments", index + 1, len(models))
    return blocks


def _aligned(opened: _Opened) -> list[AlignmentStore]:
    """The available alignments of its test data."""
    student = opened.recogniser.student
    found = (
        open_aligned(opened.experiment.folder, source, student) for source in opened.experiment.recipe.data.test
    )
    return [store for store in found if store is not None]


def _texts(opened: _Opened, name: str) -> str:
    if opened.scored is None or name not in opened.scored.texts:
        return f"Reference: {opened.recogniser.normalise(opened.cuts[name].supervisions[0].text or '')}"
    texts = opened.scored.texts[name]
    return f"Reference: {texts.reference} / recognised: {texts.hypothesis or 'nothing'}"


def _lengths(models: Sequence[_Opened], progress: StageProgress) -> list[Block]:
    errors: dict[str, list[int]] = {}
    for each in models:
        cuts = _evenly(list(each.cuts.values()), MEASURED)
        found = length_errors(each.recogniser, cuts, lambda done, total: progress("lengths", done, total))
        if found:
            errors[each.experiment.name] = list(found.values())
    if not errors:
        return []
    rows = []
    for name, values in errors.items():
        array = np.asarray(values)
        shares = ((array < 0).mean(), (array == 0).mean(), (array > 0).mean())
        means = f"{array.mean():+.2f}", f"{np.abs(array).mean():.2f}"
        ends = f"{array.min():+d} to {array.max():+d}"
        rows.append([name, f"{len(array):,}", *(f"{share:.1%}" for share in shares), *means, ends])
    header = ("experiment", "utterances", "too few", "exact", "too many", "mean", "mean size", "range")
    legend = [(name, style(index)[0], False) for index, name in enumerate(errors)]
    blocks: list[Block] = [Table(header, rows), Gallery({}, legend)]
    most = max(len(each.cuts) for each in models)
    if most > MEASURED:
        blocks.append(Paragraph(f"{MEASURED:,} of up to {most:,} test utterances, chosen evenly."))
    caption = "Fired tokens in free-running recognition minus reference tokens, including EOS."
    return [*blocks, Picture(histogram_picture(errors), caption, _counted(errors))]


def _counted(errors: Mapping[str, Sequence[int]]) -> Table:
    counts = [Counter(values) for values in errors.values()]
    rows = [[f"{size:+d}", *(f"{each[size]:,}" for each in counts)] for size in sorted(set().union(*counts))]
    return Table(("length error", *errors), rows)


def _evenly(cuts: list[Cut], most: int) -> list[Cut]:
    ordered = sorted(cuts, key=lambda cut: cut.id)
    if len(ordered) <= most:
        return ordered
    return [ordered[index] for index in np.linspace(0, len(ordered) - 1, most).round().astype(int)]
