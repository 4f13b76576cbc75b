"""The training text of a language model: normalised, converted to units if required, without held-out sentences, and
tokenised once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from retort.common.checksums import verify
from retort.common.errors import UserError
from retort.common.locks import one_at_a_time
from retort.common.progress import StageProgress
from retort.config.schema import NormaliserConfig
from retort.corpora.sentences import Sentences
from retort.engine.folder import save_whole
from retort.lm.config import LmRecipe
from retort.lm.pieces import Cutter, PieceMix, PieceStore
from retort.lm_training.units import UnitTexts, open_units
from retort.text.normalise import Normaliser

AS_IT_IS = NormaliserConfig(form="none", case="keep", punctuation="keep", kept="")
"""For texts of units, which are not normalised."""


@dataclass(frozen=True)
class LmText:
    """The text of a recipe: normalised, or as units.

    Attributes:
        sources: sources with the number of passes in an epoch.
        held_out: distinct texts that are not trained on.
        normalise: normalises a text; the identity for a model over units.
        words: normaliser of the sources' lines.
        units: converts sentences to units; None for a model over text.
    """

    sources: list[tuple[Sentences, int]]
    held_out: list[str]
    normalise: Normaliser
    words: Normaliser
    units: UnitTexts | None = None

    def sentences(self) -> Iterator[str]:
        """All training texts, each source once."""
        return (sentence for source, _ in self.sources for sentence in self.training(source))

    def training(self, source: Sentences) -> Iterator[str]:
        """The training texts of one source."""
        held_out = set(self.held_out)
        for text in read_texts(source, self.words, self.units):
            if text and text not in held_out:
                yield text


def open_text(
    recipe: LmRecipe,
    folder: Path | None = None,
    progress: StageProgress = lambda stage, done, total: None,
) -> LmText:
    """Open the recipe's text and read the held-out sentences.

    Args:
        folder: folder of the experiment, with its pronunciations; see :func:`open_units`.

    Raises:
        UserError: as :class:`Sentences` and :func:`open_units`, or no held-out text is usable.
    """
    words = Normaliser(recipe.normaliser)
    sources = [(Sentences(each.source), each.repeat) for each in recipe.text]
    held_out = [Sentences(source) for source in recipe.held_out]
    units = None
    if recipe.units.unit:

        def sentences() -> Iterator[str]:
            return (words(line) for source in [*held_out, *(each for each, _ in sources)] for line in source)

        units = open_units(recipe, sentences, folder, partial(_report, progress, "pronunciations"))
    read = (text for source in held_out for text in read_texts(source, words, units))
    texts = [text for text in dict.fromkeys(read) if text]
    if not texts:
        reason = "is empty after normalisation" if units is None else "lacks a pronunciation"
        raise UserError(f"every text of held_out {reason}", where=recipe.name)
    return LmText(sources, texts, words if units is None else Normaliser(AS_IT_IS), words, units)


def read_texts(source: Sentences, words: Normaliser, units: UnitTexts | None) -> Iterator[str]:
    """Normalised text or units of each line; empty if nothing is left or a pronunciation is missing."""
    for line in source:
        sentence = words(line)
        yield sentence if units is None else units(sentence)


def open_pieces(recipe: LmRecipe, text: LmText, cutter: Cutter, cache: Path, progress: StageProgress) -> PieceMix:
    """The tokenised training text; sources that are not in `cache` with these settings are tokenised now.

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
            report = partial(_report, progress, f"pieces of {source.path.name}")
            cut = partial(
                PieceStore.write,
                sentences=text.training(source),
                cutter=cutter,
                progress=report,
            )
            save_whole(cut, folder)
            stores.append(PieceStore(folder))
    return PieceMix(stores, [repeat for _, repeat in text.sources])


def _is_whole(folder: Path) -> bool:
    """Whether a tokenised source is complete; otherwise it is tokenised again."""
    try:
        verify(folder, remedy="")
        return folder.exists() and len(PieceStore(folder)) > 0
    except (UserError, OSError, ValueError, EOFError):
        return False


def _report(progress: StageProgress, stage: str, done: int) -> None:
    progress(stage, done, done)  # the total is not known
