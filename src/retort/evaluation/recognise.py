"""Recognise a set of cuts with a model and keep what it said."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from lhotse import CutSet
from lhotse.cut import Cut
from torch import Tensor

from retort.corpora.cuts import Rejected
from retort.corpora.features import CutFeatures, load_samples
from retort.decoding.beam import Candidate
from retort.decoding.options import GREEDY, DecodingOptions
from retort.decoding.recogniser import Recogniser
from retort.decoding.search import Found
from retort.errors import BadUtterance
from retort.files import write_whole
from retort.students.student import Encoded, check_length

Progress = Callable[[int, int], None]
Watch = Callable[[Sequence[Cut], Sequence[Tensor], Encoded], None]
"""Shown every batch: its cuts, the features of each, and what the encoder made of them."""

BATCH_SECONDS = 120.0
"""Audio that the network hears at once, padding counted."""
WAITING = 4
"""Utterances for each process of the search that are heard before it begins, so that none is without work."""


@dataclass
class Recognised:
    """What was said, by utterance id.

    Attributes:
        references: normalised transcripts.
        hypotheses: recognised texts; an utterance that could not be used has none.
        ctc: texts of the CTC head's best path, where the student has such a head.
        speakers: of each utterance.
        durations: of each utterance, seconds.
        candidates: all that the search kept, best first.
        short: utterances of which the search found fewer than the beam keeps: there are no more.
        lines: for `hyp.jsonl`.
        rejected: utterances that could not be used, and why.
        decoding_seconds: by the clock, from samples (or stored features) to text, language models included; reading
            files, opening models and starting processes is not counted.
        workers: processes of the search, or threads of the network if they are more.
    """

    references: dict[str, str] = field(default_factory=dict)
    hypotheses: dict[str, str] = field(default_factory=dict)
    ctc: dict[str, str] = field(default_factory=dict)
    speakers: dict[str, str] = field(default_factory=dict)
    durations: dict[str, float] = field(default_factory=dict)
    candidates: dict[str, list[Candidate]] = field(default_factory=dict)
    short: int = 0
    lines: list[dict[str, object]] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    decoding_seconds: float = 0.0
    workers: int = 1

    @property
    def real_time_factor(self) -> float:
        """Seconds of decoding, by the clock, for one second of audio."""
        return self.decoding_seconds / max(sum(self.durations.values()), 1e-9)


@torch.inference_mode()
def recognise(
    recogniser: Recogniser,
    cuts: CutSet,
    progress: Progress | None = None,
    options: DecodingOptions = GREEDY,
    watch: Watch | None = None,
) -> Recognised:
    """Decode every cut, in batches of like durations.

    An utterance whose audio cannot be used is listed in `rejected` and has no hypothesis; scoring counts it as
    deleted, because leaving it out would flatter the model.

    Args:
        watch: its time is not counted.
    """
    result = Recognised()
    features = CutFeatures(recogniser.features)
    search = recogniser.opened(options)
    search.prepare(len(cuts))
    result.workers = max(min(search.workers, len(cuts)), torch.get_num_threads())
    enough = WAITING * search.workers if search.workers > 1 else 1
    done = 0
    waiting: list[_Batch] = []
    groups = list(_groups(cuts))
    for number, group in enumerate(groups, 1):
        usable: list[Cut] = []
        tensors: list[Tensor] = []
        for cut in group:
            supervision = cut.supervisions[0]
            result.references[cut.id] = recogniser.normalise(supervision.text or "")
            result.speakers[cut.id] = supervision.speaker or cut.id
            try:
                tensors.append(_of_fitting_length(recogniser, cut, _timed_features(features, cut, result)))
            except BadUtterance as error:
                result.rejected.append(Rejected(cut.id, error.what))
                continue
            usable.append(cut)
            result.durations[cut.id] = cut.duration
        if usable:
            started = time.perf_counter()
            encoded = recogniser.encode(tensors)
            result.decoding_seconds += time.perf_counter() - started
            waiting.append(_Batch(usable, encoded))
            if watch is not None:
                watch(usable, tensors, encoded)
        done += len(group)
        if not waiting or sum(len(each.cuts) for each in waiting) >= enough or number == len(groups):
            _search(recogniser, waiting, result, options)
            waiting = []
            if progress is not None:
                progress(done, len(cuts))
    return result


class _Batch(NamedTuple):
    cuts: list[Cut]
    encoded: Encoded


def _search(
    recogniser: Recogniser, batches: Sequence[_Batch], result: Recognised, options: DecodingOptions
) -> None:
    started = time.perf_counter()
    search = recogniser.opened(options)
    found = search.batches([each.encoded for each in batches])
    result.decoding_seconds += time.perf_counter() - started
    for batch, lists in zip(batches, found):
        for cut, path in zip(batch.cuts, search.heard(batch.encoded) or []):
            result.ctc[cut.id] = recogniser.normalise(recogniser.tokenizer.decode(path))
        _tell(recogniser, batch.cuts, lists, result, options)


def _tell(
    recogniser: Recogniser,
    cuts: Sequence[Cut],
    found: Sequence[Found],
    result: Recognised,
    options: DecodingOptions,
) -> None:
    for cut, candidates in zip(cuts, found):
        if isinstance(candidates, BadUtterance):
            result.rejected.append(Rejected(cut.id, candidates.what))
            continue
        readings = recogniser.readings(candidates, options, 0.0, cut.duration)
        best = readings[0]
        result.candidates[cut.id] = candidates
        result.short += len(candidates) < options.beam
        result.hypotheses[cut.id] = recogniser.normalise(best.transcript.text)
        line: dict[str, object] = {
            "id": cut.id,
            "speaker": result.speakers[cut.id],
            "reference": result.references[cut.id],
            "hypothesis": result.hypotheses[cut.id],
            "score": best.score,
            "words": [
                [word.text, round(word.start, 3), round(word.end, 3)] for word in best.transcript.words
            ],
        }
        if options.nbest > 1:
            line["nbest"] = [
                {"text": recogniser.normalise(each.transcript.text), "score": each.score} for each in readings
            ]
        result.lines.append(line)


def _timed_features(features: CutFeatures, cut: Cut, result: Recognised) -> Tensor:
    """The cut's features; making them from the wave counts as decoding, reading the file does not."""
    if cut.has_features:
        return features(cut)
    samples = load_samples(cut, features.config.sampling_rate)
    started = time.perf_counter()
    made = features.of_samples(samples)
    result.decoding_seconds += time.perf_counter() - started
    return made


def _of_fitting_length(recogniser: Recogniser, cut: Cut, features: Tensor) -> Tensor:
    check_length(recogniser.student.encoder, features.shape[0], cut.id)
    return features


def _groups(cuts: CutSet) -> Iterator[list[Cut]]:
    group: list[Cut] = []
    for cut in sorted(cuts, key=lambda each: each.duration):
        if group and (len(group) + 1) * cut.duration > BATCH_SECONDS:
            yield group
            group = []
        group.append(cut)
    if group:
        yield group


def write_hypotheses(path: Path, recognised: Recognised) -> None:
    """`hyp.jsonl`: one utterance a line, sorted by id."""
    lines = sorted(recognised.lines, key=lambda line: str(line["id"]))
    write_whole(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
