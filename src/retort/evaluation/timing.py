"""How well fire times mark the ends of words, where the data say when each word was spoken."""

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
"""lhotse's name for the alignment of a supervision that holds its words."""

WordEnd = tuple[str, float]
"""A word and its end, seconds from the start of the cut."""


@dataclass(frozen=True)
class WordTiming:
    """Ends of the words that were recognised right, against their true ends.

    Attributes:
        errors: `(N,)` float64, seconds by which the last token of a word fired after the word ended.
        words: in the references whose word boundaries are known.
        unknown: utterances left out, for their boundaries are missing or of another text.
    """

    errors: NDArray[np.float64]
    words: int
    unknown: int = 0

    @property
    def median(self) -> float | None:
        """Of the absolute errors, seconds; None if no word was recognised."""
        return float(np.median(np.abs(self.errors))) if self.errors.size else None

    @property
    def delay(self) -> float | None:
        """The median of the errors with their sign, seconds: above zero, fires come late."""
        return float(np.median(self.errors)) if self.errors.size else None


def word_timing(
    cuts: Iterable[Cut], heard: Mapping[str, Sequence[WordEnd]], normalise: Callable[[str], str]
) -> WordTiming:
    """Compare recognised word ends with the alignment `word` of the cuts' supervisions.

    The words of reference and hypothesis are aligned with the fewest edits; those that agree are timed.

    Args:
        cuts: each with one supervision.
        heard: by cut id, the recognised words in order; of a cut without an entry nothing was recognised.
        normalise: of the recogniser; applied to the words of both sides.
    """
    errors: list[float] = []
    words = unknown = 0
    for cut in cuts:
        supervision = cut.supervisions[0]
        items = (supervision.alignment or {}).get(WORD, [])
        said = _normalised([(item.symbol, item.end) for item in items], normalise)
        if not items or _joined(said) != normalise(supervision.text or "").replace(" ", ""):
            unknown += 1
            continue
        words += len(said)
        errors += _errors(said, _normalised(heard.get(cut.id, ()), normalise))
    return WordTiming(np.array(errors, dtype=np.float64), words, unknown)


def read_word_ends(path: Path) -> dict[str, list[WordEnd]]:
    """The recognised words of a `hyp.jsonl`, by utterance id.

    Raises:
        UserError: it cannot be read, or holds no words with times.
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
        raise UserError(f"not recognised words with times ({reason})", where=path, remedy=_REMEDY) from None


_REMEDY = "Write it with `retort evaluate`"

_Timed = tuple[str, float | None]


def _errors(said: Sequence[_Timed], heard: Sequence[_Timed]) -> list[float]:
    """Seconds by which words that agree ended too late in `heard`."""
    errors: list[float] = []
    first = second = 0
    for reference, hypothesis in alignment(_spaced(said), _spaced(heard)):
        if reference and reference == hypothesis:
            true, found = said[first][1], heard[second][1]
            if true is not None and found is not None:
                errors.append(found - true)
        first += bool(reference)
        second += bool(hypothesis)
    return errors


def _normalised(words: Iterable[WordEnd], normalise: Callable[[str], str]) -> list[_Timed]:
    """The words as they are scored; one that becomes several has a known end for the last of them only."""
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
