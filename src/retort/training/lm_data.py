"""The text of a language model: normalised, without what is held out, cut into pieces once and for all."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from retort.corpora.sentences import Sentences
from retort.errors import UserError
from retort.lm.config import LmRecipe
from retort.lm.pieces import Cutter, PieceMix, PieceStore
from retort.text.normalise import Normaliser
from retort.training.folder import save_whole

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class LmText:
    """What a recipe's text says, normalised.

    Attributes:
        sources: with how often an epoch goes through each.
        held_out: distinct sentences that are never learned from.
        normalise: what made them.
    """

    sources: list[tuple[Sentences, int]]
    held_out: list[str]
    normalise: Normaliser

    def sentences(self) -> Iterator[str]:
        """All sentences that may be learned from, each source once."""
        return (sentence for source, _ in self.sources for sentence in self.training(source))

    def training(self, source: Sentences) -> Iterator[str]:
        """The sentences of one source that may be learned from."""
        held_out = set(self.held_out)
        for sentence in source:
            text = self.normalise(sentence)
            if text and text not in held_out:
                yield text


def open_text(recipe: LmRecipe) -> LmText:
    """Find the recipe's text and read what it holds out.

    Raises:
        UserError: as :class:`Sentences`, or nothing is left of what is held out.
    """
    normalise = Normaliser(recipe.normaliser)
    sources = [(Sentences(each.source), each.repeat) for each in recipe.text]
    read = (normalise(sentence) for source in recipe.held_out for sentence in Sentences(source))
    held_out = [text for text in dict.fromkeys(read) if text]
    if not held_out:
        raise UserError("held_out has no text that the normaliser keeps", where=recipe.name)
    return LmText(sources, held_out, normalise)


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
            **cutter.identity,
        }
        folder = cache / hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        if not folder.exists():
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


def _tell(progress: Progress, stage: str, done: int) -> None:
    progress(stage, done, done)  # the end is not known
