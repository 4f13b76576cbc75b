"""Corpora as lhotse manifests: `PREPARERS[kind](source, out, **options)`; `open_cuts` reads them back."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retort.corpora.cuts import Prepared
    from retort.corpora.open_cuts import find_data, open_cuts

__all__ = ["PREPARERS", "find_data", "open_cuts"]


def _lazy(module: str) -> Callable[..., Prepared]:
    def prepare(source: Any, out: Any, **options: Any) -> Prepared:
        prepared: Prepared = import_module(module).prepare(source, out, **options)
        return prepared

    return prepare


PREPARERS: dict[str, Callable[..., Prepared]] = {
    kind: _lazy(f"retort.corpora.{kind}")
    for kind in ("aishell1", "librispeech", "kaldi", "table", "synthetic")
}
"""Functions that write manifests, by kind of corpus; modules are imported on call."""


def __getattr__(name: str) -> Any:
    if name in __all__:  # lhotse imports torch, which would slow down --help
        return getattr(import_module("retort.corpora.open_cuts"), name)
    raise AttributeError(f"module 'retort.corpora' has no attribute '{name}'")
