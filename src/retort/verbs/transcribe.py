"""`retort transcribe`: the text of audio files."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer

from retort.errors import UserError
from retort.verbs.decoding import (
    GRAPHS,
    AcousticScale,
    Beam,
    CtcWeight,
    Graph,
    LengthWeight,
    Lm,
    LmWeight,
    Mode,
    ModelFolder,
    NoSpeechThreshold,
    Rescore,
    RescoreCase,
    RescoreKind,
    RescoreWeight,
    Threads,
    TunedFile,
    Vad,
    decoding_options,
)


def transcribe(
    experiment: ModelFolder,
    files: Annotated[
        list[str],
        typer.Argument(metavar="FILE", help="Audio of any rate and channel count that soundfile reads."),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a file, with token and word times.")
    ] = False,
    as_srt: Annotated[bool, typer.Option("--srt", help="SubRip subtitles.")] = False,
    as_vtt: Annotated[bool, typer.Option("--vtt", help="WebVTT subtitles.")] = False,
    beam: Beam = None,
    nbest: Annotated[int, typer.Option(help="With --json: readings of each file, up to --beam.")] = 1,
    lm: Lm = None,
    lm_weight: LmWeight = None,
    rescore: Rescore = None,
    rescore_kind: RescoreKind = None,
    rescore_case: RescoreCase = None,
    rescore_weight: RescoreWeight = None,
    length_weight: LengthWeight = None,
    graph: Graph = None,
    acoustic_scale: AcousticScale = None,
    mode: Mode = None,
    ctc_weight: CtcWeight = None,
    vad: Vad = None,
    no_speech_threshold: NoSpeechThreshold = None,
    tuned: TunedFile = None,
    threads: Threads = 1,
) -> None:
    """Print the text of audio files; a file that cannot be read is told on stderr and the others go on."""
    if as_json + as_srt + as_vtt > 1:
        raise UserError("--json, --srt and --vtt exclude each other", remedy="Give one of them")
    if nbest > 1 and not as_json:
        raise UserError("--nbest is told in JSON only", remedy="Add --json")
    import torch

    from retort.decoding.recogniser import load
    from retort.decoding.subtitles import to_srt, to_vtt
    from retort.decoding.workplace import Workplace

    options = decoding_options(
        nbest,
        tuned,
        beam=beam,
        lm=lm,
        lm_weight=lm_weight,
        rescore=rescore,
        rescore_kind=rescore_kind,
        rescore_case=rescore_case,
        rescore_weight=rescore_weight,
        length_weight=length_weight,
        graph=graph,
        acoustic_scale=acoustic_scale,
        mode=mode,
        ctc_weight=ctc_weight,
        vad=vad,
        no_speech_threshold=no_speech_threshold,
    )
    torch.set_num_threads(threads)
    recogniser = load(experiment).at(Workplace(graphs=GRAPHS))
    for note in recogniser.opened(options).notes:  # what is wrong with a language model is no file's fault
        print(f"retort: {note}", file=sys.stderr)
    failed = 0
    for file in files:
        try:
            readings = recogniser.alternatives(file, options=options)
        except UserError as error:
            failed += 1
            print(f"retort: {error}", file=sys.stderr)
            continue
        transcript = readings[0].transcript
        if as_json:
            line = {"file": file, **json.loads(transcript.to_json())}
            if nbest > 1:
                line["nbest"] = [{"text": each.transcript.text, "score": each.score} for each in readings]
            print(json.dumps(line, ensure_ascii=False))
        elif as_srt or as_vtt:
            print((to_srt if as_srt else to_vtt)(transcript, recogniser.separator))
        else:
            print(f"{file}\t{transcript.text}" if len(files) > 1 else transcript.text)
    if failed:
        sys.exit(2)
