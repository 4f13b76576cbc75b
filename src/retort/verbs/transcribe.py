"""`retort transcribe`: transcripts of audio files."""

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
    Given,
    ModelFolder,
    Threads,
    decoding_options,
    open_recogniser,
    with_decoding_options,
)
from retort.verbs.stream import stream_files
from retort.verbs.targets import audio_file, text_files

if TYPE_CHECKING:
    from retort.audio.files import Channel
    from retort.decoding.options import DecodingOptions
    from retort.decoding.transcriber import Transcriber
    from retort.decoding.transcript import ScoredTranscript, Transcript

Found = dict[int | None, list["ScoredTranscript"]]
"""The n-best list of each channel of a file, or of None where it has one for all."""
Form = Callable[[str, Found], str]
"""The text of what was recognised in a file, as it is printed or written."""
_UNSAFE = re.compile("[\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@with_decoding_options()
def transcribe(
    experiment: ModelFolder,
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE",
            help="Audio files of any sampling rate and number of channels; - reads standard input.",
        ),
    ],
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object per file, with times of tokens and words.")
    ] = False,
    as_srt: Annotated[bool, typer.Option("--srt", help="Print SubRip subtitles.")] = False,
    as_vtt: Annotated[bool, typer.Option("--vtt", help="Print WebVTT subtitles.")] = False,
    output_dir: Annotated[
        Path | None,
        typer.Option(
            parser=local_path,
            metavar="DIR",
            help="Write NAME.txt, .json, .srt or .vtt for each audio file into this folder instead of printing. "
            "Without it, subtitles of several files are written next to the audio files.",
        ),
    ] = None,
    channels: Annotated[
        str,
        typer.Option(
            metavar="mix|each|N",
            help="mix: the mean of all channels. each: one transcript per channel, for calls with one speaker per "
            "channel. N: only this channel, counted from 0.",
        ),
    ] = "mix",
    max_hours: Annotated[
        float,
        typer.Option(min=0.0, callback=finite, help="Maximum duration of a file; longer files are errors."),
    ] = 24.0,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace existing files of transcripts and subtitles.")
    ] = False,
    streaming: Annotated[
        bool,
        typer.Option(
            "--stream",
            help="Print utterances as they end, with --json also partial results, for models trained in chunks; - reads "
            "16-bit samples of one channel at the model's sampling rate from standard input.",
        ),
    ] = False,
    chunk: Annotated[
        int,
        typer.Option(
            min=0, help="With --stream: frames of the encoder's output in a chunk; 0: the smallest of the training."
        ),
    ] = 0,
    *,
    given: Given,
    threads: Threads = 1,
) -> None:
    """Transcribe audio files.

    A file that cannot be read is reported on stderr, the others are transcribed, and the exit code is 2.
    """
    if as_json + as_srt + as_vtt > 1:
        raise UserError("--json, --srt and --vtt exclude each other", remedy="Give one of them")
    if given.get("nbest", 1) > 1 and not as_json:
        raise UserError("--nbest needs JSON output", remedy="Add --json")
    if streaming and (as_srt or as_vtt or output_dir is not None or given or channels != "mix"):
        raise UserError(
            "--stream is greedy decoding of the mean of all channels, printed as text or JSON",
            remedy="Give --stream with --json, --chunk, --max-hours and --threads only",
        )
    if chunk and not streaming:
        raise UserError("--chunk is an option of streams", remedy="Add --stream")
    if streaming:
        stream_files(experiment, files, chunk, as_json, max_hours, threads)
        return
    if channels not in ("mix", "each") and not re.fullmatch("[0-9]{1,4}", channels):
        raise UserError(f"--channels is '{channels}'", remedy="Give mix, each, or the number of a channel")
    suffix = ".json" if as_json else ".srt" if as_srt else ".vtt" if as_vtt else ".txt"
    written = output_dir is not None or (suffix in (".srt", ".vtt") and len(files) > 1)
    targets = text_files(files, output_dir, suffix, overwrite) if written else {}
    options = decoding_options(given)
    recogniser = open_recogniser(experiment, threads)
    for note in recogniser.notes(options):  # warnings of the language models, once for all files
        print_to_stderr(note)
    form = _form(suffix, recogniser.separator, options.nbest, named=len(files) > 1 and not written)
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
    recogniser: Transcriber, path: str, options: DecodingOptions, channels: str, maximum_hours: float
) -> Found:
    from retort.audio.segments import LONGEST
    from retort.decoding.channels import channel_nbest

    if channels == "each":
        found = channel_nbest(recogniser, path, LONGEST, options, maximum_hours)
        return {number: readings for number, readings in found.items()}
    channel: Channel = "mix" if channels == "mix" else int(channels)
    return {None: recogniser.alternatives(path, LONGEST, options, channel, maximum_hours)}


def _form(suffix: str, separator: str, nbest: int, named: bool) -> Form:
    """Choose the function that formats the n-best lists of a file.

    Args:
        suffix: suffix of the output format, such as `.json`.
        separator: separator of words.
        nbest: length of the n-best list in JSON.
        named: whether each line of plain text begins with the file's name.
    """
    from retort.decoding.channels import turns
    from retort.decoding.transcript import to_srt, to_vtt

    def table(readings: Sequence[ScoredTranscript]) -> dict[str, object]:
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
