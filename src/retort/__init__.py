"""Retort distils language models into speech recognisers; at run time none is needed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"
__all__ = ["__version__", "load"]

if TYPE_CHECKING:
    from retort.runtime.load import load


def _need_no_home() -> None:
    """Name a home folder that is none where the system knows of none, as in a container with a user of no name.

    Libraries ask for one when they are imported and fail without. There is nothing in it, and nothing is written; that
    lhotse cannot make a folder in it for tools, of which none is used here, needs no warning.
    """
    import logging
    import os

    def wanted(record: logging.LogRecord) -> bool:
        return "lhotse utilities directory" not in str(record.msg)

    logging.getLogger().addFilter(wanted)

    try:
        known = os.path.expanduser("~") != "~"
    except (KeyError, RuntimeError):
        known = False
    if not known:
        os.environ["HOME"] = "/nonexistent"


_need_no_home()


def __getattr__(name: str) -> Any:
    if name == "load":  # torch is imported only when a model is opened
        from retort.runtime.load import load

        return load
    raise AttributeError(f"module 'retort' has no attribute '{name}'")
