"""Feature extraction according to the recipe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retort.config.kinds import builder_of
from retort.config.schema import FeatureConfig

Extractor: TypeAlias = Callable[[NDArray[Any]], NDArray[np.float32]]


def make_extractor(config: FeatureConfig) -> Extractor:
    """What computes features: `samples (N,)` float32 in [-1, 1] to `(T, bins)` float32 every 10 ms, before CMVN."""
    made: Extractor = builder_of("features", config.kind)(config)
    return made
