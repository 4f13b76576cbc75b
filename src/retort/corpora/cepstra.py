"""Cepstra of cuts, which alignment is trained on."""

from __future__ import annotations

from typing import Any

import numpy as np
from lhotse.cut import Cut
from numpy.typing import NDArray

from retort.corpora.features import load_samples
from retort.hybrid.mfcc import Mfcc


class CutMfcc:
    """Cepstra of one cut, made from its wave; other processes may be given it."""

    def __init__(self, sampling_rate: int = 16000) -> None:
        self.sampling_rate = sampling_rate
        self._mfcc = Mfcc(sampling_rate)

    def __getstate__(self) -> dict[str, Any]:
        return {"sampling_rate": self.sampling_rate}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def __call__(self, cut: Cut) -> NDArray[np.float32]:
        """`(T, 13)` every 10 ms.

        Raises:
            BadUtterance: as :class:`retort.corpora.features.CutFeatures`.
        """
        return self._mfcc(load_samples(cut, self.sampling_rate))
