"""Sentences pronounced for a language model over units: lexicons, what they lack, and what is left out."""

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
"""Sentences between two signs of progress."""
_KEPT, _NAMED = 100, 3
"""Words without a pronunciation that are written down, and those that are told."""
_COUNTED = 2_000
"""Alignments in which pauses are counted, about as many, at equal distances."""


@dataclass(frozen=True)
class LeftOut:
    """Sentences of a recipe's text that cannot be pronounced, each source read once.

    Attributes:
        sentences: how many.
        of: how many there are in all.
        words: the most frequent words without a pronunciation, and in how many of these sentences each is.
    """

    sentences: int
    of: int
    words: dict[str, int]

    def __str__(self) -> str:
        if not self.sentences:
            return ""
        first = ", ".join(list(self.words)[:_NAMED])
        more = ", ..." if len(self.words) > _NAMED else ""
        return f"{self.sentences:,} of {self.of:,} sentences left out for words without a pronunciation ({first}{more})"


class UnitTexts:
    """Makes texts of units of sentences in normal form.

    Args:
        config: of the recipe.
        seed: of the recipe; draws pauses, and pronunciations where the recipe samples them, for equal sentences alike.
        tree: of the alignments.
        lexicon: of the words of the text.
        left_out: what cannot be pronounced.
        pauses: probability of a silence between two words, which senones beside it tell.
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
        """All that can be said, whether the text has it or not."""
        self._speak, self._seed, self._sample = UnitPronouncer(lexicon, tree, unit), seed, config.sample
        drawn = [pauses, seed] if pauses else []
        said = json.dumps([asdict(self.units), seed if config.sample else None, str(lexicon), *drawn])
        self.fingerprint = hashlib.sha256(said.encode()).hexdigest()[:32]
        """32 hex digits of all that its texts depend on."""

    def __call__(self, sentence: str) -> str:
        """Its text; empty if it has none, or a word that has no pronunciation."""
        words, draw, apart = sentence.split(), None, None
        if self._sample:
            draw = random.Random(f"{self._seed} {sentence}")
        if self.pauses:
            silent = random.Random(f"{self._seed} pauses {sentence}")
            apart = [silent.random() < self.pauses for _ in words[1:]]
        try:
            return self._speak(words, draw, apart)
        except BadUtterance:
            return ""


def open_units(
    recipe: LmRecipe,
    sentences: Callable[[], Iterable[str]],
    folder: Path | None,
    progress: Callable[[int], None] = lambda done: None,
) -> UnitTexts:
    """What a recipe's `units` make of its text.

    Tree, pronunciations and how often words end in a pause are written into `folder/units` and taken from there at
    the next call, so that a training that goes on after a stop reads the same units, whatever became of alignments
    and dictionaries.

    Args:
        sentences: all of the recipe's text in normal form, what is held out as well; may be read twice.
        folder: of the experiment; None: nothing is kept.
        progress: called with the number of sentences so far.

    Raises:
        UserError: no alignments, a lexicon that cannot be read, or that has none of the words.
    """
    if folder is not None and (kept := _kept(folder)):
        return UnitTexts(recipe.units, recipe.seed, *kept)
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
    """A lexicon of just the words of the text, and what it leaves out."""
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
            remedy="Give units.lexicon one in the case of the normaliser, and in the phones of the alignments",
        )
    left = [lost for each in sentences() if (lost := missing.intersection(each.split()))] if missing else []
    counts = Counter(word for lost in left for word in lost)
    frequent = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0]))[:_KEPT])
    return lexicon.only(word for word in ordered if word not in missing), LeftOut(len(left), count, frequent)


def _kept(folder: Path) -> tuple[SenoneTree, Lexicon, LeftOut, float] | None:
    """What an earlier call wrote, if a tokenizer was made of it; before that, it may be made of other alignments."""
    made = folder / FOLDER
    if not (made.exists() and (folder / "tokenizer").exists()):
        return None
    verify(made, remedy="Remove the experiment's folder")
    try:
        about = read_json(made / _ABOUT)
        left_out = LeftOut(**about["left_out"])
        pauses = float(
            about.get("pauses", 0.0)
        )  # of an experiment from before they were counted: it has none
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"cannot be read ({type(error).__name__}: {error})",
            where=made,
            remedy="Remove the experiment's folder",
        ) from None
    return SenoneTree.load(made / _TREE), read_lexicon(made / _LEXICON, stress="keep"), left_out, pauses
