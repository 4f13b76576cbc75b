"""LG: lexicon and grammar composed, determinised and minimised."""

from __future__ import annotations

import gzip
import hashlib
import json
import math
import subprocess
import sys
import tempfile
import zlib
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np

from retort.common.errors import UserError
from retort.common.files import LONGEST_TEXT, lines_up_to
from retort.graph.fst import FINER, Fst, join, to_openfst, wheel

_START, _END, _BACKOFF = "<s>", "</s>", "#0"
_RESERVED = {_START, _END, _BACKOFF, "<eps>", "<unk>", "<UNK>"}
_REMEDY = "Make the file again"


def words_of(arpa: Path) -> list[str]:
    """The words of an ARPA file, in its order, without sentence ends and the unknown word.

    Raises:
        UserError: the file cannot be read, or has no words.
    """
    words: list[str] = []
    inside = False
    try:
        with opened(arpa) as file:
            for line in lines_up_to(LONGEST_TEXT, file, arpa):
                text = line.rstrip(b"\r\n").decode()
                if text.startswith("\\"):
                    if inside:
                        break
                    inside = text.startswith("\\1-grams:")
                elif inside:
                    fields = [each for each in text.replace("\t", " ").split(" ") if each]
                    words += fields[1:2]
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise UserError(f"cannot be read ({error})", where=arpa, remedy=_REMEDY) from None
    words = [word for word in dict.fromkeys(words) if word not in _RESERVED]
    if not words:
        raise UserError("it contains no words", where=arpa, remedy="Give an ARPA file")
    return words


def grammar_fst(arpa: Path, words: Sequence[str]) -> Any:
    """The language model as a `StdVectorFst`, sorted by input: word i has label i + 1; the last label + 1 is back-off.

    N-grams with other words or the unknown word are left out.

    Raises:
        UserError: the file is broken.
    """
    kaldifst = wheel("kaldifst")
    wheel("kaldilm")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        symbols = ["<eps>", *words, _BACKOFF, _START, _END]
        lines = "".join(f"{symbol} {label}\n" for label, symbol in enumerate(symbols))
        (folder / "words.txt").write_text(lines, encoding="utf-8")
        with opened(arpa) as packed, (folder / "arpa").open("wb") as plain:
            plain.writelines(lines_up_to(LONGEST_TEXT, packed, arpa))
        # A separate process, because the library writes its log to the terminal regardless of Python's
        # stderr.
        done = subprocess.run(
            [
                *(sys.executable, "-m", "kaldilm", f"--disambig-symbol={_BACKOFF}", "--max-arpa-warnings=0"),
                *("--read-symbol-table=words.txt", "arpa", "grammar.fst"),
            ],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        if done.returncode or not (folder / "grammar.fst").exists():
            errors = [
                line for line in done.stderr.decode(errors="replace").splitlines() if line.startswith("[E]")
            ]
            reason = errors[-1].removeprefix("[E]").strip() if errors else f"kaldilm ended with {done.returncode}"
            raise UserError(f"a graph cannot be built from it ({reason})", where=arpa, remedy=_REMEDY)
        return kaldifst.StdVectorFst.read(str(folder / "grammar.fst"))


def opened(path: Path) -> IO[bytes]:
    """Open an ARPA file, compressed or not."""
    return cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


Spellings = Sequence[tuple[int, tuple[int, ...]]]
"""Pairs of a word's label and a pronunciation in labels of units."""


def disambiguate(spellings: Spellings) -> list[int]:
    """Number of the disambiguation symbol of each pronunciation, from 1; 0 if none is needed."""
    times = Counter(units for _, units in spellings)
    beginnings = {units[:length] for units in times for length in range(1, len(units))}
    used: Counter[tuple[int, ...]] = Counter()
    found = []
    for _, units in spellings:
        if times[units] > 1 or units in beginnings:
            used[units] += 1
        found.append(used[units])
    return found


def lexicon_fst(
    spellings: Spellings,
    first_symbol: int,
    backoff: int,
    silence: int | None = None,
    silence_probability: float = 0.5,
    begun: Spellings | None = None,
) -> Fst:
    """Lexicon transducer: any sequence of words, with optional silence at the start and after every word.

    Args:
        spellings: non-empty pronunciations.
        first_symbol: input label of back-off arcs of the grammar; those of :func:`disambiguate` follow.
        backoff: back-off label among the words.
        silence: label of silence; None for units without silence.
        silence_probability: probability of silence at each position, in (0, 1).
        begun: pronunciations of the first word of a sentence, if they differ; not together with silence.
    """
    loop, ends = 0, 1
    rows: list[tuple[int, int, int, float, int]] = [(loop, first_symbol, backoff, 0.0, loop)]
    start, states, without = loop, 1, 0.0
    if silence is not None:
        start, states = 2, 3
        without = -math.log1p(-silence_probability)
        pause = -math.log(silence_probability)
        rows += [(start, 0, 0, without, loop), (start, 0, 0, pause, ends), (ends, silence, 0, 0.0, loop)]
    elif begun is not None:
        start, states = 1, 2
        rows.append((start, first_symbol, backoff, 0.0, start))
    places = [(loop, *each) for each in zip(spellings, disambiguate(spellings))]
    places += [(start, *each) for each in zip(begun or [], disambiguate(begun or []))]
    for place, (word, units), symbol in places:
        labels = [*units, first_symbol + symbol] if symbol else list(units)
        at, word_label = place, word
        for label in labels[:-1]:
            rows.append((at, label, word_label, 0.0, states))
            at, word_label, states = states, 0, states + 1
        rows.append((at, labels[-1], word_label, without, loop))
        if silence is not None:
            rows.append((at, labels[-1], word_label, pause, ends))
    finals = np.full(states, np.inf, np.float32)
    finals[loop] = 0.0
    if begun is not None:
        finals[start] = 0.0
    return Fst(start, finals, *join(tuple(zip(*rows))))


Pronunciations = Mapping[str, Sequence[Sequence[str]]]
WordSpellings = list[list[int]]
"""The pronunciations of a word in numbers of units."""


class LexiconGrammar:
    """The words of a language model with their pronunciations.

    Attributes:
        words: words of the language model that have a pronunciation, in its order.
        spellings: pronunciations of each word in units.
        first: pronunciations at the start of a sentence; None if they are the same.
        left_out: the other words.

    Args:
        lexicon: words to pronunciations; those with a symbol that is not in `units` are left out.
        arpa: the language model.
        units: numbers of the units.
        first: pronunciations at the start of a sentence, if they differ.

    Raises:
        UserError: the ARPA file cannot be read, or no word of it has a pronunciation.
    """

    def __init__(
        self,
        lexicon: Pronunciations,
        arpa: Path,
        units: Mapping[str, int],
        first: Pronunciations | None = None,
    ) -> None:
        self.arpa = arpa
        self.words: list[str] = []
        self.spellings: list[WordSpellings] = []
        self.first: list[WordSpellings] | None = None if first is None else []
        self.left_out: list[str] = []
        for word in words_of(arpa):
            spellings = _in_units(lexicon, word, units)
            begun = spellings if first is None else _in_units(first, word, units)
            if spellings and begun:
                self.words.append(word)
                self.spellings.append(spellings)
                if self.first is not None:
                    self.first.append(begun)
            else:
                self.left_out.append(word)
        if not self.words:
            example = f"'{self.left_out[0]}' is the first"
            raise UserError(
                f"none of its {len(self.left_out):,} words has a pronunciation ({example})",
                where=arpa,
                remedy="Give a lexicon of the same language, spelled in the same case",
            )

    @property
    def all_spellings(self) -> list[WordSpellings]:
        """Pronunciations of each word, including those at the start of a sentence."""
        if self.first is None:
            return self.spellings
        return [
            [*spelled, *(each for each in begun if each not in spelled)]
            for spelled, begun in zip(self.spellings, self.first)
        ]

    def key(self, *rest: Any) -> str:
        """Hash (16 hex digits) of the words, their spellings, the content of the ARPA file and `rest`.

        The compression of the file has no influence.
        """
        rest = rest if self.first is None else (*rest, self.first)
        digest = hashlib.sha256(json.dumps([self.words, self.spellings, *rest]).encode())
        with opened(self.arpa) as file:
            content = hashlib.sha256()
            while block := file.read(1 << 20):
                content.update(block)
        digest.update(content.digest())
        return digest.hexdigest()[:16]

    def fst(
        self, units: int, silence: int | None = None, silence_probability: float = 0.5
    ) -> tuple[Any, list[int]]:
        """The OpenFst transducer: input label unit + 1, output label word number + 1.

        Args:
            units: number of units; the labels of disambiguation symbols follow.
            silence: the unit that may occur at the start and after every word, or None.

        Returns:
            The transducer and the labels of the disambiguation symbols.

        Raises:
            UserError: the ARPA file is invalid.
        """
        kaldifst = wheel("kaldifst")
        spellings = _labelled(self.spellings)
        begun = None if self.first is None else _labelled(self.first)
        first, backoff = units + 1, len(self.words) + 1
        pause = None if silence is None else silence + 1
        lexicon = to_openfst(lexicon_fst(spellings, first, backoff, pause, silence_probability, begun))
        kaldifst.arcsort(lexicon, "olabel")
        found = kaldifst.compose(lexicon, grammar_fst(self.arpa, self.words))
        kaldifst.determinize_star(found, delta=FINER)
        kaldifst.minimize_encoded(found, delta=FINER)
        symbols = max([*disambiguate(spellings), *disambiguate(begun or [])])
        return found, list(range(first, first + 1 + symbols))


def _in_units(lexicon: Pronunciations, word: str, units: Mapping[str, int]) -> WordSpellings:
    """The pronunciations of a word that use only symbols in `units`."""
    found = dict.fromkeys(map(tuple, lexicon[word])) if word in lexicon else {}
    return [[units[unit] for unit in each] for each in found if each and all(u in units for u in each)]


def _labelled(spellings: Sequence[WordSpellings]) -> list[tuple[int, tuple[int, ...]]]:
    return [
        (word, tuple(unit + 1 for unit in each))
        for word, spelled in enumerate(spellings, 1)
        for each in spelled
    ]
