"""What a verb sets before it computes."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from retort.common import environment as module
from retort.common.environment import ALLOCATOR, REPEATABLE, tune_environment


class Replaced(Exception):
    """Carries what the process would have become."""


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Of a process that was just started on Linux, with nothing set."""

    def replace(path: str, arguments: list[str]) -> None:
        raise Replaced(arguments)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(sys, "argv", ["retort", "train", "tiny"])
    found: dict[str, str] = {}
    monkeypatch.setattr(module, "os", SimpleNamespace(environ=found, execv=replace))
    return found


def test_all_is_set_and_the_process_starts_again_once(environment: dict[str, str]) -> None:
    with pytest.raises(Replaced) as replaced:
        tune_environment()
    assert replaced.value.args[0] == [sys.executable, "-m", "retort.cli", "train", "tiny"]
    assert environment == ALLOCATOR | REPEATABLE
    tune_environment()


def test_what_the_user_set_stays(environment: dict[str, str]) -> None:
    own = {"MALLOC_TOP_PAD_": "1", "MKL_CBWR": "COMPATIBLE"}
    environment |= own
    tune_environment()
    assert environment == own


def test_products_repeat_where_there_is_no_glibc(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    tune_environment()
    assert environment == REPEATABLE
