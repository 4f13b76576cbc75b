"""`retort demo`: a released model transcribes, and is fine-tuned with and without distillation; offline."""

from __future__ import annotations

from retort.demo.tour import FINE_TUNING, FROM_SCRATCH, run_demo

__all__ = ["FINE_TUNING", "FROM_SCRATCH", "run_demo"]
