"""Continuous integrate-and-fire (Dong and Xu, ICASSP 2020, section 2), exact.

Every frame has a weight; a token is exactly one unit of weight, and its vector is the weighted mean of its
frames. Let `c_t` be the cumulative weight after frame t. The T frame ends `c_t` and the U token ends 1, 2,
..., U, merged into one sorted sequence, bound T + U intervals, each within one frame and one token. The
length of an interval is the share of that frame in that token. Grouped by token, the intervals are the bags
of the forward pass; grouped by frame, in the same order, the bags of the gradient of `hidden`. Both are
weighted `embedding_bag` calls without an intermediate of the size of `hidden`.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from retort.nn.chunks import Chunks, chunk_windows, join_chunks
from retort.nn.cpu_kernels import Dropout
from retort.nn.masks import valid_mask

STARVED = 1e-30
"""A quantity below this counts as zero: the gradient of its scaling, U / quantity, would overflow float32."""
ROUNDING = 2.0**-23
"""A quantity with a smaller relative distance to an integer is rounded, since float32 weights are not more precise."""
COMPAT_THRESHOLD = 0.99


class FiredTokens(NamedTuple):
    """Result of :func:`integrate_and_fire`.

    Attributes:
        embeddings: (B, U, D), dtype of `hidden`; zero beyond `lengths`. U is the largest of `lengths`.
        lengths: (B,) int64, tokens of each utterance.
        fire_times: (B, U), in frames: the frame in which the token was complete plus the share of that
            frame's weight it took; the utterance's length for a tail token; zero beyond `lengths`. No
            gradient.
        quantity: (B,), sum of the unscaled weights of the valid frames, differentiable. This and `fire_times`
            are float64 where `hidden` or `alphas` is, else float32.
    """

    embeddings: Tensor
    lengths: Tensor
    fire_times: Tensor
    quantity: Tensor


class NotFiniteError(ValueError):
    """The weights of the model or its input are NaN or infinite."""


def integrate_and_fire(
    hidden: Tensor,
    alphas: Tensor,
    lengths: Tensor,
    target_lengths: Tensor | None = None,
    *,
    tail: float = 0.5,
    compat: bool = False,
) -> FiredTokens:
    """Integrate frames by their weights and fire a token at every whole unit of weight.

    With `target_lengths` the weights are scaled by U / quantity and exactly U tokens are fired; if the
    quantity is zero, the valid frames have equal weights and `alphas` gets no gradient. Without,
    floor(quantity) tokens are fired, and a remainder above `tail` is one more token, divided by its weight.
    Any number of tokens may be complete in one frame. The contents of padded frames, including NaN, have no
    influence, and their gradients are zero.

    Cumulative weights are float64; shares and sums are float32 (float64 for a float64 `hidden`), also for a
    half-precision `hidden`. The result of an utterance does not depend on its batch. The value of U requires
    one device synchronisation.

    Args:
        hidden: (B, T, D) encoder output, floating point.
        alphas: (B, T) weights, above 1 allowed; one below 0 counts as 0 and gets no gradient.
        lengths: (B,) valid frames of each utterance, integers in 0..T.
        target_lengths: (B,) number of tokens, integers; None fires the number given by the weights.
        tail: in 0..1, weight above which a remainder is a token. Unused with `target_lengths`.
        compat: use the recurrence of CIF-HieraDist (Han et al., Interspeech 2023): threshold 0.99, at most
            one fire per frame, surplus or deficit carried over, possibly fewer tokens than `target_lengths`.
            Slow, for comparison. The remainder is checked after the last valid frame of every utterance.

    Raises:
        ValueError: shapes do not match, lengths are outside 0..T, targets are negative, `tail` is outside
            0..1, a valid weight is not finite, or the target of an utterance without valid frames is above
            zero.
    """
    _check_arguments(hidden, alphas, lengths, target_lengths, tail)
    lengths = lengths.to(hidden.device, torch.int64)
    targets = None if target_lengths is None else target_lengths.to(hidden.device, torch.int64)
    precision = torch.promote_types(torch.promote_types(hidden.dtype, alphas.dtype), torch.float32)
    inside = torch.arange(hidden.size(1), device=hidden.device) < lengths[:, None]
    live = inside & ~(alphas < 0)
    weights = torch.where(live, alphas, 0.0).double()
    sums = weights.detach().cumsum(1)
    quantity = _last(sums)
    if targets is None:
        has_tail = _has_tail(quantity, tail)
        counts = quantity.floor().long() + has_tail
    else:
        has_tail, counts = None, targets
    units, any_starved, any_blank = _check_values(hidden.size(1), lengths, counts, quantity)
    if compat:
        return _recurrence(hidden, weights, inside, targets, tail, precision)

    starved = None
    if has_tail is not None:
        stretch, closed, sealed = _stretch_rest(quantity, has_tail), has_tail, lengths
    else:
        if any_starved:
            starved = quantity < STARVED
            sums = torch.where(starved[:, None], inside.double(), weights.detach()).cumsum(1)
        total = _last(sums)
        rest = torch.where(total > 0.0, total, 1.0)
        stretch, closed = _Stretch(torch.zeros_like(rest), rest, counts.double()), counts > 0
        sealed = (sums < total[:, None]).sum(1) + 1
    positions = _positions(sums, stretch)
    stairs = _merge(positions, closed, lengths, counts, units, hidden.dtype)
    # A stretched tail would move a token that ends in the same frame.
    ends = sums if targets is None else positions
    times = _fire_times(ends, stairs.token_frames, counts, torch.where(closed, sealed, 0))
    line = _Line(positions, stretch, live, starved, counts == 0 if any_blank else None)
    embeddings, quantity = _Integrate.apply(hidden, alphas, quantity.to(precision), line, stairs)
    return FiredTokens(embeddings, counts, times.to(precision), quantity)


def _check_arguments(
    hidden: Tensor, alphas: Tensor, lengths: Tensor, target_lengths: Tensor | None, tail: float
) -> None:
    if hidden.dim() != 3 or not hidden.is_floating_point():
        raise ValueError(f"hidden must be floating point (B, T, D), not {hidden.dtype} {tuple(hidden.shape)}")
    if alphas.shape != hidden.shape[:2] or not alphas.is_floating_point():
        expected = tuple(hidden.shape[:2])
        raise ValueError(
            f"alphas must be floating point {expected}, not {alphas.dtype} {tuple(alphas.shape)}"
        )
    names = ("lengths", "target_lengths")
    for name, given in zip(names, (lengths, lengths if target_lengths is None else target_lengths)):
        if given.shape != hidden.shape[:1]:
            raise ValueError(f"{name} must be {tuple(hidden.shape[:1])}, not {tuple(given.shape)}")
        if given.is_floating_point() or given.is_complex() or given.dtype == torch.bool:
            raise ValueError(f"{name} must be integers, not {given.dtype}")
    if not 0.0 <= tail <= 1.0:
        raise ValueError(f"tail must be in 0..1, not {tail}")


def _last(sums: Tensor) -> Tensor:
    return sums[:, -1] if sums.size(1) else sums.sum(1)


def _has_tail(quantity: Tensor, tail: float) -> Tensor:
    """Whether the remainder of the quantity (B,) after its full tokens is a token (B,)."""
    rest = quantity - quantity.floor()
    slack = quantity * ROUNDING
    return (rest > slack.clamp_min(tail)) | ((rest >= 1.0 - slack) & (rest > 0.0))


def _check_values(frames: int, lengths: Tensor, counts: Tensor, quantity: Tensor) -> tuple[int, bool, bool]:
    """The largest count, whether a quantity is below `STARVED`, whether a count is zero; synchronises the device."""
    units, any_starved, any_blank = 0, False, False
    rows = torch.stack([lengths.double(), counts.double(), quantity]).tolist()
    for index, (length, count, total) in enumerate(zip(*rows)):
        if not 0 <= length <= frames:
            raise ValueError(f"lengths[{index}] is {length:.0f}, outside 0..{frames}, the frames of hidden")
        if not math.isfinite(total):
            raise NotFiniteError(f"utterance {index} has a weight in alphas that is not finite")
        if count < 0:
            raise ValueError(f"target_lengths[{index}] is {count:.0f}, below zero")
        if count > 0 and length == 0:
            raise ValueError(
                f"utterance {index} has no valid frame, but target_lengths asks for {count:.0f} tokens"
            )
        units = max(units, int(count))
        any_starved |= total < STARVED
        any_blank |= count == 0
    return units, any_starved, any_blank


class _Stretch(NamedTuple):
    """Stretches cumulative weights from `base` on so that the `rest` above it becomes `goal`."""

    base: Tensor  # (B,) float64
    rest: Tensor  # (B,) float64, above zero
    goal: Tensor  # (B,) float64


def _stretch_rest(quantity: Tensor, has_tail: Tensor) -> _Stretch:
    """Stretch the remainder after the full tokens to one token if `has_tail`; otherwise nothing changes."""
    whole = quantity.floor()
    rest = torch.where(has_tail, quantity - whole, 1.0)
    return _Stretch(torch.where(has_tail, whole, quantity + 1.0), rest, has_tail.double())


def _positions(sums: Tensor, stretch: _Stretch) -> Tensor:
    """Frame ends (B, T) in tokens; the division is first, because x / x is exactly 1."""
    base = stretch.base[:, None]
    stretched = (sums - base).div_(stretch.rest[:, None]).mul_(stretch.goal[:, None]).add_(base)
    return torch.where(sums >= base, stretched, sums)


class _Line(NamedTuple):
    """Frame ends in tokens, and how they depend on the weights."""

    positions: Tensor  # (B, T) float64
    stretch: _Stretch
    live: Tensor  # (B, T) bool: the frame is valid and its weight counts
    starved: Tensor | None  # (B,) bool: the weights are zero, frames have equal weights
    blank: Tensor | None  # (B,) bool: no tokens


class _Stairs(NamedTuple):
    """The S = T + U intervals of every utterance, with indices.

    An interval outside of all tokens has weight zero and points to a valid row of its utterance, so that
    padding is never read (0 x NaN is NaN).
    """

    weights: Tensor  # (B*S,) float32 or float64
    frames: Tensor  # (B*S,) int32, row of (B*T)
    tokens: Tensor  # (B*S,) int32, row of (B*U)
    frame_starts: Tensor  # (B, T) int32, first interval of each frame, of (B*S)
    token_starts: Tensor  # (B, U) int32, first interval of each token, of (B*S)
    frame_slots: Tensor  # (B, T) int64, last interval of each frame, of S
    token_frames: Tensor  # (B, U), frame in which each token ends
    moves: Tensor  # (B, T) bool: the frame's end is inside a token, so moving it changes weights


def _merge(
    positions: Tensor, closed: Tensor, lengths: Tensor, counts: Tensor, units: int, dtype: torch.dtype
) -> _Stairs:
    """Merge frame ends and token ends.

    For ties the token end comes first, so a frame's end belongs to the token that additional weight would go
    to. The exception is the last end of a `closed` utterance, whose positions end at exactly its count: there
    is no next token, and additional weight of the frames at its end would go to the last one.
    """
    batch, frames = positions.shape
    slots = frames + units
    row = torch.arange(batch, device=positions.device, dtype=torch.int32)[:, None]
    step = torch.arange(slots, device=positions.device)
    frame, held = step[:frames], counts[:, None]
    shut = closed[:, None] & (frame < lengths[:, None])
    reached = torch.minimum(positions.long(), held - shut.long())
    frame_slots = frame + reached
    is_frame = frame_slots.new_zeros(batch, slots).scatter_(1, frame_slots, 1)
    frame_of = is_frame.cumsum(1).sub_(is_frame)
    token_of = step - frame_of
    next_token = token_of + 1

    edges = torch.minimum(next_token.to(positions.dtype).scatter_(1, frame_slots, positions), held)
    weights = edges.diff(dim=1, prepend=edges.new_zeros(batch, 1))
    # Token u + 1 starts after the end of token u; the last column receives the frame ends.
    next_token.masked_fill_(is_frame.bool(), units + 1)
    token_starts = step.new_zeros(batch, units + 2).scatter_(1, next_token, (step + 1).expand(batch, -1))
    return _Stairs(
        weights=weights.to(torch.promote_types(dtype, torch.float32)).view(-1),
        frames=_rows(frame_of, lengths, row * frames),
        tokens=_rows(token_of, counts, row * units),
        frame_starts=F.pad(frame_slots[:, :-1] + 1, (min(frames, 1), 0)).int().add_(row * slots),
        token_starts=token_starts[:, :units].int().add_(row * slots),
        frame_slots=frame_slots,
        token_frames=token_starts[:, 1 : units + 1] - 1 - step[:units],
        moves=reached < held,
    )


def _rows(index: Tensor, used: Tensor, start: Tensor) -> Tensor:
    """Rows (B*S,) int32 of the batch for `index` (B, S), limited to the first `used` (B,) from `start` (B, 1)."""
    last = (used - 1).clamp_min_(0)[:, None].int().add_(start)
    return torch.minimum(index.int().add_(start), last).view(-1)


def _fire_times(positions: Tensor, token_frames: Tensor, counts: Tensor, sealed: Tensor) -> Tensor:
    """Frame + share (B, U) float64 at which each token is complete; `sealed` (B,) for the last one if not 0."""
    if token_frames.numel() == 0:
        return positions.new_zeros(token_frames.shape)
    unit = torch.arange(1, token_frames.size(1) + 1, device=positions.device)
    frame = token_frames.clamp_max(positions.size(1) - 1)
    before = positions.gather(1, (frame - 1).clamp_min_(0)).masked_fill_(frame == 0, 0.0)
    share = (unit - before).div_(positions.gather(1, frame).sub_(before))
    times = torch.where(unit <= counts[:, None], frame + share, 0.0)
    last = (unit == counts[:, None]) & (sealed > 0)[:, None]
    return torch.where(last, sealed[:, None].double(), times)


def _bag(rows: Tensor, indices: Tensor, starts: Tensor, weights: Tensor) -> Tensor:
    """Weighted sums (B, N, D) of `rows` (B, R, D), from each start in `starts` (B, N) to the next."""
    if rows.numel() == 0 or starts.numel() == 0:
        return rows.new_zeros(*starts.shape, rows.size(2))
    table = rows.contiguous().flatten(0, 1)
    sums = torch.embedding_bag(table, indices, starts.view(-1), False, 0, False, weights)[0]
    return sums.view(*starts.shape, rows.size(2))


class _Integrate(torch.autograd.Function):
    """embeddings = W hidden, where W depends on the weights through the merged intervals; and the quantity."""

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, alphas: Tensor, quantity: Tensor, line: _Line, stairs: _Stairs
    ) -> Any:
        ctx.save_for_backward(hidden)
        ctx.line, ctx.stairs, ctx.dtype = line, stairs, alphas.dtype
        ctx.set_materialize_grads(False)
        embeddings = _bag(hidden.to(stairs.weights.dtype), stairs.frames, stairs.token_starts, stairs.weights)
        if line.blank is not None:
            embeddings.masked_fill_(line.blank[:, None, None], 0.0)
        return embeddings.to(hidden.dtype), quantity.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor | None, grad_quantity: Tensor | None) -> tuple[Tensor | None, ...]:
        (hidden,) = ctx.saved_tensors
        line, stairs = ctx.line, ctx.stairs
        grad_hidden = grad_alphas = None
        grad = None if grad is None else grad.to(stairs.weights.dtype).contiguous()
        if ctx.needs_input_grad[1]:
            rise = torch.zeros_like(line.positions) if grad is None else _rise(grad, hidden, line, stairs)
            if grad_quantity is not None:
                rise += grad_quantity[:, None]
            grad_alphas = rise.masked_fill_(~line.live, 0.0).to(ctx.dtype)
        if ctx.needs_input_grad[0] and grad is not None:
            grad_hidden = _bag(grad, stairs.tokens, stairs.frame_starts, stairs.weights)
            if line.blank is not None:
                grad_hidden.masked_fill_(line.blank[:, None, None], 0.0)
            grad_hidden = grad_hidden.to(hidden.dtype)
        return grad_hidden, grad_alphas, None, None, None


def _rise(grad: Tensor, hidden: Tensor, line: _Line, stairs: _Stairs) -> Tensor:
    """dL/dalpha (B, T) float64: the weight of a frame moves its own end, all later ends, and the stretch."""
    if grad.numel() == 0 or hidden.numel() == 0:
        return torch.zeros_like(line.positions)
    base, rest, goal = (each[:, None] for each in line.stretch)
    moved = _position_gradient(grad, hidden, stairs)
    if line.starved is not None:
        moved.masked_fill_(line.starved[:, None], 0.0)
    above = line.positions - base
    of_rest = (above.clamp_min(0.0) * moved).sum(1, keepdim=True) / rest
    moved = torch.where(above >= 0.0, moved * (goal / rest), moved)
    sums = moved.cumsum(1)
    return moved.sub_(sums).add_(sums[:, -1:] - of_rest)


def _position_gradient(grad: Tensor, hidden: Tensor, stairs: _Stairs) -> Tensor:
    """dL/dc_t = <h_t - h_(t+1), g_n> (B, T) float64, with frame t ending in token n."""
    # The gradient that embedding_bag computes for its sample weights: one dot product per interval, without a
    # gather.
    dots = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        grad.flatten(0, 1),
        hidden.to(grad.dtype).contiguous().flatten(0, 1),
        stairs.frames,
        stairs.token_starts.view(-1),
        stairs.tokens,
        0,
    ).view(hidden.size(0), -1)
    steps = dots[:, :-1] - dots[:, 1:]
    moved = steps.gather(1, stairs.frame_slots.clamp_max(steps.size(1) - 1))
    return moved.masked_fill_(~stairs.moves, 0.0).double()


def _recurrence(
    hidden: Tensor, weights: Tensor, inside: Tensor, targets: Tensor | None, tail: float, dtype: torch.dtype
) -> FiredTokens:
    """The reference's loop over frames, differentiated by autograd, in float32 or float64.

    Differences from the reference: an all-zero token counts as a fire; the longest utterance of a batch can
    have a tail token; and a surplus never fires on padding.
    """
    quantity = _last(weights.cumsum(1))
    if targets is not None:
        weights = weights * (targets / (quantity + 1e-8))[:, None]
    frames = hidden.masked_fill(~inside[:, :, None], 0.0).to(torch.promote_types(hidden.dtype, torch.float32))
    weights = weights.to(frames.dtype)
    weight = weights[:, :0].sum(1)
    state = frames[:, :0].sum(1)
    emitted, fires, times = [], [], []
    for index in range(hidden.size(1)):
        frame, alpha = frames[:, index], weights[:, index]
        fire = (weight + alpha >= COMPAT_THRESHOLD) & inside[:, index]
        taken = 1.0 - weight
        emitted.append(state + taken[:, None] * frame)
        fires.append(fire)
        share = (taken.detach() / alpha.detach().clamp_min(1e-30)).clamp(0.0, 1.0)
        times.append(index + share)
        left = alpha - taken
        state = torch.where(fire[:, None], left[:, None] * frame, state + alpha[:, None] * frame)
        weight = torch.where(fire, left, weight + alpha)
    emitted.append(state / (weight + 1e-10)[:, None])
    fires.append(weight > tail if targets is None else torch.zeros_like(weight, dtype=torch.bool))
    times.append(inside.sum(1).to(weights.dtype))
    rows, fired = torch.stack(emitted, 1), torch.stack(fires, 1)
    counts = fired.sum(1)
    utterance, frame = fired.nonzero(as_tuple=True)
    place = utterance, fired.cumsum(1)[utterance, frame] - 1
    units = int(counts.max()) if counts.numel() else 0
    embeddings = rows.new_zeros(len(rows), units, rows.size(2)).index_put(place, rows[utterance, frame])
    fire_times = rows.new_zeros(len(rows), units).index_put(place, torch.stack(times, 1)[utterance, frame])
    return FiredTokens(embeddings.to(hidden.dtype), counts, fire_times.to(dtype), quantity.to(dtype))


class WeightEstimator(nn.Module):
    """Convolution, dropout, linear, sigmoid (CIF-HKD, `conv` estimator: no activation between them).

    Args:
        dim: width of the hidden frames.
        kernel: width of the convolution in frames.
        dropout: dropout after the convolution.
        activation: `none`, or `relu` after the convolution (Dong and Xu 2020).
    """

    def __init__(self, dim: int, kernel: int, dropout: float, activation: str = "none") -> None:
        super().__init__()
        self.activation = nn.ReLU() if activation == "relu" else nn.Identity()
        self.convolution = nn.Conv1d(dim, dim, kernel, padding=kernel // 2)
        self.dropout = Dropout(dropout)
        self.linear = nn.Linear(dim, 1)

    def forward(self, hidden: Tensor, lengths: Tensor, chunks: Chunks | None = None) -> Tensor:
        """`hidden (B, T, D)`, zero beyond `lengths (B,)`, to alphas `(B, T)` in float32 or better, also zero there.

        With chunks a weight does not depend on frames after its chunk.
        """
        if chunks is None:
            mixed = self.convolution(hidden.transpose(1, 2)).transpose(1, 2)
        else:
            windows = chunk_windows(hidden, self.convolution.kernel_size[0] // 2, chunks, self)
            mixed = join_chunks(F.conv1d(windows, self.convolution.weight, self.convolution.bias), hidden)
        logits = self.linear(self.dropout(self.activation(mixed))).squeeze(-1)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        return logits.sigmoid().masked_fill(~valid_mask(lengths, hidden.shape[1]), 0.0)
