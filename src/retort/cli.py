"""The `retort` command: registers the verbs of `retort.verbs`, which import torch only when they run."""

from __future__ import annotations

import logging
import os
import sys
from contextlib import suppress

import typer

from retort.common.console import prepare_streams
from retort.common.errors import UserError, print_error, print_to_stderr, system_error
from retort.common.signals import report_signals
from retort.verbs.demo import demo
from retort.verbs.evaluate import evaluate
from retort.verbs.export import export
from retort.verbs.fetch import fetch
from retort.verbs.info import info
from retort.verbs.label import label
from retort.verbs.lm import lm
from retort.verbs.prepare import prepare
from retort.verbs.recipes import config, recipes
from retort.verbs.release import release
from retort.verbs.report import compare, report
from retort.verbs.serve import serve
from retort.verbs.sweep import sweep
from retort.verbs.teach import teach
from retort.verbs.train import train
from retort.verbs.transcribe import transcribe
from retort.verbs.tune import gap, tune

app = typer.Typer(
    name="retort",
    help="Distil language models into speech recognisers; no language model is needed at inference.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(lm, name="lm")
for verb in (
    *(prepare, teach, train, evaluate, compare, transcribe, tune, gap, info),
    *(recipes, config, fetch, report, release, export, serve, label, demo, sweep),
):
    app.command()(verb)

RESUMING = dict.fromkeys(
    ("train", "lm", "demo", "sweep"), "; run the same command again to continue from the last checkpoint"
)
RESUMING["teach"] = "; completed shards are stored: run the same command again to continue"
RESUMING["fetch"] = "; downloaded files are stored: run the same command again to continue"
RESUMING["tune"] = "; the weights tried so far are stored: run the same command again to continue"
"""How an interrupted verb can be continued, appended to the message that it was stopped."""

TRAINING_PACKAGES = {
    "accelerate", "huggingface_hub", "jiwer", "kaldialign", "lhotse", "safetensors", "scipy", "sentencepiece",
    "tokenizers", "torch", "transformers",
}  # fmt: skip
"""Packages of the extra `train`."""


@report_signals(lambda: RESUMING.get(next(iter(sys.argv[1:]), ""), ""))
def main() -> None:
    """Run the command line. A :class:`UserError` is printed as one line; the exit code is then 2."""
    prepare_streams()
    show_warnings()
    try:
        try:
            app()
        finally:
            _flush()  # a full disk can still be reported here
    except UserError as error:
        print_error(str(error))
        sys.exit(2)
    except BrokenPipeError:  # the reader of the output has exited
        sys.exit(1)
    except OSError as error:
        print_error(system_error(error))
        sys.exit(2)
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in TRAINING_PACKAGES:
            raise
        print_error(f"this command requires {package}, which is not installed. Run: pip install 'retort-asr[train]'")
        sys.exit(2)
    except MemoryError:
        print_error("out of memory. Choose a smaller model, batch or beam")
        sys.exit(2)


def show_warnings() -> None:
    """Print the warnings that this package logs on stderr, each of them once."""
    shown: set[str] = set()

    class Printer(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            line = record.getMessage()
            if line not in shown:
                shown.add(line)
                print_to_stderr(line)

    log = logging.getLogger("retort")
    log.addHandler(Printer(logging.WARNING))
    log.propagate = False


def _flush() -> None:
    """Flush stdout. If that fails, discard the rest, because Python would fail again when it exits."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        with suppress(OSError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise


if __name__ == "__main__":
    main()
