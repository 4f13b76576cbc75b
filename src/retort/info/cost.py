"""What training a recipe asks of a GPU: memory and hours, from small batches that are run here and scaled up."""

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
"""Of a GPU's peak, assumed: a small model is held up by many short kernels and by memory."""
PROBE_SECONDS = 2.56
"""Of the utterances that are run here."""
_PAIR = 2


@dataclass(frozen=True)
class Gpu:
    """Memory in GiB, and dense peak in TFLOP/s at 16 bits with sums in 32 (the makers' data sheets)."""

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
        UserError: neither.
    """
    if name in GPUS:
        return GPUS[name]
    try:
        memory, peak = (float(number) for number in name.split(":"))
    except ValueError:
        memory = peak = 0.0
    if not (memory > 0 and peak > 0):
        remedy = f"Choose one of {', '.join(GPUS)}, or give its GiB and dense 16-bit TFLOP/s, such as 48:362"
        raise UserError("no such GPU in the table", where=f"--gpu {name}", remedy=remedy)
    return Gpu(memory, peak)


@dataclass(frozen=True)
class Scaled:
    """A quantity of a batch: `fixed + linear * seconds + quadratic * seconds * length`.

    Attention compares every two frames of an utterance, hence the last part.
    """

    fixed: float
    linear: float
    quadratic: float

    def of(self, seconds: float, length: float) -> float:
        """Of `seconds` of speech in utterances of `length` seconds."""
        return self.fixed + seconds * (self.linear + self.quadratic * length)


@dataclass(frozen=True)
class Cost:
    """Of one process's training, in bytes and floating-point operations.

    Attributes:
        states: of every parameter the weight, and of those that learn a gradient and the optimiser's two moments; exact.
        copy: of the student, which evaluations load; exact.
        activations: what a forward pass leaves for the backward pass.
        operations: multiplications and additions of matrix products, forward and backward.
    """

    states: int
    copy: int
    activations: Scaled
    operations: Scaled

    def memory(self, seconds: float, length: float) -> float:
        """Bytes at the peak, gradients and all activations counted as if they were there together."""
        return self.states + self.copy + self.activations.of(seconds, length)

    def longest_batch(self, memory: float, length: float) -> float:
        """Seconds of speech in utterances of `length` seconds for which this memory is enough; 0 for none."""
        fixed = self.memory(0.0, length)
        return max(0.0, (memory - fixed) / (self.memory(1.0, length) - fixed))


def measure(recipe: Recipe, description: Description) -> Cost:
    """Run a student of the recipe's sizes on noise, on the CPU, and see what it keeps and computes.

    Teachers and the rows of distillation are not run; the rows' parameters are counted.

    Args:
        description: of the recipe, see :func:`retort.info.describe.describe`.

    Raises:
        UserError: the student is no CIF student, or as :func:`retort.engine.parameters.freeze`.
    """
    if recipe.student.kind != "cif":
        raise UserError(
            f"memory and hours of a {recipe.student.kind} student cannot be told beforehand",
            where=recipe.name,
            remedy="Leave --gpu out",
        )
    assert recipe.tokenizer.size is not None  # else there is no description
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
            if isinstance(module, Dropout):  # its way on a CPU keeps more than a GPU's, a byte a number
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
    """Assumed: pieces of words and characters of Mandarin come four a second, letters fifteen."""
    letters = recipe.tokenizer.kind == "characters" and recipe.normaliser.spaces == "keep"
    return 15.0 if letters else 4.0


def _scale(values: Sequence[float]) -> Scaled:
    """From one utterance, two of its length, and one of twice its length."""
    one, two, long = values
    utterance = two - one
    fixed = one - utterance
    quadratic = (long - fixed - _PAIR * utterance) / (_PAIR * _PAIR - _PAIR)
    seconds = PROBE_SECONDS
    return Scaled(fixed, (utterance - quadratic) / seconds, quadratic / seconds**2)


def _probe(student: CifStudent, recipe: Recipe, count: int, seconds: float) -> tuple[int, int]:
    """Bytes kept and operations of a pass over `count` utterances of noise."""
    assert recipe.tokenizer.size is not None
    frames, units = int(seconds / FRAME_SHIFT), int(seconds * tokens_per_second(recipe))
    features = torch.randn(count, frames, recipe.features.bins)
    lengths = torch.full((count,), frames)
    units = max(1, min(units, int(student.encoder.output_lengths(lengths)[0]) // 2))
    if student.encoder.stored:
        with torch.no_grad():
            features, lengths = student.encoder.lower(features, lengths, student.encoder.stored)
    tokens = torch.randint(EOS, recipe.tokenizer.size, (count, units))
    kept = _Kept(student, 4 if recipe.training.precision == "fp32" else 2)
    with FlopCounterMode(display=False) as counter:
        with (
            torch.autocast("cpu", torch.bfloat16, enabled=kept.width == 2),
            saved_tensors_hooks(kept.keep, lambda tensor: tensor),
            _AsOnGpu(kept),
        ):
            output = student(features, lengths, tokens, torch.full((count,), units))
        loss = torch.stack([student.loss_weights[name] * value for name, value in output.losses.items()])
        loss.sum().backward()
    student.zero_grad(set_to_none=True)
    return kept.total, counter.get_total_flops()


class _Kept:
    """Counts the memory of tensors that wait for the backward pass, each once, weights left out.

    Args:
        width: bytes of a number in matrix products.
    """

    def __init__(self, student: CifStudent, width: int) -> None:
        self.width, self.attention = width, 0
        self._weights = {each.untyped_storage().data_ptr() for each in student.parameters()}
        self._bytes: dict[int, int] = {}

    def keep(self, tensor: Tensor) -> Tensor:
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
    """Lets two functions keep what they keep on a GPU under autocast.

    Fused attention keeps its inputs, a mask of numbers and its output, not the attention weights. Norms are of float32.
    """

    def __init__(self, kept: _Kept) -> None:
        super().__init__()
        self.kept = kept

    def __torch_function__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        options = kwargs or {}
        if function is F.scaled_dot_product_attention:
            with saved_tensors_hooks(lambda each: each, lambda each: each), sdpa_kernel(SDPBackend.MATH):
                output = function(*args, **options)
            given = [each for each in args if isinstance(each, Tensor) and each.is_floating_point()]
            self.kept.attention += self.kept.width * sum(each.numel() for each in (*given, output))
            return output
        if function is F.layer_norm:
            args = (args[0].float(), *args[1:])
        return function(*args, **options)
