"""Speech with word times from espeak-ng (the library in the wheel `espeakng-loader`), by its C interface.

The interface is the `speak_lib.h` of espeak-ng 1.52. Two properties determine this file. It keeps state: the
noise source, the pitch flutter and the phase of the voice continue from one call to the next and cannot be reset,
so that the library is reloaded for every utterance (under a millisecond); the same arguments then give
the same samples. And it synthesises some pairs of words as one ("in the"), with one
event for both; the start of the second is derived from their phonemes.
"""

from __future__ import annotations

import _ctypes
import atexit
import ctypes
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from retort.common.errors import UserError

SAMPLING_RATE = 22050

_SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: espeak_Synth returns after the synthesis, without playback
_OPTIONS = 0x8001  # espeakINITIALIZE_PHONEME_EVENTS | espeakINITIALIZE_DONT_EXIT
_RATE, _PITCH = 1, 3
_UTF8 = 1
_LIST_END, _WORD, _PHONEME = 0, 1, 7
_LONGEST_PATH = 120
"""The library stores its data path in a buffer of 160 bytes and appends to it."""

_lock = threading.Lock()


class TimedWord(NamedTuple):
    """A whitespace-separated word of the text, and its time in seconds; pauses belong to no word.

    A Han character is a word, a separate punctuation mark is not.
    """

    text: str
    start: float
    end: float


@dataclass
class Speech:
    """Synthesised speech: `samples` (N,) int16 at 22,050 Hz, and the time of every word of the text."""

    samples: NDArray[np.int16]
    words: list[TimedWord]


class _Event(ctypes.Structure):
    _fields_ = (
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("name", ctypes.c_char * 8),
    )


_CALLBACK = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_int, ctypes.POINTER(_Event))


class _Mark(NamedTuple):
    """A word event (`character` counts from 0, `name` is empty) or a phoneme event."""

    is_word: bool
    character: int
    sample: int
    name: str

    @property
    def is_pause(self) -> bool:
        return self.name.startswith("_")


def speak(text: str, voice: str, *, rate: int = 170, pitch: int = 50, seed: int = 1) -> Speech:
    """Synthesise a text.

    Args:
        text: one or several sentences; words are separated by whitespace.
        voice: a voice of espeak-ng with or without a variant after `+`, such as `en-us+m3`.
        rate: words per minute, 80 to 450.
        pitch: 0 to 99; 50 is the default of the voice.
        seed: seed of espeak-ng's noise.

    Raises:
        UserError: espeakng-loader is missing or does not load, or the voice does not exist.
    """
    text = " ".join(text.split())
    chunks: list[bytes] = []
    marks: list[_Mark] = []

    def collect(wave: int | None, count: int, events: Any) -> int:
        if wave and count:
            chunks.append(ctypes.string_at(wave, 2 * count))
        index = 0
        while events[index].type != _LIST_END:
            marks.extend(_mark(events[index]))
            index += 1
        return 0

    callback = _CALLBACK(collect)
    with _lock, _fresh_library() as library:
        library.espeak_SetSynthCallback(callback)
        library.espeak_ng_SetRandSeed(ctypes.c_long(seed))
        _set_voice(library, voice)
        library.espeak_SetParameter(_RATE, rate, 0)
        library.espeak_SetParameter(_PITCH, pitch, 0)
        encoded = text.encode()
        library.espeak_Synth(encoded, ctypes.c_size_t(len(encoded) + 1), 0, 1, 0, _UTF8, None, None)
        words = _word_times(text, marks, sum(map(len, chunks)) // 2, library)
    return Speech(np.frombuffer(b"".join(chunks), np.int16), words)


def _mark(event: _Event) -> Iterator[_Mark]:
    if event.type in (_WORD, _PHONEME):
        name = event.name.decode(errors="replace") if event.type == _PHONEME else ""
        yield _Mark(event.type == _WORD, event.text_position - 1, event.sample, name)


def _word_times(text: str, marks: list[_Mark], samples: int, library: ctypes.CDLL) -> list[TimedWord]:
    """The time of every word: from its first sound to the next word or to the pause before it."""
    words, owners = _owners(text)
    events = [mark for mark in marks if mark.is_word and 0 <= mark.character < len(owners)]
    sounds = [mark.sample for mark in marks if not mark.is_word and not mark.is_pause]
    if not events or not words:
        return []
    anchors = sorted({owners[mark.character] for mark in events} | {0})
    starts: list[int] = []
    for first, last in zip(anchors, anchors[1:] + [len(words)]):
        own = [mark.sample for mark in events if owners[mark.character] == first] or [0]
        if last - first == 1 or len(own) == last - first:
            starts += own[: last - first]  # one event per word, though some are one character early
            continue
        after = min([mark.sample for mark in events if owners[mark.character] >= last] + [samples])
        counts = [len(_phonemes(word, library)) for word in words[first:last]]
        starts += _divide([sound for sound in sounds if own[0] <= sound < after], counts, own[0])
    pauses = [mark.sample for mark in marks if mark.is_pause] + [samples]
    result = []
    for word, start, following in zip(words, starts, starts[1:] + [samples]):
        end = min([following] + [pause for pause in pauses if start < pause])
        result.append(TimedWord(word, start / SAMPLING_RATE, end / SAMPLING_RATE))
    return result


def _owners(text: str) -> tuple[list[str], list[int]]:
    """The pronounceable words, and the index of the word of every character of the text."""
    words: list[str] = []
    owners: list[int] = []
    for token in text.split(" "):
        space = int(bool(owners))  # some events are on the space before their word
        for part in re.findall(r"[\u3400-\u9fff]|[^\u3400-\u9fff]+", token) or [""]:
            if any(character.isalnum() for character in part):
                words.append(part)
            owners += [max(len(words) - 1, 0)] * (len(part) + space)
            space = 0
    return words, owners


def _divide(sounds: list[int], counts: list[int], start: int) -> list[int]:
    """Starts of words that were synthesised as one, from the number of phonemes of each word alone."""
    total = sum(counts)
    result = [start]
    for index in range(1, len(counts)):
        place = round(sum(counts[:index]) * len(sounds) / total) if total else 0
        result.append(sounds[min(place, len(sounds) - 1)] if sounds else start)
    return result


def phonemes(words: Sequence[str], voice: str) -> list[list[str]]:
    """Pronunciations of isolated words: espeak-ng's phoneme names, with stress marks before them.

    Raises:
        UserError: as :func:`speak`.
    """
    with _lock, _fresh_library() as library:
        _set_voice(library, voice)
        return [_phonemes(word, library) for word in words]


def _set_voice(library: ctypes.CDLL, voice: str) -> None:
    if library.espeak_SetVoiceByName(voice.encode()) != 0:
        raise UserError(
            f"espeak-ng has no voice '{voice}'", remedy="Choose one such as en-us+m3 or en-gb-x-rp+f2"
        )


def _phonemes(word: str, library: ctypes.CDLL) -> list[str]:
    library.espeak_TextToPhonemes.restype = ctypes.c_char_p
    separated_by_underscore = ord("_") << 8
    pointer = ctypes.c_char_p(word.encode())
    phonemes = library.espeak_TextToPhonemes(ctypes.byref(pointer), _UTF8, separated_by_underscore) or b""
    names = phonemes.decode(errors="replace").replace(" ", "_").split("_")
    return [name for name in names if name]


@contextmanager
def _fresh_library() -> Iterator[ctypes.CDLL]:
    path, data = _library_paths()
    try:
        library = ctypes.CDLL(path)
    except OSError as error:
        raise UserError(f"cannot load espeak-ng ({error})", where=path, remedy=_REMEDY) from None
    try:
        if library.espeak_Initialize(_SYNCHRONOUS, 0, data.encode(), _OPTIONS) != SAMPLING_RATE:
            raise UserError("espeak-ng does not find its data", where=data, remedy=_REMEDY)
        yield library
        library.espeak_Terminate()
    finally:
        _unload(library)


def _unload(library: ctypes.CDLL) -> None:
    close = getattr(_ctypes, "dlclose", None) or getattr(_ctypes, "FreeLibrary")  # noqa: B009 (Windows only)
    close(library._handle)


_REMEDY = "Run: pip install 'retort-asr[demo]'"


@cache
def _library_paths() -> tuple[str, str]:
    """The shared library and a path of its data that fits into the library's buffer."""
    try:
        import espeakng_loader
    except ImportError:
        raise UserError(
            "speech is synthesised by espeakng-loader, which is not installed", remedy=_REMEDY
        ) from None
    data = Path(espeakng_loader.get_data_path())
    return espeakng_loader.get_library_path(), str(_shortened(data))


def _shortened(data: Path) -> Path:
    if len(os.fsencode(data)) <= _LONGEST_PATH:
        return data
    folder = Path(tempfile.mkdtemp(prefix="espeak-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    link = folder / "espeak-ng-data"
    link.symlink_to(data, target_is_directory=True)
    return link
