"""`retort demo`: from nothing to the text of sentences never heard, offline, with and without a teacher."""

from __future__ import annotations

from retort.demo.tour import run_demo

__all__ = ["run_demo"]
