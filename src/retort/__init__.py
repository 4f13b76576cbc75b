"""Retort distils language models into speech recognisers; at run time none is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

if TYPE_CHECKING:
    from retort.decoding.recogniser import load


def __getattr__(name: str) -> Any:
    if name == "load":  # torch is imported only when a model is opened
        from retort.decoding.recogniser import load

        return load
    raise AttributeError(f"module 'retort' has no attribute '{name}'")
