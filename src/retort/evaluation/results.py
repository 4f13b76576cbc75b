"""Results of runs as JSON lists, `results/*.json`, which are not edited by hand."""

from __future__ import annotations

import json
import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import torch

from retort.common.errors import UserError
from retort.common.files import write_whole
from retort.common.json_reader import read_json
from retort.common.locks import one_at_a_time
from retort.config.schema import Recipe
from retort.evaluation.evaluate import Evaluation
from retort.evaluation.scoring import defined
from retort.evaluation.streaming import StreamingScore


def add_result(
    path: Path,
    recipe: Recipe,
    evaluation: Evaluation,
    *,
    steps: int,
    params: int,
    train_seconds: float,
) -> None:
    """Add one run to the list in `path`; an entry with the same recipe name, seed, split and decoding is replaced.

    Args:
        params: number of parameters of the exported model; those of language models in decoding are added.

    Raises:
        UserError: the file is not such a list.
    """
    entry = {
        **_training(recipe, steps, train_seconds),
        "system": recipe.system + evaluation.options.suffix,
        "split": evaluation.split,
        "params": params + _language_models(evaluation),
        **_rates(evaluation),
        "decoding": evaluation.options.label,
    }
    add_entries(path, [entry])


def add_streaming_results(
    path: Path,
    recipe: Recipe,
    split: str,
    scores: Sequence[StreamingScore],
    *,
    steps: int,
    params: int,
    train_seconds: float,
) -> None:
    """:func:`add_result` for one run that was scored as streams, one entry for each chunk.

    Raises:
        UserError: as there.
    """
    run = {**_training(recipe, steps, train_seconds), "split": split, "params": params}
    add_entries(path, [{**run, **asdict(each), "decoding": f"chunk {each.chunk}"} for each in scores])


def _training(recipe: Recipe, steps: int, seconds: float) -> dict[str, object]:
    """What an entry tells of the training."""
    return {
        "system": recipe.system,
        "recipe": recipe.name,
        "seed": recipe.seed,
        "steps": steps,
        "train_seconds": round(seconds, 1),
        "device": device_name(recipe.training.device, recipe.training.threads),
        "commit": commit(),
    }


def decoded_entry(trained: Mapping[str, object], evaluation: Evaluation, decoding: str) -> dict[str, object]:
    """The entry of a run for decoding options that differ from those at the end of its training.

    Args:
        trained: entry of the same split after training.
        decoding: name of the decoding options; language models are appended to the name of the system.
    """
    return {
        **trained,
        "params": int(str(trained["params"])) + _language_models(evaluation),
        **_rates(evaluation),
        "system": f"{trained['system']}{evaluation.options.suffix}",
        "decoding": decoding,
    }


def _language_models(evaluation: Evaluation) -> int:
    """Number of parameters of the language models in decoding."""
    return sum(count for part, count in evaluation.parameters.items() if part != "student")


def _rates(evaluation: Evaluation) -> dict[str, object]:
    cer, wer = (evaluation.intervals[measure] for measure in ("cer", "wer"))
    frames = {} if evaluation.frames is None else {"frames": evaluation.frames.rate}
    return {
        "cer": defined(evaluation.score.cer),
        "wer": defined(evaluation.score.wer),
        "cer_interval": [defined(cer.low), defined(cer.high)],
        "wer_interval": [defined(wer.low), defined(wer.high)],
        "real_time_factor": evaluation.score.real_time_factor,
        **frames,
        "workers": evaluation.score.workers,
    }


def add_entries(path: Path, added: Sequence[Mapping[str, object]]) -> None:
    """Add runs to the list in `path`, replacing entries with the same recipe name, seed, split and decoding.

    Raises:
        UserError: the file is not such a list.
    """
    with one_at_a_time(path.with_name(f".{path.name}.lock")):  # two runs may end at the same time
        there = read_results(path) if path.exists() else []
        fresh = [each for each in added if each not in there]
        if not fresh:
            return
        replaced = [_key(each) for each in fresh]
        others = [each for each in there if _key(each) not in replaced]
        write_whole(path, json.dumps([*others, *fresh], indent=1) + "\n")


def _key(entry: Mapping[str, object]) -> list[object]:
    return [*(entry.get(name) for name in ("recipe", "seed", "split")), entry.get("decoding", "")]


def read_results(path: Path) -> list[dict[str, object]]:
    """The runs in a results file.

    Raises:
        UserError: it is not a JSON list of objects.
    """
    try:
        entries = read_json(path)
    except ValueError as error:
        raise UserError(f"not valid JSON ({error})", where=path, remedy="Choose another file") from None
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError("not a list of results", where=path, remedy="Choose another file")
    return entries


def device_name(device: str, threads: int) -> str:
    """The GPU's name, or the CPU architecture and number of threads."""
    if device == "auto" and torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return f"{platform.machine()} CPU, {threads} thread{'s' if threads > 1 else ''}"


def commit() -> str:
    """Short commit hash of the package's git checkout, with + if it has changes; empty without one."""
    here = Path(__file__).parent
    try:
        command = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return ""
