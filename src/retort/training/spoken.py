"""Synthetic speech in the training data: transcripts, or sentences of a text, synthesised once and cached."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

import numpy as np

from retort.common.errors import UserError
from retort.common.locks import one_at_a_time
from retort.config.schema import SpokenConfig
from retort.corpora.cuts import CheckedCuts, Prepared, read_rejected, write_split
from retort.corpora.open_cuts import open_cuts
from retort.corpora.sentences import Sentences
from retort.corpora.synthetic import Conditions, read_aloud, voice_names
from retort.text.normalise import recase

Number = TypeVar("Number", int, float)


def synthesise(
    texts: Iterable[str], prefix: str, config: SpokenConfig, cache: Path, progress: Callable[[int, int], None]
) -> CheckedCuts:
    """Synthesise every distinct text, in lower case, with the voices in turn.

    Args:
        texts: texts to synthesise.
        prefix: prefix of the utterances' ids.
        config: engine and voices.
        cache: folder of the synthesised speech.
        progress: called with the number of utterances done and in total.
    """
    distinct = list(dict.fromkeys(recase(text, "lower") for text in texts))
    read = _by_kokoro if config.engine == "kokoro" else _by_espeak
    key, speak = read(distinct, prefix, config, cache)
    manifest = cache / f"{key}.jsonl.gz"
    with one_at_a_time(cache / f"{key}.lock"):
        if not manifest.exists():
            synthesised = speak(cache / key, progress)
            for source in (source for cut in synthesised.cuts for source in cut.recording.sources):
                # so that the folder may be moved, or reached by another path
                source.source = os.path.relpath(source.source, cache)
            write_split(key, synthesised, cache, Prepared())
    opened = open_cuts(manifest)
    return CheckedCuts(opened.cuts, [*opened.rejected, *read_rejected(cache / f"{key}.rejected.tsv")])


Speak = Callable[[Path, Callable[[int, int], None]], CheckedCuts]
"""Synthesises into a folder and reports its progress."""


def _by_espeak(texts: list[str], prefix: str, config: SpokenConfig, cache: Path) -> tuple[str, Speak]:
    """The key of the result, and the function that synthesises it."""
    voices = voice_names(config.voices, config.language)
    conditions = Conditions(rate=_pair(config.rate), pitch=_pair(config.pitch), snr=_pair(config.snr))
    key = _hashed([prefix, *voices, config.seed, asdict(conditions), *texts])

    def speak(folder: Path, progress: Callable[[int, int], None]) -> CheckedCuts:
        return read_aloud(
            texts, folder, prefix, voices, seed=(config.seed,), conditions=conditions, progress=progress
        )

    return key, speak


def _by_kokoro(texts: list[str], prefix: str, config: SpokenConfig, cache: Path) -> tuple[str, Speak]:
    from retort.corpora import kokoro
    from retort.corpora.neural_speech import VERSION, SynthesisSettings, read_by_kokoro

    settings = SynthesisSettings(
        config.language,
        tuple(voice_names(config.voices, config.language, kokoro.VOICES)),
        _pair(config.speed),
        config.mixes,
        config.seed,
        config.check,
        config.worst,
    )
    conditions = Conditions(snr=_pair(config.snr))
    key = _hashed(["kokoro", VERSION, prefix, asdict(settings), asdict(conditions), *texts])

    def speak(folder: Path, progress: Callable[[int, int], None]) -> CheckedCuts:
        return read_by_kokoro(
            texts,
            settings,
            cache / "kokoro",
            folder,
            prefix,
            conditions=conditions,
            processes=config.processes,
            progress=progress,
        )

    return key, speak


def _hashed(content: list[object]) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:16]


def draw_sentences(config: SpokenConfig, excluded: Iterable[str]) -> list[str]:
    """Draw `config.sentences` distinct sentences of the texts that are not `excluded`; case and spacing are ignored.

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
            f"{len(fitting):,} sentences of {low} to {high} {unit}, but data.spoken.sentences is "
            f"{config.sentences:,}",
            where=", ".join(config.texts) or "data.spoken.texts is empty",
            remedy="Add text, or set fewer sentences",
        )
    chosen = np.random.default_rng(config.seed).permutation(len(fitting))[: config.sentences]
    return [fitting[index] for index in chosen]


def _pair(values: Sequence[Number]) -> tuple[Number, Number]:
    low, high = values
    return low, high


def _folded(text: str) -> str:
    return " ".join(text.split()).casefold()
