"""KL divergence between a teacher's top-k distribution over tokens and the student's distribution.

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

    The teacher's top-k probabilities must come from a softmax at `temperature`; they are renormalised to sum to 1.
    Without `renormalise` the sum is over the top k only, and the rest of the teacher's probability does not affect the
    student. The student's distribution is softmax(logits / temperature) over all V outputs. The factor keeps the size
    of the gradient about constant at any temperature.

    Args:
        logits: `(..., V)` student outputs before the softmax; any floating dtype, -inf where the teacher's
            probability is 0.
        ids: `(..., k)` int64, distinct outputs of the student.
        probs: `(..., k)` teacher probabilities, not negative. Where one is 0, its id is ignored; where
            all k are 0, there is no target and the loss is 0.
        temperature: above 0.
        reduction: over all positions.

    Returns:
        `(...)` for `reduction="none"`, otherwise a scalar (0 without positions); float64 if an input is,
        else float32.

    Raises:
        ValueError: the shapes do not match, the temperature is out of range, or the reduction is unknown.
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
    ignored = probs == 0
    log_student = (logits / temperature).log_softmax(-1).gather(-1, ids.masked_fill(ignored, 0))
    # 0 x -inf is NaN: outputs with teacher probability 0 must not be used, forward or backward.
    log_student = log_student.masked_fill(ignored, 0.0)
    divergence = (probs * (probs.clamp_min(tiny).log() - log_student)).sum(-1)
    return reduce_positions(divergence * temperature**2, reduction)


@row_loss("symbols", temperature=1.0)
def soft_label_row(student: Tensor, targets: Targets, config: RowConfig) -> PositionLosses:
    """The loss of a row `loss: soft_label`, on logits `(N, V)`.

    Softmax at temperature T is softmax at 1 to the power of 1 / T, renormalised. Without `renormalise` the sum of the
    teacher's probabilities is that at temperature 1. With `interpolate` the loss is the cross-entropy of the student,
    at temperature 1, with the teacher, and the hard label has the rest of the weight.

    Logs `mass`: the teacher's total probability, at temperature 1, of its top k; the rest is outside the top k or the
    vocabulary.

    Raises:
        ValueError: the targets are vectors, not probabilities.
    """
    (probs,), ids = full_precision(targets.vectors), targets.ids
    if ids is None:
        if len(student):
            raise ValueError("the targets are vectors, not probabilities of tokens")
        ids = probs.new_zeros(probs.shape, dtype=torch.int64)
    # Relative to the largest: a small mass would vanish at a low temperature.
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
