"""Communication between the processes of a run; with a single process, every operation is local."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def process_count() -> int:
    """Number of processes: 1 without `torchrun` or `accelerate launch`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    """Rank of this process, from 0."""
    return dist.get_rank() if process_count() > 1 else 0


def wait_for_processes() -> None:
    """Wait for all processes."""
    if process_count() > 1:
        dist.barrier()


def sum_over_processes(values: Tensor) -> Tensor:
    """Sum of `values` over all processes, of one shape in all of them; differentiable.

    The incoming gradients are summed, too, since the results of each process depend on all values. All
    processes must make the same calls in the same order, including the backward pass.
    """
    if process_count() == 1:
        return values
    total: Tensor = _Sum.apply(values)
    return total


def gather_numbers(*numbers: int, device: torch.device) -> list[list[int]]:
    """Integers below 2^63 of all processes, one row per process."""
    own = torch.tensor(numbers, dtype=torch.int64, device=device)
    if process_count() == 1:
        return [own.tolist()]
    rows = [torch.empty_like(own) for _ in range(process_count())]
    dist.all_gather(rows, own)
    return torch.stack(rows).tolist()


def gather_rows(rows: Tensor, counts: list[int]) -> Tensor:
    """Concatenate the rows of all processes in the order of the ranks; without gradient.

    Args:
        rows: `(n, ...)`; all dimensions but n must be equal in all processes.
        counts: n of each process.

    Returns:
        `(sum of counts, ...)`.

    Raises:
        ValueError: `counts` do not match the processes or the rows.
    """
    if len(counts) != process_count() or counts[process_index()] != len(rows):
        raise ValueError(
            f"counts {counts} are not those of {process_count()} processes, {len(rows)} rows here"
        )
    if process_count() == 1:
        return rows.detach()
    padded = rows.new_zeros(max(counts), *rows.shape[1:])
    padded[: len(rows)] = rows.detach()
    parts = [torch.empty_like(padded) for _ in counts]
    dist.all_gather(parts, padded)
    return torch.cat([part[:count] for part, count in zip(parts, counts)])


class _Sum(torch.autograd.Function):
    """Like `torch.distributed.nn.functional.all_reduce`, which is deprecated."""

    @staticmethod
    def forward(ctx: object, values: Tensor) -> Tensor:
        return _summed(values)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return _summed(gradient)


def _summed(values: Tensor) -> Tensor:
    total = values.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(total)
    return total
