"""`retort info`: architecture and number of parameters of a recipe; estimates of memory and time on a GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from retort.config.ranges import MILLION
from retort.verbs.console import Overrides, RecipeName, console, finite, print_line

if TYPE_CHECKING:
    from retort.config.schema import Recipe
    from retort.info.describe import Description

GIB = 2**30


def info(
    recipe: RecipeName,
    overrides: Overrides = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            help="Estimate memory and time of training on a GPU: A100-40, H100, ... or MEMORY:PEAK (GiB and dense "
            "16-bit TFLOP/s), such as 48:362."
        ),
    ] = None,
    utilisation: Annotated[
        float | None,
        typer.Option(
            min=0.001, max=1.0, callback=finite, help="With --gpu: share of peak TFLOP/s used; 0.1 by default."
        ),
    ] = None,
    utterance: Annotated[
        float,
        typer.Option(
            min=1.0, max=MILLION, callback=finite, help="With --gpu: duration of the utterances in seconds."
        ),
    ] = 10.0,
) -> None:
    """Show the architecture of a recipe.

    Prints the exact number of parameters and, with --gpu, estimates of memory and training time. No data is needed.
    """
    from retort.config.loading import load_recipe
    from retort.info.describe import describe

    loaded = load_recipe(recipe, overrides or [])
    description = describe(loaded)
    table = Table("part", "parameters", title=f"{loaded.name} ({loaded.student.kind}, {loaded.system})")
    for name, count in description.parts.items():
        table.add_row(name, f"{count:,}")
    table.add_section()
    table.add_row("shipped", f"{description.shipped:,}")
    if description.training_only:
        table.add_row("training only", f"{description.training_only:,}")
        table.add_row("trained", f"{description.shipped + description.training_only:,}")
    console.print(table)
    for line in description.lines:
        print_line(line)
    if gpu is not None:
        _estimate(loaded, description, gpu, utilisation, utterance)


def _estimate(
    recipe: Recipe, description: Description, name: str, utilisation: float | None, utterance: float
) -> None:
    from retort.info.cost import UTILISATION, find_gpu, measure, tokens_per_second

    gpu, share = find_gpu(name), utilisation or UTILISATION
    cost = measure(recipe, description)
    seconds, longest = recipe.batches.seconds, recipe.batches.maximum_seconds
    table = Table("memory of an update", "GiB", title=f"{recipe.name} on {name}, an estimate")
    for part, size in (
        ("weights, gradients, optimiser states", cost.states),
        ("copy of the model for evaluations", cost.copy),
        (
            f"activations of {seconds:g} s with utterances of {utterance:g} s",
            cost.activations.of(seconds, utterance),
        ),
        (f"total with utterances of {utterance:g} s", cost.memory(seconds, utterance)),
        (f"total with utterances of {longest:g} s (batches.maximum_seconds)", cost.memory(seconds, longest)),
        (f"memory of the {name}", gpu.memory * GIB),
    ):
        table.add_row(part, f"{size / GIB:,.1f}")
    console.print(table)
    training = recipe.training
    operations = training.accumulation * cost.operations.of(seconds, utterance)
    hours = training.steps * operations / (gpu.peak * 1e12 * share) / 3600
    time = f"{hours:,.1f} h" if hours >= 1 else f"{60 * hours:.1f} min"
    print_line(
        f"time       {operations / 1e12:,.2f} TFLOP per update and process, {training.steps:,} updates: {time} "
        f"at {share:.0%} of {gpu.peak:g} TFLOP/s"
    )
    print_line(
        f"assumed    {tokens_per_second(recipe):g} tokens per second. Not included: evaluations, data loading, online "
        "teachers, the memory of the CUDA context (about 1 GiB)"
    )
    if seconds > (most := cost.longest_batch(gpu.memory * GIB, longest)):
        print_line(f"the memory is sufficient for batches.seconds up to about {int(most)}", style="yellow")
    if training.precision == "fp32":
        print_line(
            "training.precision is fp32, but the peak is for 16 bits: training will take longer", style="yellow"
        )
    if training.precision in ("auto", "bf16") and name == "V100":
        print_line("a V100 does not support bf16: set training.precision=fp16", style="yellow")
