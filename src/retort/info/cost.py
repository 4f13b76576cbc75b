"""Estimated GPU memory and time for training a recipe, extrapolated from small batches on the CPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from retort.audio.fbank import FRAME_SHIFT
from retort.common.errors import UserError
from retort.config.schema import Recipe
from retort.engine.parameters import freeze
from retort.info.describe import Description
from retort.nn.cpu_kernels import Dropout
from retort.students.cif import CifStudent
from retort.students.factory import build_student
from retort.text.tokenizers import EOS
from retort.training.hidden_store import lower_parts
from retort.training.lora import add_lora

UTILISATION = 0.1
"""Assumed fraction of a GPU's peak: small models are limited by many short kernels and by memory."""
PROBE_SECONDS = 2.56
"""Lengths of the measured utterances in seconds."""
_PAIR = 2


@dataclass(frozen=True)
class Gpu:
    """Memory in GiB, and dense 16-bit peak in TFLOP/s with 32-bit accumulation (manufacturers' data sheets)."""

    memory: float
    peak: float


GPUS = {
    "V100": Gpu(32, 125),
    "A100-40": Gpu(40, 312),
    "A100-80": Gpu(80, 312),
    "H100": Gpu(80, 989),
    "H200": Gpu(141, 989),
    "L4": Gpu(24, 121),
    "RTX-4090": Gpu(24, 165),
}


def find_gpu(name: str) -> Gpu:
    """A GPU of the table, or `MEMORY:PEAK` in its units, such as `48:362`.

    Raises:
        UserError: it is neither.
    """
    if name in GPUS:
        return GPUS[name]
    try:
        memory, peak = (float(number) for number in name.split(":"))
    except ValueError:
        memory = peak = 0.0
    if not (memory > 0 and peak > 0):
        remedy = f"Choose one of {', '.join(GPUS)}, or set its GiB and dense 16-bit TFLOP/s, such as 48:362"
        raise UserError("the GPU is not in the table", where=f"--gpu {name}", remedy=remedy)
    return Gpu(memory, peak)


@dataclass(frozen=True)
class Scaled:
    """A quantity of a batch: `fixed + linear * seconds + quadratic * seconds * length`.

    The quadratic term is due to attention.
    """

    fixed: float
    linear: float
    quadratic: float

    def of(self, seconds: float, length: float) -> float:
        """The quantity for `seconds` of speech in utterances of `length` seconds."""
        return self.fixed + seconds * (self.linear + self.quadratic * length)


@dataclass(frozen=True)
class Cost:
    """Cost of training in one process, in bytes and floating-point operations.

    Attributes:
        states: weights, and for trainable ones gradients and the optimiser's two moments; exact.
        copy: copy of the student for evaluation; exact.
        activations: tensors saved for the backward pass.
        operations: floating-point operations of matrix products, forward and backward.
    """

    states: int
    copy: int
    activations: Scaled
    operations: Scaled

    def memory(self, seconds: float, length: float) -> float:
        """Peak memory in bytes, as the sum of gradients and all activations."""
        return self.states + self.copy + self.activations.of(seconds, length)

    def longest_batch(self, memory: float, length: float) -> float:
        """Seconds of speech in utterances of `length` seconds that fit into this memory; 0 for none."""
        fixed = self.memory(0.0, length)
        return max(0.0, (memory - fixed) / (self.memory(1.0, length) - fixed))


def measure(recipe: Recipe, description: Description) -> Cost:
    """Measure memory and operations of a student of the recipe's sizes with random input on the CPU.

    Teachers and the rows of distillation are not run; the rows' parameters are counted.

    Args:
        description: of the recipe, see :func:`retort.info.describe.describe`.

    Raises:
        UserError: the student is not a CIF student, or as :func:`retort.engine.parameters.freeze`.
    """
    if recipe.student.kind != "cif":
        raise UserError(
            f"memory and time of a {recipe.student.kind} student cannot be estimated",
            where=recipe.name,
            remedy="Remove --gpu",
        )
    assert recipe.tokenizer.size is not None  # otherwise there is no description
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        student = build_student(recipe.student, recipe.tokenizer.size, recipe.features.bins).train()
        assert isinstance(student, CifStudent)
        freeze(student, recipe.training.freeze)
        if stored := recipe.training.stored_layers:
            freeze(student, [f"encoder.{part}" for part in lower_parts(student.encoder, stored)])
            student.encoder.stored = stored
        if recipe.training.lora.parts:
            add_lora(student, recipe.training.lora)
        for module in student.modules():
            if isinstance(module, Dropout):  # its CPU implementation saves more than the GPU's, one byte per element
                module.forward = partial(_dropout, p=module.p)  # type: ignore[method-assign]
        probes = [
            _probe(student, recipe, count, seconds)
            for count, seconds in ((1, PROBE_SECONDS), (2, PROBE_SECONDS), (1, _PAIR * PROBE_SECONDS))
        ]
    learned = sum(each.numel() for each in student.parameters() if each.requires_grad)
    learned += description.training_only
    states = 4 * (description.shipped + description.training_only) + 12 * learned
    activations, operations = (_scale([probe[place] for probe in probes]) for place in (0, 1))
    return Cost(states, 4 * description.shipped, activations, operations)


def tokens_per_second(recipe: Recipe) -> float:
    """Assumed rate: four word pieces or Mandarin characters per second, fifteen letters."""
    letters = recipe.tokenizer.kind == "characters" and recipe.normaliser.spaces == "keep"
    return 15.0 if letters else 4.0


def _scale(values: Sequence[float]) -> Scaled:
    """Fit to one utterance, two of the same length, and one of twice the length."""
    one, two, long = values
    utterance = two - one
    fixed = one - utterance
    quadratic = (long - fixed - _PAIR * utterance) / (_PAIR * _PAIR - _PAIR)
    seconds = PROBE_SECONDS
    return Scaled(fixed, (utterance - quadratic) / seconds, quadratic / seconds**2)


def _probe(student: CifStudent, recipe: Recipe, count: int, seconds: float) -> tuple[int, int]:
    """Saved bytes and operations of a pass over `count` utterances of noise."""
    assert recipe.tokenizer.size is not None
    frames, units = int(seconds / FRAME_SHIFT), int(seconds * tokens_per_second(recipe))
    features = torch.randn(count, frames, recipe.features.bins)
    lengths = torch.full((count,), frames)
    units = max(1, min(units, int(student.encoder.output_lengths(lengths)[0]) // 2))
    if student.encoder.stored:
        with torch.no_grad():
            features, lengths = student.encoder.lower(features, lengths, student.encoder.stored)
    tokens = torch.randint(EOS, recipe.tokenizer.size, (count, units))
    saved = _SavedTensors(student, 4 if recipe.training.precision == "fp32" else 2)
    with FlopCounterMode(display=False) as counter:
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=saved.width == 2),
            saved_tensors_hooks(saved.save, lambda tensor: tensor),
            _AsOnGpu(saved),
        ):
            output = student(features, lengths, tokens, torch.full((count,), units))
        loss = torch.stack([student.loss_weights[name] * value for name, value in output.losses.items()])
        loss.sum().backward()
    student.zero_grad(set_to_none=True)
    return saved.total, counter.get_total_flops()


class _SavedTensors:
    """Counts the memory of tensors saved for the backward pass, each once, without weights.

    Args:
        width: bytes per element in matrix products.
    """

    def __init__(self, student: CifStudent, width: int) -> None:
        self.width, self.attention = width, 0
        self._weights = {each.untyped_storage().data_ptr() for each in student.parameters()}
        self._bytes: dict[int, int] = {}

    def save(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self._weights:
            self._bytes[storage.data_ptr()] = storage.nbytes()
        return tensor

    @property
    def total(self) -> int:
        return sum(self._bytes.values()) + self.attention


def _dropout(hidden: Tensor, p: float) -> Tensor:
    return torch.native_dropout(hidden, p, True)[0]


class _AsOnGpu(TorchFunctionMode):
    """Counts the tensors that attention and norms save on a GPU under autocast.

    Fused attention saves its inputs, a floating-point mask and its output, not the attention weights. Norms use float32.
    """

    def __init__(self, saved: _SavedTensors) -> None:
        super().__init__()
        self.saved = saved

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if function is F.scaled_dot_product_attention:
            with saved_tensors_hooks(lambda each: each, lambda each: each), sdpa_kernel(SDPBackend.MATH):
                output = function(*args, **options)
            given = [each for each in args if isinstance(each, Tensor) and each.is_floating_point()]
            self.saved.attention += self.saved.width * sum(each.numel() for each in (*given, output))
            return output
        if function is F.layer_norm:
            args = (args[0].float(), *args[1:])
        return function(*args, **options)
