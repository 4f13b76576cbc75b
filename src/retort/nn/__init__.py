"""Modules and numeric kernels, and nothing else."""

from retort.nn.cif import FiredTokens, integrate_and_fire

__all__ = ["FiredTokens", "integrate_and_fire"]
