"""Options shared by the verbs that decode; those of the search are made from :class:`DecodingOptions`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from dataclasses import fields, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias

import typer

from retort.common.errors import UserError
from retort.config.ranges import THREADS
from retort.decoding.options import DecodingOptions, flag, make_options, option_of, read_options, values_text
from retort.verbs.console import EXPERIMENTS, local_path

if TYPE_CHECKING:
    from retort.decoding.transcriber import Transcriber

ModelFolder = Annotated[
    Path,
    typer.Argument(
        parser=local_path,
        metavar="EXP",
        help="Experiment (exp/NAME), model folder, release (models/NAME) or hub name (USER/NAME@REVISION).",
    ),
]
Cuts = Annotated[str, typer.Argument(metavar="CUTS", help="lhotse manifest (*.jsonl.gz) or Kaldi folder.")]
Jobs = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=THREADS,
        help="Processes that search decoding graphs; by default one per core. The results do not depend on it.",
    ),
]
GRAPHS = EXPERIMENTS / "cache" / "graphs"
"""Folder where the graphs built for `--graph` are stored, one subfolder per key."""
Threads = Annotated[int, typer.Option(min=1, max=THREADS, help="CPU threads.")]
TunedFile = Annotated[
    Path | None,
    typer.Option(
        parser=local_path, metavar="FILE", help="Take the decoding options from a tuned.json of retort tune."
    ),
]

Given: TypeAlias = dict[str, Any]
"""Decoding options that were given on the command line, by the names of their fields; with `tuned`, the file."""


def with_decoding_options(
    of: type[DecodingOptions] = DecodingOptions, *, without: Collection[str] = (), tuned: bool = True
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a verb one option of the command line for each field of the decoding options.

    The verb has a parameter `given: Given`; the options take its place.

    Args:
        of: the dataclass whose fields become options.
        without: fields that the verb does not take.
        tuned: whether there is an option `--tuned FILE`.
    """
    made = {each.name: _parameter(each) for each in fields(of) if each.name not in without}
    if tuned:
        annotation = inspect.Parameter(
            "tuned", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=TunedFile
        )
        made["tuned"] = annotation

    def decorate(verb: Callable[..., None]) -> Callable[..., None]:
        @wraps(verb)
        def run(**arguments: Any) -> None:
            stated = {name: arguments.pop(name, None) for name in made}
            verb(**arguments, given={name: value for name, value in stated.items() if value is not None})

        parameters = []
        for each in inspect.signature(verb, eval_str=True).parameters.values():
            own = each.replace(kind=inspect.Parameter.KEYWORD_ONLY)
            parameters += list(made.values()) if each.name == "given" else [own]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in parameters}
        return run

    return decorate


def _parameter(each: Any) -> inspect.Parameter:
    """The parameter of a verb for a field; None stands for an option that is not given."""
    own, values = option_of(each), values_text(each)
    text = f"{own.text} [{values}]" if values else own.text
    made = typer.Option(flag(each.name), metavar=own.metavar or None, help=text)
    annotation: Any = Annotated.__class_getitem__((type(each.default) | None, made))  # type: ignore[attr-defined]
    return inspect.Parameter(each.name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)


def open_recogniser(experiment: Path, threads: int) -> Transcriber:
    """A trained model in torch, or an exported one in ONNX Runtime.

    Raises:
        UserError: as :func:`retort.runtime.load.load`.
    """
    from retort.pretrained.released import find_release
    from retort.runtime.folder import is_export
    from retort.runtime.load import require_torch
    from retort.runtime.recogniser import load_export

    experiment = find_release(experiment)
    if is_export(experiment):
        return load_export(experiment, threads)
    require_torch(experiment)
    import torch

    from retort.decoding.recogniser import load
    from retort.graph.pool import DecoderPool

    torch.set_num_threads(threads)
    return load(experiment).use_pool(DecoderPool(graphs=GRAPHS))


def decoding_options(given: Given) -> DecodingOptions:
    """Build the decoding options from those given on the command line.

    Raises:
        UserError: two options exclude each other, or a weight is missing.
    """
    stated = dict(given)
    tuned = stated.pop("tuned", None)
    if tuned is None:
        return make_options(stated)
    alone = {each.name for each in fields(DecodingOptions) if option_of(each).with_tuned}
    if other := next((name for name in stated if name not in alone), None):
        raise UserError(f"--tuned and {flag(other)} exclude each other", remedy="Give one of them")
    return replace(read_options(tuned), **stated)
