"""English pronunciations for words missing in a lexicon: pocketsphinx's dictionary, then espeak-ng's rules.

Both are optional packages. The phones are the 39 of the CMU dictionary, without stress.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path

from retort.common.errors import UserError
from retort.corpora.espeak import phonemes
from retort.text.lexicon import Lexicon, Pronunciation, read_lexicon
from retort.text.normalise import recase

# The phonemes of espeak-ng 1.52's voice en-us for English words.
_VOWELS = """
0 AA, 02 AA, A: AA, aa AE, a AE, a# AH, A@ AA R, O AO, O: AO, O2 AA, O@ AO R, o@ AO R, o OW, oU OW, E EH, e EH, e@ EH R,
eI EY, I IH, I2 IH, I# IH, i IY, i: IY, i@ IY AH, i@3 IH R, U UH, U@ UH R, u UW, u: UW, V AH, @ AH, @2 AH, @5 AH, @- AH,
3 ER, 3: ER, aI AY, aI@ AY AH, aI3 AY ER, aU AW, aU@ AW ER, OI OY, A~ AA N, O~ AO N
"""
_CONSONANTS = """
p P, b B, t T, t2 T, t# T, d D, d# D, k K, g G, tS CH, dZ JH, f F, v V, T TH, D DH, s S, z Z, S SH, Z ZH, h HH, x K, m M,
n N, n- AH N, m- AH M, N NG, l L, l/ L, @L AH L, r R, r- R, r/ R, j Y, w W, ? T
"""
_ARPABET: dict[str, Pronunciation] = {
    name: tuple(phones)
    for name, *phones in (entry.split() for entry in f"{_VOWELS},{_CONSONANTS}".split(",") if entry.strip())
}
_SPELT = re.compile(r"(?=.*[A-Za-z])[A-Za-z']+")
_MARKS = re.compile(r"^[',%=|]+")
_LINKS = {"", ";", "-"}
"""Marks that are not phonemes: glides between vowels, syllable boundaries."""


def with_english(lexicon: Lexicon, words: Iterable[str], phones: Iterable[str], *, case: str) -> Lexicon:
    """Extend a lexicon by English pronunciations of missing `words`: from pocketsphinx's dictionary if it is
    installed, otherwise from espeak-ng's rules. Words unknown to both are not added.

    Args:
        phones: phones of the system; pronunciations with other phones are ignored.
        case: case of the words: `upper`, `lower` or `keep`.

    Raises:
        UserError: espeakng-loader is required but not installed.
    """
    known = set(phones)

    def lacking(lexicon: Lexicon) -> list[str]:
        return [word for word in words if not any(known.issuperset(way) for way in lexicon.get(word, ()))]

    words = list(dict.fromkeys(words))
    if (missing := lacking(lexicon)) and find_spec("pocketsphinx"):
        dictionary = pocketsphinx_lexicon(case=case)
        lexicon = Lexicon({**lexicon, **{word: dictionary[word] for word in missing if word in dictionary}})
        missing = lacking(lexicon)
    return Lexicon({**lexicon, **espeak_pronunciations(missing)}) if missing else lexicon


def pocketsphinx_lexicon(*, case: str = "upper") -> Lexicon:
    """The English dictionary inside the wheel `pocketsphinx`: some 126,000 words.

    Args:
        case: case of its words: `upper`, `lower` or `keep`.

    Raises:
        UserError: pocketsphinx is not installed.
    """
    found = find_spec(
        "pocketsphinx"
    )  # located without import: its models and audio devices are not needed
    if found is None or found.origin is None:
        raise UserError(
            "the English dictionary is pocketsphinx's, which is not installed",
            remedy="Run: pip install 'retort-asr[hybrid]'",
        )
    read = read_lexicon(Path(found.origin).parent / "model" / "en-us" / "cmudict-en-us.dict")
    entries: dict[str, list[Pronunciation]] = {}
    for word, pronunciations in read.items():
        entries.setdefault(recase(word, case), []).extend(pronunciations)
    return Lexicon(entries)


def espeak_pronunciations(words: Iterable[str]) -> dict[str, list[Pronunciation]]:
    """Pronunciations of isolated English words by espeak-ng.

    A word is omitted if it has characters other than a to z and apostrophes, which espeak-ng would
    spell out, or if its pronunciation has a phoneme that English lacks.

    Raises:
        UserError: espeakng-loader is not installed.
    """
    asked = [word for word in dict.fromkeys(words) if _SPELT.fullmatch(word)]
    found: dict[str, list[Pronunciation]] = {}
    # It spells out upper-case words as abbreviations.
    for word, sounds in zip(asked, phonemes([word.lower() for word in asked], "en-us")):
        names = [name for sound in sounds if (name := _MARKS.sub("", sound)) not in _LINKS]
        if names and all(name in _ARPABET for name in names):
            phones = [phone for name in names for phone in _ARPABET[name]]
            # R-coloured vowels include an R, which espeak-ng repeats before another vowel.
            repeated = [pair == ("R", "R") for pair in pairwise(["", *phones])]
            found[word] = [tuple(phone for phone, again in zip(phones, repeated) if not again)]
    return found
