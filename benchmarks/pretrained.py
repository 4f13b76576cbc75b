"""Updates per second of a CIF student on a Whisper encoder: all of it, LoRA, and the upper half with stored lower layers.

    PYTHONPATH=src python benchmarks/pretrained.py [--size base] [--batch 8] [--seconds 6] [--stored N] [--rounds 5]

Weights and features are random: neither changes what an update costs. All three make updates of the same batch (forward
and backward pass, clipping, AdamW) and take turns in every round; times are process CPU time on one thread, since the
clock of a busy machine tells of its other work. Shown are the median of the rounds, the smallest and the largest, and
the ratio to full training; exits with 1 where stored layers are less than 3 times as fast.

Storing costs one forward pass of the lower layers for each utterance and speed, once; it is shown in updates.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable

from retort.common.environment import ALLOCATOR
from retort.students.cif import CifStudentConfig

SETTINGS = {**ALLOCATOR, "OMP_NUM_THREADS": "1"}
if any(os.environ.get(key) != value for key, value in SETTINGS.items()):
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **SETTINGS})

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402
from torch import Tensor  # noqa: E402

from results import Measured, add_json, finish  # noqa: E402
from retort.config.schema import LoraConfig  # noqa: E402
from retort.engine.parameters import freeze  # noqa: E402
from retort.nn.pretrained import PretrainedEncoderConfig  # noqa: E402
from retort.students.cif import CifStudent  # noqa: E402
from retort.students.factory import build_student  # noqa: E402
from retort.training.hidden_store import lower_parts  # noqa: E402
from retort.training.lora import add_lora  # noqa: E402

SIZES = {"tiny": (384, 4, 6), "base": (512, 6, 8), "small": (768, 12, 12)}
"""Width, layers and heads of the published models."""
BINS, VOCABULARY = 80, 500
TOKENS_PER_SECOND = 4
GOAL = 3.0
"""Updates with stored layers for one of full training."""


def student_of(size: str, stored: int, lora: bool, pool_after: list[int]) -> CifStudent:
    dim, layers, heads = SIZES[size]
    architecture = {
        "model_type": "whisper",
        "num_mel_bins": BINS,
        "d_model": dim,
        "encoder_layers": layers,
        "encoder_attention_heads": heads,
        "encoder_ffn_dim": 4 * dim,
        "max_source_positions": 1500,
    }
    encoder = PretrainedEncoderConfig(
        architecture=architecture, layers=layers, dim=dim, dropout=0.0, pool_after=pool_after
    )
    torch.manual_seed(0)
    student = build_student(CifStudentConfig(encoder=encoder), VOCABULARY, BINS)
    assert isinstance(student, CifStudent)
    if stored:
        freeze(student, [f"encoder.{part}" for part in lower_parts(student.encoder, stored)])
        student.encoder.stored = stored
    if lora:
        add_lora(student, LoraConfig(["encoder"]))
    return student.train()


def updater(student: CifStudent, given: tuple[Tensor, Tensor], tokens: Tensor, precision: str) -> Callable[[], None]:
    features, lengths = given
    if student.encoder.stored:
        with torch.no_grad():
            features, lengths = student.encoder.lower(features, lengths, student.encoder.stored)
    counts = torch.full((len(tokens),), tokens.shape[1])
    learning = [each for each in student.parameters() if each.requires_grad]
    optimizer = torch.optim.AdamW(learning, lr=1e-4)

    def update() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            losses = student(features, lengths, tokens, counts).losses
        total = torch.stack([student.loss_weights[name] * loss for name, loss in losses.items()]).sum()
        (total / counts.sum()).backward()
        torch.nn.utils.clip_grad_norm_(learning, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--batch", type=int, default=8, help="utterances")
    parser.add_argument("--seconds", type=float, default=6.0, help="of each utterance")
    parser.add_argument("--stored", type=int, help="layers; by default half of them")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32")
    add_json(parser)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    stored = SIZES[arguments.size][1] // 2 if arguments.stored is None else arguments.stored
    pool_after = [max(stored, 1)]  # to 40 ms, the same for all
    frames, units = int(arguments.seconds * 100), int(arguments.seconds * TOKENS_PER_SECOND)
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(arguments.batch, frames, BINS, generator=generator)
    given = features, torch.full((arguments.batch,), frames)
    tokens = torch.randint(4, VOCABULARY, (arguments.batch, units), generator=generator)
    students = {
        "full": student_of(arguments.size, 0, False, pool_after),
        "LoRA": student_of(arguments.size, 0, True, pool_after),
        f"upper {SIZES[arguments.size][1] - stored} layers, {stored} stored": student_of(
            arguments.size, stored, False, pool_after
        ),
        f"the same, with LoRA on them, {stored} stored": student_of(arguments.size, stored, True, pool_after),
    }
    updates = {name: updater(student, given, tokens, arguments.precision) for name, student in students.items()}
    times: dict[str, list[float]] = {name: [] for name in updates}
    for update in updates.values():
        update()  # kernels are prepared, moments are made
    for _ in range(arguments.rounds):
        for name, update in updates.items():
            started = time.process_time()
            update()
            times[name].append(time.process_time() - started)
    lower = students["full"].eval()
    started = time.process_time()
    with torch.inference_mode():
        lower.encoder.lower(*given, stored)
    storing = time.process_time() - started
    full = statistics.median(times["full"])
    batch = f"{arguments.batch} utterances of {arguments.seconds:g} s"
    title = f"Whisper {arguments.size}, {batch}, {arguments.precision}, one thread"
    table = Table("", "learn", "updates/s", "s an update", "smallest", "largest", "against full", title=title)
    for name, values in times.items():
        middle = statistics.median(values)
        learning = sum(each.numel() for each in students[name].parameters() if each.requires_grad)
        cells = f"{middle:.3f}", f"{min(values):.3f}", f"{max(values):.3f}", f"{full / middle:.2f}"
        table.add_row(name, f"{learning / 1e6:.1f} M", f"{1 / middle:.2f}", *cells)
    console = Console(width=120)
    console.print(table)
    goal = full / statistics.median(times[list(times)[2]])
    console.print(f"storing this batch costs {storing:.3f} s, once: {storing / full:.2f} full updates")
    if goal < GOAL:
        console.print(f"stored layers are {goal:.2f} times as fast as full training, the goal is {GOAL:g}")
    detail = f"{title}, {stored} of {SIZES[arguments.size][1]} layers stored"
    return finish([Measured("stored lower layers: updates over full training's", goal, GOAL, False, detail)], arguments.json)


if __name__ == "__main__":
    sys.exit(main())
