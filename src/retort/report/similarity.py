"""Similarity of the fired vectors and the teacher's vectors, before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from lhotse.cut import Cut
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from retort.common.errors import BadUtterance, UserError
from retort.config.schema import Recipe
from retort.corpora.features import CutFeatures
from retort.distill.objective import Objective
from retort.distill.registry import LOSSES
from retort.distill.row import Row, valid_positions
from retort.report.experiment import Experiment
from retort.report.firing import END
from retort.students.cif import CifStudent
from retort.students.factory import build_student
from retort.students.student import Tap
from retort.teachers import TeacherTargets, token_targets
from retort.teachers.factory import open_teacher_model
from retort.text.normalise import Normaliser
from retort.text.tokenizer_io import open_tokenizer
from retort.text.tokenizers import EOS, Tokenizer

TAP = "acoustic"


@dataclass(frozen=True)
class Alike:
    """Cosines between fired vectors, after the projection of their row, and the teacher's vectors.

    Attributes:
        matrix: `(U, U)` cosines of one utterance; row: fired vector, column: teacher vector.
        own: mean cosine of a position with its own teacher vector, over all utterances.
        other: mean cosine with the vectors of other positions.
        accuracy: fraction of positions whose own teacher vector is the nearest. Vectors that share a teacher piece
            are excluded.
    """

    matrix: NDArray[np.float32]
    own: float
    other: float
    accuracy: float


@dataclass(frozen=True)
class BeforeAndAfter:
    """Similarity for the first row on the tap `acoustic`: untrained student of the same seed, and trained student.

    Attributes:
        labels: labels of the positions of both matrices, END last.
        utterances: number of utterances; the matrix is that of the first.
        positions: number of positions, which are the candidates for the nearest.
    """

    labels: list[str]
    before: Alike
    after: Alike
    utterances: int
    positions: int


@dataclass(frozen=True)
class _Inputs:
    features: Tensor
    feature_lengths: Tensor
    tokens: Tensor
    token_lengths: Tensor
    texts: list[str]


def row_on_acoustic(recipe: Recipe) -> int | None:
    """Index of the first row that projects the fired vectors; None if there is none."""
    if recipe.student.kind != "cif":
        return None
    return next(
        (
            index
            for index, row in enumerate(recipe.distill)
            if row.tap == TAP and LOSSES[row.loss].compares == "projected"
        ),
        None,
    )


@torch.inference_mode()
def before_and_after(experiment: Experiment, cuts: Sequence[Cut]) -> BeforeAndAfter:
    """Compare on `cuts`, with the reference number of fires, in float32.

    The trained student is that of the last checkpoint, whose projection it was trained with; the exported
    model is an average of several.

    Raises:
        UserError: there is no row on `acoustic`, no stored projection, no teacher, or no usable cut.
    """
    recipe = experiment.recipe
    index = row_on_acoustic(recipe)
    projections, weights = experiment.projections(), experiment.last_student()
    if index is None:
        raise UserError("no row of distillation uses the fired vectors", where=experiment.name)
    if projections is None or weights is None:
        raise UserError("the last checkpoint with the row's projection is missing", where=experiment.name)
    tokenizer = open_tokenizer(experiment.folder / "tokenizer")
    inputs = _inputs(recipe, tokenizer, cuts)
    student, objective = _untrained(recipe, tokenizer.size, _widths(recipe, projections))
    # The model itself, because a store contains only training texts.
    teacher = open_teacher_model(recipe.teachers[recipe.distill[index].teacher])
    pieces = [tokenizer.pieces(text) for text in inputs.texts]
    targets = token_targets(teacher.read(inputs.texts), inputs.texts, pieces)
    before = _alike(student, objective, index, inputs, targets)
    try:
        student.load_state_dict(weights)
        objective.load_state_dict(projections)
    except RuntimeError:
        raise UserError("the last checkpoint is of another recipe", where=experiment.name) from None
    after = _alike(student, objective, index, inputs, targets)
    first = [inputs.texts[0][piece.start : piece.end].replace(" ", "␣") for piece in pieces[0]]
    labels = [label for label, valid in zip([*first, END], targets.valid[0].tolist()) if valid]
    return BeforeAndAfter(labels, before, after, len(inputs.texts), int(targets.valid.sum()))


def _widths(recipe: Recipe, projections: dict[str, Tensor]) -> dict[str, int]:
    """Dimension of each teacher's vectors, from the projections of its rows, or `topk` for soft labels."""
    widths = {row.teacher: 1 for row in recipe.distill if row.teacher}
    for number, row in enumerate(recipe.distill):
        if LOSSES[row.loss].compares in ("unprojected", "views"):
            continue
        bias, topk = projections.get(f"rows.{number}.projection.bias"), recipe.teachers[row.teacher].topk
        if bias is None and topk is None:
            raise UserError("the last checkpoint is of another recipe", where=recipe.name)
        widths[row.teacher] = topk or len(bias if bias is not None else [])
    return widths


def _untrained(recipe: Recipe, size: int, dims: dict[str, int]) -> tuple[CifStudent, Objective]:
    """Student and projections at the start of the run, with the same seed and order of random draws."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        student = build_student(recipe.student, size, recipe.features.bins)
        assert isinstance(student, CifStudent)
        objective = Objective(recipe.distill, student.tap_dims, dims)
    return student.eval(), objective.eval()


def _inputs(recipe: Recipe, tokenizer: Tokenizer, cuts: Sequence[Cut]) -> _Inputs:
    normalise, made = Normaliser(recipe.normaliser), CutFeatures(recipe.features)
    features, tokens, texts = [], [], []
    for cut in cuts:
        text = normalise(cut.supervisions[0].text or "")
        try:
            found = made(cut)
        except BadUtterance:
            continue
        if text and len(found):
            texts.append(text)
            features.append(found)
            tokens.append(torch.tensor([*tokenizer.encode(text), EOS]))
    if not texts:
        raise UserError("none of its test utterances is usable", where=recipe.name)
    return _Inputs(
        pad_sequence(features, batch_first=True),
        torch.tensor([len(each) for each in features]),
        pad_sequence(tokens, batch_first=True, padding_value=EOS),
        torch.tensor([len(each) for each in tokens]),
        texts,
    )


def _alike(student: CifStudent, objective: Objective, index: int, inputs: _Inputs, targets: TeacherTargets) -> Alike:
    encoded = student.encode(inputs.features, inputs.feature_lengths)
    fired = student.fire(encoded, inputs.token_lengths)
    tap = Tap(fired.embeddings, inputs.token_lengths, "token")
    row = objective.rows[index]
    assert isinstance(row, Row)
    owner, place = valid_positions(tap, targets).nonzero(as_tuple=True)
    vectors = F.normalize(row.projection(tap.values[owner, place]), dim=-1)
    cosines = vectors @ F.normalize(row.normalised(targets.vectors[owner, place]), dim=-1).T
    start, end = targets.sources[owner, place].unbind(1)
    shared = (start[:, None] < end) & (start < end[:, None])
    own = cosines.diagonal()
    rivals = cosines.masked_fill(shared, -torch.inf).amax(1)
    first = int((owner == 0).sum())
    return Alike(
        cosines[:first, :first].numpy(),
        float(own.mean()),
        float(cosines[~shared].mean()),
        float((own > rivals).float().mean()),
    )
