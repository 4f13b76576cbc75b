from __future__ import annotations

import math

import pytest
import torch

from retort.nn.positions import compact_table, relative_table, rotary_table, rotate, sinusoids

CPU = torch.device("cpu")


def test_sinusoids_are_the_formula_written_out() -> None:
    dim = 6
    table = sinusoids(torch.tensor([-3, 0, 1, 17]), dim)
    for row, position in zip(table.tolist(), (-3, 0, 1, 17)):
        expected = []
        for each in range(dim // 2):
            angle = position / 10000 ** (2 * each / dim)
            expected += [math.sin(angle), math.cos(angle)]
        torch.testing.assert_close(torch.tensor(row), torch.tensor(expected))


def test_the_relative_table_goes_from_the_farthest_past_to_the_farthest_future() -> None:
    table = relative_table(4, 8, CPU)
    assert table.shape == (7, 8)
    for row, distance in enumerate(range(3, -4, -1)):
        torch.testing.assert_close(table[row], sinusoids(torch.tensor([distance]), 8)[0])


def test_rotation_keeps_the_length_and_the_dtype() -> None:
    vectors = torch.randn(2, 3, 9, 8)
    turned = rotate(vectors, rotary_table(9, 8, CPU))
    torch.testing.assert_close(turned.norm(dim=-1), vectors.norm(dim=-1))
    torch.testing.assert_close(turned[..., 0, :], vectors[..., 0, :])
    assert rotate(vectors.bfloat16(), rotary_table(9, 8, CPU)).dtype == torch.bfloat16


def test_rotation_turns_each_pair_by_its_angle() -> None:
    vector = torch.randn(8)
    turned = rotate(vector.expand(5, 8), rotary_table(5, 8, CPU))
    for position in range(5):
        for pair in range(4):
            angle = position / 10000 ** (2 * pair / 8)
            x, y = float(vector[pair]), float(vector[pair + 4])
            expected = complex(x, y) * complex(math.cos(angle), math.sin(angle))
            got = complex(float(turned[position, pair]), float(turned[position, pair + 4]))
            assert abs(got - expected) < 1e-5


def test_rotated_products_depend_on_the_distance_alone() -> None:
    query, key = torch.randn(8), torch.randn(8)
    table = rotary_table(40, 8, CPU)
    scores = rotate(query.expand(40, 8), table) @ rotate(key.expand(40, 8), table).T
    for distance in range(-39, 40):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=2e-5, rtol=0)
    assert scores[0].std() > 0.1  # and they do depend on it


@pytest.mark.parametrize(("size", "dim"), [(1, 2), (5, 6), (9, 48)])
def test_the_table_of_distances_is_its_formula(size: int, dim: int) -> None:
    table = compact_table(size, dim, CPU)
    assert table.shape == (2 * size - 1, dim)
    for row, distance in enumerate(range(1 - size, size)):
        near = math.sqrt(dim)
        far = math.copysign(near * (math.log(abs(distance) + near) - math.log(near)), distance)
        angle = math.atan(far / (dim / (2 * math.pi)))
        for column in range(dim // 2):
            assert float(table[row, 2 * column]) == pytest.approx(math.cos((column + 1) * angle), abs=1e-5)
            if column < dim // 2 - 1:
                assert float(table[row, 2 * column + 1]) == pytest.approx(
                    math.sin((column + 1) * angle), abs=1e-5
                )
        assert float(table[row, -1]) == 1.0
