"""What the processes of one run tell each other; a single process tells nobody anything."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor


def process_count() -> int:
    """Processes of this run: 1 without `torchrun` or `accelerate launch`."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def process_index() -> int:
    """This process's number among them, from 0."""
    return dist.get_rank() if process_count() > 1 else 0


def wait_for_processes() -> None:
    """Go on when every process has come here."""
    if process_count() > 1:
        dist.barrier()


def sum_over_processes(values: Tensor) -> Tensor:
    """The sum of every process's `values`, of one shape in all of them; differentiable.

    The gradient that arrives is summed too, for what one process makes of the sum depends on all values.
    Every process must call this as often and in the same order, backward pass included.
    """
    if process_count() == 1:
        return values
    total: Tensor = _Sum.apply(values)
    return total


def gather_numbers(*numbers: int, device: torch.device) -> list[list[int]]:
    """Every process's whole numbers, below 2^63, a row a process."""
    own = torch.tensor(numbers, dtype=torch.int64, device=device)
    if process_count() == 1:
        return [own.tolist()]
    rows = [torch.empty_like(own) for _ in range(process_count())]
    dist.all_gather(rows, own)
    return torch.stack(rows).tolist()


def gather_rows(rows: Tensor, counts: list[int]) -> Tensor:
    """The rows of all processes, joined in the order of the processes; without gradient.

    Args:
        rows: `(n, ...)`; all but n is the same in every process.
        counts: n of every process.

    Returns:
        `(sum of counts, ...)`.

    Raises:
        ValueError: `counts` are not of these processes and rows.
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
    """`torch.distributed.nn.functional.all_reduce`, which torch is going to drop."""

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
