"""Recognition of a set of cuts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, TypeVar

import torch
from lhotse import CutSet
from lhotse.cut import Cut
from torch import Tensor

from retort.audio.segments import LONGEST
from retort.common.errors import BadUtterance
from retort.common.files import write_whole
from retort.common.progress import CountProgress
from retort.corpora.cuts import Rejected
from retort.corpora.features import CutFeatures, load_samples
from retort.decoding.hypothesis import Hypothesis, NBest
from retort.decoding.options import GREEDY, DecodingOptions
from retort.decoding.recogniser import Recogniser
from retort.decoding.segment import SpeechSegment
from retort.decoding.transcript import ScoredTranscript, TimedText, join_nbest
from retort.students.student import Encoded

Watch = Callable[[Sequence[Cut], Sequence[Tensor], Encoded], None]
"""Called with every batch of whole cuts: the cuts, the features of each, and the encoder's output."""

BATCH_SECONDS = 120.0
"""Audio in one batch of the encoder, padding included."""
WAITING = 4
"""Number of segments per search process that are encoded before the search starts."""


class ScoredTokens(NamedTuple):
    """A hypothesis of an utterance: one hypothesis of each segment, and the sum of their scores."""

    parts: tuple[Hypothesis, ...]
    score: float


@dataclass
class Recognised:
    """Results of recognition by utterance id.

    Attributes:
        references: normalised transcripts.
        hypotheses: recognised texts; an unusable utterance has none.
        ctc: texts of the CTC head's best path, if the student has such a head.
        speakers: speaker of each utterance.
        durations: duration of each utterance in seconds.
        no_speech: no-speech score of each utterance, 0 to 1 (:attr:`retort.decoding.transcript.Transcript.no_speech`).
        words: words of the hypothesis of each utterance, normalised, with their confidences.
        candidates: n-best list of each utterance.
        short: number of utterances with fewer hypotheses than the beam size.
        lines: lines of `hyp.jsonl`.
        rejected: unusable utterances, with the reason.
        decoding_seconds: wall time from samples to text, language models included; reading files, opening models
            and starting processes are excluded.
        workers: processes of the search, or threads of the network if they are more.
    """

    references: dict[str, str] = field(default_factory=dict)
    hypotheses: dict[str, str] = field(default_factory=dict)
    ctc: dict[str, str] = field(default_factory=dict)
    speakers: dict[str, str] = field(default_factory=dict)
    durations: dict[str, float] = field(default_factory=dict)
    no_speech: dict[str, float] = field(default_factory=dict)
    words: dict[str, list[TimedText]] = field(default_factory=dict)
    candidates: dict[str, list[ScoredTokens]] = field(default_factory=dict)
    short: int = 0
    lines: list[dict[str, object]] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    decoding_seconds: float = 0.0
    workers: int = 1

    @property
    def real_time_factor(self) -> float:
        """Wall time of decoding per second of audio."""
        return self.decoding_seconds / max(sum(self.durations.values()), 1e-9)


@torch.inference_mode()
def recognise(
    recogniser: Recogniser,
    cuts: CutSet,
    progress: CountProgress | None = None,
    options: DecodingOptions = GREEDY,
    watch: Watch | None = None,
) -> Recognised:
    """Decode every cut as `Recogniser.transcribe` decodes a file, in batches of segments of similar durations.

    Cuts are segmented before batching, so that batches do not affect segments. An utterance whose audio
    is not usable is listed in `rejected` and has no hypothesis; scoring counts it as deleted, because omitting it
    would bias the error rate.

    Args:
        watch: called with batches; its time and that of encoding whole cuts for it are excluded.
    """
    result = Recognised()
    search = recogniser.opened(options)
    search.prepare(len(cuts))
    result.workers = max(min(search.workers, len(cuts)), torch.get_num_threads())
    enough = WAITING * search.workers if search.workers > 1 else 1
    done = 0
    waiting: list[_Utterance] = []
    groups = list(_groups(cuts, recogniser.features.pad_seconds))
    for number, group in enumerate(groups, 1):
        usable = [each for cut in group if (each := _prepared(recogniser, cut, result, options)) is not None]
        if watch is not None:
            _watch(recogniser, [each.cut for each in usable], watch)
        waiting += usable
        done += len(group)
        if sum(len(each.pieces) for each in waiting) >= enough or number == len(groups):
            _decode(recogniser, waiting, result, options)
            waiting = []
            if progress is not None:
                progress(done, len(cuts))
    return result


class _Utterance(NamedTuple):
    cut: Cut
    pieces: list[SpeechSegment]


class _Part(NamedTuple):
    """Result of one segment of an utterance."""

    found: NBest
    readings: list[ScoredTranscript] | BadUtterance
    ctc: str | None


def _prepared(
    recogniser: Recogniser, cut: Cut, result: Recognised, options: DecodingOptions
) -> _Utterance | None:
    """The segments of a cut; computing them and their features counts as decoding time, reading the file does not."""
    supervision = cut.supervisions[0]
    result.references[cut.id] = recogniser.normalise(supervision.text or "")
    result.speakers[cut.id] = supervision.speaker or cut.id
    try:
        samples = load_samples(cut, recogniser.sampling_rate)
        started = time.perf_counter()
        pieces = list(recogniser.speech_segments([samples], options, LONGEST))
        result.decoding_seconds += time.perf_counter() - started
        if not pieces and len(samples) < recogniser.fewest_samples:
            raise BadUtterance(f"it is too short ({len(samples)} samples)", where=cut.id)
    except BadUtterance as error:
        result.rejected.append(Rejected(cut.id, error.what))
        return None
    result.durations[cut.id] = cut.duration
    return _Utterance(cut, pieces)


def _watch(recogniser: Recogniser, cuts: Sequence[Cut], watch: Watch) -> None:
    features = CutFeatures(recogniser.features)
    whole = [features(cut) for cut in cuts]
    if whole:
        watch(cuts, whole, recogniser.encode(whole))


def _decode(
    recogniser: Recogniser, utterances: Sequence[_Utterance], result: Recognised, options: DecodingOptions
) -> None:
    """Encode and search all segments of some utterances, similar durations together."""
    started = time.perf_counter()
    search = recogniser.opened(options)
    order = [(row, place) for row, each in enumerate(utterances) for place in range(len(each.pieces))]
    order.sort(key=lambda each: utterances[each[0]].pieces[each[1]].duration)
    least = recogniser.features.pad_seconds
    batches = list(_batches(order, lambda each: max(utterances[each[0]].pieces[each[1]].duration, least)))
    encoded = [
        recogniser.encode([utterances[row].pieces[place].features for row, place in batch])
        for batch in batches
    ]
    parts: dict[tuple[int, int], _Part] = {}
    for batch, hidden, found in zip(batches, encoded, search.batches(encoded)):
        pieces = [utterances[row].pieces[place] for row, place in batch]
        readings = recogniser.segment_nbest(pieces, hidden, found, options)
        heads = search.ctc_hypotheses(hidden)
        paths = (
            [None] * len(batch) if heads is None else [recogniser.tokenizer.decode(path) for path in heads]
        )
        parts |= {key: _Part(*each) for key, each in zip(batch, zip(found, readings, paths, strict=True))}
    result.decoding_seconds += time.perf_counter() - started
    for row, each in enumerate(utterances):
        _enter(
            recogniser, each.cut, [parts[row, place] for place in range(len(each.pieces))], result, options
        )


def _enter(
    recogniser: Recogniser, cut: Cut, parts: Sequence[_Part], result: Recognised, options: DecodingOptions
) -> None:
    """Join the segments of a cut and store its results."""
    heads = [part.ctc for part in parts if part.ctc is not None]
    if heads or not parts:
        result.ctc[cut.id] = recogniser.normalise(recogniser.separator.join(filter(None, heads)))
    lists: list[list[ScoredTranscript]] = []
    for part in parts:
        if isinstance(part.readings, BadUtterance) or isinstance(part.found, BadUtterance):
            bad = part.readings if isinstance(part.readings, BadUtterance) else part.found
            assert isinstance(bad, BadUtterance)
            result.rejected.append(Rejected(cut.id, bad.what))
            return
        lists.append(part.readings)
    readings = join_nbest(lists, recogniser.separator, options.nbest)
    best = readings[0]
    result.candidates[cut.id] = _joined([part.found for part in parts], options.beam)
    result.short += any(len(part.found) < options.beam for part in parts if isinstance(part.found, list))
    result.hypotheses[cut.id] = recogniser.normalise(best.transcript.text)
    result.words[cut.id] = [
        replace(word, text=recogniser.normalise(word.text)) for word in best.transcript.words
    ]
    result.no_speech[cut.id] = best.transcript.no_speech
    line: dict[str, object] = {
        "id": cut.id,
        "speaker": result.speakers[cut.id],
        "reference": result.references[cut.id],
        "hypothesis": result.hypotheses[cut.id],
        "score": best.score,
        "no_speech": round(best.transcript.no_speech, 4),
        "words": [[word.text, round(word.start, 3), round(word.end, 3)] for word in best.transcript.words],
        "confidences": [round(word.confidence, 4) for word in best.transcript.words],
    }
    if options.nbest > 1:
        line["nbest"] = [
            {"text": recogniser.normalise(each.transcript.text), "score": each.score} for each in readings
        ]
    result.lines.append(line)


def _joined(found: Sequence[NBest], most: int) -> list[ScoredTokens]:
    """The best hypotheses of an utterance from those of its segments."""
    joined = [ScoredTokens((), 0.0)]
    for part in found:
        assert isinstance(part, list)
        grown = [
            ScoredTokens((*before.parts, each), before.score + each.score)
            for before in joined
            for each in part
        ]
        joined = sorted(grown, key=lambda each: each.score, reverse=True)[: max(most, 1)]
    return joined


T = TypeVar("T")


def _batches(items: Sequence[T], seconds: Callable[[T], float]) -> Iterator[list[T]]:
    """Items in ascending order of their durations, `BATCH_SECONDS` at once, padding counted."""
    batch: list[T] = []
    for item in items:
        if batch and (len(batch) + 1) * seconds(item) > BATCH_SECONDS:
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def _groups(cuts: CutSet, least: float) -> Iterator[list[Cut]]:
    """Batches of cuts; shorter ones count as `least` seconds."""
    ordered = sorted(cuts, key=lambda each: each.duration)
    yield from _batches(ordered, lambda cut: max(cut.duration, least))


def write_hypotheses(path: Path, recognised: Recognised) -> None:
    """`hyp.jsonl`: one utterance per line, sorted by id."""
    lines = sorted(recognised.lines, key=lambda line: str(line["id"]))
    write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
