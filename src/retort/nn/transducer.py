"""The exact transducer loss, and the best path through the lattice (Graves 2012, arXiv 1211.3711).

An utterance of T frames and U tokens has a lattice of T x (U + 1) cells: in cell (t, u) the model has consumed the
frames up to t and emitted u tokens. Blank leads to (t + 1, u), the next token to (t, u + 1), and a path ends in (T,
U), after the last frame. A frame may therefore have any number of tokens. In a monotonic transducer (Tripathi et
al. 2019) the token leads to (t + 1, u + 1): a frame has at most one token.

For a given u the recurrence over frames is of first order. Divided by the probability of staying at u from the
first frame on (a cumulative sum of log blanks), it is a cumulative sum in the log domain, or a cumulative maximum
for the best path: U scans over rows of frames instead of T + U steps over anti-diagonals. The scans are float64, so
that the division is precise; the rest has the precision of the logits, at least float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from retort.nn.masks import valid_mask

LEAST = -1e4
"""Lower limit of log-probabilities, so that every path is possible and every loss finite."""
_STRIP = 2**21
"""Maximum number of elements in memory at a time in addition to the logits and their gradient."""


class Arcs(NamedTuple):
    """Log-probabilities of the arcs that leave each cell, `(B, T, U + 1)`, at least float32, both.

    Attributes:
        blank: to the next frame.
        token: emit the next token. Both are undefined where there is no arc, outside an utterance's lattice.
    """

    blank: Tensor
    token: Tensor


def transducer_loss(
    logits: Tensor,
    tokens: Tensor,
    lengths: Tensor,
    token_lengths: Tensor,
    blank: int = 0,
    reduction: str = "mean",
    *,
    monotonic: bool = False,
) -> Tensor:
    """Negative log-probability of the tokens, summed over all paths, nats.

    Padding, including NaN, has no influence and gets no gradient. The loss of an utterance without a path (no
    frames, or for a monotonic transducer more tokens than frames) is 0. The additional memory is one tensor of the
    size of the logits, for their gradient.

    Args:
        logits: `(B, T, U + 1, V)` before the softmax, any floating dtype.
        tokens: `(B, U)` int64, without blanks and an end symbol; values beyond `token_lengths` are ignored.
        lengths: `(B,)` int64, number of frames, at most T.
        token_lengths: `(B,)` int64, at most U; 0 is allowed.
        blank: id of the blank.
        reduction: `none`, `sum` or `mean` over the utterances.
        monotonic: whether a frame has at most one token.

    Returns:
        `(B,)` or a scalar; float64 for float64 logits, otherwise float32.

    Raises:
        ValueError: shapes or lengths do not match, or the reduction is unknown.
    """
    if logits.dim() != 4 or not logits.is_floating_point():
        raise ValueError(
            f"logits must be floating point (B, T, U + 1, V), not {logits.dtype} {tuple(logits.shape)}"
        )
    cells = lattice_cells(lengths, token_lengths, *logits.shape[1:3])
    targets = _next_tokens(tokens, token_lengths, blank, logits.shape[2])
    arcs = Arcs(*_ArcLogProbs.apply(logits, targets[:, None].expand(logits.shape[:3]), cells, blank))
    return path_loss(arcs, lengths, token_lengths, reduction, monotonic=monotonic)


def lattice_cells(lengths: Tensor, token_lengths: Tensor, frames: int, positions: int) -> Tensor:
    """`(B, frames, positions)` bool: the lattice cells of a batch.

    Args:
        lengths: `(B,)` int64, number of frames of each utterance.
        token_lengths: `(B,)` int64; an utterance of n tokens has n + 1 positions.

    Raises:
        ValueError: lengths exceed frames or positions, or the batch sizes differ.
    """
    if lengths.shape != token_lengths.shape or lengths.dim() != 1:
        raise ValueError(
            f"lengths {tuple(lengths.shape)} and token_lengths {tuple(token_lengths.shape)} must be (B,)"
        )
    if ((lengths > frames) | (token_lengths >= positions) | (lengths < 0) | (token_lengths < 0)).any():
        raise ValueError(
            f"lengths {lengths.tolist()} and token_lengths {token_lengths.tolist()} go beyond {frames} frames, "
            f"{positions - 1} tokens"
        )
    return valid_mask(lengths, frames)[:, :, None] & valid_mask(token_lengths + 1, positions)[:, None]


def packed_arcs(logits: Tensor, tokens: Tensor, token_lengths: Tensor, cells: Tensor, blank: int = 0) -> Arcs:
    """Arcs of a batch from the logits of its valid cells.

    Args:
        logits: `(N, V)` of the N valid cells, in the order of `cells.nonzero()`.
        tokens: `(B, U)` int64.
        token_lengths: `(B,)` int64.
        cells: result of :func:`lattice_cells`.
        blank: id of the blank.
    """
    targets = _next_tokens(tokens, token_lengths, blank, cells.shape[2])
    own = targets[:, None].expand(cells.shape)[cells]
    arcs = _ArcLogProbs.apply(logits, own, None, blank)
    return Arcs(*(each.new_zeros(cells.shape).masked_scatter(cells, each) for each in arcs))


def path_loss(
    arcs: Arcs, lengths: Tensor, token_lengths: Tensor, reduction: str = "mean", *, monotonic: bool = False
) -> Tensor:
    """The loss of :func:`transducer_loss` from log-probabilities of arcs."""
    losses: Tensor = -_PathLogProb.apply(*arcs, lengths, token_lengths, int(monotonic))
    if reduction == "none":
        return losses
    if reduction in ("sum", "mean"):
        return losses.sum() / (max(len(losses), 1) if reduction == "mean" else 1)
    raise ValueError(f"reduction is {reduction!r}, must be 'none', 'sum' or 'mean'")


@torch.no_grad()
def token_frames(arcs: Arcs, lengths: Tensor, token_lengths: Tensor, *, monotonic: bool = False) -> Tensor:
    """The frame `(B, U)` int64 of each token on the most probable path (Viterbi).

    Frames are non-decreasing; they are 0 beyond `token_lengths` and for utterances without frames.
    """
    blank, token = _lattice(arcs, lengths, token_lengths)
    before, shift = _stays_before(blank), int(monotonic)
    best, arrivals = before[:, 0], []
    for position in range(1, blank.shape[1]):
        here = before[:, position]
        most, frames = (_later(best + token[:, position - 1], shift) - here).cummax(1)
        best = here + most
        arrivals.append(frames)
    place, found = lengths, []
    for position in range(len(arrivals), 0, -1):
        inside = (position <= token_lengths) & (lengths > 0)
        arrived = arrivals[position - 1].gather(1, place[:, None])[:, 0]
        place = torch.where(inside, arrived - shift, place).clamp(min=0)
        found.append(place.masked_fill(~inside, 0))
    return torch.stack(found[::-1], dim=1) if found else lengths.new_zeros(len(lengths), 0)


def _next_tokens(tokens: Tensor, token_lengths: Tensor, blank: int, positions: int) -> Tensor:
    """`(B, positions)`: the token after each position, blank if there is none."""
    if tokens.shape[1] < positions - 1 or len(tokens) != len(token_lengths):
        raise ValueError(f"tokens {tuple(tokens.shape)} do not go with {positions} positions")
    following = F.pad(tokens, (0, 1), value=blank)[:, :positions]
    return following.masked_fill(~valid_mask(token_lengths, positions), blank)


class _ArcLogProbs(torch.autograd.Function):
    """Log-probabilities of blank and target, without storing a softmax of the size of the logits.

    `logits (..., V)`, `targets (...)`, `cells (...)` bool, or None for all.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, cells: Tensor | None, blank: int
    ) -> tuple[Tensor, Tensor]:
        dtype = torch.promote_types(logits.dtype, torch.float32)
        rows, picked = logits.flatten(0, -2), targets.flatten()
        size = max(_STRIP // logits.shape[-1], 1)
        norms = [strip.to(dtype).logsumexp(-1) for strip in rows.split(size)]
        norm = torch.cat(norms) if norms else rows.new_zeros(0, dtype=dtype)
        ctx.save_for_backward(logits, picked, norm)
        ctx.cells, ctx.blank, ctx.size = cells, blank, size
        stays = rows[:, blank].to(dtype) - norm
        emits = rows.gather(1, picked[:, None])[:, 0].to(dtype) - norm
        return stays.view(targets.shape), emits.view(targets.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, stays: Tensor, emits: Tensor) -> tuple[Tensor, None, None, None]:
        logits, picked, norm = ctx.saved_tensors
        grad = torch.empty_like(logits, memory_format=torch.contiguous_format)
        parts = (logits.flatten(0, -2), grad.flatten(0, -2), norm, picked, stays.flatten(), emits.flatten())
        for own, out, total, target, stay, emit in zip(*(each.split(ctx.size) for each in parts)):
            slope = (own.to(total.dtype) - total[:, None]).exp_().mul_(-(stay + emit)[:, None])
            slope[:, ctx.blank] += stay
            out.copy_(slope.scatter_add_(1, target[:, None], emit[:, None]))
        if ctx.cells is not None:
            grad.masked_fill_(~ctx.cells[..., None], 0.0)  # padding may be NaN
        return grad, None, None, None


class _PathLogProb(torch.autograd.Function):
    """Log-probability `(B,)` of all paths; 0 for an utterance without paths.

    The gradient with respect to an arc is its posterior, from forward and backward variables.
    """

    @staticmethod
    def forward(
        ctx: Any, stays: Tensor, emits: Tensor, lengths: Tensor, token_lengths: Tensor, shift: int
    ) -> Tensor:
        blank, token = _lattice(Arcs(stays, emits), lengths, token_lengths)
        alphas = _forward_variables(blank, token, shift)
        total = alphas[torch.arange(len(lengths), device=lengths.device), token_lengths, lengths]
        ctx.save_for_backward(blank, token, alphas, total, lengths, token_lengths)
        ctx.dtype, ctx.shift = stays.dtype, shift
        return total.masked_fill(total == -torch.inf, 0.0).to(stays.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None, None, None]:
        blank, token, alphas, total, lengths, token_lengths = ctx.saved_tensors
        betas = _backward_variables(blank, token, token_lengths, ctx.shift)
        live = lattice_cells(lengths, token_lengths, blank.shape[2] - 1, blank.shape[1]).transpose(1, 2)
        live = live & (total > -torch.inf)[:, None, None]
        reached = (alphas - total[:, None, None])[..., :-1]
        stays = reached + blank[..., :-1] + betas[..., 1:]
        emits = reached + token[..., :-1] + F.pad(_earlier(betas, ctx.shift), (0, 0, 0, 1))[:, 1:, :-1]
        slopes = (
            (grad.double()[:, None, None] * each.exp().where(live, 0.0)).transpose(1, 2).to(ctx.dtype)
            for each in (stays, emits)
        )
        return *slopes, None, None, None


def _lattice(arcs: Arcs, lengths: Tensor, token_lengths: Tensor) -> tuple[Tensor, Tensor]:
    """The arcs `(B, U + 1, T + 1)` in float64, with a column after the last frame.

    Missing blank arcs are 0, so that staying costs nothing, and missing token arcs are minus infinity.
    """
    cells = lattice_cells(lengths, token_lengths, *arcs.blank.shape[1:])
    speaks = cells & valid_mask(token_lengths, cells.shape[2])[:, None]
    blank, token = (
        F.pad(each.detach().double().clamp(min=LEAST).where(live, nothing), (0, 0, 0, 1), value=nothing)
        for each, live, nothing in zip(arcs, (cells, speaks), (0.0, -torch.inf))
    )
    return blank.transpose(1, 2).contiguous(), token.transpose(1, 2).contiguous()


def _later(values: Tensor, shift: int) -> Tensor:
    """Shift `(..., T)` by `shift` frames to the right."""
    return F.pad(values, (shift, -shift), value=-torch.inf)


def _earlier(values: Tensor, shift: int) -> Tensor:
    """Shift `(..., T)` by `shift` frames to the left."""
    return F.pad(values, (-shift, shift), value=-torch.inf)


def _stays_before(blank: Tensor) -> Tensor:
    """Log-probability `(B, U + 1, T + 1)` of staying at a position from the first frame to each frame."""
    return F.pad(blank.cumsum(2), (1, -1))


def _forward_variables(blank: Tensor, token: Tensor, shift: int) -> Tensor:
    """Forward variables `(B, U + 1, T + 1)`."""
    before = _stays_before(blank)
    alphas = [before[:, 0]]
    for position in range(1, blank.shape[1]):
        here = before[:, position]
        arriving = _later(alphas[-1] + token[:, position - 1], shift)
        alphas.append(here + (arriving - here).logcumsumexp(1))
    return torch.stack(alphas, dim=1)


def _backward_variables(blank: Tensor, token: Tensor, token_lengths: Tensor, shift: int) -> Tensor:
    """Backward variables `(B, U + 1, T + 1)`; undefined outside of the lattices."""
    after = blank.flip(2).cumsum(2)
    token = token.flip(2)
    beta = after[:, -1]
    betas = [beta]
    for position in range(blank.shape[1] - 2, -1, -1):
        here = after[:, position]
        leaving = token[:, position] + _later(beta, shift)
        summed = here + (leaving - here).logcumsumexp(1)
        beta = torch.where((token_lengths == position)[:, None], here, summed)
        betas.append(beta)
    return torch.stack(betas[::-1], dim=1).flip(2)
