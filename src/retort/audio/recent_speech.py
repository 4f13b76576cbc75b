"""Scores of the speech detector for the last seconds of a stream, again after every fraction of a second."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from retort.audio.energy_vad import EnergyDetector
from retort.audio.speech import Detector, chunks, open_detector


class RecentScores:
    """What a new detector returns for a window of a stream, as if the recording began and ended there.

    The powers of the energy detector's frames depend on their own samples only. They are kept, so that a window that has
    moved on needs those of the new frames and at its two ends.

    Args:
        kind, sampling_rate: as for :func:`retort.audio.speech.open_detector`.
    """

    def __init__(self, kind: str, sampling_rate: int) -> None:
        self._kind, self._rate = kind, sampling_rate
        detector = open_detector(kind, sampling_rate)
        self._energy = detector if isinstance(detector, EnergyDetector) else None
        self._first = 0  # number of the first kept frame in the stream
        self._powers: NDArray[np.float64] | None = None
        self._muted: NDArray[np.bool_] = np.zeros(0, np.bool_)

    def __call__(self, window: NDArray[np.float32], offset: int) -> tuple[Detector, NDArray[np.float32]]:
        """A detector, and its scores for the samples `window (N,)` of the stream from `offset` on.

        Windows are given in their order.
        """
        energy = self._energy
        if energy is not None and not offset % energy.hop and len(window) > 2 * energy.size:
            return energy, energy.scores(*self._frames(energy, window, offset // energy.hop))
        detector = open_detector(self._kind, self._rate)
        scores = [detector.accept(chunk) for chunk in chunks([window], detector.chunk)]
        return detector, np.concatenate([*scores, detector.finish()])

    def _frames(
        self, detector: EnergyDetector, window: NDArray[np.float32], begin: int
    ) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Frames of a window whose first one has the number `begin` in the stream."""
        hop, size = detector.hop, detector.size
        before = (size - hop) // 2
        lead = -(-before // hop)  # frames that begin before the window
        whole = (len(window) + before - size) // hop + 1  # the later ones end after the window
        kept = 0 if self._powers is None else len(self._powers)
        if not self._first <= begin + lead <= self._first + kept:
            self._powers, self._first, kept = None, begin + lead, 0
        known = self._first + kept - begin  # frames of the window up to the last kept one
        head = np.concatenate([np.zeros(before, np.float32), window[: (lead - 1) * hop - before + size]])
        tail = np.concatenate([window[known * hop - before :], np.zeros(size + hop, np.float32)])
        cuts = [
            np.lib.stride_tricks.sliding_window_view(each, size)[::hop][:count]
            for each, count in ((head, lead), (tail, -(-len(window) // hop) - known))
        ]
        powers, muted = detector.frames(np.concatenate(cuts))
        if self._powers is not None:
            drop = begin + lead - self._first
            powers = np.concatenate([powers[:lead], self._powers[drop:], powers[lead:]])
            muted = np.concatenate([muted[:lead], self._muted[drop:], muted[lead:]])
        self._powers, self._muted, self._first = powers[lead:whole], muted[lead:whole], begin + lead
        return powers, muted
