"""The alignments of a hybrid run: of the training data, and of validation and test data."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lhotse.cut import Cut
from numpy.typing import NDArray

from retort.alignment.align import align_corpus, align_others
from retort.alignment.mfcc import Mfcc
from retort.alignment.store import AlignmentStore
from retort.common.errors import UserError
from retort.common.progress import StageProgress
from retort.config.schema import Recipe
from retort.corpora.features import load_samples
from retort.corpora.open_cuts import find_data, open_cuts
from retort.corpora.pronunciations import pocketsphinx_lexicon, with_english
from retort.engine.loop import Report
from retort.evaluation.aligned import aligned_folder, aligner_folder
from retort.text.lexicon import Lexicon, Pronunciation, read_lexicon
from retort.text.normalise import Normaliser, recase


class CutMfcc:
    """Computes the cepstra of a cut from its wave; can be passed to other processes."""

    def __init__(self, sampling_rate: int = 16000) -> None:
        self.sampling_rate = sampling_rate
        self._mfcc = Mfcc(sampling_rate)

    def __getstate__(self) -> dict[str, Any]:
        return {"sampling_rate": self.sampling_rate}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __call__(self, cut: Cut) -> NDArray[np.float32]:
        """`(T, 13)` every 10 ms.

        Raises:
            BadUtterance: as :class:`retort.corpora.features.CutFeatures`.
        """
        return self._mfcc(load_samples(cut, self.sampling_rate))


def align(recipe: Recipe, root: Path, progress: StageProgress, report: Report) -> AlignmentStore:
    """Compute the alignments of `data.train`, without speed perturbation.

    Raises:
        UserError: as :func:`retort.alignment.align.align_corpus`.
    """
    words, cuts = _words(recipe), _cuts(recipe.data.train_sources)
    return align_corpus(
        cuts,
        open_lexicon(recipe, _words_of(cuts, words)),
        CutMfcc(recipe.features.sampling_rate),
        aligner_folder(recipe, root / recipe.name),
        recipe.hybrid.align,
        words=words,
        progress=progress,
        report=lambda line: report(0, {"note": line}),
    )


def align_held_out(
    recipe: Recipe,
    root: Path,
    sources: Sequence[str],
    alignments: AlignmentStore,
    progress: StageProgress,
    report: Report,
) -> AlignmentStore | None:
    """Align data that are not training data of `alignments`; None, and a note, if that is not possible.

    They are used only for measurement, so that an error here does not prevent training.
    """
    try:
        words, cuts = _words(recipe), _cuts(sources)
        folder = aligned_folder(recipe, root / recipe.name, sources)
        return align_others(
            cuts,
            open_lexicon(recipe, _words_of(cuts, words), alignments.tree.phones.symbols[1:]),
            CutMfcc(recipe.features.sampling_rate),
            alignments.folder.parent,
            folder,
            silence_probability=recipe.hybrid.align.silence_probability,
            processes=recipe.hybrid.align.processes,
            words=words,
            progress=progress,
            report=lambda line: report(0, {"note": f"{folder.name}: {line}"}),
        )
    except UserError as error:
        report(0, {"note": f"no alignment of {', '.join(sources)}, so frame accuracy is not measured there: {error}"})
        return None


def open_lexicon(recipe: Recipe, words: Sequence[str], phones: Sequence[str] | None = None) -> Lexicon:
    """The pronunciations of `words`, limited to `phones` if they are given.

    Raises:
        UserError: a lexicon of the recipe cannot be read, or no word has a pronunciation.
    """
    case = recipe.normaliser.case
    entries: dict[str, list[Pronunciation]] = {}
    for path in recipe.hybrid.lexicon:
        for word, found in read_lexicon(find_data(path)).items():
            entries.setdefault(recase(word, case), list(found))
    lexicon = Lexicon(entries) if entries else pocketsphinx_lexicon(case=case)
    if recipe.hybrid.pronounce:
        lexicon = with_english(lexicon, words, phones or lexicon.phones, case=case)
    return lexicon.only(words)


def _words(recipe: Recipe) -> Callable[[str], Sequence[str]]:
    return Normaliser(recipe.normaliser).words


def _cuts(sources: Sequence[str]) -> list[Cut]:
    return [cut for source in sources for cut in open_cuts(find_data(source)).cuts]


def _words_of(cuts: Sequence[Cut], words: Callable[[str], Sequence[str]]) -> list[str]:
    return [word for cut in cuts for word in words(cut.supervisions[0].text or "")]
