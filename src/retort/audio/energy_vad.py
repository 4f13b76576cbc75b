"""Speech detection by energy relative to the surrounding background noise in each band.

The background of a frame is the minimum power of its band within some seconds before it and after it,
whichever is larger, so that loud noise or long silence elsewhere in the recording has no effect, and a
step of the background (a fan that is switched on) is not speech. Minimum statistics after Martin (2001).
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray

from retort.audio.filters import moving_mean, moving_minimum

HOP = 0.01
"""Seconds between decisions."""
WINDOW = 0.025
"""Window of a power spectrum in seconds."""
BACKGROUND = 5.0
"""Seconds on either side of a frame for the estimation of background noise."""
MUTED = 1e-10
"""Mean square below which a frame is digital silence, such as from an editor or a muted microphone."""
ONSET = 6.0
"""Decibels above the background at which speech begins ..."""
OFFSET = 3.8
"""... and below which it ends."""
_EDGES = (150, 300, 500, 800, 1200, 1800, 2600, 4000, 7000)
_SMOOTHING = 5
_FLOOR_SMOOTHING = 11
_LOUDEST_BANDS = 3
_HIGHEST = 30.0
_SECTION_GAP = 0.5
_EMPTY = np.zeros(0, np.float32)


class EnergyDetector:
    """Decibels above the background for every 10 ms of a recording that arrives in chunks.

    Args:
        sampling_rate: Hz.

    Attributes:
        hop: samples from one score to the next.
        chunk: samples of a call of :meth:`accept`; the last chunk of a recording may be shorter.
        size: samples of the window of a frame.
        onset, offset: scores at which speech begins and below which it ends.
    """

    onset, offset = ONSET, OFFSET

    def __init__(self, sampling_rate: int) -> None:
        self.hop = max(1, round(HOP * sampling_rate))
        self.chunk = 100 * self.hop
        self.size = max(2, round(WINDOW * sampling_rate))
        self._window = np.hanning(self.size).astype(np.float32)
        frequencies = np.fft.rfftfreq(self.size, 1 / sampling_rate)
        edges = [edge for edge in _EDGES if edge < sampling_rate / 2]
        places = np.searchsorted(frequencies, edges)
        self._bands = [(first, last) for first, last in itertools.pairwise(places) if last > first]
        self._tail = np.zeros(0, np.float32)
        self._section = _Section(len(self._bands))
        self._muted = 0
        self._started = False

    def accept(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Final scores after the next `chunk` samples `(N,)`, consecutive over calls."""
        wave = np.concatenate([self._tail, samples])
        if not self._started:
            wave = np.concatenate([np.zeros((self.size - self.hop) // 2, np.float32), wave])
            self._started = True
        frames = max(0, (len(wave) - self.size) // self.hop + 1)
        self._tail = wave[frames * self.hop :]
        return self._score(wave, frames)

    def finish(self) -> NDArray[np.float32]:
        """The scores of the rest of the recording."""
        before = (self.size - self.hop) // 2
        left = -(-max(0, len(self._tail) - before) // self.hop)
        wave = np.concatenate([self._tail, np.zeros(self.size + self.hop, np.float32)])
        scores = self._score(wave, left) if self._started else _EMPTY
        return np.concatenate([scores, self._section.finish(), np.zeros(self._muted, np.float32)])

    def _score(self, wave: NDArray[np.float32], frames: int) -> NDArray[np.float32]:
        if not frames:
            return _EMPTY
        windows = np.lib.stride_tricks.sliding_window_view(wave, self.size)[:: self.hop][:frames]
        return np.concatenate(self._in_sections(*self.frames(windows)))

    def frames(self, windows: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Powers `(n, bands)` of `windows (n, size)` of samples, and `(n,)` whether they are digital silence."""
        cut = windows - windows.mean(1, keepdims=True)
        muted = np.square(cut, dtype=np.float64).mean(1) < MUTED
        spectrum = np.abs(np.fft.rfft(cut * self._window, axis=1)) ** 2
        return np.stack([spectrum[:, first:last].mean(1) for first, last in self._bands], 1), muted

    def scores(self, powers: NDArray[np.float64], muted: NDArray[np.bool_]) -> NDArray[np.float32]:
        """The scores of a whole recording from :meth:`frames`; what was accepted before is forgotten."""
        self._section, self._muted = _Section(len(self._bands)), 0
        found = self._in_sections(powers, muted, last=True) if len(powers) else []
        return np.concatenate([*found, self._section.finish(), np.zeros(self._muted, np.float32)])

    def _in_sections(
        self, powers: NDArray[np.float64], muted: NDArray[np.bool_], last: bool = False
    ) -> list[NDArray[np.float32]]:
        """Half a second of digital silence ends a section, because it separates backgrounds.

        With `last` no frame follows, and the scores of the section in progress are left to its end.
        """
        scores: list[NDArray[np.float32]] = []
        start = 0
        edges = [*(np.flatnonzero(np.diff(muted)) + 1), len(muted)]
        for end in edges:
            if muted[start]:
                self._muted += end - start
                if self._muted * HOP >= _SECTION_GAP and not self._section.empty:
                    scores.append(self._section.finish())
                    self._section = _Section(len(self._bands))
            else:
                if self._section.empty:
                    scores.append(np.zeros(self._muted, np.float32))
                else:
                    self._section.accept(np.full((self._muted, powers.shape[1]), np.nan))
                self._muted = 0
                self._section.accept(powers[start:end])
            start = end
        if self._section.empty:  # nothing but zeros so far
            scores.append(np.zeros(self._muted, np.float32))
            self._muted = 0
        elif not last:
            scores.append(self._section.decided())
        return scores


class _Section:
    """Scores of consecutive frames with their own background; `(n, bands)` powers arrive in order."""

    def __init__(self, bands: int) -> None:
        self._powers = np.zeros((0, bands))
        self._before = 0
        self._done = 0

    @property
    def empty(self) -> bool:
        return not len(self._powers)

    def accept(self, powers: NDArray[np.float64]) -> None:
        self._powers = np.concatenate([self._powers, powers])

    def decided(self) -> NDArray[np.float32]:
        """Scores of the frames that have `BACKGROUND` seconds after them."""
        reach = round(BACKGROUND / HOP) + _FLOOR_SMOOTHING
        return self._scores(len(self._powers) - reach, whole=False) if len(self._powers) > reach else _EMPTY

    def finish(self) -> NDArray[np.float32]:
        """Scores of the remaining frames."""
        return self._scores(len(self._powers), whole=True)

    def _scores(self, end: int, whole: bool) -> NDArray[np.float32]:
        """Scores of the frames from `_done` to `end` (indices of the stored powers)."""
        if end <= self._done:
            return _EMPTY
        reach = round(BACKGROUND / HOP)
        silent = np.isnan(self._powers)
        powers = np.where(silent, 0.0, self._powers)
        smooth = _decibels(moving_mean(powers, _SMOOTHING))
        floor = _decibels(moving_mean(powers, _FLOOR_SMOOTHING))
        if silent.any():
            floor = np.where(moving_mean(silent.astype(float), _FLOOR_SMOOTHING) > 1e-9, np.inf, floor)
        past = moving_minimum(floor, reach + 1)
        future = moving_minimum(floor[::-1], reach + 1)[::-1]
        place = np.arange(len(floor))[:, None]
        has_past = self._before + place >= reach
        has_future = (place < len(floor) - reach) | (not whole)
        background = np.where(has_past & has_future, np.maximum(past, future), np.minimum(past, future))
        background = np.where(has_past & ~has_future, past, background)
        background = np.where(has_future & ~has_past, future, background)
        above = np.clip(np.where(silent | ~np.isfinite(background), 0.0, smooth - background), 0.0, _HIGHEST)
        scores = np.sort(above, 1)[:, -_LOUDEST_BANDS:].mean(1)[self._done : end].astype(np.float32)
        self._done = end
        drop = max(0, self._done - reach - _FLOOR_SMOOTHING)
        self._powers, self._before = self._powers[drop:], self._before + drop
        self._done -= drop
        return scores


def _decibels(power: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(10 * np.log10(np.maximum(power, 1e-20)))
