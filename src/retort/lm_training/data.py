"""The text of a language model: normalised, pronounced if it is over units, without what is held out, cut into pieces
once and for all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from retort.common.checksums import verify
from retort.common.errors import UserError
from retort.common.locks import one_at_a_time
from retort.config.schema import NormaliserConfig
from retort.corpora.sentences import Sentences
from retort.engine.folder import save_whole
from retort.lm.config import LmRecipe
from retort.lm.pieces import Cutter, PieceMix, PieceStore
from retort.lm_training.units import UnitTexts, open_units
from retort.text.normalise import Normaliser

Progress = Callable[[str, int, int], None]


AS_IT_IS = NormaliserConfig(form="none", case="keep", punctuation="keep", kept="")
"""Of texts of units, whose symbols are what they are."""


@dataclass(frozen=True)
class LmText:
    """What a recipe's text says, as the model reads it: normalised, or as units.

    Attributes:
        sources: with how often an epoch goes through each.
        held_out: distinct texts that are never learned from.
        normalise: what makes a text one that the model reads; of a model over units it changes nothing.
        words: what made sentences of the sources' lines.
        units: what makes texts of units of sentences; None of a model over text.
    """

    sources: list[tuple[Sentences, int]]
    held_out: list[str]
    normalise: Normaliser
    words: Normaliser
    units: UnitTexts | None = None

    def sentences(self) -> Iterator[str]:
        """All texts that may be learned from, each source once."""
        return (sentence for source, _ in self.sources for sentence in self.training(source))

    def training(self, source: Sentences) -> Iterator[str]:
        """The texts of one source that may be learned from."""
        held_out = set(self.held_out)
        for text in read_texts(source, self.words, self.units):
            if text and text not in held_out:
                yield text


def open_text(
    recipe: LmRecipe,
    folder: Path | None = None,
    progress: Progress = lambda stage, done, total: None,
) -> LmText:
    """Find the recipe's text and read what it holds out.

    Args:
        folder: of the experiment, where pronunciations are kept; see :func:`open_units`.

    Raises:
        UserError: as :class:`Sentences` and :func:`open_units`, or nothing is left of what is held out.
    """
    words = Normaliser(recipe.normaliser)
    sources = [(Sentences(each.source), each.repeat) for each in recipe.text]
    held_out = [Sentences(source) for source in recipe.held_out]
    units = None
    if recipe.units.unit:

        def sentences() -> Iterator[str]:
            return (words(line) for source in [*held_out, *(each for each, _ in sources)] for line in source)

        units = open_units(recipe, sentences, folder, partial(_tell, progress, "pronunciations"))
    read = (text for source in held_out for text in read_texts(source, words, units))
    texts = [text for text in dict.fromkeys(read) if text]
    if not texts:
        kept = "the normaliser keeps" if units is None else "can be pronounced"
        raise UserError(f"held_out has no text that {kept}", where=recipe.name)
    return LmText(sources, texts, words if units is None else Normaliser(AS_IT_IS), words, units)


def read_texts(source: Sentences, words: Normaliser, units: UnitTexts | None) -> Iterator[str]:
    """What a model reads of each line; empty where nothing is left of it, or where it cannot be pronounced."""
    for line in source:
        sentence = words(line)
        yield sentence if units is None else units(sentence)


def open_pieces(recipe: LmRecipe, text: LmText, cutter: Cutter, cache: Path, progress: Progress) -> PieceMix:
    """The training text as pieces; a source that was not cut by these settings before is cut now, into `cache`.

    Raises:
        UserError: as :meth:`PieceStore.write`.
    """
    stores = []
    for source, _ in text.sources:
        identity = {
            "source": source.fingerprint(),
            "held_out": hashlib.sha256("\n".join(sorted(text.held_out)).encode()).hexdigest(),
            "normaliser": asdict(recipe.normaliser),
            **({} if text.units is None else {"units": text.units.fingerprint}),
            **cutter.identity,
        }
        folder = cache / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        with one_at_a_time(cache / f"{folder.name}.lock"):
            if _is_whole(folder):
                stores.append(PieceStore(folder))
                continue
            tell = partial(_tell, progress, f"pieces of {source.path.name}")
            cut = partial(
                PieceStore.write,
                sentences=text.training(source),
                cutter=cutter,
                progress=tell,
            )
            save_whole(cut, folder)
            stores.append(PieceStore(folder))
    return PieceMix(stores, [repeat for _, repeat in text.sources])


def _is_whole(folder: Path) -> bool:
    """Whether what was cut before is there as it was written; if not, it is cut again."""
    try:
        verify(folder, remedy="")
        return folder.exists() and len(PieceStore(folder)) > 0
    except (UserError, OSError, ValueError, EOFError):
        return False


def _tell(progress: Progress, stage: str, done: int) -> None:
    progress(stage, done, done)  # the end is not known
