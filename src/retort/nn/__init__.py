"""Neural network modules and numeric kernels."""

from retort.nn.cif import FiredTokens, integrate_and_fire

__all__ = ["FiredTokens", "integrate_and_fire"]
