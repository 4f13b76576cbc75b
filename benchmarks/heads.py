"""What the heads of a trained hybrid student know of what their teachers say, on speech that it never learned from.

    PYTHONPATH=src python benchmarks/heads.py exp/NAME [--data speechocean762/tune]

Needs `pip install retort[hybrid]` and the experiment with its checkpoints. For every soft-label row: the mean divergence
of the head from its teacher (nats a frame), that of one distribution for all frames (the teacher's mean) from the teacher,
which is what there is to know, and the share of it that the head has. Next to it the share that the unit which is spoken
would tell by itself, with one distribution for each (fitted on the same data, so that it is too high for rare units): a head
that has no more has learned nothing of what came before.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import torch
from lhotse import CutSet
from rich.console import Console
from torch import Tensor

from retort.common.progress import stage_progress
from retort.common.tally import Tally
from retort.config.loading import recipe_from_dict
from retort.config.schema import AugmentConfig, Recipe
from retort.corpora.open_cuts import find_data, open_cuts
from retort.engine.checkpoints import CheckpointFolder, read_weights
from retort.teachers.targets import TeacherTargets
from retort.training.aligning import align, align_held_out
from retort.training.batches import UtteranceDataset
from retort.training.frames import FrameLabels
from retort.training.hybrid_run import plan_hybrid
from retort.training.module import TrainingModule, read_targets
from retort.training.plan import Plan

TOGETHER = 8


class ToKnow:
    """The mean divergence of a teacher's distributions from their mean: entropy of the mean less mean entropy."""

    def __init__(self) -> None:
        self.mass: defaultdict[int, float] = defaultdict(float)
        self.entropies, self.frames = 0.0, 0

    def add(self, probs: Tensor, ids: Tensor) -> None:
        """Distributions `(N, k)` over the symbols `ids (N, k)`."""
        for symbol, value in zip(ids.flatten().tolist(), probs.flatten().tolist()):
            self.mass[symbol] += value
        self.entropies += float(_entropies(probs).sum())
        self.frames += len(probs)

    def __call__(self) -> float:
        mean = torch.tensor(list(self.mass.values()), dtype=torch.float64) / self.frames
        return float(_entropies(mean)) - self.entropies / self.frames


class Said:
    """What a teacher says, of all frames and of those of each unit."""

    def __init__(self) -> None:
        self.whole = ToKnow()
        self.units: defaultdict[int, ToKnow] = defaultdict(ToKnow)

    def add(self, targets: TeacherTargets) -> None:
        assert targets.ids is not None
        assert targets.labels is not None
        probs, ids, labels = (each[targets.valid] for each in (targets.vectors, targets.ids, targets.labels))
        probs = probs.double() / probs.double().sum(-1, keepdim=True)
        self.whole.add(probs, ids)
        for unit in labels.unique().tolist():
            self.units[unit].add(probs[labels == unit], ids[labels == unit])

    def left_by_units(self) -> float:
        """What there is to know where the unit is known."""
        return sum(each() * each.frames for each in self.units.values()) / self.whole.frames


def _entropies(probs: Tensor) -> Tensor:
    return torch.special.entr(probs).sum(-1)


def measured(recipe: Recipe, folder: Path, source: str, console: Console) -> dict[str, dict[str, float]]:
    """By row, in its order in the recipe."""
    with stage_progress(console) as progress:
        plan = plan_hybrid(recipe, Path("exp"), "", progress, lambda step, values: None)
        module = _trained(plan, folder)
        utterances = _utterances(plan, recipe, source)
        cuts = list(open_cuts(find_data(source)).cuts)
        tallies: defaultdict[str, list[Tally]] = defaultdict(list)
        said: defaultdict[str, Said] = defaultdict(Said)
        for start in range(0, len(cuts), TOGETHER):
            batch = utterances[CutSet.from_cuts(cuts[start : start + TOGETHER])]
            targets = read_targets(plan.teachers, plan.objective.needs, batch, torch.device("cpu"))
            with torch.inference_mode():
                for name, tally in module(batch, targets, recipe.training.steps).tallies.items():
                    tallies[name].append(tally)
            for (teacher, _), own in targets.items():
                said[teacher].add(own)
            progress("heads", min(start + TOGETHER, len(cuts)), len(cuts))
    found = {}
    for name, row in zip(plan.objective.names, recipe.distill):
        apart = float(sum(each.sum for each in tallies[name]) / sum(each.count for each in tallies[name]))
        to_know = said[row.teacher].whole()
        found[f"{row.teacher} on {row.tap}"] = {
            "head from teacher (nats)": round(apart, 3),
            "mean from teacher (nats)": round(to_know, 3),
            "share known": round(1 - apart / to_know, 3),
            "share that the unit tells": round(1 - said[row.teacher].left_by_units() / to_know, 3),
        }
    return found


def _trained(plan: Plan, folder: Path) -> TrainingModule:
    checkpoints = CheckpointFolder(folder / "checkpoints")
    last = checkpoints.path(max(checkpoints.steps()))
    plan.student.load_state_dict(read_weights(last / "student.safetensors"))
    plan.objective.load_state_dict(read_weights(last / "objective.safetensors"))
    return TrainingModule(plan.student, plan.objective).eval()


def _utterances(plan: Plan, recipe: Recipe, source: str) -> UtteranceDataset:
    labels = plan.dataset.labels
    assert labels is not None
    alignments = align(recipe, Path("exp"), _quiet, _quiet)
    held_out = align_held_out(recipe, Path("exp"), [source], alignments, _quiet, _quiet)
    assert held_out is not None
    lengths = plan.student.encoder.output_lengths
    plain = replace(recipe, augment=AugmentConfig(speeds=[1.0]))
    inputs = FrameLabels(held_out, labels.readers, plan.student.encoder.subsampling)
    return UtteranceDataset(plain, None, lengths, None, inputs)


def _quiet(*told: object) -> None:
    return None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("experiment", type=Path)
    parser.add_argument("--data", default="speechocean762/tune")
    options = parser.parse_args()
    file = options.experiment / "recipe.json"
    recipe = recipe_from_dict(json.loads(file.read_text()), str(file))
    for teacher in recipe.teachers.values():
        teacher.storage = "online"
    print(json.dumps(measured(recipe, options.experiment, options.data, Console(stderr=True)), indent=1))


if __name__ == "__main__":
    main()
