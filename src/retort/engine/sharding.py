"""Gathering and loading full tensors of modules whose parameters are sharded over processes (FSDP)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """The full tensor gathered from the shards of all processes, each of which must call this."""
    if isinstance(tensor, DTensor):
        # With CPU offloading, the processes still communicate through the GPU.
        return cast(DTensor, tensor.to(tensor.device_mesh.device_type)).full_tensor()
    return tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Shard `tensor`, complete in every process, as `like` is."""
    if not isinstance(like, DTensor):
        return tensor
    mesh = like.device_mesh
    return distribute_tensor(tensor.to(mesh.device_type), mesh, like.placements, src_data_rank=None)


def shard_of(tensor: Tensor) -> Tensor:
    """This process's shard of `tensor`, in the same memory, without gradient."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


@torch.no_grad()
def sum_over_shards(sums: Tensor, like: Tensor) -> Tensor:
    """Add up the sums of all processes over their shards of parameters like `like`; all must call it."""
    if not isinstance(like, DTensor):
        return sums
    mesh = like.device_mesh
    placements: list[Placement] = [Partial() if each.is_shard() else Replicate() for each in like.placements]
    added = DTensor.from_local(sums.to(mesh.device_type), mesh, placements, run_check=False).full_tensor()
    return added.to(sums.device)


def whole_weights(module: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers of `module`, complete and on the CPU; every process must call this."""
    return {name: _gathered(tensor) for name, tensor in module.state_dict().items()}


def load_weights(module: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copy what :func:`whole_weights` gave, the same in every process, into `module`."""
    own = module.state_dict()
    module.load_state_dict({name: shard_like(each, own.get(name, each)) for name, each in weights.items()})


def whole_optimizer(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of `optimizer` as `INDEX.NAME`, complete and on the CPU; every process must call this."""
    return {
        f"{index}.{name}": _gathered(torch.as_tensor(value))
        for index, entries in optimizer.state_dict()["state"].items()
        for name, value in entries.items()
    }


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Load what :func:`whole_optimizer` gave, the same in every process."""
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    state: dict[int, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        index, name = key.split(".", 1)
        like = parameters[int(index)]
        # The number of updates is one for the whole parameter.
        value = shard_like(tensor, like) if tensor.shape == like.shape else tensor
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})


def _gathered(tensor: Tensor) -> Tensor:
    # Cloned, for safetensors refuses what shares memory, as tied embeddings do.
    return whole(tensor.detach()).cpu().clone(memory_format=torch.contiguous_format)
