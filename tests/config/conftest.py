from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest

from retort.config.loading import load_recipe
from retort.config.schema import Recipe


@pytest.fixture(scope="session")
def resolved() -> Callable[[str], Recipe]:
    """`resolved(name)`: a packaged recipe, loaded once for all tests that do not change it."""
    return cache(load_recipe)
