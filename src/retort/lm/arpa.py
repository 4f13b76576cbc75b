"""N-gram models as ARPA files."""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import IO, NamedTuple, cast

import numpy as np
from numpy.typing import NDArray

from retort.common.errors import UserError
from retort.common.files import LONGEST_TEXT, lines_up_to, write_whole
from retort.lm.causal import BARRED, IMPOSSIBLE
from retort.lm.ngram import NgramTable
from retort.text.tokenizers import EOS, UNKNOWN

_START, _END, _UNKNOWN = "<s>", "</s>", "<unk>"
_UNKNOWNS = (_UNKNOWN, "<UNK>")
_LN10 = math.log(10.0)
_NEVER = -99.0
"""log10 probability of impossible words, as in files of other tools."""
_REMEDY = "Make the file again"


def write_arpa(table: NgramTable, symbols: Sequence[str], path: Path) -> None:
    """Write a model atomically, compressed if the name ends in `.gz`; deterministic.

    Args:
        symbols: symbols by id, without spaces, tabs and line breaks.
    """
    names = [*symbols[:EOS], _START, _UNKNOWN, *symbols[UNKNOWN + 1 :]]
    log_probs, backoffs = table.log_probs / _LN10, table.backoffs / _LN10
    texts, start = np.array([""], dtype=object), 0
    content = io.BytesIO()
    with (
        gzip.GzipFile("", "wb", 6, content, mtime=0) if path.suffix == ".gz" else nullcontext(content) as file
    ):
        counts = [table.counts[0] + 1 - len(BARRED), *table.counts[1:]]
        lines = [f"ngram {order}={count}" for order, count in enumerate(counts, 1)]
        file.write("\n".join(["", "\\data\\", *lines, ""]).encode())
        for order, count in enumerate(table.counts, 1):
            numbers = slice(start, start + count)
            node, words = np.divmod(table.keys[numbers], table.vocabulary)
            histories = texts[node - (start - len(texts) + 1 if order > 1 else 0)]
            texts = np.array(
                [f"{history} {names[word]}" for history, word in zip(histories, words)], dtype=object
            )
            file.write(f"\n\\{order}-grams:\n".encode())
            for text, word, log_prob, backoff in zip(
                texts, words.tolist(), log_probs[numbers].tolist(), backoffs[numbers].tolist()
            ):
                if order == 1 and word in BARRED:
                    continue
                tail = f"\t{backoff:.7g}\n" if order < table.order else "\n"
                if word == EOS:
                    if order == 1:
                        file.write(f"{_NEVER:g}\t{_START}{tail}".encode())
                    text, tail = text[: -len(_START)] + _END, "\n"
                file.write(f"{log_prob:.7g}\t{text[1:]}{tail}".encode())
            start += count
        file.write(b"\n\\end\\\n")
    write_whole(path, content.getvalue())


def read_arpa(path: Path, symbols: Sequence[str]) -> tuple[NgramTable, int]:
    """Read a model for a vocabulary.

    A word that is not in the file has the probability of its `<unk>`; n-grams with words that are not in the
    vocabulary are left out.

    Returns:
        The table and the number of n-grams that were left out.

    Raises:
        UserError: the file cannot be read, is not an ARPA file, is truncated, or has an n-gram without its
            history.
    """
    ids = {symbol: number for number, symbol in enumerate(symbols) if number > UNKNOWN}
    ids |= {_START: EOS, _END: EOS, **dict.fromkeys(_UNKNOWNS, UNKNOWN)}
    counts: list[int] = []
    parts: list[tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]] = []
    nodes = np.zeros(0, np.int64)  # keys of all n-grams so far
    left_out = 0
    for section in _sections(path, ids):
        left_out += section.left_out
        if section.order == 1:
            part = _unigrams(section, len(symbols))
        else:
            part = _longer(section, nodes, len(symbols), path)
        parts.append(part)
        counts.append(len(part[0]))
        nodes = np.concatenate((nodes, part[0]))
    if not counts:
        raise UserError("it contains no n-grams", where=path, remedy="Give an ARPA file")
    log_probs, backoffs = (np.concatenate([part[each] for part in parts]) for each in (1, 2))
    return NgramTable(len(symbols), counts, nodes, log_probs, backoffs), left_out


def arpa_words(path: Path) -> list[str]:
    """The words of a model, in the order of the file, without sentence marks and `<unk>`.

    Raises:
        UserError: the file cannot be read, or is not an ARPA file.
    """
    words: list[str] = []
    with _open(path) as file:
        lines = _lines(file, path)
        if not any(line.startswith("\\1-grams:") for line in lines):
            raise UserError("it contains no n-grams", where=path, remedy="Give an ARPA file")
        for line in lines:
            if line.startswith("\\"):
                break
            if len(fields := line.split()) > 1:
                words.append(fields[1])
    return [word for word in words if word not in (_START, _END, *_UNKNOWNS)]


class _Section(NamedTuple):
    """N-grams of one order: words `(K, order)`, natural logarithms, and the number of n-grams that were left out.

    The log-probability of the start of a sentence is NaN.
    """

    order: int
    words: NDArray[np.int64]
    log_probs: NDArray[np.float32]
    backoffs: NDArray[np.float32]
    left_out: int


_Part = tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]


def _sections(path: Path, ids: dict[str, int]) -> Iterator[_Section]:
    """Read the sections in order."""
    with _open(path) as file:
        lines = enumerate(_lines(file, path), 1)
        announced: dict[int, int] = {}
        for _, line in lines:
            if line.startswith("\\1-grams:"):
                break
            if line.startswith("ngram ") and "=" in line:
                order, _, count = line.removeprefix("ngram ").partition("=")
                announced[_number(order, path)] = _number(count, path)
        for size, expected in sorted(announced.items()):
            section, read = _section(lines, size, ids, path)
            if read != expected:
                raise UserError(
                    f"it has {read:,} n-grams of order {size}, but its header states {expected:,}",
                    where=path,
                    remedy=_REMEDY,
                )
            yield section


def _section(
    lines: Iterator[tuple[int, str]], order: int, ids: dict[str, int], path: Path
) -> tuple[_Section, int]:
    """Read the n-grams up to and including the next heading; also returns their number."""
    words: list[int] = []
    log_probs: list[float] = []
    backoffs: list[float] = []
    read = left_out = 0
    for place, line in lines:
        if line.startswith("\\"):
            break
        # Not split(): symbols may contain other white space.
        fields = [each for each in line.replace("\t", " ").split(" ") if each]
        if not fields:
            continue
        read += 1
        names = fields[1 : 1 + order]
        try:
            log_prob = float(fields[0])
            backoff = float(fields[1 + order]) if len(fields) > 1 + order else 0.0
            if len(names) < order:
                raise ValueError
        except ValueError:
            raise UserError(f"line {place} is not an n-gram of order {order}", where=path, remedy=_REMEDY) from None
        row = [ids.get(each, -1) for each in names]
        if -1 in row or _END in names[:-1] or _START in names[1:]:
            left_out += 1
            continue
        words += row
        log_probs.append(math.nan if names == [_START] else log_prob)
        backoffs.append(backoff)
    else:
        raise UserError("it is truncated", where=path, remedy=_REMEDY)
    rows = np.array(words, np.int64).reshape(-1, order)
    return _Section(order, rows, _natural(log_probs), _natural(backoffs), left_out), read


def _unigrams(section: _Section, vocabulary: int) -> _Part:
    """All ids in order; EOS has the probability of the end and the back-off of the start."""
    words, log_probs = section.words[:, 0], section.log_probs
    start = np.isnan(log_probs)
    unknown = log_probs[words == UNKNOWN]
    filled = np.full(vocabulary, unknown[0] if len(unknown) else IMPOSSIBLE, np.float32)
    filled[[*BARRED, EOS]] = IMPOSSIBLE
    filled[words[~start]] = log_probs[~start]
    backed = np.zeros(vocabulary, np.float32)
    histories = start | (words != EOS)
    backed[words[histories]] = section.backoffs[histories]
    return np.arange(vocabulary), filled, backed


def _longer(section: _Section, keys: NDArray[np.int64], vocabulary: int, path: Path) -> _Part:
    """N-grams of order 2 or higher, whose histories are in `keys`."""
    nodes = np.zeros(len(section.words), np.int64)
    for word in section.words.T[:-1]:
        wanted = nodes * vocabulary + word
        at = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
        if (keys[at] != wanted).any():
            raise UserError(
                f"it has n-grams of order {section.order} without their histories",
                where=path,
                remedy=_REMEDY,
            )
        nodes = at + 1
    own, first = np.unique(nodes * vocabulary + section.words[:, -1], return_index=True)
    return own, section.log_probs[first], section.backoffs[first]


def _natural(values: list[float]) -> NDArray[np.float32]:
    """Convert log10 to natural logarithms; impossible words get `IMPOSSIBLE`."""
    found = np.array(values)
    return np.where(found <= _NEVER, IMPOSSIBLE, found * _LN10).astype(np.float32)


def _number(text: str, path: Path) -> int:
    try:
        return int(text)
    except ValueError:
        raise UserError(f"'{text.strip()}' is not a number", where=path, remedy=_REMEDY) from None


def _lines(file: IO[bytes], path: Path) -> Iterator[str]:
    try:
        for line in lines_up_to(LONGEST_TEXT, file, path):
            yield line.rstrip(b"\r\n").decode()
    except (UnicodeDecodeError, gzip.BadGzipFile, EOFError, OSError, zlib.error) as error:
        raise UserError(f"cannot be read ({error})", where=path, remedy=_REMEDY) from None


def _open(path: Path) -> IO[bytes]:
    try:
        return cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb")
    except OSError as error:
        raise UserError(f"cannot be opened ({error.strerror or error})", where=path) from None
