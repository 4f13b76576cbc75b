from __future__ import annotations

import pytest

from retort.decoding.options import GREEDY, DecodingOptions
from retort.errors import UserError


def test_greedy_is_the_default() -> None:
    assert DecodingOptions() == GREEDY == DecodingOptions(beam=1, nbest=1)
    assert DecodingOptions(10, 10).nbest == 10


@pytest.mark.parametrize(
    ("beam", "nbest", "words"),
    [(0, 1, "beam is 0"), (-3, 1, "beam is -3"), (4, 0, "nbest is 0"), (4, 5, "nbest 5 .* beam of 4")],
)
def test_a_number_that_cannot_be(beam: int, nbest: int, words: str) -> None:
    with pytest.raises(UserError, match=words) as caught:
        DecodingOptions(beam, nbest)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
