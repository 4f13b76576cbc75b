"""`retort label`: pseudo-labels of untranscribed speech."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from retort.common.environment import tune_environment
from retort.verbs.console import console, print_line, print_rejected
from retort.verbs.decoding import Given, decoding_options, with_decoding_options


@with_decoding_options(without=("nbest",))
def label(
    model: Annotated[
        str,
        typer.Argument(metavar="EXP", help="Experiment, release, or Whisper model, such as whisper-base."),
    ],
    source: Annotated[
        str,
        typer.Argument(metavar="CUTS", help="lhotse manifest or Kaldi folder, with or without transcripts."),
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="Output manifest (*.jsonl.gz) for data.train.")],
    confidence: Annotated[
        float, typer.Option(help="Minimum of the mean confidence of an utterance's tokens, from 0 to 1.")
    ] = 0.8,
    language: Annotated[
        str, typer.Option(help="Language of a multilingual Whisper model (ISO 639 code).")
    ] = "en",
    *,
    given: Given,
) -> None:
    """Create pseudo-labels for training.

    Transcribes speech, and writes a manifest of the utterances whose confidence is high enough.
    """
    tune_environment()
    import torch

    from retort.common.errors import UserError
    from retort.common.progress import stage_progress
    from retort.corpora.cuts import write_rejected
    from retort.decoding.recogniser import load
    from retort.decoding.whisper_model import open_whisper_recogniser
    from retort.evaluation.label import label_cuts, write_labelled

    if out.suffixes[-2:] != [".jsonl", ".gz"]:
        raise UserError(
            "is not the name of a manifest", where=out, remedy="Give a name that ends in .jsonl.gz"
        )
    options = decoding_options(given)
    torch.set_num_threads(1)
    own = any((Path(model) / name / "model.safetensors").is_file() for name in ("", "model"))
    whisper = not own or (Path(model) / "generation_config.json").is_file()
    recogniser = open_whisper_recogniser(model, language) if whisper else load(model)
    with stage_progress(console) as progress:
        found = label_cuts(
            recogniser,
            source,
            confidence,
            lambda done, total: progress("transcripts", done, total),
            options,
        )
    write_labelled(out, found)
    rejected = out.with_name(f"{out.name.removesuffix('.jsonl.gz')}.rejected.tsv")
    write_rejected(found.rejected, rejected)
    print_line(f"{out}: {len(found.cuts):,} utterances, {found.seconds / 3600:.2f} h")
    print_rejected(len(found.rejected), str(rejected))
