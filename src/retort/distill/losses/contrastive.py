"""The contrastive loss: a position's own teacher vector against those of other positions in the batch.

Han et al., Interspeech 2023 (arXiv 2301.13003), acoustic contrastive distillation.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from retort.config.schema import RowConfig
from retort.distill.positions import (
    Bank,
    PositionLosses,
    Reduction,
    Targets,
    check_pairs,
    full_precision,
    reduce_positions,
    unit_vectors,
)
from retort.distill.registry import row_loss
from retort.nn.collectives import gather_numbers, gather_rows, process_count, process_index

# Rows whose random keys are in memory at a time: sampling needs only a strip of the N x N matrix.
_STRIP = 1024


def draw_ids(
    size: int, negatives: int, *, device: torch.device | None = None, generator: torch.Generator | None = None
) -> Tensor:
    """For each of `size` anchors, ids drawn uniformly without replacement from all `size`, its own included.

    Each anchor gets exactly `negatives` ids, or floor(0.8 size) where `size <= negatives`; anchors draw
    independently.

    Returns:
        `(size, size)` bool, true in row i at the ids that anchor i drew.
    """
    mask = torch.zeros(size, size, dtype=torch.bool, device=device)
    for strip in mask.split(_STRIP):
        _draw_strip(strip, negatives, generator)
    return mask


def draw_rows(
    size: int, negatives: int, rows: range, *, seed: int, device: torch.device | None = None
) -> Tensor:
    """Rows of a draw of :func:`draw_ids` that is determined by `seed`, independent of the requested rows.

    Processes that share `seed` (0 to 2^62) and `size` draw their own rows of the same matrix.

    Returns:
        `(len(rows), size)` bool.
    """
    parts = [torch.zeros(0, size, dtype=torch.bool, device=device)]
    for start in range(rows.start - rows.start % _STRIP, rows.stop, _STRIP):
        strip = torch.zeros(min(_STRIP, size - start), size, dtype=torch.bool, device=device)
        _draw_strip(strip, negatives, torch.Generator(device or "cpu").manual_seed(seed + start))
        parts.append(strip[max(rows.start - start, 0) : rows.stop - start])
    return torch.cat(parts)


def _draw_strip(strip: Tensor, negatives: int, generator: torch.Generator | None) -> None:
    """Set `strip (n, size)`, all false, at the ids that its anchors draw."""
    size = strip.shape[1]
    drawn = negatives if size > negatives else 4 * size // 5
    # The ids left out are as random a set as the ids drawn, and there may be far fewer of them.
    picked = min(drawn, size - drawn)
    # Keys of 63 bits: no tie that topk would have to break, and so no preference for an id, in practice.
    keys = torch.empty(strip.shape, dtype=torch.int64, device=strip.device).random_(generator=generator)
    strip.scatter_(1, keys.topk(picked, dim=1, sorted=False).indices, True)
    if picked != drawn:
        strip.logical_not_()


def contrastive_logits(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 0.02,
    negatives: int = 700,
    sources: Tensor | None = None,
    tokens: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Cosines of every position with its own teacher vector and with its negatives, over the temperature.

    Negatives are drawn by :func:`draw_ids`. A drawn id is dropped, not replaced, where it is the
    anchor's own or one that `sources` or `tokens` rule out.

    Args:
        student: `(N, D)` projected student vectors of the valid positions of a batch; any floating dtype.
        teacher: `(N, D)` teacher vectors of the same positions.
        temperature: above 0.
        negatives: ids drawn for each anchor, at least 1.
        sources: `(N, 2)` int64, half-open intervals of teacher positions; positions whose intervals overlap
            are never negatives of each other. An empty interval overlaps none.
        tokens: `(N,)` token ids; positions of one token are never negatives of each other.
        generator: of the sampling, on the student's device; by default that device's global one.

    Returns:
        `(N, N)`, float64 if an input is, otherwise float32; the positives on the diagonal, -inf where there
        is no negative.

    Raises:
        ValueError: the shapes do not match, or the temperature or count is out of range.
    """
    check_pairs(student, teacher)
    size = student.shape[0]
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}, must be above 0")
    if negatives < 1:
        raise ValueError(f"negatives is {negatives}, must be at least 1")
    if sources is not None and sources.shape != (size, 2):
        raise ValueError(f"sources {tuple(sources.shape)} must be {(size, 2)}, one interval per position")
    if tokens is not None and tokens.shape != (size,):
        raise ValueError(f"tokens {tuple(tokens.shape)} must be {(size,)}, one id per position")
    drawn = draw_ids(size, negatives, device=student.device, generator=generator)
    return _logits(student, Targets(teacher, sources, tokens), drawn, temperature, 0)


def contrastive_loss(
    student: Tensor,
    teacher: Tensor,
    *,
    temperature: float = 0.02,
    negatives: int = 700,
    sources: Tensor | None = None,
    tokens: Tensor | None = None,
    generator: torch.Generator | None = None,
    reduction: Reduction = "mean",
) -> Tensor:
    """Cross-entropy of picking a position's own teacher vector among its negatives, nats.

    The arguments are those of :func:`contrastive_logits`. Memory is that of a few N x N matrices; no
    tensor of N x negatives x D is created.

    Returns:
        `(N,)` for `reduction="none"`, otherwise a scalar; 0 for a position without negatives and for N = 0.

    Raises:
        ValueError: as :func:`contrastive_logits`, or an unknown reduction.
    """
    logits = contrastive_logits(
        student,
        teacher,
        temperature=temperature,
        negatives=negatives,
        sources=sources,
        tokens=tokens,
        generator=generator,
    )
    return reduce_positions(_cross_entropy(logits), reduction)


def contrastive_hits(logits: Tensor, first: int = 0) -> Tensor:
    """`(n,)` bool: the positive is larger than every negative. A tie is no hit, so equal vectors score 0.

    Args:
        logits: `(n, N)`.
        first: column of the first anchor's positive; those of the others follow it.
    """
    return (logits >= logits.diagonal(first)[:, None]).sum(1) == 1


@row_loss(temperature=0.02, scale_free=True)
def contrastive_row(student: Tensor, targets: Targets, config: RowConfig) -> PositionLosses:
    """The loss of a row `loss: contrastive`; logs its top-1 `accuracy` and the number of `negatives` of a position.

    With `gather_negatives` the candidates are the positions of all processes, whose sources must have shared
    numbers (:func:`retort.teachers.targets.token_targets`, `shared`); every process must then call this. With a bank,
    its vectors are candidates, too, and what is excluded is replaced: a position has exactly `negatives` negatives if
    there are as many.
    """
    if targets.tokens is None and not config.same_token_negatives:
        raise ValueError("same_token_negatives: false needs the token id of every position")
    targets = targets._replace(tokens=None if config.same_token_negatives else targets.tokens)
    if config.gather_negatives and process_count() > 1:
        logits, first = _gathered_logits(student, targets, config)
    elif targets.bank is not None:
        first = 0
        seed = int(torch.randint(2**62, ()))
        logits = _banked_logits(student, targets, targets.bank, config, seed)
    else:
        first = 0
        logits = contrastive_logits(
            student,
            targets.vectors,
            temperature=config.temperature,
            negatives=config.negatives,
            sources=targets.sources,
            tokens=targets.tokens,
        )
    accuracy = contrastive_hits(logits.detach(), first)
    negatives = logits.detach().isfinite().sum(1) - 1
    return PositionLosses(_cross_entropy(logits, first), {"accuracy": accuracy, "negatives": negatives})


def _banked_logits(
    student: Tensor, candidates: Targets, bank: Bank, config: RowConfig, seed: int, first: int = 0
) -> Tensor:
    """`student (n, D)` against N candidates, n of them its own from `first` on, and M of the bank: `(n, N + M)`."""
    size = len(candidates.vectors)
    if candidates.sources is None:
        raise ValueError("a bank needs the sources of every position")
    everything = Targets(
        torch.cat((candidates.vectors, bank.vectors.to(candidates.vectors.dtype))),
        torch.cat((candidates.sources, bank.sources)),
        None if candidates.tokens is None else torch.cat((candidates.tokens, bank.tokens)),
    )
    whole = torch.ones(len(student), size + len(bank.vectors), dtype=torch.bool, device=student.device)
    logits = _logits(student, everything, whole, config.temperature, first)
    allowed = logits.detach().isfinite()
    allowed.diagonal(first).fill_(False)
    # In the order of random keys, so that exactly `negatives` of the allowed candidates are drawn.
    generator = torch.Generator(student.device).manual_seed(seed + first)
    keys = torch.empty(allowed.shape, dtype=torch.int64, device=student.device).random_(generator=generator)
    drawn = keys.masked_fill_(~allowed, -1).topk(min(config.negatives, allowed.shape[1]), dim=1, sorted=False)
    chosen = torch.zeros_like(allowed).scatter_(1, drawn.indices, True) & allowed
    chosen.diagonal(first).fill_(True)
    return logits.masked_fill(~chosen, -torch.inf)


def _gathered_logits(student: Tensor, targets: Targets, config: RowConfig) -> tuple[Tensor, int]:
    """Logits `(n, N)` of this process's n anchors over all N candidates; the column of the first positive.

    The first process seeds the draw, so that the processes together draw as a single process would.
    """
    check_pairs(student, targets.vectors)
    device = student.device
    gathered = gather_numbers(len(student), int(torch.randint(2**62, ())), device=device)
    counts, seed = [count for count, _ in gathered], gathered[0][1]
    first = sum(counts[: process_index()])
    candidates = Targets(
        gather_rows(targets.vectors, counts),
        None if targets.sources is None else gather_rows(targets.sources, counts),
        None if targets.tokens is None else gather_rows(targets.tokens, counts),
    )
    if targets.bank is not None:
        return _banked_logits(student, candidates, targets.bank, config, seed, first), first
    rows = range(first, first + len(student))
    drawn = draw_rows(sum(counts), config.negatives, rows, seed=seed, device=device)
    return _logits(student, candidates, drawn, config.temperature, first), first


def _logits(student: Tensor, candidates: Targets, drawn: Tensor, temperature: float, first: int) -> Tensor:
    """`student (n, D)` against N candidates, n of them its own from `first` on; `drawn (n, N)` is modified."""
    own = slice(first, first + len(student))
    masked = drawn.logical_not_()
    if candidates.sources is not None:
        masked |= _overlap(candidates.sources[own], candidates.sources)
    if candidates.tokens is not None:
        masked |= candidates.tokens[own, None] == candidates.tokens
    masked.diagonal(first).fill_(False)
    student, teacher = full_precision(student, candidates.vectors)
    with torch.autocast(student.device.type, enabled=False):
        logits = (unit_vectors(student) / temperature) @ unit_vectors(teacher).T
    return logits.masked_fill_(masked, -torch.inf)


def _cross_entropy(logits: Tensor, first: int = 0) -> Tensor:
    positives = torch.arange(first, first + len(logits), device=logits.device)
    return F.cross_entropy(logits, positives, reduction="none")


def _overlap(anchors: Tensor, candidates: Tensor) -> Tensor:
    """`(n, N)` bool: the intervals `anchors (n, 2)` and `candidates (N, 2)` share a teacher position."""
    start, end = _bounds(anchors)
    others_start, others_end = _bounds(candidates)
    return (start[:, None] < others_end) & (others_start < end[:, None])


def _bounds(sources: Tensor) -> tuple[Tensor, Tensor]:
    """Starts and ends of intervals; an empty interval gets bounds that overlap none."""
    start, end = sources.unbind(1)
    empty = end <= start
    bounds = torch.iinfo(sources.dtype)
    return start.masked_fill(empty, bounds.max), end.masked_fill(empty, bounds.min)
