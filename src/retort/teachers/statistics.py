"""Statistics of a teacher's soft labels: perplexity, entropy, accuracy."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from retort.alignment.tree import SenoneTree
from retort.config.schema import TeacherConfig
from retort.lm.scoring import nothing_to_score, perplexity
from retort.teachers.factory import open_teacher_model
from retort.teachers.symbols import check_units, symbol_ids
from retort.text.tokenizers import Tokenizer

_AT_ONCE = 64
"""Number of texts whose full distributions are in memory at a time."""


@dataclass(frozen=True)
class TeacherDescription:
    """Statistics of a teacher's distributions at the units of some texts, without EOS; means over units.

    Attributes:
        units: number of units with soft labels.
        silent: number of units without soft labels.
        entropy: entropy in nats of the renormalised distribution over the teacher's symbols.
        perplexity: exp of the mean negative log-probability (not renormalised) of the actual unit.
        top1: fraction of units that are the most probable symbol.
        kept: total probability of all symbols, EOS included; the rest belongs to pieces of the model that are not
            among the symbols.
        mass: total probability of the `topk` symbols.
        states: the same for the units of each HMM state, in order; only for teachers over senones.
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
    """Measure a teacher of soft labels on texts that it was not trained on.

    Args:
        config: of the teacher, with `topk`; `storage` is not used.
        tokenizer: of :func:`retort.teachers.teacher_symbols`, or of a student.
        texts: transcripts, or texts of units.
        tree: for a teacher over senones, to distinguish the states of a phone.
        progress: called with the number of texts done and in total.

    Raises:
        UserError: the texts contain no unit, or as :func:`retort.teachers.open_teacher_model`, :func:`check_units` and
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
    whole = open_teacher_model(replace(config, topk=tokenizer.size), device, tokenizer)
    sums = torch.zeros(states + 1, len(_COLUMNS), dtype=torch.float64)
    for start in range(0, len(texts), _AT_ONCE):
        for text, output in zip(chunk := texts[start : start + _AT_ONCE], whole.read(chunk), strict=True):
            true = torch.tensor(tokenizer.encode(text), dtype=torch.int64)
            assert output.ids is not None, "asked for soft labels"
            rows = _measured(output.vectors[1:-1].double(), output.ids[1:-1].long(), true, config.topk)
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
    """Statistics `(n, 7)` of n units.

    Args:
        probs: `(n, V)` float64, in descending order.
        ids: `(n, V)` symbols of these probabilities.
        true: `(n,)` actual symbols.
    """
    total = probs.sum(-1)
    valid = total > 0
    shares = probs / total.clamp_min(torch.finfo(torch.float64).tiny)[:, None]
    nll = -(probs * (ids == true[:, None])).sum(-1).log()
    rows = torch.stack(
        [
            valid.double(),
            (~valid).double(),
            torch.special.entr(shares).sum(-1),
            nll,
            (ids[:, 0] == true).double(),
            total,
            probs[:, :topk].sum(-1),
        ],
        -1,
    )
    rows[~valid, 2:] = 0.0
    return rows


def _described(sums: Tensor) -> TeacherDescription:
    units, silent, *rest = sums.tolist()
    entropy, nll, top1, kept, mass = (each / units if units else math.nan for each in rest)
    return TeacherDescription(
        int(units), int(silent), entropy, perplexity(nll) if units else math.nan, top1, kept, mass
    )
