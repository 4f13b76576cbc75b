"""Accuracy of word ends from fire times, for data with word alignments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from lhotse.cut import Cut
from numpy.typing import NDArray

from retort.common.errors import UserError
from retort.common.json_reader import parse_json
from retort.evaluation.scoring import alignment

WORD = "word"
"""lhotse's key of the word alignment of a supervision."""

WordEnd = tuple[str, float]
"""A word and its end, seconds from the start of the cut."""


@dataclass(frozen=True)
class WordTiming:
    """Ends of correctly recognised words, compared with their true ends.

    Attributes:
        errors: `(N,)` float64, seconds from the end of a word to the fire of its last token.
        words: number of words of references with word boundaries.
        unknown: number of utterances without boundaries, or with those of another text.
    """

    errors: NDArray[np.float64]
    words: int
    unknown: int = 0

    @property
    def median(self) -> float | None:
        """Median absolute error in seconds; None if no word was recognised."""
        return float(np.median(np.abs(self.errors))) if self.errors.size else None

    @property
    def delay(self) -> float | None:
        """Median signed error in seconds; positive if fires are late."""
        return float(np.median(self.errors)) if self.errors.size else None


def word_timing(
    cuts: Iterable[Cut], recognised: Mapping[str, Sequence[WordEnd]], normalise: Callable[[str], str]
) -> WordTiming:
    """Compare recognised word ends with the alignment `word` of the cuts' supervisions.

    Words of reference and hypothesis are aligned with the fewest edits; matching words are compared.

    Args:
        cuts: cuts with one supervision each.
        recognised: recognised words in order, by cut id; a cut without an entry has none.
        normalise: normaliser of the recogniser, applied to both sides.
    """
    errors: list[float] = []
    words = unknown = 0
    for cut in cuts:
        supervision = cut.supervisions[0]
        items = (supervision.alignment or {}).get(WORD, [])
        references = _normalised([(item.symbol, item.end) for item in items], normalise)
        if not items or _joined(references) != normalise(supervision.text or "").replace(" ", ""):
            unknown += 1
            continue
        words += len(references)
        errors += _errors(references, _normalised(recognised.get(cut.id, ()), normalise))
    return WordTiming(np.array(errors, dtype=np.float64), words, unknown)


def read_word_ends(path: Path) -> dict[str, list[WordEnd]]:
    """The recognised words of a `hyp.jsonl`, by utterance id.

    Raises:
        UserError: it cannot be read or has no words with times.
    """
    try:
        lines = [parse_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
        return {
            str(line["id"]): [(str(text), float(end)) for text, _, end in line["words"]] for line in lines
        }
    except OSError as error:
        raise UserError(f"cannot be read ({error.strerror or error})", where=path, remedy=_REMEDY) from None
    except (ValueError, KeyError, TypeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise UserError(f"it has no recognised words with times ({reason})", where=path, remedy=_REMEDY) from None


_REMEDY = "Write it with `retort evaluate`"

_Timed = tuple[str, float | None]


def _errors(references: Sequence[_Timed], recognised: Sequence[_Timed]) -> list[float]:
    """Differences of the ends of matching words in seconds, positive if late."""
    errors: list[float] = []
    first = second = 0
    for reference, hypothesis in alignment(_spaced(references), _spaced(recognised)):
        if reference and reference == hypothesis:
            true, found = references[first][1], recognised[second][1]
            if true is not None and found is not None:
                errors.append(found - true)
        first += bool(reference)
        second += bool(hypothesis)
    return errors


def _normalised(words: Iterable[WordEnd], normalise: Callable[[str], str]) -> list[_Timed]:
    """Normalised words; if one becomes several, only the last of them has a known end."""
    result: list[_Timed] = []
    for text, end in words:
        parts = normalise(text).split()
        result += [(part, None) for part in parts[:-1]]
        result += [(part, end) for part in parts[-1:]]
    return result


def _spaced(words: Sequence[_Timed]) -> str:
    return " ".join(text for text, _ in words)


def _joined(words: Sequence[_Timed]) -> str:
    return "".join(text for text, _ in words)
