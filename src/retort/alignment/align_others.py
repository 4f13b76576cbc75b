"""Alignment of further utterances with the tree and the Gaussians of an existing alignment."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retort.alignment.align import latest_model
from retort.alignment.features import normalisation
from retort.alignment.mfcc import FRAME_SHIFT
from retort.alignment.passes import Setting
from retort.alignment.stages import (
    Progress,
    Report,
    Work,
    alignment_workers,
    identities,
    is_done,
    shards_of,
    used_words,
    utterances_of,
    without_path,
)
from retort.alignment.store import AlignmentStore, Shard, finish_store
from retort.common.errors import UserError
from retort.common.locks import one_at_a_time
from retort.text.lexicon import Lexicon

_VERSION = 1
"""Increase this when the result changes for the same input."""


def align_others(
    cuts: Iterable[Any],
    lexicon: Lexicon,
    features: Callable[[Any], NDArray[np.float32]],
    aligner: str | Path,
    folder: str | Path,
    *,
    silence_probability: float = 0.5,
    processes: int = 0,
    words: Callable[[str], Sequence[str]] = str.split,
    progress: Progress | None = None,
    report: Report | None = None,
) -> AlignmentStore:
    """Align utterances with the HMMs of a finished alignment, without training.

    The mean of each speaker is subtracted from the cepstra, as in training; variances are those of the
    training data. A transcript that does not fit its audio keeps its alignment, so that evaluations on these
    utterances have no selection. The result is stored in `folder` and resumed as in
    :func:`retort.alignment.align.align_corpus`; it is computed again if the aligner changes. Self-loops and
    priors of the store are counts of these utterances, not those of the aligner.

    Args:
        cuts, features, words, progress, report: as in `align_corpus`.
        lexicon: pronunciations with a phone that is not in the tree are left out.
        aligner: complete folder of `align_corpus`.
        folder: folder of these alignments, different from `aligner`.
        silence_probability, processes: as in :class:`retort.config.schema.AlignConfig`.

    Raises:
        UserError: `aligner` has no alignment or lacks its model, no utterance can be aligned, or the folder
            cannot be written.
    """
    first, root = AlignmentStore(aligner), Path(folder)
    if root.resolve() == first.folder.parent.resolve():
        raise UserError("the new alignments would replace those of the aligner", where=folder)
    utterances = utterances_of(cuts, words)
    used = used_words(utterances, _in_phones(lexicon, first.tree.phones.symbols))
    keys = _keys(first, [_VERSION, str(used), identities(utterances)], silence_probability)
    with one_at_a_time(root / "lock"):
        if is_done(root / "alignments", keys["alignments"]):
            return AlignmentStore(root / "alignments")
        model, deviation = _trained(first)
        with alignment_workers(processes) as pool:
            work = Work(root, keys, pool, progress, report or (lambda line: None))
            shards, normal = work.features(utterances, used, features)
            setting = Setting(
                used,
                first.tree,
                normal._replace(deviation=deviation),
                silence_probability,
                subsampling=round(first.frame_shift / FRAME_SHIFT),
            )
            made = work.align("alignments", setting, shards, model, name="alignment")
        aligned = {name for path in made for name in Shard(path, first.tree).ids}
        skipped = normal.skipped | without_path(utterances, aligned, normal.skipped)
        work.report_left_out(skipped, len(utterances), "utterances have no alignment")
        return finish_store(root / "alignments", first.tree, used, skipped, first.frame_shift)


def _keys(first: AlignmentStore, inputs: list[object], silence_probability: float) -> dict[str, str]:
    """Keys of both stages; features do not depend on the aligner."""
    path = first.folder / "key"
    learned = path.read_text() if path.exists() else ""
    features = hashlib.sha256(json.dumps(inputs).encode()).hexdigest()
    alignments = hashlib.sha256(json.dumps([features, learned, silence_probability]).encode()).hexdigest()
    return {"features": features, "alignments": alignments}


def _trained(first: AlignmentStore) -> tuple[Path, NDArray[np.float64]]:
    """The triphone model, and the `(39,)` standard deviations of its training data."""
    root = first.folder.parent
    model, _, _ = latest_model(root / "triphones")
    normal = normalisation(shards_of(root / "features"))
    if model is None or not normal.frames:
        raise UserError(
            f"it contains alignments, but not the {'features' if model else 'Gaussians'} of the aligner",
            where=root,
            remedy="Remove the folder and align the training data again",
        )
    return model, normal.deviation


def _in_phones(lexicon: Lexicon, phones: Sequence[str]) -> Lexicon:
    available = set(phones)
    covered = {word: [each for each in found if available.issuperset(each)] for word, found in lexicon.items()}
    if not any(covered.values()):
        raise UserError(
            f"none of its {len(covered)} words can be spelled in the {len(available)} phones of the aligner",
            where="lexicon",
            remedy="Give the lexicon of the training data",
        )
    return Lexicon(covered)
