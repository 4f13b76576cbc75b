"""The utterances of a recipe: opened, checked, and with their features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path

from lhotse import CutSet
from lhotse.cut import Cut

from retort.common.errors import UserError
from retort.config.schema import Recipe
from retort.corpora.cuts import CheckedCuts, Rejected
from retort.corpora.features import features_key, store_features
from retort.corpora.open_cuts import find_data, open_cuts
from retort.training.shares import Group, make_groups
from retort.training.spoken import draw_sentences, say

Progress = Callable[[str, int, int], None]
"""Called with the name of a stage, how much of it is done, and how much there is."""


@dataclass
class Data:
    """Cuts by role, with stored features where the recipe asks for them.

    Attributes:
        groups: where `data.train` has shares, the training cuts of each entry with a share, and last those of all
            others; else none.
    """

    train: CutSet
    validation: CutSet
    noise: CutSet | None
    rejected: list[Rejected]
    groups: list[Group] = field(default_factory=list)


def load_data(recipe: Recipe, cache: Path, progress: Progress) -> Data:
    """Open the recipe's training and validation data; make features where they are kept on disk."""
    rejected: list[Rejected] = []

    def kept(checked: CheckedCuts) -> CutSet:
        rejected.extend(checked.rejected)
        return checked.cuts

    entries: dict[str, int] = {}
    roles = {
        "train": _open(recipe, "train", recipe.data.train_sources, kept, entries),
        "validation": _open(recipe, "validation", recipe.data.validation, kept),
    }
    spoken, folder = recipe.data.spoken, cache / "spoken"
    said = {role: [cut.supervisions[0].text for cut in cuts] for role, cuts in roles.items()}
    if spoken.voices and spoken.transcripts:
        roles = {
            role: kept(say(texts, "transcript", spoken, folder, partial(progress, "synthesis")))
            for role, texts in said.items()
        }
    roles = {role: kept(_distinct(cuts)) for role, cuts in roles.items()}
    plain = kept(_by_duration(roles["train"], recipe))
    roles["train"] = _at_speeds(plain, recipe.augment.speeds)
    entries = dict(zip((cut.id for cut in roles["train"]), cycle([entries.get(cut.id, -1) for cut in plain])))
    if spoken.voices and spoken.sentences:
        drawn = draw_sentences(spoken, said["validation"])
        more = kept(say(drawn, "text", spoken, folder, partial(progress, "synthesis")))
        roles["train"] += kept(_by_duration(more, recipe))
    if recipe.features.storage == "disk":
        for role, cuts in roles.items():
            stored = cache / "features" / features_key(role, cuts, recipe.features)
            roles[role], failed = store_features(cuts, stored, recipe.features, partial(progress, "features"))
            rejected += failed
    groups = make_groups(recipe, roles["train"], entries)
    return Data(roles["train"], roles["validation"], _open_noise(recipe, kept), rejected, groups)


def _open(
    recipe: Recipe,
    role: str,
    sources: Sequence[str],
    kept: Callable[[CheckedCuts], CutSet],
    entries: dict[str, int] | None = None,
) -> CutSet:
    """The cuts of all sources; the number of the first that has a cut is put into `entries` by its id."""
    if not sources:
        raise UserError(
            f"data.{role} is empty", where=recipe.name, remedy="Name a manifest or a Kaldi folder"
        )
    cuts = CutSet([])
    for number, source in enumerate(sources):
        opened = kept(open_cuts(find_data(source)))
        cuts = cuts + opened
        if entries is not None:
            for cut in opened:
                entries.setdefault(cut.id, number)
    return cuts


def _open_noise(recipe: Recipe, kept: Callable[[CheckedCuts], CutSet]) -> CutSet | None:
    noise = None
    for source in recipe.augment.noise:
        cuts = kept(open_cuts(find_data(source), texts=False)).resample(recipe.features.sampling_rate)
        noise = (cuts if noise is None else noise + cuts).to_eager()
    return noise


def _by_duration(cuts: CutSet, recipe: Recipe) -> CheckedCuts:
    low, high = recipe.batches.minimum_seconds, recipe.batches.maximum_seconds
    rejected = [
        Rejected(
            cut.id, f"its {cut.duration:.2f} s are not within batches.minimum_seconds and maximum_seconds"
        )
        for cut in cuts
        if not low <= cut.duration <= high
    ]
    fitting = cuts.filter(lambda cut: low <= cut.duration <= high).to_eager()
    if not len(fitting):
        raise UserError(
            f"none of {len(rejected)} training utterances can be used; the first is "
            f"{rejected[0].id}: {rejected[0].reason}",
            where=recipe.name,
        )
    return CheckedCuts(fitting, rejected)


def _at_speeds(cuts: CutSet, speeds: Sequence[float]) -> CutSet:
    copies = [cuts if speed == 1.0 else cuts.perturb_speed(speed) for speed in speeds]
    result = copies[0]
    for copy in copies[1:]:
        result = result + copy
    return result.to_eager()


def _distinct(cuts: CutSet) -> CheckedCuts:
    """Ids name features, scores and rejected utterances, so that each may stand only once in a role."""
    kept: dict[str, Cut] = {}
    rejected = []
    for cut in cuts:
        if cut.id in kept:
            rejected.append(Rejected(cut.id, "its id stands in an earlier part of the data too"))
        else:
            kept[cut.id] = cut
    return CheckedCuts(CutSet.from_cuts(kept.values()), rejected)
