"""`retort transcribe --stream`: results while the audio arrives."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from retort.common.errors import UserError, printable
from retort.verbs.targets import STDIN

if TYPE_CHECKING:
    import numpy as np

    from retort.decoding.transcriber import Transcriber
    from retort.streaming.utterances import Partial

SECONDS = 0.1
"""Duration of the pieces of a file or of standard input."""


def stream_files(
    experiment: str | Path,
    files: Sequence[str],
    chunk: int,
    as_json: bool,
    maximum_hours: float,
    threads: int,
) -> None:
    """:func:`stream` of several files; arguments as there.

    Raises:
        UserError: the model needs whole utterances, or a file cannot be read.
    """
    from retort.runtime.load import load

    recogniser = load(experiment)
    if "torch" in sys.modules:  # an exported model runs without it
        import torch

        torch.set_num_threads(threads)
    for file in files:
        stream(recogniser, file, chunk, as_json, maximum_hours)


def stream(recogniser: Transcriber, file: str, chunk: int, as_json: bool, maximum_hours: float) -> None:
    """Print the text of a file, or of raw samples of standard input, while it is recognised.

    Finished utterances are printed as lines. On a terminal the utterance in progress is shown on stderr. With `as_json`
    every change is a line: an object with `text`, `words`, `stable_until`, and `final`.

    Args:
        file: audio file; `-` for 16-bit little-endian samples of one channel at the model's sampling rate.
        chunk: frames of a chunk; 0 selects the smallest of the training.

    Raises:
        UserError: the model needs whole utterances, or the audio cannot be read.
    """
    from retort.runtime.load import open_streams
    from retort.streaming.utterances import OneStream, StreamOptions

    streamer, before = OneStream(open_streams(recogniser, StreamOptions(chunk))), ""
    for piece in _pieces(recogniser, file, maximum_hours):
        partial = streamer.accept(piece)
        _print(partial, before, as_json)
        before = partial.text
    _print(streamer.finish(), before, as_json)


def _pieces(recogniser: Transcriber, file: str, maximum_hours: float) -> Iterator[np.ndarray]:
    import numpy as np

    from retort.audio.files import open_audio

    size = round(SECONDS * recogniser.sampling_rate)
    if file != STDIN:
        for block in open_audio(file, recogniser.sampling_rate, "mix", maximum_hours=maximum_hours).blocks():
            yield from (block[start : start + size] for start in range(0, len(block), size))
        return
    if sys.stdin is None:
        raise UserError("is closed", where="standard input", remedy="Pipe 16-bit samples into the command")
    rest = b""
    while received := sys.stdin.buffer.read1(2 * size):  # type: ignore[union-attr]
        received = rest + received
        whole = len(received) // 2 * 2
        rest = received[whole:]
        yield np.frombuffer(received[:whole], "<i2").astype(np.float32) / 32768.0


def _print(partial: Partial, before: str, as_json: bool) -> None:
    if as_json:
        for each in partial.finished:
            print(json.dumps({**asdict(each), "final": True}, ensure_ascii=True), flush=True)
        if partial.text and partial.text != before:
            words = [asdict(word) for word in partial.words]
            line = {
                "text": partial.text,
                "words": words,
                "stable_until": partial.stable_until,
                "final": False,
            }
            print(json.dumps(line, ensure_ascii=True), flush=True)
        return
    live = sys.stderr is not None and sys.stderr.isatty()
    for each in partial.finished:
        print("\r\033[K" * live, end="", file=sys.stderr, flush=True)
        print(printable(each.text), flush=True)
    if live and partial.text != before:
        print(f"\r\033[K{printable(partial.text)}", end="", file=sys.stderr, flush=True)
