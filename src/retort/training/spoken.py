"""Synthetic speech in the training data: transcripts, or sentences of a text, read aloud once and kept."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import numpy as np

from retort.config import SpokenConfig
from retort.corpora.cuts import CheckedCuts, Prepared, write_split
from retort.corpora.opening import open_cuts
from retort.corpora.sentences import Sentences
from retort.corpora.synthetic import Conditions, read_aloud, voice_names
from retort.errors import UserError
from retort.locks import one_at_a_time
from retort.text.normalise import recase

Number = TypeVar("Number", int, float)


def say(
    texts: Iterable[str], prefix: str, config: SpokenConfig, cache: Path, progress: Callable[[int, int], None]
) -> CheckedCuts:
    """Every distinct text, in lower case, read by the voices in turn.

    Args:
        texts: what to read.
        prefix: of the utterances' ids.
        config: how.
        cache: keeps what was read once.
        progress: called with the utterances done and to do.
    """
    distinct = list(dict.fromkeys(recase(text, "lower") for text in texts))
    voices = voice_names(config.voices, config.language)
    conditions = Conditions(rate=_pair(config.rate), pitch=_pair(config.pitch), snr=_pair(config.snr))
    named = [prefix, *voices, config.seed, asdict(conditions), *distinct]
    key = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]
    manifest = cache / f"{key}.jsonl.gz"
    with one_at_a_time(cache / f"{key}.lock"):
        if not manifest.exists():
            spoken = read_aloud(
                distinct,
                cache / key,
                prefix,
                voices,
                seed=(config.seed,),
                conditions=conditions,
                progress=progress,
            )
            for source in (source for cut in spoken.cuts for source in cut.recording.sources):
                # so that the folder may be moved, or reached by another path
                source.source = os.path.relpath(source.source, cache)
            write_split(key, spoken, cache, Prepared())
    return open_cuts(manifest)


def draw_sentences(config: SpokenConfig, excluded: Iterable[str]) -> list[str]:
    """`config.sentences` of the texts, distinct, none of them `excluded`; case and spacing do not count.

    Raises:
        UserError: a text cannot be read, or there are too few such sentences.
    """
    low, high = config.words
    unit = "characters" if config.language == "mandarin" else "words"
    seen = {_folded(text) for text in excluded}
    fitting = []
    for source in config.texts:
        for sentence in Sentences(source):
            folded = _folded(sentence)
            size = len(folded.replace(" ", "")) if unit == "characters" else folded.count(" ") + 1
            if low <= size <= high and folded not in seen:
                seen.add(folded)
                fitting.append(sentence)
    if len(fitting) < config.sentences:
        raise UserError(
            f"{len(fitting):,} sentences of {low} to {high} {unit}, data.spoken.sentences asks for "
            f"{config.sentences:,}",
            where=", ".join(config.texts) or "data.spoken.texts is empty",
            remedy="Name more text, or ask for fewer",
        )
    chosen = np.random.default_rng(config.seed).permutation(len(fitting))[: config.sentences]
    return [fitting[index] for index in chosen]


def _pair(values: Sequence[Number]) -> tuple[Number, Number]:
    low, high = values
    return low, high


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()
