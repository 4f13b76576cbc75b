"""A small synthetic corpus without a download: sentences of the grammar or of a text file, synthesised by espeak-ng.

Every utterance has random rate, pitch, loudness, noise and surrounding silence. The time of each word is stored
as lhotse's alignment `word`. An utterance depends only on the seed, its split and its number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from lhotse import MonoCut
from lhotse.supervision import AlignmentItem
from numpy.typing import NDArray
from scipy.fft import irfft, next_fast_len
from scipy.signal import resample_poly

from retort.common.errors import BadUtterance, UserError
from retort.common.progress import CountProgress
from retort.corpora import espeak, grammar
from retort.corpora.cuts import (
    CheckedCuts,
    Prepared,
    Rejected,
    checked,
    make_cut,
    open_recording,
    write_split,
)
from retort.corpora.espeak import TimedWord

SAMPLING_RATE = 16000

VOICES = {
    "english": (
        "en-us+m1",
        "en-us+f2",
        "en-gb-x-rp+m3",
        "en-gb-scotland+f1",
        "en-029+m4",
        "en-us-nyc+f4",
        "en-gb-x-gbclan+m7",
        "en-gb-x-gbcwmd+f5",
        "en-us+m5",
        "en-us+f3",
        "en-gb-x-rp+f4",
        "en-gb-scotland+m6",
        "en-029+f1",
        "en-us-nyc+m2",
        "en-gb-x-gbclan+f3",
        "en-gb-x-gbcwmd+m1",
    ),
    "mandarin": tuple(f"cmn+{sex}{number}" for number in range(1, 6) for sex in "mf"),
}
"""espeak-ng's accents of a language, each with one of its voice variants; a speaker's name in the manifests."""


@dataclass(frozen=True)
class Conditions:
    """Ranges of the acoustic conditions; values are drawn uniformly."""

    rate: tuple[int, int] = (140, 190)
    """Speaking rate in words per minute."""
    pitch: tuple[int, int] = (35, 65)
    """Pitch on espeak-ng's scale; 50 is the default of the voice."""
    silence: tuple[float, float] = (0.1, 0.4)
    """Silence in seconds before and after the speech, drawn separately."""
    peak: tuple[float, float] = (-20.0, -3.0)
    """Level of the speech, dB of full scale."""
    snr: tuple[float, float] = (15.0, 30.0)
    """Signal-to-noise ratio over the speech, dB; the noise is white or pink and also fills the silence."""


def prepare(
    source: str | Path | None,
    out: str | Path,
    *,
    train: int = 1200,
    validation: int = 100,
    test: int = 100,
    seed: int = 1,
    voices: int | Sequence[str] = 8,
    conditions: Conditions | None = None,
    progress: CountProgress | None = None,
) -> Prepared:
    """Write `OUT/audio/SPLIT/*.flac` (16 kHz, 16 bit) and `OUT/SPLIT.jsonl.gz` for each of the splits.

    Every voice occurs in every split; no sentence is in two of them.

    Args:
        source: a UTF-8 text with one sentence per line, or None or "-" for the grammar. If a text has fewer
            distinct sentences than requested, they are divided proportionally.
        train, validation, test: numbers of utterances; an empty split is not written.
        seed: seed of all random draws.
        voices: number of English voices of `VOICES`, or names of espeak-ng's voices.
        conditions: acoustic conditions.
        progress: called with the number of utterances done and in total.

    Raises:
        UserError: the text cannot be read or is too short, a voice is unknown, there are too many voices or sentences,
            or espeak-ng is not installed.
    """
    counts = {"train": train, "validation": validation, "test": test}
    if train < 1 or min(counts.values()) < 0:
        raise UserError(
            f"cannot make {train} + {validation} + {test} utterances", remedy="Request at least one"
        )
    names = voice_names(voices)
    if source is None or str(source) == "-":
        sentences = grammar.splits(train, validation, test, seed)
    else:
        sentences = split_text(Path(source), counts, seed)
    total = sum(map(len, sentences.values()))
    prepared, done = Prepared(), 0
    for number, (split, texts) in enumerate(sentences.items()):
        if not texts:
            continue
        data = read_aloud(
            texts,
            Path(out) / "audio" / split,
            split,
            names,
            seed=(seed, number),
            conditions=conditions or Conditions(),
            progress=_after(done, total, progress),
        )
        done += len(texts)
        write_split(split, data, Path(out), prepared)
    return prepared


def _after(done: int, total: int, progress: CountProgress | None) -> CountProgress | None:
    """`progress` of a split, offset by the previous splits."""
    if progress is None:
        return None
    return lambda count, _: progress(done + count, total)


def read_aloud(
    texts: Sequence[str],
    folder: Path,
    prefix: str,
    voices: Sequence[str],
    *,
    seed: tuple[int, ...],
    conditions: Conditions,
    progress: CountProgress | None = None,
) -> CheckedCuts:
    """Synthesise each text once, with the voices in turn, into `folder/PREFIX-NUMBER.flac`.

    Raises:
        UserError: the folder cannot be created, or nothing could be synthesised.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"cannot be made ({error.strerror})", where=folder, remedy="Choose another folder"
        ) from None
    cuts: list[MonoCut] = []
    rejected: list[Rejected] = []
    for index, text in enumerate(texts):
        name = f"{prefix}-{index:05d}"
        generator = np.random.default_rng([*seed, index])
        try:
            cuts.append(_utterance(name, text, voices[index % len(voices)], folder, generator, conditions))
        except BadUtterance as error:
            rejected.append(Rejected(name, str(error)))
        if progress:
            progress(index + 1, len(texts))
    return checked(cuts, rejected, folder)


def split_text(path: Path, counts: dict[str, int], seed: int) -> dict[str, list[str]]:
    """Distinct sentences of a text file, shuffled and divided; fewer than requested are divided proportionally.

    Lines that differ only in case or spacing are the same sentence.

    Raises:
        UserError: not readable as UTF-8, or fewer sentences than splits.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", where=path) from None
    except UnicodeDecodeError as error:
        raise UserError(f"not UTF-8 at byte {error.start}", where=path, remedy="Save it as UTF-8") from None
    distinct: dict[str, str] = {}
    for line in lines:
        sentence = " ".join(line.split())
        if sentence:
            distinct.setdefault(sentence.casefold(), sentence)
    wanted = [name for name, count in counts.items() if count]
    if len(distinct) < len(wanted):
        raise UserError(
            f"{len(distinct)} distinct sentences cannot be divided into {', '.join(wanted)}",
            where=path,
            remedy="Write one sentence per line, and more of them",
        )
    sizes = _shares(len(distinct), counts)
    sentences = list(distinct.values())
    order = np.random.default_rng(seed).permutation(len(sentences))
    drawn = iter([sentences[index] for index in order])
    return {name: [next(drawn) for _ in range(size)] for name, size in sizes.items()}


def _shares(available: int, counts: dict[str, int]) -> dict[str, int]:
    asked = sum(counts.values())
    if available >= asked:
        return dict(counts)
    sizes = {name: max(1, available * count // asked) if count else 0 for name, count in counts.items()}
    sizes["train"] = available - sum(size for name, size in sizes.items() if name != "train")
    return sizes


def voice_names(
    voices: int | Sequence[str],
    language: str = "english",
    among: Mapping[str, Sequence[str]] = VOICES,
) -> Sequence[str]:
    """The names of voices, from a synthesiser's voices by language.

    Raises:
        UserError: there are fewer voices.
    """
    if not isinstance(voices, int):
        if not voices:
            raise UserError("there is no voice", remedy="Name at least one, such as en-us+m3")
        return voices
    known = among[language]
    if not 1 <= voices <= len(known):
        raise UserError(f"{voices} voices of {language}", remedy=f"Choose 1 to {len(known)}")
    return known[:voices]


def _utterance(
    name: str, text: str, voice: str, folder: Path, generator: np.random.Generator, conditions: Conditions
) -> MonoCut:
    low, high = conditions.rate
    speech = espeak.speak(
        text,
        voice,
        rate=int(generator.integers(low, high, endpoint=True)),
        pitch=int(generator.integers(*conditions.pitch, endpoint=True)),
        seed=int(generator.integers(1, 2**31)),
    )
    if not speech.words:
        raise BadUtterance(f"nothing to synthesise in '{text}'", where=name)
    samples, lead = render(speech.samples, generator, conditions)
    path = folder / f"{name}.flac"
    soundfile.write(path, samples, SAMPLING_RATE, subtype="PCM_16")
    cut = make_cut(name, open_recording(name, path), text, voice)
    cut.supervisions[0].alignment = {"word": [_item(word, lead) for word in speech.words]}
    return cut


def render(
    speech: NDArray[np.int16], generator: np.random.Generator, conditions: Conditions
) -> tuple[NDArray[np.float64], float]:
    """Samples at 16 kHz from 22,050 Hz, with silence, loudness and noise, and the seconds before the speech.

    The resampling filter has no delay, so that times only shift by the silence in front.
    """
    return in_a_room(resample_poly(speech.astype(np.float64), 320, 441), generator, conditions)  # to 16,000


def in_a_room(
    clean: NDArray[np.float64], generator: np.random.Generator, conditions: Conditions
) -> tuple[NDArray[np.float64], float]:
    """The same for samples at 16 kHz of any loudness."""
    clean = clean * (10 ** (generator.uniform(*conditions.peak) / 20) / np.abs(clean).max())
    before, after = (int(generator.uniform(*conditions.silence) * SAMPLING_RATE) for _ in range(2))
    power = np.mean(clean**2) / 10 ** (generator.uniform(*conditions.snr) / 10)
    samples = _noise(before + len(clean) + after, generator) * np.sqrt(power)
    samples[before : before + len(clean)] += clean
    return np.clip(samples, -1.0, 1.0 - 2.0**-15), before / SAMPLING_RATE


def _noise(length: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """White or pink noise of power 1; pink falls by 3 dB per octave above 20 Hz."""
    if generator.random() < 0.5:
        return generator.standard_normal(length)
    size = next_fast_len(length, real=True)
    bins = size // 2 + 1
    spectrum = generator.standard_normal(bins) + 1j * generator.standard_normal(bins)
    spectrum /= np.sqrt(np.maximum(np.arange(bins) * SAMPLING_RATE / size, 20.0))
    spectrum[0] = 0.0
    noise = irfft(spectrum, size)[:length]
    return noise / np.sqrt(np.mean(noise**2))


def _item(word: TimedWord, lead: float) -> AlignmentItem:
    start, end = (round(time + lead, 4) for time in (word.start, word.end))
    return AlignmentItem(word.text, start, round(end - start, 4))
