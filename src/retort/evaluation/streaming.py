"""Error rates and latency of a model that recognises audio while it arrives."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from retort.common.errors import BadUtterance, UserError
from retort.common.files import write_whole
from retort.corpora.open_cuts import find_data, open_cuts
from retort.corpora.waves import load_samples
from retort.decoding.recogniser import Recogniser
from retort.evaluation.scoring import score
from retort.evaluation.timing import WordEnd, word_timing
from retort.streaming.streamer import Streamer
from retort.streaming.utterances import joined

PIECE = 0.1
"""Seconds of audio that arrive at once."""


@dataclass(frozen=True)
class StreamingScore:
    """Results of a set of utterances, each of which is one stream.

    Attributes:
        chunk: frames of a chunk.
        chunk_seconds: its duration.
        cer, wer: error rates.
        rtf: computing time per second of audio.
        latency: median, and 95th percentile, of the seconds from the end of a correctly recognised word to the arrival
            of the audio that its last token depends on, without computing time; None if no word ends are known.
        latency_words: number of these words.
        utterances, rejected: numbers of utterances.
    """

    chunk: int
    chunk_seconds: float
    cer: float
    wer: float
    rtf: float
    latency: tuple[float, float] | None
    latency_words: int
    utterances: int
    rejected: int

    def line(self) -> str:
        """The results in one line."""
        delay = ""
        if self.latency is not None:
            median, late = (1000.0 * each for each in self.latency)
            delay = f", latency {median:.0f} ms (95 %: {late:.0f} ms, {self.latency_words} words)"
        return (
            f"chunk {self.chunk} ({1000 * self.chunk_seconds:.0f} ms): CER {100 * self.cer:.2f} %, "
            f"WER {100 * self.wer:.2f} %{delay}, real-time factor {self.rtf:.2f}"
        )


def evaluate_streaming(
    recogniser: Recogniser, source: str, chunk: int, folder: Path, progress: Callable[[int, int], None]
) -> StreamingScore:
    """Recognise every utterance of a manifest or Kaldi folder as a stream; writes `folder/streaming-chunkN.json`.

    Utterances are divided only where they are longer than the encoder's positions. Latency needs word ends: the
    alignment `word` of the supervisions (:func:`retort.evaluation.timing.word_timing`).

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
        streamer, finished = Streamer(recogniser, chunk, pause=0.0), []
        started = time.perf_counter()
        for start in range(0, len(samples), round(PIECE * recogniser.sampling_rate)):
            piece = samples[start : start + round(PIECE * recogniser.sampling_rate)]
            finished += streamer.accept(piece).finished
        finished += streamer.finish().finished
        computing += time.perf_counter() - started
        seconds += len(samples) / recogniser.sampling_rate
        hypotheses[cut.id] = recogniser.normalise(joined(finished, recogniser).text)
        arrivals[cut.id] = [(word.text, arrived) for word, arrived in streamer.emissions]
        progress(number + 1, len(cuts))
    if not hypotheses:
        raise UserError("no utterance could be recognised", where=source, remedy="Give other data")
    found = score(references, hypotheses, speakers)
    errors = word_timing(cuts, arrivals, recogniser.normalise).errors
    latency = tuple(float(each) for each in np.percentile(errors, (50, 95))) if errors.size else None
    result = StreamingScore(
        chunk,
        chunk * recogniser.frame_seconds,
        found.characters.rate,
        found.words.rate,
        computing / max(seconds, 1e-9),
        None if latency is None else (latency[0], latency[1]),
        int(errors.size),
        len(hypotheses),
        rejected,
    )
    folder.mkdir(parents=True, exist_ok=True)
    write_whole(folder / f"streaming-chunk{chunk}.json", json.dumps(asdict(result), indent=1) + "\n")
    return result
