"""`retort transcribe`: the text of audio files."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retort.common.console import is_unicode
from retort.common.errors import UserError, print_to_stderr, printable
from retort.common.files import write_whole
from retort.verbs.console import finite, local_path
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
from retort.verbs.targets import audio_file, text_files

if TYPE_CHECKING:
    from retort.audio.files import Channel
    from retort.decoding.options import DecodingOptions
    from retort.decoding.recogniser import Recogniser
    from retort.decoding.transcript import Alternative, Transcript

Found = dict[int | None, list["Alternative"]]
"""The n-best list of each channel of a file, or of None where it has one for all."""
Form = Callable[[str, Found], str]
"""The text of what was recognised in a file, as it is printed or written."""
_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def transcribe(
    experiment: ModelFolder,
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE",
            help="Audio of any sampling rate and number of channels; - is standard input.",
        ),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object a file, with token and word times.")
    ] = False,
    as_srt: Annotated[bool, typer.Option("--srt", help="SubRip subtitles.")] = False,
    as_vtt: Annotated[bool, typer.Option("--vtt", help="WebVTT subtitles.")] = False,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            metavar="DIR",
            help="Write a file for each of audio into this folder (NAME.txt, .json, .srt or .vtt) instead of printing. "
            "Subtitles of several files are written beside the audio if it is not given.",
        ),
    ] = None,
    channels: Annotated[
        str,
        typer.Option(
            metavar="mix|each|N",
            help="mix: the mean of all channels. each: a transcript for each channel, for calls with a speaker on "
            "each. N: this channel alone, counted from 0.",
        ),
    ] = "mix",
    max_hours: Annotated[
        float, typer.Option(min=0.0, callback=finite, help="A longer file is refused.")
    ] = 24.0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace such files.")] = False,
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
        raise UserError("--nbest is printed in JSON only", remedy="Add --json")
    if channels not in ("mix", "each") and not re.fullmatch("[0-9]{1,4}", channels):
        raise UserError(f"--channels is '{channels}'", remedy="Give mix, each, or the number of a channel")
    suffix = ".json" if as_json else ".srt" if as_srt else ".vtt" if as_vtt else ".txt"
    written = output_dir is not None or (suffix in (".srt", ".vtt") and len(files) > 1)
    targets = text_files(files, output_dir, suffix, overwrite) if written else {}
    import torch

    from retort.decoding.recogniser import load
    from retort.graph.pool import Workplace

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
        print_to_stderr(note)
    form = _form(suffix, recogniser.separator, nbest, named=len(files) > 1 and not written)
    failed = 0
    for file in files if not written else targets:
        try:
            with audio_file(file) as path:
                found = _recognise(recogniser, path, options, channels, max_hours)
        except UserError as error:
            failed += 1
            print_to_stderr(str(error))
            continue
        text = form(file, found)
        if written:
            targets[file].parent.mkdir(parents=True, exist_ok=True)
            write_whole(targets[file], text + "\n" * (not text.endswith("\n")))
            text = printable(str(targets[file]))
        print(text, flush=True)
    if failed:
        sys.exit(2)


def _recognise(
    recogniser: Recogniser, path: str, options: DecodingOptions, channels: str, maximum_hours: float
) -> Found:
    from retort.audio.segments import LONGEST
    from retort.decoding.channels import channel_alternatives

    if channels == "each":
        found = channel_alternatives(recogniser, path, LONGEST, options, maximum_hours)
        return {number: readings for number, readings in found.items()}
    channel: Channel = "mix" if channels == "mix" else int(channels)
    return {None: recogniser.alternatives(path, LONGEST, options, channel, maximum_hours)}


def _form(suffix: str, separator: str, nbest: int, named: bool) -> Form:
    """How n-best lists become text.

    Args:
        suffix: of a file of such texts.
        separator: between words.
        nbest: above 1, JSON has the further hypotheses.
        named: whether plain text has the file's name before it.
    """
    from retort.decoding.channels import turns
    from retort.decoding.transcript import to_srt, to_vtt

    def table(readings: Sequence[Alternative]) -> dict[str, object]:
        line: dict[str, object] = asdict(readings[0].transcript)
        if nbest > 1:
            line["nbest"] = [{"text": each.transcript.text, "score": each.score} for each in readings]
        return line

    def as_json(file: str, found: Found) -> str:
        line: dict[str, object] = {"file": file}
        if None in found:
            line |= table(found[None])
        else:
            line["channels"] = [{"channel": channel, **table(each)} for channel, each in found.items()]
        text = json.dumps(line, ensure_ascii=not is_unicode(sys.stdout))
        return _UNSAFE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)

    def as_text(file: str, found: Found) -> str:
        name = f"{printable(file)}\t" if named else ""
        if None in found:
            return name + printable(found[None][0].transcript.text)
        spoken = turns(_best(found), separator)
        return "\n".join(
            f"{name}[{each.start:.2f} - {each.end:.2f}] channel {each.channel}: {printable(each.text)}"
            for each in spoken
        )

    if suffix == ".json":
        return as_json
    if suffix == ".txt":
        return as_text
    make = to_srt if suffix == ".srt" else to_vtt
    return lambda _, found: printable(
        make(found[None][0].transcript if None in found else _best(found), separator), keep="\n"
    )


def _best(found: Found) -> dict[int, Transcript]:
    return {channel: each[0].transcript for channel, each in found.items() if channel is not None}
