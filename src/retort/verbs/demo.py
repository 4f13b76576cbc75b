"""The demo: a released model transcribes real speech, then it is fine-tuned on synthetic speech with and without a teacher.

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
from retort.corpora import PREPARERS, open_cuts
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
    """What a demo trains.

    Attributes:
        recipes: names of recipes, and how the screen calls their systems; the others are compared with the first.
        sentences: how many are synthesised for each part of the data.
        data: folder of the data under the experiments' root, as the recipes name it.
        released: folder of the model that is fine-tuned and shown beforehand; empty to train from random weights.
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
"""Of the catalogue of `retort fetch`: real speech that is transcribed first, where it was fetched."""
SHOWN = 3
"""Test sentences whose transcripts are shown."""
ENOUGH_SPEAKERS = 20
"""With fewer, bootstrap intervals over speakers are too narrow (`retort.evaluation.bootstrap`)."""


@dataclass(frozen=True)
class _Heard:
    """What a trained system made of the test sentences."""

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
        root: of the experiments, `exp` in the working directory, which the recipes name; data and report go
            to `root/demo`. A second call goes on where this one stopped.
        overrides: settings over both recipes.
        tour: what is trained.

    Raises:
        UserError: the released model is not here, speech cannot be made, or a training failed; what the other learned
            is shown first.
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
    heard = [
        _hear(title, root / name, test, cuts) for name, title in tour.recipes.items() if name not in failed
    ]
    if heard and tour.released:
        heard.insert(0, _untouched(console, Path(tour.released), root, test, cuts))
    if heard:
        _show_sentences(console, heard, list(cuts)[:SHOWN])
        _show_scores(console, heard)
        _report(console, [each for each in heard if each.seconds], root / "demo")
        minutes = (time.monotonic() - started) / 60
        console.print(f"the demo took {minutes:.1f} minutes", highlight=False)
        command = f"retort transcribe --json {heard[-1].folder} {_audio(cuts[0])}"
        console.print(f"Now try:  {command}", highlight=False, soft_wrap=True)
    if failed:
        raise _together(failed)


def _transcribe_sample(console: Console, released: Path) -> None:
    """Show what a released model makes of real speech, where the sample was fetched."""
    if not released.is_dir():
        raise UserError(
            "no such model",
            where=released,
            remedy="Run the demo from the root of the repository, or with --from-scratch",
        )
    folder = locate(SAMPLE)
    if folder is None:
        console.print(f"no real speech here: retort fetch {SAMPLE} gets some", highlight=False)
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
        f"({seconds:.0f} s of speech in {time.monotonic() - opened:.1f} s, the model opened in "
        f"{opened - started:.1f} s)",
        highlight=False,
    )


def _untouched(console: Console, released: Path, root: Path, test: Path, cuts: CutSet) -> _Heard:
    """What the released model makes of the test sentences before it is fine-tuned."""
    recogniser = load(released)
    with stage_progress(console) as progress:
        found = evaluate(recogniser, str(test), results_of_release(released, root), progress, reuse=True)
    timing = word_timing(cuts, read_word_ends(found.folder / "hyp.jsonl"), recogniser.normalise)
    return _Heard(released.as_posix(), released, recogniser, found.score, found.intervals, timing, 0.0)


def _train(
    console: Console,
    root: Path,
    recipes: Sequence[Recipe],
    overrides: Sequence[str],
    names: Mapping[str, str],
) -> dict[str, UserError]:
    """Train what is not done yet; by name, what went wrong."""
    if not recipes:
        console.print("all is trained and scored already", highlight=False)
        return {}
    with stage_progress(console) as progress:
        load_data(recipes[0], root / "cache", progress)  # once, for the two would both make the features
    titles = [names.get(each.name, each.name) for each in recipes]
    beside = " side by side, a thread each" if len(titles) > 1 else ""
    console.print(f"training {' and '.join(titles)}{beside}", highlight=False)
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
        raise UserError(f"{len(prepared.rejected)} sentences could not be spoken", where=folder)


def _hear(name: str, folder: Path, test: Path, cuts: CutSet) -> _Heard:
    """Open what `retort train` left: the model, and its score on the test sentences."""
    evaluation = folder / "evaluation" / data_name(test).replace("/", "-")
    recogniser, score = load(folder), read_score(evaluation / "score.json")
    timing = word_timing(cuts, read_word_ends(evaluation / "hyp.jsonl"), recogniser.normalise)
    lines = read_metrics(folder / "metrics.jsonl")
    seconds = max((line["seconds"] for line in lines if "seconds" in line), default=0.0)
    return _Heard(name, folder, recogniser, score, intervals(score), timing, seconds)


def _show_sentences(console: Console, heard: Sequence[_Heard], cuts: Sequence[Cut]) -> None:
    table = Table(title="sentences never heard, from the wave, with no language model", show_lines=True)
    table.add_column("said")
    for each in heard:
        table.add_column(each.name)
    for cut in cuts:
        texts = [each.recogniser.transcribe(_audio(cut)).text for each in heard]
        table.add_row(cut.supervisions[0].text, *texts)
    console.print(table)


def _show_scores(console: Console, heard: Sequence[_Heard]) -> None:
    first = heard[0].score
    table = Table(
        "system", "CER", "WER", "word ends", "training",
        title=f"{len(first.utterances)} sentences never heard (95 % intervals)",
    )  # fmt: skip
    for each in heard:
        rates = [
            f"{bound.rate_text} ({bound.range_text})" for bound in (each.bounds["cer"], each.bounds["wer"])
        ]
        table.add_row(each.name, *rates, _timing(each.timing), f"{each.seconds / 60:.1f} min")
    console.print(table)
    for each in heard[1:]:
        row = compare(first, each.score, measure="cer")
        console.print(_verdict(heard[0].name, each.name, row), highlight=False, soft_wrap=True)
    speakers = len(first.speakers)
    if speakers < ENOUGH_SPEAKERS:
        console.print(
            f"{speakers} speakers only, each heard in training too: intervals over so few are too narrow",
            highlight=False,
            soft_wrap=True,
        )
    for each in heard:
        if each.timing.median is not None:
            console.print(_timing_in_words(each), highlight=False, soft_wrap=True)


def _timing(timing: WordTiming) -> str:
    return "none" if timing.median is None else f"{1000 * timing.median:.0f} ms off"


def _timing_in_words(heard: _Heard) -> str:
    timing = heard.timing
    assert timing.median is not None
    assert timing.delay is not None
    side = "behind" if timing.delay >= 0 else "before"
    return (
        f"{heard.name}: the fires that end words lie {1000 * timing.median:.0f} ms (median) from the "
        f"synthesiser's word ends, half of them more than {1000 * abs(timing.delay):.0f} ms {side} them "
        f"({len(timing.errors):,} of {timing.words:,} words, those recognised right)"
    )


def _verdict(first: str, second: str, row: Comparison) -> str:
    """Which of two is ahead in CER, and whether these sentences can tell."""
    bounds = f"{row.low:+.2%} to {row.high:+.2%}, p {row.p:.3f}"
    if row.difference == 0:
        return f"{second} and {first} have the same CER ({bounds})"
    ahead, behind = (second, first) if row.difference < 0 else (first, second)
    sure = "" if row.low > 0 or row.high < 0 else "; the interval holds zero, so this is no proof"
    return (
        f"{ahead} is ahead of {behind}: CER of {second} minus {first} {row.difference:+.2%} ({bounds}){sure}"
    )


def _report(console: Console, heard: Sequence[_Heard], out: Path) -> None:
    with stage_progress(console) as progress:
        written = write_report([each.folder for each in heard], out, progress, out)
    for line in written.missing:
        console.print(line, style="yellow", markup=False, soft_wrap=True)
    console.print(f"written to {written.html}", highlight=False, soft_wrap=True)


def _together(failed: dict[str, UserError]) -> UserError:
    """One line for all that failed."""
    first, *others = failed.values()
    if not others:
        return first
    return UserError("; ".join([first.what, *(str(error) for error in others)]), where=first.where)


def _audio(cut: Cut) -> str:
    return str(cut.recording.sources[0].source)


__all__ = ["FINE_TUNING", "FROM_SCRATCH", "run_demo"]
