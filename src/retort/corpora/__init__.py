"""Corpora as lhotse manifests: `PREPARERS[kind](source, out, **options)`."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from retort.corpora.cuts import Prepared

__all__ = ["PREPARERS"]


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
