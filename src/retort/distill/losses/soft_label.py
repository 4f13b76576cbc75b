"""The divergence of a student's distribution over tokens from a teacher's top-k.

Hinton et al., "Distilling the knowledge in a neural network" (arXiv 1503.02531), section 2; with the
top-k of a language model as in Futami et al., Interspeech 2020 (arXiv 2008.03822).
"""

from __future__ import annotations

import torch
from torch import Tensor

from retort.config.schema import RowConfig
from retort.distill.positions import PositionLosses, Reduction, Targets, full_precision, reduce_positions
from retort.distill.registry import row_loss


def soft_label_loss(
    logits: Tensor,
    ids: Tensor,
    probs: Tensor,
    *,
    temperature: float = 1.0,
    renormalise: bool = True,
    reduction: Reduction = "mean",
) -> Tensor:
    """KL(teacher || student) times temperature squared, nats.

    The teacher's top-k probabilities are renormalised to sum to 1 and are otherwise taken as they are: they
    come from a softmax at `temperature` already. Without `renormalise` the sum is over the top-k alone: what they
    lack to 1 pulls the student nowhere. The student's distribution is softmax(logits / temperature)
    over all V outputs. The factor keeps the size of the gradient about the same at any temperature.

    Args:
        logits: `(..., V)` student outputs before the softmax; any floating dtype, -inf where the teacher's
            probability is 0.
        ids: `(..., k)` int64, distinct outputs of the student that the teacher names.
        probs: `(..., k)` teacher probabilities, not negative. Where one is 0, its id is not looked at; where
            all k are 0 the teacher says nothing and the loss is 0.
        temperature: above 0.
        reduction: over all positions.

    Returns:
        `(...)` for `reduction="none"`, otherwise a scalar (0 without positions); float64 if an input is,
        else float32.

    Raises:
        ValueError: shapes that do not belong together, a temperature out of range, an unknown reduction.
    """
    if ids.shape != probs.shape or ids.shape[:-1] != logits.shape[:-1]:
        raise ValueError(
            f"logits {tuple(logits.shape)}, ids {tuple(ids.shape)}, probs {tuple(probs.shape)} "
            "must be (..., V), (..., k), (..., k)"
        )
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, must be above 0")
    logits, probs = full_precision(logits, probs)
    tiny = torch.finfo(probs.dtype).tiny
    if renormalise:
        probs = probs / probs.sum(-1, keepdim=True).clamp_min(tiny)
    unnamed = probs == 0
    log_student = (logits / temperature).log_softmax(-1).gather(-1, ids.masked_fill(unnamed, 0))
    # 0 x -inf is NaN: what the teacher rules out must not be read, forward or backward.
    log_student = log_student.masked_fill(unnamed, 0.0)
    divergence = (probs * (probs.clamp_min(tiny).log() - log_student)).sum(-1)
    return reduce_positions(divergence * temperature**2, reduction)


@row_loss("symbols")
def soft_label_row(student: Tensor, targets: Targets, config: RowConfig) -> PositionLosses:
    """The loss of a row `loss: soft_label`, on logits `(N, V)`.

    Softmax at temperature T is softmax at 1 to the power of 1 / T, renormalised. Without `renormalise` the sum of the
    teacher's probabilities stays what it is at temperature 1. With `interpolate` the loss is the cross-entropy of the
    student, at temperature 1, with the teacher, and the hard label keeps what the teacher does not take.

    Logs `mass`: the teacher's probability, at temperature 1, of the tokens that it names; the rest is outside its
    top-k or the vocabulary.

    Raises:
        ValueError: the teacher gives vectors, not probabilities.
    """
    (probs,), ids = full_precision(targets.vectors), targets.ids
    if ids is None:
        if len(student):
            raise ValueError("the teacher gives vectors, not probabilities of tokens")
        ids = probs.new_zeros(probs.shape, dtype=torch.int64)
    # Relative to the largest, or a small mass would vanish at a low temperature.
    softened = (probs / probs.amax(-1, keepdim=True).clamp_min(1e-30)) ** (1.0 / config.temperature)
    mass = probs.sum(-1)
    softened = softened / softened.sum(-1, keepdim=True).clamp_min(1e-30)
    if not config.renormalise:
        softened = softened * mass[..., None]
    if not config.interpolate:
        losses = soft_label_loss(
            student, ids, softened, temperature=config.temperature, renormalise=False, reduction="none"
        )
        return PositionLosses(losses, {"mass": mass})
    divergence = soft_label_loss(student, ids, softened, renormalise=False, reduction="none")
    losses = divergence + torch.special.entr(softened).sum(-1)
    return PositionLosses(losses, {"mass": mass}, taken=softened.sum(-1))
