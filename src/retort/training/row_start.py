"""Initialisation of the rows of distillation: statistics of targets, ridge regression, projections of earlier runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from accelerate import Accelerator
from lhotse import CutSet
from torch import Tensor, nn

from retort.common.errors import UserError
from retort.common.json_reader import read_json
from retort.common.weights import read_weights
from retort.config.loading import read_dict
from retort.config.schema import Recipe, RowConfig
from retort.distill.objective import Objective, row_names
from retort.distill.ridge import RidgeSums, fit_ridge
from retort.distill.row import Row
from retort.engine.checkpoints import CheckpointFolder
from retort.nn.collectives import sum_over_processes
from retort.nn.encoder import Encoder
from retort.students.student import Student
from retort.teachers.targets import TeacherTargets, token_targets, utterance_targets
from retort.teachers.teacher import Teacher
from retort.teachers.whisper import reads_audio
from retort.text.tokenizers import EOS, Tokenizer
from retort.training.batches import Batch, UtteranceDataset, epoch_batches, make_sampler
from retort.training.module import read_targets
from retort.training.shares import Group

RIDGE_UTTERANCES, HELD_OUT = 400, 5
"""Utterances of each process for ridge regression; one of `HELD_OUT` is not fitted and chooses the penalty."""
STATISTICS_TEXTS, STATIC_TEXTS = 2000, 20_000
"""Maximum number of training texts for the statistics of targets, and for the means of the tokens."""
_AT_ONCE = 64


def start_rows(
    recipe: Recipe,
    folder: Path,
    origin: str,
    student: Student,
    objective: Objective,
    teachers: Mapping[str, Teacher],
    dataset: UtteranceDataset,
    cuts: CutSet,
    texts: Sequence[str],
    accelerator: Accelerator,
    note: Callable[[str], None],
    groups: Sequence[Group] = (),
) -> None:
    """Prepare the rows of a run before its first update; a run with checkpoints is resumed from those instead.

    Args:
        folder: of the experiment.
        origin: experiment that the student is initialised from; empty for none.
        texts: normalised training texts, over which the statistics of the targets are computed.
        note: called with messages for the user.

    Raises:
        UserError: a row needs statistics of a teacher whose input is not text alone, or no utterance is usable.
    """
    if not len(objective.rows) or CheckpointFolder(folder / "checkpoints").steps():
        return
    student.to(accelerator.device)
    objective.to(accelerator.device)
    taken = take_rows(recipe.distill, objective, origin) if origin else []
    if taken:
        note(f"rows whose projections are those of {origin}: {', '.join(taken)}")
    rows = {name: row for name, row in zip(objective.names, objective.rows) if isinstance(row, Row)}
    for name, row in rows.items():
        if needs_texts(row.config):
            teacher = teachers[row.config.teacher]
            if reads_audio(teacher):
                raise UserError(
                    f"the teacher of {name} needs audio", where="distill", remedy="Use another teacher"
                )
            set_statistics(row, teacher, texts, dataset.tokenizer)
    fresh = [name for name, row in rows.items() if row.config.init == "ridge" and name not in taken]
    if fresh:
        with torch.random.fork_rng():
            sampler = make_sampler(cuts, recipe, accelerator.process_index, accelerator.num_processes, groups)
            batches = epoch_batches(dataset, sampler, 0)
            for line in set_projections(fresh, student, objective, teachers, batches, accelerator.device):
                note(line)


def needs_texts(row: RowConfig) -> bool:
    """Whether a row starts from statistics of its teacher over the training texts."""
    return row.normalise == "standard" or row.control == "static"


def take_rows(rows: Sequence[RowConfig], objective: Objective, origin: str) -> list[str]:
    """Copy the projections and the statistics of the rows of an earlier run; return the names of the rows.

    The row must have the same tap, loss, teacher and `normalise`, and the parameters the same shapes. A folder without
    checkpoints, such as a released model, has no projections.
    """
    checkpoints = CheckpointFolder(Path(origin) / "checkpoints")
    paths = [checkpoints.path(step) / "objective.safetensors" for step in reversed(checkpoints.steps())]
    path = next((path for path in paths if path.exists()), None)
    record = Path(origin) / "recipe.json"
    if path is None or not record.exists():
        return []
    there = read_dict(Recipe, read_json(record), str(record)).distill
    weights, places = read_weights(path), {name: place for place, name in enumerate(row_names(there))}
    taken = []
    for name, config, row in zip(objective.names, rows, objective.rows):
        place = places.get(name)
        if place is None or _kind(there[place]) != _kind(config):
            continue
        own = {key: value for key, value in row.state_dict().items() if key.startswith(_CARRIED)}
        found = {key: weights.get(f"rows.{place}.{key}") for key in own}
        if own and all(other is not None and other.shape == own[key].shape for key, other in found.items()):
            row.load_state_dict(
                {key: value for key, value in found.items() if value is not None}, strict=False
            )
            taken.append(name)
    return taken


_CARRIED = ("projection.", "pool.", "mean", "scale")


def _kind(row: RowConfig) -> tuple[str, ...]:
    return row.tap, row.loss, row.teacher, row.normalise, row.pool


@torch.no_grad()
def set_statistics(row: Row, teacher: Teacher, texts: Sequence[str], tokenizer: Tokenizer | None) -> None:
    """Compute the mean and the deviation of a row's targets, and for `control: static` their mean for each token.

    A dimension whose deviation is below a thousandth of the mean deviation gets that value; a token that does not occur
    gets the mean of all.
    """
    device = next((each.device for each in row.buffers()), torch.device("cpu"))
    static = row.config.control == "static"
    some = evenly(texts, STATIC_TEXTS if static else STATISTICS_TEXTS)
    sums, squares, count = torch.zeros(0), torch.zeros(0), 0
    table = torch.zeros(row.static.shape, dtype=torch.float64) if static else None
    uses = torch.zeros(0 if table is None else len(table), dtype=torch.float64)
    for targets, tokens in _targets_of(row.config, teacher, some, tokenizer):
        vectors = targets.vectors[targets.valid].double().cpu()
        sums = vectors.sum(0) + (sums if count else 0.0)
        squares = vectors.square().sum(0) + (squares if count else 0.0)
        count += len(vectors)
        if table is not None:
            ids = tokens[targets.valid.cpu()]
            table.index_add_(0, ids, vectors)
            uses.index_add_(0, ids, torch.ones(len(ids), dtype=torch.float64))
    if not count:
        raise UserError("no training text has a target", where=f"distill: {row.config.tap}")
    mean = sums / count
    deviation = (squares / count - mean.square()).clamp(min=0).sqrt()
    if row.config.normalise == "standard":
        row.mean.copy_(mean.to(device))
        row.scale.copy_(deviation.clamp(min=max(1e-3 * float(deviation.mean()), 1e-12)).to(device))
    if table is not None:
        row.static.copy_(torch.where(uses[:, None] > 0, table / uses.clamp(min=1)[:, None], mean).to(device))


def _targets_of(
    config: RowConfig, teacher: Teacher, texts: Sequence[str], tokenizer: Tokenizer | None
) -> Iterator[tuple[TeacherTargets, Tensor]]:
    """Targets of a row for texts, and the token ids `(B, N)` of their positions."""
    for start in range(0, len(texts), _AT_ONCE):
        own = list(texts[start : start + _AT_ONCE])
        outputs = teacher.read(own)
        if config.tap == "utterance":
            yield utterance_targets(outputs, own), torch.zeros(len(own), 1, dtype=torch.int64)
            continue
        assert tokenizer is not None  # `check_recipe` allows these settings for students over tokens only
        pieces = [tokenizer.pieces(text) for text in own]
        targets = token_targets(outputs, own, pieces, words=config.valid == "word_end")
        ids = torch.full(targets.valid.shape, EOS)
        for row, each in zip(ids, pieces):
            row[: len(each)] = torch.tensor([piece.id for piece in each], dtype=torch.int64)
        yield targets, ids


def evenly(texts: Sequence[str], most: int) -> list[str]:
    """At most `most` of the texts, evenly spaced."""
    step = max(len(texts) / most, 1.0)
    return [texts[int(place * step)] for place in range(min(len(texts), most))]


@torch.no_grad()
def set_projections(
    names: Sequence[str],
    student: Student,
    objective: Objective,
    teachers: Mapping[str, Teacher],
    batches: Iterable[Batch],
    device: torch.device,
    utterances: int = RIDGE_UTTERANCES,
) -> list[str]:
    """Set projections by ridge regression from the taps of the student, in evaluation mode, to the targets.

    Every process reads its own batches; the sums of all are used. All processes must call this.

    Args:
        names: of the rows.
        utterances: number that each process reads.

    Returns:
        A message for each row.

    Raises:
        UserError: no utterance is usable.
    """
    rows = [(place, objective.rows[place]) for place, name in enumerate(objective.names) if name in names]
    of = {place: need for place, _ in rows if (need := objective.row_needs[place]) is not None}
    sums = {place: tuple(_empty_sums(row, device) for _ in range(2)) for place, row in rows}
    modes, count = student.training, 0
    student.eval()
    if isinstance(encoder := getattr(student, "encoder", None), Encoder) and encoder.stored:
        encoder.training = True  # batches of a training have its stored frames
    for batch in batches:
        if not batch.ids:
            continue
        batch = batch.to(device)
        taps = student(batch.features, batch.feature_lengths, *student.labels(batch)).taps
        targets = read_targets(teachers, set(of.values()), batch, device)
        for place, row in rows:
            assert isinstance(row, Row)
            own, wanted, owner = row.pairs(taps[row.config.tap], targets[of[place]], batch.tokens)
            held_out = (count + owner) % HELD_OUT == 0
            for part, chosen in zip(sums[place], (~held_out, held_out)):
                part.add(own[chosen], wanted[chosen])
        count += len(batch.ids)
        if count >= utterances:
            break
    student.train(modes)
    return [_set_projection(objective.names[place], row, *sums[place]) for place, row in rows]


def _empty_sums(row: nn.Module, device: torch.device) -> RidgeSums:
    assert isinstance(row, Row)
    assert isinstance(row.projection, nn.Linear)
    return RidgeSums(row.projection.in_features, row.projection.out_features, device)


def _set_projection(name: str, row: nn.Module, fitted: RidgeSums, held_out: RidgeSums) -> str:
    for part in (fitted, held_out):
        for tensor in part.tensors().values():
            tensor.copy_(sum_over_processes(tensor))
    if not fitted.count or not held_out.count:
        raise UserError(f"the ridge regression of {name} has no usable utterance", where="data.train")
    found = fit_ridge(fitted, held_out)
    assert isinstance(row, Row)
    assert isinstance(row.projection, nn.Linear)
    row.projection.weight.copy_(found.line.weight)
    row.projection.bias.copy_(found.line.bias)
    positions = int(fitted.count + held_out.count)
    return (
        f"{name}: projection by ridge regression on {positions:,} positions (penalty {found.penalty:g}); it explains "
        f"{found.explained:.1%} of the targets' variance on held-out utterances"
    )
