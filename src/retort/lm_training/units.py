"""Conversion of sentences to units for a language model: pronunciations, missing words, omitted sentences."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

from retort.alignment.store import AlignmentStore
from retort.alignment.tree import SenoneTree
from retort.alignment.unit_text import AcousticUnit, UnitPronouncer, pause_share, unit_symbols
from retort.common.checksums import verify
from retort.common.errors import BadUtterance, UserError
from retort.common.json_reader import read_json
from retort.corpora.open_cuts import find_data
from retort.corpora.pronunciations import with_english
from retort.engine.folder import save_whole
from retort.lm.config import LmRecipe, UnitConfig
from retort.lm.units import LmUnits
from retort.text.lexicon import Lexicon, read_lexicon

FOLDER = "units"
_TREE, _LEXICON, _ABOUT = "tree.json", "lexicon.txt", "about.json"
_STRESSED = re.compile(r"[A-Z]+[012]")
_TOLD_EVERY = 10_000
"""Number of sentences between two progress reports."""
_KEPT, _NAMED = 100, 3
"""Numbers of words without a pronunciation that are stored, and that are reported."""
_COUNTED = 2_000
"""Approximate number of alignments in which pauses are counted, at equal distances."""


@dataclass(frozen=True)
class LeftOut:
    """Sentences of a recipe's text with a word without a pronunciation, each source counted once.

    Attributes:
        sentences: number of these sentences.
        of: number of all sentences.
        words: the most frequent words without a pronunciation, with the number of sentences of each.
    """

    sentences: int
    of: int
    words: dict[str, int]

    def __str__(self) -> str:
        if not self.sentences:
            return ""
        first = ", ".join(list(self.words)[:_NAMED])
        more = ", ..." if len(self.words) > _NAMED else ""
        return f"{self.sentences:,} of {self.of:,} sentences have words without a pronunciation ({first}{more})"


class UnitTexts:
    """Converts normalised sentences to texts of units.

    Args:
        config: of the recipe.
        seed: of the recipe, for pauses and sampled pronunciations; equal sentences give equal texts.
        tree: senone tree of the alignments.
        lexicon: pronunciations of the words of the text.
        left_out: omitted sentences.
        pauses: probability of a silence between two words, which affects the senones next to it.
    """

    def __init__(
        self,
        config: UnitConfig,
        seed: int,
        tree: SenoneTree,
        lexicon: Lexicon,
        left_out: LeftOut,
        pauses: float,
    ) -> None:
        unit = cast(AcousticUnit, config.unit)
        self.left_out, self.pauses = left_out, pauses
        self.units = LmUnits.of(unit, tree)
        self.symbols = unit_symbols(tree, unit)
        """All symbols that texts may have."""
        self._speak, self._seed, self._sample = UnitPronouncer(lexicon, tree, unit), seed, config.sample
        drawn = [pauses, seed] if pauses else []
        content = json.dumps([asdict(self.units), seed if config.sample else None, str(lexicon), *drawn])
        self.fingerprint = hashlib.sha256(content.encode()).hexdigest()[:32]
        """Hash of everything that the texts depend on, 32 hex digits."""

    def __call__(self, sentence: str) -> str:
        """The units of a sentence; empty if a word has no pronunciation."""
        words, draw, pauses = sentence.split(), None, None
        if self._sample:
            draw = random.Random(f"{self._seed} {sentence}")
        if self.pauses:
            generator = random.Random(f"{self._seed} pauses {sentence}")
            pauses = [generator.random() < self.pauses for _ in words[1:]]
        try:
            return self._speak(words, draw, pauses)
        except BadUtterance:
            return ""


def open_units(
    recipe: LmRecipe,
    sentences: Callable[[], Iterable[str]],
    folder: Path | None,
    progress: Callable[[int], None] = lambda done: None,
) -> UnitTexts:
    """Open the conversion to units of a recipe's text.

    Tree, pronunciations and the pause probability are written to `folder/units` and read from there at
    the next call, so that a resumed training has the same units even if alignments and dictionaries have
    changed.

    Args:
        sentences: all normalised sentences of the recipe, held-out ones included; may be read twice.
        folder: folder of the experiment; None writes nothing.
        progress: called with the number of sentences so far.

    Raises:
        UserError: there are no alignments, or a lexicon cannot be read or has none of the words.
    """
    if folder is not None and (stored := _stored(folder)):
        return UnitTexts(recipe.units, recipe.seed, *stored)
    store = AlignmentStore(recipe.units.alignments)
    lexicon = store.lexicon
    stress = any(_STRESSED.fullmatch(phone) for phone in store.tree.phones.symbols)
    for path in recipe.units.lexicon:
        lexicon = lexicon.extended(read_lexicon(find_data(path), stress="keep" if stress else "strip"))
    lexicon, left_out = _pronounced(recipe, sentences, lexicon, store.tree, progress)
    pauses = _pauses(store) if recipe.units.unit == "senone" else 0.0
    if folder is not None:

        def write(path: Path) -> None:
            path.mkdir(parents=True)
            store.tree.save(path / _TREE)
            (path / _LEXICON).write_text(str(lexicon), encoding="utf-8")
            about = {"left_out": asdict(left_out), "pauses": pauses}
            (path / _ABOUT).write_text(json.dumps(about, ensure_ascii=False, indent=1) + "\n", "utf-8")

        save_whole(write, folder / FOLDER)
    return UnitTexts(recipe.units, recipe.seed, store.tree, lexicon, left_out, pauses)


def _pauses(store: AlignmentStore) -> float:
    names = list(store)
    return pause_share(store[name] for name in names[:: max(1, len(names) // _COUNTED)])


def _pronounced(
    recipe: LmRecipe,
    sentences: Callable[[], Iterable[str]],
    lexicon: Lexicon,
    tree: SenoneTree,
    progress: Callable[[int], None],
) -> tuple[Lexicon, LeftOut]:
    """A lexicon of the words of the text, and the omitted sentences."""
    words: set[str] = set()
    count = 0
    for count, sentence in enumerate(sentences(), 1):
        words.update(sentence.split())
        if count % _TOLD_EVERY == 0:
            progress(count)
    progress(count)
    ordered = sorted(words)
    if recipe.units.pronounce:
        lexicon = with_english(lexicon, ordered, tree.phones.symbols, case=recipe.normaliser.case)
    missing = set(UnitPronouncer(lexicon, tree, "phone").missing(ordered))
    if len(missing) == len(words):
        raise UserError(
            f"none of the {len(words):,} words of the text has a pronunciation",
            where=recipe.name,
            remedy="Set units.lexicon to one with the case of the normaliser and the phones of the alignments",
        )
    left = [lost for each in sentences() if (lost := missing.intersection(each.split()))] if missing else []
    counts = Counter(word for lost in left for word in lost)
    frequent = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_KEPT])
    return lexicon.only(word for word in ordered if word not in missing), LeftOut(len(left), count, frequent)


def _stored(folder: Path) -> tuple[SenoneTree, Lexicon, LeftOut, float] | None:
    """The files of an earlier call, if its tokenizer exists; before that they may still change."""
    made = folder / FOLDER
    if not (made.exists() and (folder / "tokenizer").exists()):
        return None
    verify(made, remedy="Remove the experiment's folder")
    try:
        about = read_json(made / _ABOUT)
        left_out = LeftOut(**about["left_out"])
        pauses = float(
            about.get("pauses", 0.0)
        )  # experiments of earlier versions have no pauses
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"cannot be read ({type(error).__name__}: {error})",
            where=made,
            remedy="Remove the experiment's folder",
        ) from None
    return SenoneTree.load(made / _TREE), read_lexicon(made / _LEXICON, stress="keep"), left_out, pauses
