"""The models of the server, by name, and the recognition of a recording as it is read."""

from __future__ import annotations

import asyncio
import re
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import retort
from retort.audio.files import WaveCheck
from retort.common.errors import BadUtterance, UserError
from retort.decoding.options import GREEDY, DecodingOptions
from retort.decoding.segment import SpeechSegment
from retort.decoding.transcriber import Transcriber
from retort.decoding.transcript import Transcript
from retort.pretrained.released import find_release
from retort.runtime.load import can_stream, open_streams
from retort.serving.batching import BatchWorker
from retort.serving.limits import Limits
from retort.serving.live import StreamWorker
from retort.serving.metrics import Metrics
from retort.streaming.utterances import StreamOptions, Streams

AHEAD = 4
"""Segments of a recording that wait for recognition before more of it is read."""


class Piece(NamedTuple):
    """The transcript of a segment of a recording, with its start and end in seconds."""

    start: float
    end: float
    transcript: Transcript


class Recording:
    """A recording that is recognised while it is read.

    Args:
        blocks: `(n,)` float32 each, one channel at the sampling rate of the model.

    Attributes:
        duration: seconds read so far.
    """

    def __init__(self, model: ServedModel, blocks: Iterable[np.ndarray], options: DecodingOptions) -> None:
        self._model, self._blocks, self._options = model, blocks, options
        self._check = WaveCheck(model.sampling_rate)

    @property
    def duration(self) -> float:
        return self._check.samples / self._model.sampling_rate

    async def pieces(self) -> AsyncIterator[Piece]:
        """The segments with speech, in order. A recording of silence has none.

        Raises:
            BadUtterance: the recording is damaged or too short.
        """
        source = self._model.segments(self._checked(), self._options)
        waiting: deque[tuple[Any, asyncio.Future[Any]]] = deque()
        more = True
        try:
            while more or waiting:
                if more and len(waiting) < AHEAD and not (waiting and waiting[0][1].done()):
                    segment = await asyncio.to_thread(next, source, None)
                    more = segment is not None
                    if segment is not None:
                        found = self._model.worker.submit(segment, self._options)
                        waiting.append((segment, asyncio.wrap_future(found)))
                    continue
                segment, result = waiting[0]
                transcript = await result
                waiting.popleft()
                yield Piece(segment.offset, segment.offset + segment.duration, transcript)
        finally:
            for _, result in waiting:
                result.cancel()
        if not self._check.silent:
            self._check.finish("")
        if self._check.samples < self._model.fewest_samples:
            shortest = self._model.fewest_samples / self._model.sampling_rate
            raise BadUtterance(
                f"the audio is shorter than {shortest:.2f} s", remedy="Give a longer recording"
            )

    def _checked(self) -> Iterator[np.ndarray]:
        for block in self._blocks:
            self._check.add(block)
            if self._check.damaged:
                return  # the error is raised at the end
            yield block


class ServedModel:
    """A loaded model with its worker.

    Args:
        name: name in requests.
        transcriber: result of :func:`retort.load`.
        language: ISO 639 code, or "und".
        chunk: frames of a chunk of streams; 0 for the smallest of the training.

    Attributes:
        live: streams of the model, if it was trained in chunks and the options are those of greedy decoding; otherwise
            None.
        notes: messages for the user about limitations of the search.

    Raises:
        UserError: an option does not fit the model.
    """

    def __init__(
        self,
        name: str,
        transcriber: Transcriber,
        options: DecodingOptions,
        limits: Limits,
        metrics: Metrics,
        language: str = "und",
        chunk: int = 0,
    ) -> None:
        self.name, self.options, self.language = name, options, language
        self.sampling_rate, self.separator = transcriber.sampling_rate, transcriber.separator
        self.fewest_samples = transcriber.fewest_samples
        self.notes = transcriber.notes(options)
        self._transcriber = transcriber
        self.worker = BatchWorker(name, self._recognise, limits, metrics)
        self.live = (
            None if (streams := self._streams(chunk)) is None else StreamWorker(name, streams, metrics)
        )

    def _streams(self, chunk: int) -> Streams[Any, Any] | None:
        if replace(self.options, vad=GREEDY.vad, no_speech_threshold=GREEDY.no_speech_threshold) != GREEDY:
            return None
        if not can_stream(self._transcriber):
            return None
        return open_streams(self._transcriber, StreamOptions(chunk))

    def recording(self, blocks: Iterable[np.ndarray], keywords: Sequence[str] = ()) -> Recording:
        """A recording to be recognised; `keywords` are words that are more likely in it."""
        options = replace(self.options, hotwords=tuple(keywords)) if keywords else self.options
        return Recording(self, blocks, options)

    def segments(self, blocks: Iterable[np.ndarray], options: DecodingOptions) -> Iterator[SpeechSegment]:
        """The segments of a recording with speech, which the worker recognises."""
        return self._transcriber.speech_segments(blocks, options)

    def token_ids(self, text: str) -> list[int]:
        """Ids of a text's tokens; none for a model whose tokenizer only decodes, as that of an export may."""
        try:
            return self._transcriber.tokenizer.encode(text) if text else []
        except UserError:
            return []

    def _recognise(
        self, segments: Sequence[SpeechSegment], options: DecodingOptions
    ) -> list[Transcript | UserError]:
        found = self._transcriber.recognise_segments(segments, options)
        return [each if isinstance(each, UserError) else each[0].transcript for each in found]


class Models:
    """The models of the server in the order of the command line.

    Raises:
        UserError: a model cannot be opened, or two have the same name.
    """

    def __init__(
        self,
        sources: Sequence[str],
        options: DecodingOptions,
        limits: Limits,
        metrics: Metrics,
        chunk: int = 0,
    ) -> None:
        named = [split_name(source) for source in sources]
        for name, source in named:
            if [each for each, _ in named].count(name) > 1:
                raise UserError(f"two models are named {name}", where=source, remedy="Give NAME=MODEL")
        folders = {name: find_release(source) for name, source in named}
        opened = [(name, folder, retort.load(folder)) for name, folder in folders.items()]
        self.by_name = {
            name: ServedModel(name, loaded, options, limits, metrics, card_language(folder), chunk)
            for name, folder, loaded in opened
        }

    def close(self) -> None:
        """Finish what is in the queues."""
        for each in self.by_name.values():
            each.worker.close()
            if each.live is not None:
                each.live.close()


def split_name(source: str) -> tuple[str, str]:
    """Name and source of a model given as `NAME=MODEL` or `MODEL`: exp/NAME, exp/NAME/model, models/NAME, USER/NAME."""
    name, equals, rest = source.partition("=")
    if equals and name and "/" not in name:
        return name, rest
    parts = [part for part in Path(source.partition("@")[0]).parts if part not in ("/", ".", "..")]
    if len(parts) > 1 and parts[-1] == "model":
        parts.pop()
    return (parts[-1] if parts else "model"), source


def card_language(folder: Path) -> str:
    """The language in the head of the model's card, or "und" (undetermined)."""
    try:
        head = (folder / "README.md").read_text(encoding="utf-8")[:10_000]
    except (OSError, ValueError):
        return "und"
    found = re.search(r"^language:\s*(?:\n\s*-\s*)?([a-z]{2,3})\s*$", head, re.MULTILINE)
    return found[1] if found else "und"
