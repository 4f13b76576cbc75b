from __future__ import annotations

import pytest
import torch

from retort.teachers.frames import frame_targets
from retort.teachers.targets import TeacherTargets
from retort.text.tokenizers import UNKNOWN

SEGMENTS = torch.tensor([[-1, 0, 0, 1, -1, 2], [0, -1, -1, -1, -1, -1], [-1] * 6])


def make_targets(soft: bool = True) -> TeacherTargets:
    """Texts of three, one and no piece, EOS after each; nothing is known of the second piece of the first."""
    draw = torch.Generator().manual_seed(0)
    valid = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0], [1, 0, 0, 0]]).bool()
    sources = torch.arange(24).view(3, 4, 2)
    vectors = torch.rand(3, 4, 2, generator=draw)
    return TeacherTargets(vectors, valid, sources, torch.randint(9, (3, 4, 2), generator=draw) if soft else None)


@pytest.mark.parametrize("soft", [True, False])
def test_every_frame_of_a_piece_has_what_is_predicted_of_it(soft: bool) -> None:
    given = make_targets(soft)
    found = frame_targets(given, SEGMENTS, [[5, 6, UNKNOWN], [7], []])
    assert found.labels is not None
    for b in range(3):
        for t in range(6):
            piece = int(SEGMENTS[b, t])
            output = piece >= 0 and bool(given.valid[b, piece])
            assert bool(found.valid[b, t]) == output
            assert torch.equal(found.vectors[b, t], given.vectors[b, piece] if output else torch.zeros(2))
            assert found.sources[b, t].tolist() == (given.sources[b, piece].tolist() if output else [0, 0])
            if soft and output:
                assert found.ids is not None
                assert given.ids is not None
                assert torch.equal(found.ids[b, t], given.ids[b, piece])
    assert found.labels.tolist() == [[-1, 5, 5, 6, -1, -1], [7, -1, -1, -1, -1, -1], [-1] * 6]
    assert (found.ids is None) == (not soft)
    assert frame_targets(given, SEGMENTS).labels is None


@pytest.mark.parametrize("place", [-2, 3, 4])
def test_eos_and_what_is_not_there_belong_to_no_frame(place: int) -> None:
    wrong = SEGMENTS.clone()
    wrong[0, 0] = place
    with pytest.raises(ValueError, match="segments refer to pieces"):
        frame_targets(make_targets(), wrong)


def test_it_must_be_of_the_same_texts() -> None:
    with pytest.raises(ValueError, match="of 3 texts, segments of 2"):
        frame_targets(make_targets(), SEGMENTS[:2])
    with pytest.raises(ValueError, match="of 3 texts"):
        frame_targets(make_targets(), SEGMENTS, [[5]])
