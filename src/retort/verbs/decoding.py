"""The options of every verb that decodes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retort.common.errors import UserError
from retort.config.ranges import THREADS
from retort.verbs.console import EXPERIMENTS, local_path

if TYPE_CHECKING:
    from retort.decoding.options import DecodingOptions

ModelFolder = Annotated[
    Path,
    typer.Argument(
        parser=local_path, metavar="EXP", help="Experiment, its model folder, or a release (models/NAME)."
    ),
]
Cuts = Annotated[str, typer.Argument(metavar="CUTS", help="Manifest or Kaldi folder.")]
Beam = Annotated[int | None, typer.Option(help="Hypotheses kept in the search; 1, the default, is greedy.")]
Lm = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER",
        help="Language model over the student's pieces that joins the search: exp/NAME of retort lm train.",
    ),
]
LmWeight = Annotated[float | None, typer.Option(help="Of its log-probabilities.")]
Rescore = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="Language model that ranks the n-best list anew: such a folder, or a pretrained one, by its folder "
        "or Hugging Face name.",
    ),
]
RescoreKind = Annotated[
    str | None, typer.Option(help="Of a pretrained one: causal, masked, or auto, as it says itself.")
]
RescoreCase = Annotated[str | None, typer.Option(help="Of the text it reads: keep, upper or lower.")]
RescoreWeight = Annotated[float | None, typer.Option(help="Of its log-probability of a sentence.")]
LengthWeight = Annotated[
    float | None,
    typer.Option(
        help="Added for each of the student's pieces when ranking anew, of all but CIF students in the search too."
    ),
]
Mode = Annotated[
    str | None,
    typer.Option(
        help="Search: own, the default; ctc, of the CTC head alone; attention_rescoring, of an attention model: what "
        "the CTC head found, ranked anew by the decoder; ctc_rescoring, of a CIF or transducer model: what it found, "
        "ranked anew with the CTC head."
    ),
]
CtcWeight = Annotated[
    float | None,
    typer.Option(
        help="Of the CTC head in the search of an attention model or in ctc_rescoring, from 0 to 1; by default 0.3."
    ),
]
Graph = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER",
        help="N-gram model over words (retort lm train): the CTC head is heard through a decoding graph of it, and "
        "--beam is how many readings are kept.",
    ),
]
AcousticScale = Annotated[
    float | None,
    typer.Option(
        help="Of the model's scores against its decoding graph; by default a hybrid model's own, tuned one, with "
        "--graph 1."
    ),
]
Vad = Annotated[
    str | None,
    typer.Option(
        help="Speech detection: energy, the default; silero, a packaged network (extra vad); none: silence is decoded."
    ),
]
NoSpeechThreshold = Annotated[
    float | None,
    typer.Option(
        help="Probability of no speech, 0 to 1, above which a segment has no words; by default the model's own, "
        "chosen by retort tune --noise. With 1 all words stay."
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=THREADS,
        help="Processes that search decoding graphs; by default one a core. What is heard stays the same.",
    ),
]
GRAPHS = EXPERIMENTS / "cache" / "graphs"
"""Where graphs that `--graph` builds are kept, each by its key."""
TunedFile = Annotated[
    Path | None,
    typer.Option(parser=local_path, metavar="FILE", help="All of these from the tuned.json of retort tune."),
]
Threads = Annotated[int, typer.Option(min=1, max=THREADS, help="CPU threads.")]


def decoding_options(
    nbest: int = 1, tuned: Path | None = None, **given: int | str | float | None
) -> DecodingOptions:
    """The options that a command line gives; what it leaves out is None.

    Raises:
        UserError: they do not go together.
    """
    from retort.decoding.options import DecodingOptions, read_options

    stated = {name: value for name, value in given.items() if value is not None}
    if tuned is not None:
        if stated:
            flag = next(iter(stated)).replace("_", "-")
            raise UserError(f"--tuned and --{flag} exclude each other", remedy="Give one of them")
        return replace(read_options(tuned), nbest=nbest)
    for model in ("lm", "rescore"):
        if model in stated and f"{model}_weight" not in stated:
            raise UserError(
                f"--{model} without --{model}-weight", remedy="Give one; retort tune finds a good one"
            )
    return DecodingOptions(nbest=nbest, **stated)  # type: ignore[arg-type]
