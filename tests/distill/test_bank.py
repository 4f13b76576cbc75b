"""Negatives from a bank of earlier teacher vectors, against a loop over positions."""

from __future__ import annotations

import torch
from torch import Tensor

from retort.config.schema import RowConfig
from retort.distill import Row
from retort.distill.positions import Bank
from retort.students.student import Tap
from retort.teachers.targets import TeacherTargets

DIM = 6


def make_row(**changed: object) -> Row:
    torch.manual_seed(0)
    settings = {"tap": "acoustic", "teacher": "bert", "loss": "contrastive", "temperature": 0.1, "bank": 12}
    return Row(RowConfig(**(settings | changed)), DIM, DIM)  # type: ignore[arg-type]


def batch(seed: int, size: int = 5, start: int = 0) -> tuple[Tap, TeacherTargets, Tensor]:
    """One utterance, whose sources begin at `start`."""
    generator = torch.Generator().manual_seed(seed)
    values, vectors = (torch.randn(1, size, DIM, generator=generator) for _ in range(2))
    places = start + torch.arange(size)[None]
    targets = TeacherTargets(
        vectors, torch.ones(1, size, dtype=torch.bool), torch.stack((places, places + 1), -1)
    )
    tokens = torch.randint(4, 20, (1, size), generator=generator)
    return Tap(values, torch.tensor([size]), "token"), targets, tokens


def test_the_bank_is_first_in_first_out() -> None:
    row = make_row()
    assert row.bank is not None
    given = [batch(seed, start=100 * seed) for seed in range(4)]
    for each in given:
        row(*each)
    expected = torch.cat([targets.vectors[0] for _, targets, _ in reversed(given)])[:12]
    content = row.bank.content()
    assert torch.equal(content.vectors, expected)
    assert content.sources[0].tolist() == [300, 301]
    assert torch.equal(content.tokens[:5], given[3][2][0])


def test_every_position_has_exactly_as_many_negatives_and_the_number_is_logged() -> None:
    row = make_row(negatives=9)
    alone = row(*batch(0))
    assert alone.metrics["negatives"].sum / alone.metrics["negatives"].count == 4
    for seed in (1, 2):
        row(*batch(seed, start=100 * seed))
    result = row(*batch(3, start=300))
    assert result.metrics["negatives"].sum / result.metrics["negatives"].count == 9


def test_all_candidates_that_are_allowed_against_a_loop() -> None:
    row = make_row(negatives=1000, same_token_negatives=False)
    for seed in (1, 2):
        row(*batch(seed, start=100 * seed))
    assert row.bank is not None
    bank = Bank(*(each.clone() for each in row.bank.content()))
    tap, targets, tokens = batch(3, start=102)  # shares the sources 102 to 104 with the first batch
    total = row(tap, targets, tokens).total
    student = row.projection(tap.values[0])
    everything = torch.cat((targets.vectors[0], bank.vectors))
    sources = torch.cat((targets.sources[0], bank.sources)).tolist()
    ids = torch.cat((tokens[0], bank.tokens)).tolist()
    expected = torch.zeros(())
    for place, anchor in enumerate(student):
        cosines = torch.cosine_similarity(anchor[None], everything) / 0.1
        allowed = [
            other == place or (sources[other] != sources[place] and ids[other] != ids[place])
            for other in range(len(everything))
        ]
        expected = expected + cosines[allowed].logsumexp(0) - cosines[place]
    torch.testing.assert_close(total, expected)


def test_the_bank_is_saved_with_the_row_and_not_changed_in_evaluation() -> None:
    row, other = make_row(), make_row()
    row(*batch(0))
    other.load_state_dict(row.state_dict())
    torch.manual_seed(1)
    first = row(*batch(1, start=50)).total
    torch.manual_seed(1)
    assert torch.equal(other(*batch(1, start=50)).total, first)
    row.eval()
    before = {name: value.clone() for name, value in row.state_dict().items()}
    row(*batch(2, start=90))
    assert all(torch.equal(value, before[name]) for name, value in row.state_dict().items())
