"""Tiny pretrained teachers, made on the spot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

MakeBert = Callable[..., Path]


@pytest.fixture(scope="session")
def uncased(make_bert: MakeBert) -> Path:
    return make_bert()


@pytest.fixture(scope="session")
def cased(make_bert: MakeBert) -> Path:
    return make_bert(lower=False)
