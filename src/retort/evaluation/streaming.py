"""Error rates and latency of a model that recognises audio while it arrives."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retort.common.errors import BadUtterance, UserError
from retort.common.files import write_whole
from retort.corpora.open_cuts import find_data, open_cuts
from retort.corpora.waves import load_samples
from retort.decoding.recogniser import Recogniser
from retort.evaluation.bootstrap import intervals
from retort.evaluation.scoring import score
from retort.evaluation.timing import WordEnd, word_timing
from retort.streaming.streamer import Streamer
from retort.streaming.utterances import joined

PIECE = 0.1
"""Seconds of audio that arrive at once."""
PERCENTILES = (5, 25, 50, 75, 90, 95, 99)
"""Percentiles of the latency."""


@dataclass(frozen=True)
class StreamingScore:
    """Results of a set of utterances, each of which is one stream.

    Attributes:
        chunk: frames of a chunk; 0 for whole utterances, which are no streams.
        chunk_seconds: its duration; 0 for whole utterances.
        cer, wer: error rates.
        cer_interval, wer_interval: their 95 % intervals over speakers.
        rtf: computing time per second of audio.
        latency: percentiles (:data:`PERCENTILES`) of the seconds from the end of a correctly recognised word to the
            arrival of the audio that its last token depends on, without computing time; None if no word ends are known.
            That of whole utterances is to their ends.
        latency_words: number of these words.
        utterances, rejected: numbers of utterances.
    """

    chunk: int
    chunk_seconds: float
    cer: float
    wer: float
    cer_interval: tuple[float, float]
    wer_interval: tuple[float, float]
    rtf: float
    latency: dict[str, float] | None
    latency_words: int
    utterances: int
    rejected: int

    def line(self) -> str:
        """The results in one line."""
        delay = ""
        if self.latency is not None:
            median, late = (1000.0 * self.latency[each] for each in ("50", "95"))
            delay = f", latency {median:.0f} ms (95 %: {late:.0f} ms, {self.latency_words} words)"
        name = (
            f"chunk {self.chunk} ({1000 * self.chunk_seconds:.0f} ms)" if self.chunk else "whole utterances"
        )
        return (
            f"{name}: CER {100 * self.cer:.2f} %, "
            f"WER {100 * self.wer:.2f} %{delay}, real-time factor {self.rtf:.2f}"
        )


def evaluate_latencies(
    recogniser: Recogniser,
    source: str,
    chunks: Sequence[int],
    folder: Path,
    progress: Callable[[int, int], None],
) -> list[StreamingScore]:
    """:func:`evaluate_streaming` for several chunks; also writes `folder/latencies.md`, a table.

    Raises:
        UserError: as there.
    """
    found = [evaluate_streaming(recogniser, source, chunk, folder, progress) for chunk in chunks]
    write_whole(folder / "latencies.md", latency_table(found))
    return found


def latency_table(scores: Sequence[StreamingScore]) -> str:
    """Error rates and latencies as Markdown, whole utterances last."""
    names = " | ".join(f"p{each}" for each in PERCENTILES)
    lines = [
        f"| chunk | CER, % | WER, % | RTF | latency in ms: {names} |",
        "|---" * (4 + len(PERCENTILES)) + "|",
    ]
    for each in sorted(scores, key=lambda score: score.chunk or math.inf):
        name = f"{each.chunk} ({1000 * each.chunk_seconds:.0f} ms)" if each.chunk else "whole utterances"
        delays = [f"{1000 * value:.0f}" for value in (each.latency or {}).values()] or ["-"] * len(
            PERCENTILES
        )
        rates = [f"{100 * each.cer:.2f}", f"{100 * each.wer:.2f}", f"{each.rtf:.3f}"]
        lines.append(f"| {' | '.join([name, *rates, *delays])} |")
    return "\n".join(lines) + "\n"


def evaluate_streaming(
    recogniser: Recogniser, source: str, chunk: int, folder: Path, progress: Callable[[int, int], None]
) -> StreamingScore:
    """Recognise every utterance of a manifest or Kaldi folder as a stream; writes `folder/streaming-chunkN.json`.

    With a chunk of 0 the utterances are recognised as wholes, to compare with. Streams are divided only where
    they are longer than the encoder's positions. Latency needs word ends: the alignment `word` of the supervisions
    (:func:`retort.evaluation.timing.word_timing`).

    Raises:
        UserError: the model needs whole utterances, or nothing could be recognised.
    """
    opened = open_cuts(find_data(source))
    cuts, rejected = list(opened.cuts), len(opened.rejected)
    references, hypotheses, speakers = {}, {}, {}
    arrivals: dict[str, list[WordEnd]] = {}
    seconds = computing = 0.0
    for number, cut in enumerate(cuts):
        supervision = cut.supervisions[0]
        references[cut.id] = recogniser.normalise(supervision.text or "")
        speakers[cut.id] = supervision.speaker or cut.id
        try:
            samples = load_samples(cut, recogniser.sampling_rate)
        except BadUtterance:  # without a hypothesis, so that its words count as deleted
            rejected += 1
            continue
        started = time.perf_counter()
        try:
            text, arrivals[cut.id] = (_streamed if chunk else _whole)(recogniser, samples, chunk)
        except BadUtterance:  # too short or too long for whole utterances
            rejected += 1
            continue
        computing += time.perf_counter() - started
        seconds += len(samples) / recogniser.sampling_rate
        hypotheses[cut.id] = recogniser.normalise(text)
        progress(number + 1, len(cuts))
    if not hypotheses:
        raise UserError("no utterance could be recognised", where=source, remedy="Give other data")
    found = score(references, hypotheses, speakers)
    bounds = intervals(found)
    errors = word_timing(cuts, arrivals, recogniser.normalise).errors
    latency = None
    if errors.size:
        latency = {f"{each}": float(np.percentile(errors, each)) for each in PERCENTILES}
    result = StreamingScore(
        chunk,
        chunk * recogniser.frame_seconds,
        found.characters.rate,
        found.words.rate,
        (bounds["cer"].low, bounds["cer"].high),
        (bounds["wer"].low, bounds["wer"].high),
        computing / max(seconds, 1e-9),
        latency,
        int(errors.size),
        len(hypotheses),
        rejected,
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"streaming-chunk{chunk}.json", json.dumps(asdict(result), indent=1) + "\n")
    return result


def _streamed(recogniser: Recogniser, samples: NDArray[np.float32], chunk: int) -> tuple[str, list[WordEnd]]:
    """The text of a stream, and its words with the seconds at which the audio that they depend on had arrived."""
    streamer, finished = Streamer(recogniser, chunk, pause=0.0), []
    size = round(PIECE * recogniser.sampling_rate)
    for start in range(0, len(samples), size):
        finished += streamer.accept(samples[start : start + size]).finished
    finished += streamer.finish().finished
    return joined(finished, recogniser).text, [(word.text, arrived) for word, arrived in streamer.emissions]


def _whole(recogniser: Recogniser, samples: NDArray[np.float32], _: int) -> tuple[str, list[WordEnd]]:
    """The text of a whole utterance, and its words with its duration: all of its audio is needed."""
    found = recogniser.transcribe(samples, vad="none", no_speech_threshold=1.0)
    end = len(samples) / recogniser.sampling_rate
    return found.text, [(word.text, end) for word in found.words]
