"""Time of a training update of HKD over that of CIF, the teacher's vectors read from its store.

    PYTHONPATH=src python benchmarks/distill.py [--recipe english/hkd] [--rounds N] [--seconds S] [--set a.b=c ...]

Both students have the sizes of the recipe and random weights, and both get the same batches of random features and
texts. The rows are those of the recipe; their teacher's vectors are random and stored as `retort teach` stores them, so
that reading them, aligning them with the tokens, the bank of negatives and the measurements of gradients are included.
The two systems take turns in every round; times are process CPU time, since the clock of a busy machine includes other
work. A round has as many updates as the recipe has between two measurements of gradients (`share_steps`). The ratio is
of medians, in bfloat16 where the processor has instructions for it. Exit code 1 if it is above the goal.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from results import Measured, add_json, finish
from retort.config.loading import load_recipe
from retort.config.schema import Recipe
from retort.distill.objective import Objective
from retort.engine.optim import make_optimiser
from retort.engine.parameters import parameter_groups
from retort.engine.processes import make_accelerator
from retort.students.factory import build_student
from retort.students.whisper import WhisperStudent
from retort.teachers import StoredTeacher, TeacherOutput
from retort.teachers.shards import write_shard
from retort.text.tokenizers import EOS, SPECIAL, Piece
from retort.training.batches import Batch
from retort.training.module import TrainingModule, read_targets

GOAL = 1.1
UTTERANCE_SECONDS, TOKENS, LETTERS = 4.0, 14, 4
"""Duration of an utterance, and its number of tokens without EOS, each of so many letters."""


def make_batches(recipe: Recipe, seconds: float, count: int) -> list[Batch]:
    """Batches of `seconds` of audio; every text is another one."""
    generator = torch.Generator().manual_seed(0)
    size, frames = max(1, round(seconds / UTTERANCE_SECONDS)), round(100 * UTTERANCE_SECONDS)
    vocabulary = recipe.tokenizer.size or 1000
    batches = []
    for number in range(count):
        texts, pieces, tokens = [], [], []
        for row in range(size):
            words = [f"{number:02d}{row:02d}", *(f"w{place:03d}" for place in range(1, TOKENS))]
            ids = torch.randint(len(SPECIAL), vocabulary, (TOKENS,), generator=generator)
            starts = [place * (LETTERS + 1) for place in range(TOKENS)]
            texts.append(" ".join(words))
            pieces.append([Piece(int(each), start, start + LETTERS) for each, start in zip(ids, starts)])
            tokens.append(torch.cat((ids, torch.tensor([EOS]))))
        features = torch.randn(size, frames, recipe.features.bins, generator=generator)
        lengths = torch.full((size,), frames), torch.full((size,), TOKENS + 1)
        names = [f"{number}-{row}" for row in range(size)]
        batches.append(Batch(names, texts, pieces, features, lengths[0], torch.stack(tokens), lengths[1], []))
    return batches


def make_stores(recipe: Recipe, batches: Sequence[Batch], folder: Path) -> dict[str, StoredTeacher]:
    """Stores of random vectors, one piece of the teacher for each token."""
    generator = torch.Generator().manual_seed(1)
    stores = {}
    for name in {row.teacher for row in recipe.distill if row.teacher}:
        dim = recipe.teachers[name].dim or 768
        store = StoredTeacher(folder / name, {"model": "benchmark", "dim": dim})
        outputs = [
            TeacherOutput(
                torch.randn(TOKENS + 2, dim, generator=generator), [(start, end) for _, start, end in own], text
            )
            for batch in batches
            for text, own in zip(batch.texts, batch.pieces)
        ]
        write_shard(store.folder, outputs, store.key)
        store.refresh()
        stores[name] = store
    return stores


class System:
    """A student with rows, and its optimiser."""

    def __init__(self, recipe: Recipe, teachers: dict[str, StoredTeacher]) -> None:
        torch.manual_seed(0)
        student = build_student(recipe.student, recipe.tokenizer.size or 1000, recipe.features.bins)
        if isinstance(student, WhisperStudent):
            student.spellings = (b"x" * LETTERS,) * (recipe.tokenizer.size or 1000)
        dims = {name: teacher.dim for name, teacher in teachers.items()}
        objective = Objective(recipe.distill, student.tap_dims, dims, student.tap_units)
        self.module, self.teachers, self.clip = TrainingModule(student, objective), teachers, recipe.training.clip
        accelerator = make_accelerator(recipe.training)
        torch.set_num_threads(1)
        self.autocast, self.bf16 = accelerator.autocast, accelerator.mixed_precision == "bf16"
        groups = parameter_groups(self.module, recipe.training.rates)
        self.optimiser = make_optimiser(groups, recipe.training)
        self.step = 0

    def update(self, batch: Batch) -> None:
        """One update, as the training loop makes it."""
        self.module.train()
        targets = read_targets(self.teachers, self.module.objective.needs, batch, torch.device("cpu"))
        with self.autocast():
            output = self.module(batch, targets, self.step)
        loss = output.token_sum / batch.token_lengths.sum() + output.utterance_sum / len(batch.ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.module.student.parameters(), self.clip)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=True)
        self.step += 1


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="english/hkd")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="audio in a batch")
    parser.add_argument("--set", nargs="*", default=[], help="settings of the recipe, as in retort train")
    add_json(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    recipe = load_recipe(given.recipe, given.set)
    updates = max((row.share_steps for row in recipe.distill if row.share), default=10)
    with tempfile.TemporaryDirectory() as folder:
        batches = make_batches(recipe, given.seconds, updates)
        stores = make_stores(recipe, batches, Path(folder))
        systems = {"cif": System(replace(recipe, distill=[]), {}), "hkd": System(recipe, stores)}
        times: dict[str, list[float]] = {name: [] for name in systems}
        for each in systems.values():
            each.update(batches[0])  # prepares kernels and the optimiser's state
        for _ in range(given.rounds):
            for name, each in systems.items():
                started = time.process_time()
                for batch in batches:
                    each.update(batch)
                times[name].append((time.process_time() - started) / updates)
    medians = {name: statistics.median(own) for name, own in times.items()}
    ratio = medians["hkd"] / medians["cif"]
    for name, median in medians.items():
        print(f"{name}: {1000 * median:.0f} ms an update (median of {given.rounds} rounds of {updates})")
    print(f"ratio {ratio:.3f}, goal {GOAL}")
    detail = f"{given.recipe}, batches of {given.seconds:g} s, {'bf16' if systems['cif'].bf16 else 'fp32'}"
    return finish([Measured("update of HKD over one of CIF", ratio, GOAL, True, detail)], given.json)


if __name__ == "__main__":
    sys.exit(main())
