from __future__ import annotations

from collections.abc import Callable

import pytest

from tiny_exports import Exported, exporter


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Exported]:
    return exporter(tmp_path_factory)
