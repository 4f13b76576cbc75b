"""The parts of a report for which the models hear their test data again: fires, alignments, lengths, likeness."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from lhotse.cut import Cut

from retort.alignment.store import AlignmentStore
from retort.common.errors import UserError
from retort.corpora.open_cuts import find_data, open_cuts
from retort.decoding.recogniser import Recogniser, load
from retort.evaluation.aligned import open_aligned
from retort.report.chapters import by_error, note
from retort.report.document import Block, Gallery, Paragraph, Picture, Section, Table
from retort.report.experiment import Experiment, Scored
from retort.report.firing import END, compute_firing, length_errors
from retort.report.frame_view import compute_frame_view
from retort.report.plots import fires_picture, frames_picture, histogram_picture, likeness_picture, style
from retort.report.similarity import before_and_after, row_on_acoustic

Progress = Callable[[str, int, int], None]

MEASURED = 1000
"""Utterances of the test set whose lengths are measured; of more, evenly chosen ones."""
COMPARED = 32
"""Utterances whose vectors are compared with the teacher's."""
LONGEST_LIKENESS = 45
"""Tokens of the utterance whose similarities are drawn."""


@dataclass(frozen=True)
class _Heard:
    """An experiment with its model and its test cuts by id, and its score on them if there is one."""

    experiment: Experiment
    recogniser: Recogniser
    cuts: dict[str, Cut]
    scored: Scored | None


def listen(experiments: Sequence[Experiment], progress: Progress) -> list[Section]:
    """One section of alignments if any student is hybrid, three if any is not; what cannot be made is said in them."""
    opened: dict[tuple[str, ...], dict[str, Cut]] = {}
    hybrid = [each for each in experiments if each.recipe.student.kind == "hybrid"]
    others = [each for each in experiments if each.recipe.student.kind != "hybrid"]
    sections = []
    if others:
        silent: list[Block] = [
            note(f"{each.name}: a {each.recipe.student.kind} student fires no tokens.")
            for each in others
            if each.recipe.student.kind != "cif"
        ]
        heard, missing = _open([each for each in others if each.recipe.student.kind == "cif"], opened)
        missing = [*silent, *missing]
        sections += [
            Section("Weights and fires", [*missing, *_fires(heard, progress)]),
            Section("Lengths", [*missing, *_lengths(heard, progress)]),
            Section("Fired vectors and the teacher's", _likeness(others, opened, progress)),
        ]
    if hybrid:
        heard, missing = _open(hybrid, opened)
        sections.append(Section("Alignments", [*_frames(hybrid), *missing, *_alignments(heard, progress)]))
    return sections


def _open(
    experiments: Sequence[Experiment], opened: dict[tuple[str, ...], dict[str, Cut]]
) -> tuple[list[_Heard], list[Block]]:
    """Those that have a model and test data, and what is to be said of the others."""
    heard, missing = [], []
    for each in experiments:
        try:
            cuts = _test_cuts(each, opened)
            heard.append(_Heard(each, load(each.folder), cuts, _scored_on(each, cuts)))
        except UserError as error:
            missing.append(note(f"{each.name} is not heard here: {error}"))
    return heard, list(missing)


def _test_cuts(experiment: Experiment, opened: dict[tuple[str, ...], dict[str, Cut]]) -> dict[str, Cut]:
    """Of the recipe's `data.test`; `opened` keeps them for the next experiment.

    Raises:
        UserError: the recipe names none, or they cannot be found.
    """
    sources = tuple(experiment.recipe.data.test)
    if not sources:
        raise UserError("its recipe names no data.test")
    if sources not in opened:
        opened[sources] = {cut.id: cut for source in sources for cut in open_cuts(find_data(source)).cuts}
    return opened[sources]


def _scored_on(experiment: Experiment, cuts: Mapping[str, Cut]) -> Scored | None:
    """The score that shares most utterances with these cuts."""
    shared = {name: len(cuts.keys() & scored.said.keys()) for name, scored in experiment.scored.items()}
    best = max(shared, key=lambda name: shared[name], default=None)
    return experiment.scored[best] if best is not None and shared[best] else None


def _choose(heard: _Heard) -> dict[str, str]:
    """Ids of a typical utterance and the worst one, by what they are called; without a score, of middle length."""
    if heard.scored is not None:
        worst = [each for each in by_error(heard.scored) if each.id in heard.cuts]
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
    return {"typical": _of_middle_length(heard.cuts).id}


def _of_middle_length(cuts: Mapping[str, Cut]) -> Cut:
    return sorted(cuts.values(), key=lambda cut: (cut.duration, cut.id))[len(cuts) // 2]


def _fires(heard: Sequence[_Heard], progress: Progress) -> list[Block]:
    if not heard:
        return []
    blocks: list[Block] = [
        Paragraph(
            "Filter banks above, CIF weights below. A line marks where a token was complete, with the token "
            f"before it ({END} is the end symbol); nobody told the model how many there are."
        )
    ]
    chosen = _choose(heard[0])
    for index, each in enumerate(heard):
        own = chosen if all(name in each.cuts for name in chosen.values()) else _choose(each)
        for kind, name in own.items():
            try:
                firing = compute_firing(each.recogniser, each.cuts[name])
            except UserError as error:
                blocks.append(note(f"{each.experiment.name}: {error}"))
                continue
            caption = f"{each.experiment.name}, {kind} utterance {name}. {_texts(each, name)}"
            blocks.append(Picture(fires_picture(firing), caption, wide=True))
        progress("fires", index + 1, len(heard))
    if len(heard) > 1:
        blocks.append(
            Paragraph(f"Typical and worst are so for {heard[0].experiment.name}; all hear the same two.")
        )
    return blocks


def _frames(experiments: Sequence[Experiment]) -> list[Block]:
    """How many frames were right when the models were scored."""
    rows = [
        [each.name, name, f"{found.rate:.2%}", f"{found.frames:,}", f"{found.utterances:,}"]
        for each in experiments
        for name, scored in each.scored.items()
        if (found := scored.frames) is not None
    ]
    header = ("experiment", "data", "frames guessed right", "frames", "utterances")
    return [Table(header, rows)] if rows else []


def _alignments(heard: Sequence[_Heard], progress: Progress) -> list[Block]:
    if not heard:
        return []
    blocks: list[Block] = [
        Paragraph(
            "Filter banks above. Below: words and phones of the transcript where the aligner heard them; the phones "
            "of the senones that the student holds most likely frame by frame (amber where the alignment has "
            "another); the words that were recognised."
        )
    ]
    chosen = _choose(heard[0])
    for index, each in enumerate(heard):
        name_of = each.experiment.name
        own = chosen if all(name in each.cuts for name in chosen.values()) else _choose(each)
        try:
            stores = _aligned(each)
        except UserError as error:
            stores = []
            blocks.append(note(f"{name_of}: {error}"))
        if not stores:
            blocks.append(
                note(f"{name_of}: no alignment of its test data is here (`retort train` makes it).")
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
        progress("alignments", index + 1, len(heard))
    return blocks


def _aligned(heard: _Heard) -> list[AlignmentStore]:
    """What there is of the alignments of its test data."""
    student = heard.recogniser.student
    found = (
        open_aligned(heard.experiment.folder, source, student) for source in heard.experiment.recipe.data.test
    )
    return [store for store in found if store is not None]


def _texts(heard: _Heard, name: str) -> str:
    if heard.scored is None or name not in heard.scored.said:
        return f"Reference: {heard.recogniser.normalise(heard.cuts[name].supervisions[0].text or '')}"
    said = heard.scored.said[name]
    return f"Reference: {said.reference} / recognised: {said.hypothesis or 'nothing'}"


def _lengths(heard: Sequence[_Heard], progress: Progress) -> list[Block]:
    errors: dict[str, list[int]] = {}
    for each in heard:
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
    most = max(len(each.cuts) for each in heard)
    if most > MEASURED:
        blocks.append(Paragraph(f"{MEASURED:,} of up to {most:,} test utterances, evenly chosen."))
    caption = "Tokens fired freely minus tokens of the reference, the end symbol counted in both."
    return [*blocks, Picture(histogram_picture(errors), caption, _counted(errors))]


def _counted(errors: Mapping[str, Sequence[int]]) -> Table:
    counts = [Counter(values) for values in errors.values()]
    rows = [[f"{size:+d}", *(f"{each[size]:,}" for each in counts)] for size in sorted(set().union(*counts))]
    return Table(("length error", *errors), rows)


def _likeness(
    experiments: Sequence[Experiment], opened: dict[tuple[str, ...], dict[str, Cut]], progress: Progress
) -> list[Block]:
    taught = [each for each in experiments if row_on_acoustic(each.recipe) is not None]
    if not taught:
        return [Paragraph("No row of distillation reads the fired vectors here.")]
    pictures: list[Block] = []
    rows: list[list[str]] = []
    notes: list[Block] = []
    for index, each in enumerate(taught):
        try:
            cuts = _test_cuts(each, opened)
            found = before_and_after(each, _short_first(list(cuts.values())))
        except UserError as error:
            notes.append(note(f"{each.name}: {error}"))
            continue
        finally:
            progress("likeness", index + 1, len(taught))
        for stage, side in (("untrained", found.before), ("trained", found.after)):
            rows.append(
                [each.name, stage, f"{side.own:.3f}", f"{side.other:.3f}", f"{side.accuracy:.1%}"]
                + [f"{found.positions:,}", f"{found.utterances:,}"]
            )
        if start := each.recipe.training.init:
            notes.append(note(f"{each.name} began with weights of {start}, which `untrained` has not."))
        row = each.recipe.distill[row_on_acoustic(each.recipe) or 0]
        caption = (
            f"{each.name}: cosines of one test utterance's fired vectors (rows, through the projection of the "
            f"row with the {row.loss} loss) with the vectors of {row.teacher} (columns)."
        )
        pictures.append(Picture(likeness_picture(found), caption, wide=True))
    if not rows:
        return notes
    header = ("experiment", "student", "own", "others", "own is nearest", "positions", "utterances")
    text = Paragraph(
        "Fired vectors of test utterances against the teacher's vectors: mean cosine with a token's own vector "
        "and with those of other tokens, and how often its own is the nearest of all. Trained is the last "
        "checkpoint with its own projection; untrained is what the same seed began with."
    )
    return [text, Table(header, rows), *notes, *pictures]


def _short_first(cuts: list[Cut]) -> list[Cut]:
    """Some evenly chosen cuts, one whose matrix can be read first."""
    some = _evenly(cuts, COMPARED)
    texts = [cut.supervisions[0].text or "" for cut in some]
    readable = [index for index, text in enumerate(texts) if 0 < len(text) <= LONGEST_LIKENESS]
    first = max(readable or range(len(some)), key=lambda index: len(texts[index]) if readable else -index)
    return [some[first], *some[:first], *some[first + 1 :]]


def _evenly(cuts: list[Cut], most: int) -> list[Cut]:
    ordered = sorted(cuts, key=lambda cut: cut.id)
    if len(ordered) <= most:
        return ordered
    return [ordered[index] for index in np.linspace(0, len(ordered) - 1, most).round().astype(int)]
