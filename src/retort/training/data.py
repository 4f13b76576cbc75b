"""The utterances of a recipe: loading, checks and features."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import cycle
from pathlib import Path

from lhotse import CutSet
from lhotse.cut import Cut

from retort.common.errors import UserError
from retort.common.progress import StageProgress
from retort.config.schema import Recipe
from retort.corpora.cuts import CheckedCuts, Rejected
from retort.corpora.features import features_key, store_features
from retort.corpora.open_cuts import find_data, open_cuts
from retort.corpora.shards import is_shards
from retort.training.sharded import ShardedCuts, ShardRows, check_supported, open_shards
from retort.training.shares import Group, make_groups
from retort.training.spoken import draw_sentences, synthesise


@dataclass
class Data:
    """Cuts by role, with stored features if the recipe requires them.

    Attributes:
        train: cuts at all speeds; :class:`ShardedCuts` if an entry of `data.train` is a folder of shards.
        groups: if `data.train` has shares, the training cuts of each entry with a share, and last those of all
            others; otherwise empty.
    """

    train: CutSet | ShardedCuts
    validation: CutSet
    noise: CutSet | None
    rejected: list[Rejected]
    groups: list[Group] = field(default_factory=list)


def load_data(recipe: Recipe, cache: Path, progress: StageProgress) -> Data:
    """Open the recipe's training and validation data; compute features if they are stored on disk.

    Features of cuts in shards are not stored.
    """
    if any(is_shards(source) for source in recipe.data.train_sources):
        return _load_sharded(recipe, cache, progress)
    rejected: list[Rejected] = []

    def accept(checked: CheckedCuts) -> CutSet:
        rejected.extend(checked.rejected)
        return checked.cuts

    entries: dict[str, int] = {}
    roles = {
        "train": _open(recipe, "train", recipe.data.train_sources, accept, entries),
        "validation": _open(recipe, "validation", recipe.data.validation, accept),
    }
    spoken, folder = recipe.data.spoken, cache / "spoken"
    texts_of = {role: [cut.supervisions[0].text for cut in cuts] for role, cuts in roles.items()}
    if spoken.voices and spoken.transcripts:
        roles = {
            role: accept(synthesise(texts, "transcript", spoken, folder, partial(progress, "synthesis")))
            for role, texts in texts_of.items()
        }
    roles = {role: accept(_distinct(cuts)) for role, cuts in roles.items()}
    plain = accept(_by_duration(roles["train"], recipe))
    roles["train"] = _at_speeds(plain, recipe.augment.speeds)
    entries = dict(zip((cut.id for cut in roles["train"]), cycle([entries.get(cut.id, -1) for cut in plain])))
    if spoken.voices and spoken.sentences:
        drawn = draw_sentences(spoken, texts_of["validation"])
        more = accept(synthesise(drawn, "text", spoken, folder, partial(progress, "synthesis")))
        roles["train"] += accept(_by_duration(more, recipe))
    if recipe.features.storage == "disk":
        for role, cuts in roles.items():
            stored = cache / "features" / features_key(role, cuts, recipe.features)
            roles[role], failed = store_features(cuts, stored, recipe.features, partial(progress, "features"))
            rejected += failed
    groups = make_groups(recipe, roles["train"], entries)
    return Data(roles["train"], roles["validation"], _open_noise(recipe, accept), rejected, groups)


def _load_sharded(recipe: Recipe, cache: Path, progress: StageProgress) -> Data:
    """As :func:`load_data`, with training data of which some are in shards."""
    check_supported(recipe)
    rejected: list[Rejected] = []

    def accept(checked: CheckedCuts) -> CutSet:
        rejected.extend(checked.rejected)
        return checked.cuts

    sources: list[ShardRows | list[Cut]] = [
        open_shards(source, recipe)
        if is_shards(source)
        else list(accept(_by_duration(accept(_distinct(accept(open_cuts(find_data(source))))), recipe)))
        for source in recipe.data.train_sources
    ]
    validation = accept(_distinct(_open(recipe, "validation", recipe.data.validation, accept)))
    spoken, more = recipe.data.spoken, CutSet([])
    if spoken.voices and spoken.sentences:
        drawn = draw_sentences(spoken, [cut.supervisions[0].text for cut in validation])
        synthesised = synthesise(drawn, "text", spoken, cache / "spoken", partial(progress, "synthesis"))
        more = accept(_by_duration(accept(synthesised), recipe))
    train = ShardedCuts(sources, recipe, list(more))
    if recipe.features.storage == "disk":
        stored = cache / "features" / features_key("validation", validation, recipe.features)
        validation, failed = store_features(validation, stored, recipe.features, partial(progress, "features"))
        rejected += failed
    return Data(train, validation, _open_noise(recipe, accept), [*rejected, *train.rejected])


def _open(
    recipe: Recipe,
    role: str,
    sources: Sequence[str],
    accept: Callable[[CheckedCuts], CutSet],
    entries: dict[str, int] | None = None,
) -> CutSet:
    """The cuts of all sources; `entries` maps the ids of cuts to the number of their first source."""
    if not sources:
        raise UserError(
            f"data.{role} is empty", where=recipe.name, remedy="Name a manifest or a Kaldi folder"
        )
    cuts = CutSet([])
    for number, source in enumerate(sources):
        opened = accept(open_cuts(find_data(source)))
        cuts = cuts + opened
        if entries is not None:
            for cut in opened:
                entries.setdefault(cut.id, number)
    return cuts


def _open_noise(recipe: Recipe, accept: Callable[[CheckedCuts], CutSet]) -> CutSet | None:
    noise = None
    for source in recipe.augment.noise:
        cuts = accept(open_cuts(find_data(source), texts=False)).resample(recipe.features.sampling_rate)
        noise = (cuts if noise is None else noise + cuts).to_eager()
    return noise


def _by_duration(cuts: CutSet, recipe: Recipe) -> CheckedCuts:
    low, high = recipe.batches.minimum_seconds, recipe.batches.maximum_seconds
    rejected = [
        Rejected(
            cut.id, f"its {cut.duration:.2f} s are not between batches.minimum_seconds and maximum_seconds"
        )
        for cut in cuts
        if not low <= cut.duration <= high
    ]
    fitting = cuts.filter(lambda cut: low <= cut.duration <= high).to_eager()
    if not len(fitting):
        raise UserError(
            f"none of {len(rejected)} training utterances is usable; the first is "
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
    """Reject cuts with duplicate ids, because ids identify features, scores and rejected utterances."""
    accepted: dict[str, Cut] = {}
    rejected = []
    for cut in cuts:
        if cut.id in accepted:
            rejected.append(Rejected(cut.id, "its id also occurs in an earlier part of the data"))
        else:
            accepted[cut.id] = cut
    return CheckedCuts(CutSet.from_cuts(accepted.values()), rejected)
