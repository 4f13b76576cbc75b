"""The demo: transcribe real speech with a released model; fine-tune it on synthetic speech with and without a teacher.

With `--from-scratch` both systems are trained from random weights instead.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lhotse import CutSet
from lhotse.cut import Cut
from rich.console import Console
from rich.table import Table

from retort.audio.files import audio_info
from retort.common.errors import UserError
from retort.common.progress import stage_progress
from retort.config.loading import load_recipe
from retort.config.schema import Recipe
from retort.corpora import PREPARERS
from retort.corpora.open_cuts import open_cuts
from retort.decoding.recogniser import Recogniser, load
from retort.engine.log import read_metrics
from retort.evaluation import Comparison, Interval, Score, compare, intervals, read_score
from retort.evaluation.evaluate import data_name, evaluate
from retort.evaluation.timing import WordTiming, read_word_ends, word_timing
from retort.pretrained import locate
from retort.report.experiment import results_of_release
from retort.report.report import write_report
from retort.sweeps.launcher import Training, run_trainings
from retort.sweeps.scored import scored
from retort.training.data import load_data


@dataclass(frozen=True)
class Tour:
    """Systems and data of a demo.

    Attributes:
        recipes: names of recipes, and display names of their systems; the first one is the baseline.
        sentences: number of synthesised sentences of each split.
        data: folder of the data below the root of the experiments, as named in the recipes.
        released: folder of the model that is fine-tuned; empty to train from random weights.
    """

    recipes: dict[str, str]
    sentences: dict[str, int]
    data: str
    released: str = ""


FINE_TUNING = Tour(
    recipes={"demo/tuned_cif": "fine-tuned", "demo/tuned_hkd": "fine-tuned with HKD"},
    sentences={"train": 240, "validation": 20, "test": 100},
    data="demo/tuning_data",
    released="models/english",
)
FROM_SCRATCH = Tour(
    recipes={"demo/cif": "CIF", "demo/hkd": "CIF+HKD"},
    sentences={"train": 1200, "validation": 60, "test": 100},
    data="demo/data",
)
SAMPLE = "speech-sample"
"""Name of a recording in the catalogue of `retort fetch`; it is transcribed first if it is cached."""
SHOWN = 3
"""Number of test sentences whose transcripts are printed."""
ENOUGH_SPEAKERS = 20
"""With fewer, bootstrap intervals over speakers are too narrow (`retort.evaluation.bootstrap`)."""


@dataclass(frozen=True)
class _System:
    """A trained system and its results on the test sentences."""

    name: str
    folder: Path
    recogniser: Recogniser
    score: Score
    bounds: dict[str, Interval]
    timing: WordTiming
    seconds: float


def run_demo(
    console: Console, root: Path, overrides: Sequence[str] = (), tour: Tour = FINE_TUNING
) -> None:
    """Transcribe real speech with a released model, fine-tune it with and without a teacher, and show the transcripts.

    Args:
        root: root of the experiments, `exp` in the working directory, as named in the recipes; data and report are
            written to `root/demo`. An interrupted demo continues when it is called again.
        overrides: overrides of both recipes.
        tour: the systems and the data.

    Raises:
        UserError: the released model is missing, speech cannot be synthesised, or a training failed; the results of
            the other training are shown first.
    """
    started = time.monotonic()
    recipes = [load_recipe(name, overrides) for name in tour.recipes]
    if tour.released:
        _transcribe_sample(console, Path(tour.released))
    data = root / tour.data
    _synthesise(console, data, recipes[0], tour.sentences)
    test = data / "test.jsonl.gz"
    missing = [each for each in recipes if scored(each, root) is None]
    failed = _train(console, root, missing, overrides, tour.recipes)
    cuts = open_cuts(test).cuts
    systems = [
        _open_system(title, root / name, test, cuts) for name, title in tour.recipes.items() if name not in failed
    ]
    if systems and tour.released:
        systems.insert(0, _released_system(console, Path(tour.released), root, test, cuts))
    if systems:
        _show_sentences(console, systems, list(cuts)[:SHOWN])
        _show_scores(console, systems)
        _report(console, [each for each in systems if each.seconds], root / "demo")
        minutes = (time.monotonic() - started) / 60
        console.print(f"the demo took {minutes:.1f} minutes", highlight=False)
        command = f"retort transcribe --json {systems[-1].folder} {_audio(cuts[0])}"
        console.print(f"Now try:  {command}", highlight=False, soft_wrap=True)
    if failed:
        raise _combined(failed)


def _transcribe_sample(console: Console, released: Path) -> None:
    """Print the transcript of a recording by a released model, if the recording is cached."""
    if not released.is_dir():
        raise UserError(
            "no such model",
            where=released,
            remedy="Run the demo from the root of the repository, or with --from-scratch",
        )
    folder = locate(SAMPLE)
    if folder is None:
        console.print(f"no recording of real speech: download one with retort fetch {SAMPLE}", highlight=False)
        return
    wave, started = folder / "speech.wav", time.monotonic()
    recogniser = load(released)
    opened = time.monotonic()
    transcript = recogniser.transcribe(wave)
    seconds = audio_info(wave).samples / audio_info(wave).sampling_rate
    console.print(
        f"$ retort transcribe {released} {wave}", highlight=False, markup=False, soft_wrap=True
    )
    console.print(transcript.text, highlight=False, markup=False, style="bold")
    console.print(
        f"({seconds:.0f} s of speech transcribed in {time.monotonic() - opened:.1f} s, model loaded in "
        f"{opened - started:.1f} s)",
        highlight=False,
    )


def _released_system(console: Console, released: Path, root: Path, test: Path, cuts: CutSet) -> _System:
    """Evaluate the released model on the test sentences, before fine-tuning."""
    recogniser = load(released)
    with stage_progress(console) as progress:
        found = evaluate(recogniser, str(test), results_of_release(released, root), progress, reuse=True)
    timing = word_timing(cuts, read_word_ends(found.folder / "hyp.jsonl"), recogniser.normalise)
    return _System(released.as_posix(), released, recogniser, found.score, found.intervals, timing, 0.0)


def _train(
    console: Console,
    root: Path,
    recipes: Sequence[Recipe],
    overrides: Sequence[str],
    names: Mapping[str, str],
) -> dict[str, UserError]:
    """Train the systems that are not finished; return the errors of failed trainings by name."""
    if not recipes:
        console.print("all systems are trained and scored already", highlight=False)
        return {}
    with stage_progress(console) as progress:
        load_data(recipes[0], root / "cache", progress)  # extract the features once, not in both trainings
    titles = [names.get(each.name, each.name) for each in recipes]
    parallel = " in parallel, with one thread each" if len(titles) > 1 else ""
    console.print(f"training {' and '.join(titles)}{parallel}", highlight=False)
    trainings = [
        Training(each.name, each.training.steps, ("train", each.name, *overrides)) for each in recipes
    ]
    return run_trainings(console, root, trainings, [{}] * len(trainings))


def _synthesise(console: Console, folder: Path, recipe: Recipe, sentences: Mapping[str, int]) -> None:
    manifests = [folder / f"{split}.jsonl.gz" for split in sentences]
    if all(manifest.exists() for manifest in manifests):
        return
    with stage_progress(console) as progress:
        prepared = PREPARERS["synthetic"](
            None,
            folder,
            seed=recipe.seed,
            progress=lambda done, total: progress("synthesis", done, total),
            **sentences,
        )
    if prepared.rejected:
        raise UserError(f"{len(prepared.rejected)} sentences could not be synthesised", where=folder)


def _open_system(name: str, folder: Path, test: Path, cuts: CutSet) -> _System:
    """Open a trained model and its score on the test sentences, as written by `retort train`."""
    evaluation = folder / "evaluation" / data_name(test).replace("/", "-")
    recogniser, score = load(folder), read_score(evaluation / "score.json")
    timing = word_timing(cuts, read_word_ends(evaluation / "hyp.jsonl"), recogniser.normalise)
    lines = read_metrics(folder / "metrics.jsonl")
    seconds = max((line["seconds"] for line in lines if "seconds" in line), default=0.0)
    return _System(name, folder, recogniser, score, intervals(score), timing, seconds)


def _show_sentences(console: Console, systems: Sequence[_System], cuts: Sequence[Cut]) -> None:
    table = Table(title="unseen test sentences, decoded without a language model", show_lines=True)
    table.add_column("reference")
    for each in systems:
        table.add_column(each.name)
    for cut in cuts:
        texts = [each.recogniser.transcribe(_audio(cut)).text for each in systems]
        table.add_row(cut.supervisions[0].text, *texts)
    console.print(table)


def _show_scores(console: Console, systems: Sequence[_System]) -> None:
    first = systems[0].score
    table = Table(
        "system", "CER", "WER", "error of word ends", "training",
        title=f"{len(first.utterances)} unseen test sentences (95 % intervals)",
    )  # fmt: skip
    for each in systems:
        rates = [
            f"{bound.rate_text} ({bound.range_text})" for bound in (each.bounds["cer"], each.bounds["wer"])
        ]
        table.add_row(each.name, *rates, _timing(each.timing), f"{each.seconds / 60:.1f} min")
    console.print(table)
    for each in systems[1:]:
        row = compare(first, each.score, measure="cer")
        console.print(_verdict(systems[0].name, each.name, row), highlight=False, soft_wrap=True)
    speakers = len(first.speakers)
    if speakers < ENOUGH_SPEAKERS:
        console.print(
            f"{speakers} speakers only, all of them in the training data too: the intervals are too narrow",
            highlight=False,
            soft_wrap=True,
        )
    for each in systems:
        if each.timing.median is not None:
            console.print(_timing_in_words(each), highlight=False, soft_wrap=True)


def _timing(timing: WordTiming) -> str:
    return "none" if timing.median is None else f"{1000 * timing.median:.0f} ms"


def _timing_in_words(system: _System) -> str:
    timing = system.timing
    assert timing.median is not None
    assert timing.delay is not None
    side = "late" if timing.delay >= 0 else "early"
    return (
        f"{system.name}: the fires at the ends of words deviate by {1000 * timing.median:.0f} ms (median) from the "
        f"synthesiser's word ends; they are {1000 * abs(timing.delay):.0f} ms {side} (median) "
        f"({len(timing.errors):,} of {timing.words:,} words, the correctly recognised ones)"
    )


def _verdict(first: str, second: str, row: Comparison) -> str:
    """Which of two systems has the lower CER, and whether the difference is significant."""
    bounds = f"{row.low:+.2%} to {row.high:+.2%}, p {row.p:.3f}"
    if row.difference == 0:
        return f"{second} and {first} have the same CER ({bounds})"
    better, worse = (second, first) if row.difference < 0 else (first, second)
    note = "" if row.low > 0 or row.high < 0 else "; the interval contains zero: not significant"
    return (
        f"{better} has a lower CER than {worse}: CER of {second} minus {first} {row.difference:+.2%} ({bounds}){note}"
    )


def _report(console: Console, systems: Sequence[_System], out: Path) -> None:
    with stage_progress(console) as progress:
        written = write_report([each.folder for each in systems], out, progress, out)
    for line in written.missing:
        console.print(line, style="yellow", markup=False, soft_wrap=True)
    console.print(f"written to {written.html}", highlight=False, soft_wrap=True)


def _combined(failed: dict[str, UserError]) -> UserError:
    """Combine the errors of several trainings into one."""
    first, *others = failed.values()
    if not others:
        return first
    return UserError("; ".join([first.what, *(str(error) for error in others)]), where=first.where)


def _audio(cut: Cut) -> str:
    return str(cut.recording.sources[0].source)


__all__ = ["FINE_TUNING", "FROM_SCRATCH", "run_demo"]
