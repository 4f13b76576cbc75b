"""`retort demo`: from nothing to the text of a sentence never heard, offline."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.table import Table

from retort.config import Recipe
from retort.corpora import PREPARERS, open_cuts
from retort.errors import UserError
from retort.evaluation.evaluate import evaluate
from retort.progress import TrainingProgress, stage_progress
from retort.recipe import load_recipe
from retort.training.run import train

SENTENCES = {"train": 1200, "validation": 60, "test": 100}
SHOWN = 3
"""Sentences never heard that are transcribed before the user's eyes."""


def run_demo(console: Console, root: Path) -> None:
    """Synthesise speech, train `demo/cif` on it, score it, and transcribe sentences that were in no training.

    Args:
        root: of the experiments; everything goes to `root/demo`. A second call goes on where this one stopped.
    """
    recipe = load_recipe("demo/cif")
    _synthesise(console, root / "demo" / "data", recipe)
    with TrainingProgress(console, recipe.training.steps) as display:
        outcome = train(recipe, root, display.stage, display.report)
    test = str(root / "demo" / "data" / "test.jsonl.gz")
    with stage_progress(console) as progress:
        evaluation = evaluate(outcome.recogniser, test, outcome.folder, progress)
    table = Table("sentences never heard", "recognised", title="from the wave, with no language model")
    cuts = list(open_cuts(test).cuts)[:SHOWN]
    for cut in cuts:
        heard = outcome.recogniser.transcribe(cut.recording.sources[0].source)
        table.add_row(cut.supervisions[0].text, heard.text)
    console.print(table)
    bounds = evaluation.intervals
    console.print(
        f"CER {bounds['cer'].rate:.2%}, WER {bounds['wer'].rate:.2%} on {len(evaluation.score.utterances)} sentences "
        f"never heard, after {outcome.seconds / 60:.1f} minutes of training; real-time factor "
        f"{evaluation.score.real_time_factor or 0.0:.3f}",
        highlight=False,
    )
    example = cuts[0].recording.sources[0].source
    console.print(
        f"Now try:  retort transcribe --json {outcome.folder} {example}", highlight=False, soft_wrap=True
    )


def _synthesise(console: Console, folder: Path, recipe: Recipe) -> None:
    manifests = [folder / f"{split}.jsonl.gz" for split in SENTENCES]
    if all(manifest.exists() for manifest in manifests):
        return
    with stage_progress(console) as progress:
        prepared = PREPARERS["synthetic"](
            None,
            folder,
            seed=recipe.seed,
            progress=lambda done, total: progress("synthesis", done, total),
            **SENTENCES,
        )
    if prepared.rejected:
        raise UserError(f"{len(prepared.rejected)} sentences could not be spoken", where=folder)
