"""What CTC reads as a token: its frames in a row, blanks between tokens, and always one between equal ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from retort.hybrid.fst import Fst, join


def token_fst(columns: Sequence[int], blank: int) -> Fst:
    """Frames to tokens, of both the label is column + 1.

    It has an arc for every pair of tokens, so that equal ones in a row need a blank between them.

    Args:
        columns: of the tokens in the CTC output, each once, without the blank's.
    """
    labels = np.asarray(columns) + 1
    states = 1 + np.arange(len(labels))
    before, after = np.nonzero(~np.eye(len(labels), dtype=bool))
    arcs = join(
        (0, blank + 1, 0, 0.0, np.zeros(1)),
        (0, labels, labels, 0.0, states),
        (states, labels, 0, 0.0, states),
        (states, blank + 1, 0, 0.0, 0),
        (states[before], labels[after], labels[after], 0.0, states[after]),
    )
    return Fst(0, np.zeros(1 + len(labels), np.float32), *arcs)
