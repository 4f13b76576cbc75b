"""The utterances of a recipe: opened, checked, and with their features."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lhotse import CutSet
from lhotse.cut import Cut

from retort.config import Recipe
from retort.corpora.cuts import CheckedCuts, Prepared, Rejected, write_split
from retort.corpora.features import features_key, store_features
from retort.corpora.opening import find_data, open_cuts
from retort.corpora.synthetic import Conditions, read_aloud, voice_names
from retort.errors import UserError
from retort.text.normalise import recase

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, how much of it is done, and how much there is."""


@dataclass
class Data:
    """Cuts by role, with stored features where the recipe asks for them."""

    train: CutSet
    validation: CutSet
    noise: CutSet | None
    rejected: list[Rejected]


def load_data(recipe: Recipe, cache: Path, progress: Progress) -> Data:
    """Open the recipe's training and validation data; make features where they are kept on disk."""
    rejected: list[Rejected] = []
    roles = {}
    for role in ("train", "validation"):
        sources = getattr(recipe.data, role)
        if not sources:
            raise UserError(
                f"data.{role} is empty", where=recipe.name, remedy="Name a manifest or a Kaldi folder"
            )
        cuts = CutSet([])
        for source in sources:
            opened = open_cuts(find_data(source))
            cuts = cuts + opened.cuts
            rejected += opened.rejected
        if recipe.data.voices:
            opened = _respoken(cuts, recipe, cache / "spoken", progress)
            cuts = opened.cuts
            rejected += opened.rejected
        cuts, repeated = _distinct(cuts)
        rejected += repeated
        if role == "train":
            cuts, out_of_range = _by_duration(cuts, recipe)
            rejected += out_of_range
            if not len(cuts):
                first = out_of_range[0]
                raise UserError(
                    f"none of {len(out_of_range)} training utterances can be used; the first is "
                    f"{first.id}: {first.reason}",
                    where=recipe.name,
                )
            cuts = _at_speeds(cuts, recipe.augment.speeds)
        if recipe.features.storage == "disk":
            key = features_key(role, cuts, recipe.features)
            cuts, failed = store_features(
                cuts,
                cache / "features" / key,
                recipe.features,
                lambda done, total: progress("features", done, total),
            )
            rejected += failed
        roles[role] = cuts
    noise = None
    for source in recipe.augment.noise:
        opened = open_cuts(find_data(source), texts=False)
        cuts = opened.cuts.resample(recipe.features.sampling_rate)
        noise = (cuts if noise is None else noise + cuts).to_eager()
        rejected += opened.rejected
    return Data(roles["train"], roles["validation"], noise, rejected)


def _respoken(cuts: CutSet, recipe: Recipe, cache: Path, progress: Progress) -> CheckedCuts:
    """The distinct transcripts of `cuts`, read by synthetic voices; kept in `cache`."""
    texts = list(dict.fromkeys(recase(cut.supervisions[0].text, "lower") for cut in cuts))
    voices = voice_names(recipe.data.voices)
    seed = recipe.seed
    key = hashlib.sha256("\n".join([*voices, str(seed), *texts]).encode()).hexdigest()[:16]
    manifest = cache / f"{key}.jsonl.gz"
    if not manifest.exists():
        spoken = read_aloud(
            texts,
            cache / key,
            "spoken",
            voices,
            seed=(seed,),
            conditions=Conditions(),
            progress=lambda done, total: progress("synthesis", done, total),
        )
        write_split(key, spoken, cache, Prepared())
    return open_cuts(manifest)


def _by_duration(cuts: CutSet, recipe: Recipe) -> tuple[CutSet, list[Rejected]]:
    low, high = recipe.batches.minimum_seconds, recipe.batches.maximum_seconds
    kept = cuts.filter(lambda cut: low <= cut.duration <= high).to_eager()
    rejected = [
        Rejected(
            cut.id, f"its {cut.duration:.2f} s are not within batches.minimum_seconds and maximum_seconds"
        )
        for cut in cuts
        if not low <= cut.duration <= high
    ]
    return kept, rejected


def _at_speeds(cuts: CutSet, speeds: Sequence[float]) -> CutSet:
    copies = [cuts if speed == 1.0 else cuts.perturb_speed(speed) for speed in speeds]
    result = copies[0]
    for copy in copies[1:]:
        result = result + copy
    return result.to_eager()


def _distinct(cuts: CutSet) -> tuple[CutSet, list[Rejected]]:
    """Ids name features, scores and rejected utterances, so that each may stand only once in a role."""
    kept: dict[str, Cut] = {}
    rejected = []
    for cut in cuts:
        if cut.id in kept:
            rejected.append(Rejected(cut.id, "its id stands in an earlier part of the data too"))
        else:
            kept[cut.id] = cut
    return CutSet.from_cuts(kept.values()), rejected
