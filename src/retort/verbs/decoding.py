"""Options shared by the verbs that decode."""

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
        parser=local_path, metavar="EXP", help="Experiment (exp/NAME), model folder or release (models/NAME)."
    ),
]
Cuts = Annotated[str, typer.Argument(metavar="CUTS", help="lhotse manifest (*.jsonl.gz) or Kaldi folder.")]
Beam = Annotated[int | None, typer.Option(help="Beam width; 1, the default, is greedy search.")]
Lm = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER",
        help="Language model for shallow fusion, over the student's tokens: the exp/NAME of retort lm train.",
    ),
]
LmWeight = Annotated[
    float | None, typer.Option(help="Weight of the LM's log-probabilities for shallow fusion.")
]
Rescore = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="Language model that rescores the n-best list: an exp/NAME of retort lm train, or the folder or "
        "Hugging Face name of a pretrained model.",
    ),
]
RescoreKind = Annotated[
    str | None,
    typer.Option(help="Type of a pretrained rescoring LM: causal, masked, or auto (detected from the checkpoint)."),
]
RescoreCase = Annotated[
    str | None, typer.Option(help="Case of the text given to the rescoring LM: keep, upper or lower.")
]
RescoreWeight = Annotated[
    float | None, typer.Option(help="Weight of the rescoring LM's log-probability of the sentence.")
]
LengthWeight = Annotated[
    float | None,
    typer.Option(
        help="Score added for each token in rescoring, and also in the search unless the student is a CIF model."
    ),
]
Mode = Annotated[
    str | None,
    typer.Option(
        help="Decoding mode. own (default): the student's own search. joint (CIF models): beam search with the scores "
        "of the decoder and the CTC head. ctc: the CTC head only. attention_rescoring (attention models, and CIF "
        "models with cif.fires: ctc): the "
        "decoder rescores the n-best list of the CTC head. ctc_rescoring (CIF and transducer models): the CTC head rescores "
        "the n-best list."
    ),
]
CtcWeight = Annotated[
    float | None,
    typer.Option(
        help="Weight of the CTC score, from 0 to 1, in the search of attention models and in the modes joint and "
        "ctc_rescoring; 0.3 by default."
    ),
]
Graph = Annotated[
    str | None,
    typer.Option(
        metavar="FOLDER",
        help="N-gram LM over words (retort lm train): the CTC head is decoded with a TLG graph built from it. "
        "--beam is then the maximum length of the n-best list.",
    ),
]
AcousticScale = Annotated[
    float | None,
    typer.Option(
        help="Scale of the acoustic scores relative to those of the decoding graph; by default the tuned scale "
        "stored with a hybrid model, and 1 with --graph."
    ),
]
Vad = Annotated[
    str | None,
    typer.Option(
        help="Voice activity detection: energy (default), silero (a neural network; install the extra vad), or none "
        "(silence is decoded as well)."
    ),
]
NoSpeechThreshold = Annotated[
    float | None,
    typer.Option(
        help="No-speech probability, from 0 to 1, above which the words of a segment are removed; by default the "
        "threshold stored with the model by retort tune --noise. 1 removes nothing."
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=THREADS,
        help="Processes that search decoding graphs; by default one per core. The results do not depend on it.",
    ),
]
GRAPHS = EXPERIMENTS / "cache" / "graphs"
"""Folder where the graphs built for `--graph` are stored, one subfolder per key."""
TunedFile = Annotated[
    Path | None,
    typer.Option(
        parser=local_path, metavar="FILE", help="Take all decoding options from a tuned.json of retort tune."
    ),
]
Threads = Annotated[int, typer.Option(min=1, max=THREADS, help="CPU threads.")]


def decoding_options(
    nbest: int = 1, tuned: Path | None = None, **given: int | str | float | None
) -> DecodingOptions:
    """Build the decoding options from those given on the command line; options that are not given are None.

    Raises:
        UserError: two options exclude each other, or a weight is missing.
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
                f"--{model} needs --{model}-weight", remedy=f"Add --{model}-weight; retort tune finds a good value"
            )
    return DecodingOptions(nbest=nbest, **stated)  # type: ignore[arg-type]
