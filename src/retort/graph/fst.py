"""Weighted transducers as arrays, and conversion from and to OpenFst.

Python objects are too slow for the arcs of a decoding graph, so transducers are converted through OpenFst's
binary `const` format, which consists of arrays. States are numbered from 0, label 0 is epsilon, and weights
are costs (negative natural logarithms) in the tropical semiring.
"""

from __future__ import annotations

import importlib
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from retort.common.errors import UserError

_MAGIC = 0x7EB2FDD6
_VERSION = 2
_EXPANDED = 1  # the property that holds for every such file
_STATE = np.dtype(
    [("final", "<f4"), ("first", "<u4"), ("arcs", "<u4"), ("inputs", "<u4"), ("outputs", "<u4")]
)
_ARC = np.dtype([("input", "<i4"), ("output", "<i4"), ("weight", "<f4"), ("target", "<i4")])
_SIZES = struct.Struct("<iiQqqq")  # version, flags, properties, start, states, arcs
FINER = 1e-5
"""Weights closer than this are equal when states are merged; costs of whole paths stay exact to 0.001."""


@dataclass(frozen=True)
class Fst:
    """A transducer of N states and A arcs.

    Attributes:
        start: start state.
        finals: `(N,)` float32, final costs; inf for states that are not final.
        sources, inputs, outputs, targets: `(A,)` int32.
        weights: `(A,)` float32.
    """

    start: int
    finals: NDArray[np.float32]
    sources: NDArray[np.int32]
    inputs: NDArray[np.int32]
    outputs: NDArray[np.int32]
    weights: NDArray[np.float32]
    targets: NDArray[np.int32]

    @property
    def states(self) -> int:
        return len(self.finals)


def wheel(name: str) -> Any:
    """Import one of the Kaldi wheels.

    Raises:
        UserError: it is not installed.
    """
    try:
        return importlib.import_module(name)
    except ImportError:
        what = f"decoding graphs need {name}, which is not installed"
        raise UserError(what, remedy="Run: pip install 'retort-asr[hybrid]'") from None


def from_openfst(fst: Any) -> Fst:
    """Convert a `StdVectorFst` or `StdConstFst` to arrays."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fst"
        write_fst(fst, path)
        content = path.read_bytes()
    start, rows, found = _parts(content)
    return Fst(
        start,
        rows["final"].copy(),
        np.repeat(np.arange(len(rows), dtype=np.int32), rows["arcs"]),
        *(found[name].copy() for name in ("input", "output", "weight", "target")),
    )


def _parts(content: bytes) -> tuple[int, NDArray[Any], NDArray[Any]]:
    """Parse OpenFst's `const` format: start, states and arcs.

    Raises:
        ValueError: it has another format or length.
    """
    try:
        if struct.unpack_from("<I", content)[0] != _MAGIC:
            raise ValueError("not an OpenFst file")
        offset, names = 4, []
        for _ in range(2):  # the kinds of transducer and of arc
            (length,) = struct.unpack_from("<i", content, offset)
            names.append(content[offset + 4 : offset + 4 + length])
            offset += 4 + length
        version, flags, _, start, states, arcs = _SIZES.unpack_from(content, offset)
    except struct.error as error:
        raise ValueError(f"not an OpenFst file ({error})") from None
    offset += _SIZES.size
    if names != [b"const", b"standard"] or version != _VERSION or flags:
        raise ValueError("not a const transducer in Retort's format")
    if states < 0 or arcs < 0 or len(content) != offset + states * _STATE.itemsize + arcs * _ARC.itemsize:
        raise ValueError(f"{len(content)} bytes do not hold {states} states and {arcs} arcs")
    rows = np.frombuffer(content, _STATE, states, offset)
    return start, rows, np.frombuffer(content, _ARC, arcs, offset + rows.nbytes)


def check_const_fst(path: Path, inputs: int, outputs: int) -> None:
    """Check a file before OpenFst maps it, since OpenFst does not check the numbers in it.

    Args:
        inputs, outputs: the largest labels.

    Raises:
        OSError: it cannot be read.
        ValueError: the file is incomplete, or a number in it is out of range.
    """
    start, rows, arcs = _parts(path.read_bytes())
    counts = rows["arcs"].astype(np.int64)
    if not (-1 <= start < len(rows)) or counts.sum() != len(arcs):
        raise ValueError(f"{path.name} has an invalid start or number of arcs")
    if (rows["first"][counts > 0] != (np.cumsum(counts) - counts)[counts > 0]).any():
        raise ValueError(f"{path.name} has states with invalid arc offsets")
    for name, last in (("target", len(rows) - 1), ("input", inputs), ("output", outputs)):
        if ((arcs[name] < 0) | (arcs[name] > last)).any():
            raise ValueError(f"{path.name} has an arc whose {name} does not exist")
    if np.isnan(arcs["weight"]).any() or np.isnan(rows["final"]).any():
        raise ValueError(f"{path.name} has costs that are not numbers")
    sources = np.repeat(np.arange(len(rows)), counts)
    for name, labels in (("inputs", arcs["input"]), ("outputs", arcs["output"])):
        if (rows[name] != np.bincount(sources[labels == 0], minlength=len(rows))).any():
            raise ValueError(f"{path.name} has an invalid number of epsilon arcs")


def to_openfst(fst: Fst) -> Any:
    """Convert to a `StdVectorFst`; the arcs of a state keep their order."""
    kaldifst = wheel("kaldifst")
    order = np.argsort(fst.sources, kind="stable")
    arcs = np.empty(len(order), _ARC)
    for name, values in zip(_ARC.names or (), (fst.inputs, fst.outputs, fst.weights, fst.targets)):
        arcs[name] = values[order]
    rows = np.empty(fst.states, _STATE)
    rows["final"] = fst.finals
    rows["arcs"] = np.bincount(fst.sources, minlength=fst.states)
    rows["first"] = np.cumsum(rows["arcs"]) - rows["arcs"]
    for name, labels in (("inputs", fst.inputs), ("outputs", fst.outputs)):
        rows[name] = np.bincount(fst.sources[labels == 0], minlength=fst.states)
    names = b"".join(struct.pack("<i", len(name)) + name for name in (b"const", b"standard"))
    sizes = _SIZES.pack(_VERSION, 0, _EXPANDED, fst.start, len(rows), len(arcs))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "fst"
        path.write_bytes(struct.pack("<I", _MAGIC) + names + sizes + rows.tobytes() + arcs.tobytes())
        return kaldifst.StdVectorFst(kaldifst.StdConstFst.read(str(path)))


def write_fst(fst: Any, path: Path) -> None:
    """Write an OpenFst transducer in its `const` format.

    Raises:
        UserError: it cannot be written.
    """
    if not wheel("kaldifst").StdConstFst(fst).write(str(path)):
        raise UserError("cannot be written", where=path, remedy="Free space and run again")


def join(*parts: Sequence[ArrayLike]) -> list[NDArray[Any]]:
    """Concatenate sources, inputs, outputs, weights and targets of several sets of arcs; scalars are broadcast."""
    sets = [np.broadcast_arrays(*(np.asarray(column) for column in part)) for part in parts]
    kinds = (np.int32, np.int32, np.int32, np.float32, np.int32)
    return [np.concatenate([each[column] for each in sets]).astype(kind) for column, kind in enumerate(kinds)]


_PASSES = 20
"""Maximum number of passes; chains of epsilons are shorter."""


def drop_epsilons(fst: Fst) -> Fst:
    """Remove most of the epsilon arcs that remain from disambiguation.

    An arc is merged with its successor if that is the only arc there and has no input label. An arc without
    labels is merged with its successors if it is the only arc that leads there. Labels and costs of paths
    stay the same. Unreachable states remain without arcs.
    """
    for _ in range(_PASSES):
        shorter = _join_before(_skip_forward(fst))
        if len(shorter.sources) == len(fst.sources) and (shorter.targets == fst.targets).all():
            return shorter
        fst = shorter
    return fst


def _skip_forward(fst: Fst) -> Fst:
    """Merge arcs with the single input-epsilon arc that follows them."""
    leaving = np.bincount(fst.sources, minlength=fst.states)
    only = np.full(fst.states, -1, np.int64)
    only[fst.sources] = np.arange(len(fst.sources))
    only[(leaving != 1) | np.isfinite(fst.finals)] = -1
    next_arc = only[fst.targets]
    joined = (next_arc >= 0) & (fst.inputs[next_arc] == 0) & (fst.targets[next_arc] != fst.targets)
    joined &= (fst.outputs == 0) | (fst.outputs[next_arc] == 0)
    following = next_arc[joined]
    outputs, weights, targets = fst.outputs.copy(), fst.weights.copy(), fst.targets.copy()
    outputs[joined] += fst.outputs[following]
    weights[joined] += fst.weights[following]
    targets[joined] = fst.targets[following]
    return _reachable(replace(fst, outputs=outputs, weights=weights, targets=targets))


def _join_before(fst: Fst) -> Fst:
    """Merge a single epsilon arc with the arcs that follow it."""
    entering = np.bincount(fst.targets, minlength=fst.states)
    dropped = (fst.inputs == 0) & (fst.outputs == 0) & (entering[fst.targets] == 1)
    dropped &= (fst.targets != fst.start) & ~np.isfinite(fst.finals[fst.targets])
    gone = np.zeros(fst.states, bool)
    gone[fst.targets[dropped]] = True
    dropped &= ~gone[fst.sources]  # one arc of a chain at a time
    moved = np.arange(fst.states, dtype=np.int32)
    moved[fst.targets[dropped]] = fst.sources[dropped]
    added = np.zeros(fst.states, np.float32)
    added[fst.targets[dropped]] = fst.weights[dropped]
    kept = ~dropped
    return Fst(
        fst.start,
        fst.finals,
        moved[fst.sources[kept]],
        fst.inputs[kept],
        fst.outputs[kept],
        fst.weights[kept] + added[fst.sources[kept]],
        fst.targets[kept],
    )


def _reachable(fst: Fst) -> Fst:
    """Remove the arcs of unreachable states."""
    while True:
        entered = np.zeros(fst.states, bool)
        entered[fst.targets] = True
        entered[fst.start] = True
        kept = entered[fst.sources]
        if kept.all():
            return fst
        columns = (fst.sources, fst.inputs, fst.outputs, fst.weights, fst.targets)
        fst = Fst(fst.start, fst.finals, *join([column[kept] for column in columns]))
