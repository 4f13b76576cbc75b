"""Speech detection by the network of the package `silero-vad`: its ONNX file, run by onnxruntime."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retort.common.errors import UserError

RATE = 16000
_FRAME = 512
_CONTEXT = 64
_FILE = "silero_vad_16k_sequence.onnx"


class SileroDetector:
    """Probability of speech for every 32 ms of a recording that arrives in chunks.

    Only the package's file is read; its Python code, which imports audio libraries, is not run.

    Args:
        sampling_rate: Hz; the network takes 16000.

    Attributes:
        hop, chunk, onset, offset: as of :class:`retort.audio.energy_vad.EnergyDetector`.

    Raises:
        UserError: the packages are not installed, or another sampling rate.
    """

    hop = _FRAME
    chunk = 32 * _FRAME
    onset, offset = 0.5, 0.35

    def __init__(self, sampling_rate: int) -> None:
        if sampling_rate != RATE:
            raise UserError(
                f"silero-vad takes {RATE} Hz, the model {sampling_rate} Hz", remedy="Use --vad energy"
            )
        self._session = _session()
        self._context = np.zeros(_CONTEXT, np.float32)
        self._hidden = np.zeros((1, 1, 128), np.float32)
        self._cell = np.zeros((1, 1, 128), np.float32)

    def accept(self, samples: NDArray[np.float32]) -> NDArray[np.float32]:
        """Scores of the next `chunk` samples `(N,)`; a shorter last chunk is padded with zeros."""
        frames = -(-len(samples) // _FRAME)
        wave = np.zeros(_CONTEXT + frames * _FRAME, np.float32)
        wave[:_CONTEXT] = self._context
        wave[_CONTEXT : _CONTEXT + len(samples)] = samples
        self._context = wave[len(wave) - _CONTEXT :].copy()
        windows = np.lib.stride_tricks.sliding_window_view(wave, _CONTEXT + _FRAME)[::_FRAME]
        given = {"input": np.ascontiguousarray(windows), "h": self._hidden, "c": self._cell}
        scores, self._hidden, self._cell = self._session.run(["speech_probs", "hn", "cn"], given)
        return np.asarray(scores, dtype=np.float32).reshape(-1)

    def finish(self) -> NDArray[np.float32]:
        """There are no further scores."""
        return np.zeros(0, np.float32)


def _session():  # type: ignore[no-untyped-def]  # onnxruntime may not be installed
    found = importlib.util.find_spec("silero_vad")
    remedy = "Install the extra: pip install 'retort-asr[vad]'; or use --vad energy"
    if found is None or found.origin is None:
        raise UserError("the package silero-vad is not installed", remedy=remedy)
    path = Path(found.origin).parent / "data" / _FILE
    if not path.is_file():
        raise UserError("this version of silero-vad lacks the network", where=path, remedy=remedy)
    try:
        import onnxruntime
    except ImportError:
        raise UserError("the package onnxruntime is not installed", remedy=remedy) from None
    options = onnxruntime.SessionOptions()
    options.inter_op_num_threads = options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), sess_options=options, providers=["CPUExecutionProvider"])
