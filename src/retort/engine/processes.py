"""The devices and processes of a run, and the error when a process is lost."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType

from retort.common.errors import UserError
from retort.config.schema import LoopConfig
from retort.nn.collectives import process_count, process_index


def make_accelerator(config: LoopConfig) -> Accelerator:
    """Accelerate set up for a training's device and precision.

    Raises:
        UserError: fp16 without a GPU, or an unsupported kind of sharding.
    """
    torch.set_num_threads(config.threads)
    # Read at the first matrix product. Its own 1,024 kernels are fewer than the shapes of a training with buckets.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "16384")
    cpu = config.device == "cpu" or not torch.cuda.is_available()
    if cpu and config.precision == "fp16":
        raise UserError(
            "training.precision is fp16 without a GPU", remedy="Set training.precision: auto, bf16 or fp32"
        )
    precision = config.precision
    if precision == "auto":
        precision = "bf16" if _computes_in_bf16(cpu) else "fp32"
    AcceleratorState._reset_state()  # else a second run in one process could not choose its own precision
    accelerator = Accelerator(mixed_precision={"fp32": "no"}.get(precision, precision), cpu=cpu)
    check_division(accelerator)
    return accelerator


def _computes_in_bf16(cpu: bool) -> bool:
    """Whether the device has instructions for products in bf16: GPUs since Ampere, and CPUs by their flags (Linux)."""
    if not cpu:
        return torch.cuda.get_device_capability() >= (8, 0)
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        return False
    flags = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags.split())  # `bf16`: Arm


def check_division(accelerator: Accelerator) -> None:
    """Let FSDP shard float32 parameters for any precision: autocast casts them, as without FSDP.

    Raises:
        UserError: accelerate is configured for anything but data parallelism or plain FSDP 2.
    """
    kind = accelerator.distributed_type
    if kind in (DistributedType.DEEPSPEED, DistributedType.MEGATRON_LM):
        raise UserError(f"accelerate is configured for {kind.value}", remedy="Use torchrun, or FSDP 2")
    if kind != DistributedType.FSDP:
        return
    if not accelerator.is_fsdp2:
        raise UserError("accelerate is configured for FSDP 1", remedy="Set fsdp_version: 2")
    plugin = accelerator.state.fsdp_plugin
    if plugin.activation_checkpointing:  # BatchNorm would count every batch twice
        raise UserError(
            "accelerate is configured for activation checkpointing",
            remedy="Set fsdp_activation_checkpointing: false",
        )
    plugin.mixed_precision_policy = None


@contextlib.contextmanager
def report_lost_processes() -> Iterator[None]:
    """Raise a clear error when another process is lost, in place of that of the collective.

    Raises:
        UserError: instead of that.
    """
    try:
        yield
    except RuntimeError as error:
        # gloo has no error class; its messages begin with a source location and end with advice.
        if process_count() == 1 or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        reason = str(error).split("\n")[0].split("] ", 1)[-1].split(". ")[0]
        raise UserError(
            f"process {process_index()} of {process_count()} has lost another one, which ended or cannot be "
            f"reached ({reason})",
            remedy="Run the same command again to resume from the last checkpoint",
        ) from None
