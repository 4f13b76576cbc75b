from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture
def tone_corpus(make_corpus: Callable[..., Path], tmp_path: Path) -> Path:
    """A Kaldi folder of one utterance of tones."""
    return make_corpus(tmp_path / "tones", 1)
