"""How much a teacher of soft labels knows, and how sharply it says so."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from retort.alignment.tree import SenoneTree
from retort.config.schema import TeacherConfig
from retort.lm.scoring import nothing_to_score, perplexity
from retort.teachers.factory import open_fresh
from retort.teachers.symbols import check_units, symbol_ids
from retort.text.tokenizers import Tokenizer

_AT_ONCE = 64
"""Texts whose whole distributions are held together."""


@dataclass(frozen=True)
class TeacherDescription:
    """What a teacher says of the units of some texts, ends of texts left out; means over units.

    Attributes:
        units: of which it says something.
        silent: of which it says nothing.
        entropy: nats, of its distributions over its symbols, renormalised.
        perplexity: exp of the mean of -log of the probability, not renormalised, of the unit that is there.
        top1: share of units that are its first guess.
        kept: probability of all symbols together, the end of a text as well; what is missing went to pieces that are
            not taken from the model.
        mass: probability of the `topk` symbols that it names.
        states: the same for the units of each HMM state, from the first; of teachers over senones alone.
    """

    units: int
    silent: int
    entropy: float
    perplexity: float
    top1: float
    kept: float
    mass: float
    states: list[TeacherDescription] = field(default_factory=list)


def describe_teacher(
    config: TeacherConfig,
    tokenizer: Tokenizer,
    texts: Sequence[str],
    *,
    tree: SenoneTree | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> TeacherDescription:
    """Have a teacher of soft labels read texts that it was not trained on.

    Args:
        config: with `topk`; of `storage` nothing is read.
        tokenizer: of :func:`retort.teachers.teacher_symbols`, or of a student.
        texts: what it is asked of: transcripts, or texts of units.
        tree: of a teacher over senones, to tell the states of a phone apart.
        progress: called with the texts done and their number.

    Raises:
        UserError: there is no unit in the texts, or as :func:`retort.teachers.open_fresh`, :func:`check_units` and
            :func:`symbol_ids`.
        ValueError: a config without `topk`.
    """
    if config.topk is None:
        raise ValueError("a teacher of hidden states has no distributions to describe")
    state_of = torch.zeros(tokenizer.size, dtype=torch.int64)
    states = 0
    if tree is not None:
        check_units(config, tree)
        states = tree.states
        state_of = torch.tensor([*tree.states_of_senones(), -1])[symbol_ids(tokenizer, tree.count)]
    whole = open_fresh(replace(config, topk=tokenizer.size), device, tokenizer)
    sums = torch.zeros(states + 1, len(_COLUMNS), dtype=torch.float64)
    for start in range(0, len(texts), _AT_ONCE):
        for text, reading in zip(chunk := texts[start : start + _AT_ONCE], whole.read(chunk), strict=True):
            true = torch.tensor(tokenizer.encode(text), dtype=torch.int64)
            assert reading.ids is not None, "asked for soft labels"
            rows = _measured(reading.vectors[1:-1].double(), reading.ids[1:-1].long(), true, config.topk)
            sums[-1] += rows.sum(0)
            for state in range(states):
                sums[state] += rows[state_of[true] == state].sum(0)
        progress(start + len(chunk), len(texts))
    if not sums[-1, 0]:
        raise nothing_to_score()
    every = _described(sums[-1])
    return replace(every, states=[_described(row) for row in sums[:-1]])


_COLUMNS = ("units", "silent", "entropy", "nll", "top1", "kept", "mass")


def _measured(probs: Tensor, ids: Tensor, true: Tensor, topk: int) -> Tensor:
    """Of n units the columns `(n, 7)`.

    Args:
        probs: `(n, V)` float64, from the largest on.
        ids: `(n, V)`, of which symbols.
        true: `(n,)`, which symbols are there.
    """
    kept = probs.sum(-1)
    spoken = kept > 0
    shares = probs / kept.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
    nll = -(probs * (ids == true[:, None])).sum(-1).log()
    rows = torch.stack(
        [
            spoken.double(),
            (~spoken).double(),
            torch.special.entr(shares).sum(-1),
            nll,
            (ids[:, 0] == true).double(),
            kept,
            probs[:, :topk].sum(-1),
        ],
        -1,
    )
    rows[~spoken, 2:] = 0.0
    return rows


def _described(sums: Tensor) -> TeacherDescription:
    units, silent, *rest = sums.tolist()
    entropy, nll, top1, kept, mass = (each / units if units else math.nan for each in rest)
    return TeacherDescription(
        int(units), int(silent), entropy, perplexity(nll) if units else math.nan, top1, kept, mass
    )
