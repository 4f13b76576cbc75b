"""Construction of decoding graphs (HCLG and TLG).

HCLG is built as in Kaldi (Povey et al., "Generating exact lattices in the WFST framework", 2012, section 2):
lexicon and grammar are composed, determinised and minimised, then context and HMM states are added and the
result is determinised again; self-loops are added last, because they cannot be determinised.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retort.common.checksums import sha256
from retort.common.errors import UserError
from retort.common.files import PARTIAL, flush, write_whole
from retort.common.json_reader import read_json
from retort.common.locks import one_at_a_time
from retort.common.progress import StageProgress
from retort.graph.fst import (
    FINER,
    Fst,
    check_const_fst,
    drop_epsilons,
    from_openfst,
    to_openfst,
    wheel,
    write_fst,
)
from retort.graph.lexicon import LexiconGrammar, Pronunciations
from retort.graph.states import SenoneArcs, Tree, add_context, add_self_loops, add_states, token_fst

_VERSION = 1
_STEPS = 4
_FST, _WORDS, _ABOUT = "graph.fst", "words.txt", "graph.json"
_SUMS = "sha256"
"""Key in `graph.json`, which is written last: the checksums of all three files."""


@dataclass(frozen=True)
class About:
    """Description of a graph.

    Attributes:
        inputs: number of columns of the scores; input label i is column i - 1.
        spellings: pronunciations of each word in units (phones or CTC columns).
        emissions: distinct unit, state and column: the columns that a state of a unit emits.
        between: unit that may occur between words: silence, or the CTC blank, which may occur between all
            units.
        blanks: whether equal units in a row need a blank between them, as in CTC.
        left_out: words of the language model without a pronunciation in the units.
        key: hash of the inputs of the construction.
    """

    inputs: int
    spellings: list[list[list[int]]]
    emissions: list[list[int]]
    between: int
    blanks: bool
    left_out: list[str]
    key: str


@dataclass(frozen=True)
class Graph:
    """A decoding graph.

    Attributes:
        fst: OpenFst transducer (a `StdConstFst`); input label column + 1, output label word number + 1.
        words: words by number.
        folder: folder of the graph; None if it exists only in memory.
    """

    fst: Any
    words: list[str]
    about: About
    folder: Path | None = field(default=None, compare=False)

    def save(self, folder: str | Path, *, link: bool = False) -> None:
        """Save the graph; `graph.json` is written last, so that an incomplete graph is not valid.

        Args:
            link: hard-link the arcs of :attr:`folder` if possible. Files of graphs are replaced and never
                modified, so the two graphs stay independent.

        Raises:
            UserError: it cannot be written.
        """
        root = Path(folder)
        partial = root / f"{_FST}{PARTIAL}"
        try:
            root.mkdir(parents=True, exist_ok=True)
            (root / _ABOUT).unlink(missing_ok=True)
            partial.unlink(missing_ok=True)  # left by a killed process; it may be a hard link
            if not (link and self._linked(partial)):
                write_fst(self.fst, partial)
            partial.rename(root / _FST)
        except OSError as error:
            what = f"cannot be written ({error.strerror or error})"
            raise UserError(what, where=root, remedy="Free space and run again") from None
        symbols = ["<eps>", *self.words]
        write_whole(root / _WORDS, "".join(f"{symbol} {label}\n" for label, symbol in enumerate(symbols)))
        flush([root / _FST])
        about = asdict(self.about)
        sums = {_FST: sha256(root / _FST), _WORDS: sha256(root / _WORDS), _ABOUT: _digest(about)}
        write_whole(root / _ABOUT, json.dumps({"version": _VERSION, **about, _SUMS: sums}) + "\n")

    @property
    def is_current(self) -> bool:
        """Whether :attr:`folder` still contains this graph."""
        try:
            return self.folder is not None and _read_about(self.folder)["key"] == self.about.key
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def _linked(self, path: Path) -> bool:
        if not self.is_current or self.folder is None:
            return False
        try:
            os.link(self.folder / _FST, path)
        except OSError:  # another file system, or one without links
            return False
        if self.is_current:  # otherwise it was replaced meanwhile
            return True
        path.unlink()
        return False

    @classmethod
    def load(cls, folder: str | Path) -> Graph:
        """Load a graph that :meth:`save` wrote.

        Raises:
            UserError: there is no graph, or it is damaged or of another version.
        """
        root = Path(folder)
        remedy = "Build it again"
        try:
            content = _read_about(root)
            version = content.pop("version")
            if version != _VERSION:
                raise UserError(f"a graph of version {version}, not {_VERSION}", where=root, remedy=remedy)
            sums = content.pop(_SUMS, None)  # an earlier version did not write them
            if sums is not None:
                found = {_FST: sha256(root / _FST), _WORDS: sha256(root / _WORDS), _ABOUT: _digest(content)}
                if changed := [name for name in found if found[name] != sums.get(name)]:
                    raise ValueError(f"{changed[0]} is damaged: its SHA-256 differs")
            about = About(**content)
            lines = (root / _WORDS).read_text(encoding="utf-8").split("\n")[1:-1]
            words = [line.rpartition(" ")[0] for line in lines]
            check_const_fst(root / _FST, about.inputs, len(words))
            fst = wheel("kaldifst").StdConstFst.read(str(root / _FST))
            if fst is None:
                raise ValueError(f"{_FST} is damaged")
            return cls(fst, words, about, root)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
            raise UserError(
                f"no decoding graph ({type(error).__name__}: {error})", where=root, remedy=remedy
            ) from None


def _digest(about: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(about, sort_keys=True).encode()).hexdigest()


def _read_about(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = read_json(folder / _ABOUT)
    return content


def build_graph(
    lexicon: Pronunciations,
    arpa: str | Path,
    tree: Tree,
    self_loops: NDArray[np.floating],
    *,
    silence_probability: float = 0.5,
    folder: str | Path | None = None,
    progress: StageProgress | None = None,
) -> Graph:
    """Build an HCLG graph, from senones to the words that lexicon and language model share.

    It includes the transition probabilities of the HMM. Outside the utterance the context is silence.

    Args:
        lexicon: words to pronunciations in phones; those with a phone that is not in the tree are left out.
        arpa: an n-gram model in an ARPA file, `.gz` or plain.
        self_loops: `(S,)`, self-loop probability of each senone, in (0, 1).
        silence_probability: probability of silence at the start and after every word, in (0, 1).
        folder: folder of the graph; a graph with the same inputs is loaded instead of built.
        progress: called with the stage, the steps done and the total.

    Raises:
        UserError: the ARPA file is invalid, no word of it has a pronunciation, or a wheel is missing.
        ValueError: a probability is out of range, or `self_loops` does not match the tree.
    """
    loops = np.asarray(self_loops, np.float64)
    if loops.shape != (tree.count,) or not ((loops > 0) & (loops < 1)).all():
        raise ValueError(f"self_loops {loops.shape} are not {tree.count} probabilities in (0, 1)")
    if not 0 < silence_probability < 1:
        raise ValueError(f"silence_probability {silence_probability} is not in (0, 1)")
    ids, silence = tree.phones.ids, 0
    units = {phone: number for phone, number in ids.items() if number != silence}
    language = LexiconGrammar(lexicon, Path(arpa), units)
    key = language.key(_VERSION, _content(tree), loops.tolist(), silence_probability)

    def build(step: Callable[[], None]) -> Graph:
        phones, symbols = language.fst(len(ids), silence, silence_probability)
        step()
        contexts, windows = add_context(phones, symbols)
        states = add_states(from_openfst(contexts), windows, tree)
        del phones, contexts
        step()
        whole = to_openfst(states.fst)
        wheel("kaldifst").determinize_star(whole, delta=FINER)
        step()
        senones = SenoneArcs(from_openfst(whole), states.emissions).disambiguated()
        fst = add_self_loops(from_openfst(_smallest(senones)), loops)
        about = About(
            inputs=tree.count,
            spellings=language.spellings,
            emissions=states.emissions.tolist(),
            between=silence,
            blanks=False,
            left_out=language.left_out,
            key=key,
        )
        return Graph(wheel("kaldifst").StdConstFst(to_openfst(fst)), language.words, about)

    return _load_or_build(folder, key, build, progress)


def build_ctc_graph(
    lexicon: Pronunciations,
    arpa: str | Path,
    symbols: Sequence[str],
    *,
    first: Pronunciations | None = None,
    blank: int = 0,
    folder: str | Path | None = None,
    progress: StageProgress | None = None,
) -> Graph:
    """Build a TLG graph, from the columns of a CTC output to the words that lexicon and language model share.

    Its size and construction time grow with the square of the number of symbols in the lexicon.

    Args:
        lexicon: words to spellings in symbols; those with another symbol are left out.
        arpa, progress: as in :func:`build_graph`.
        symbols: symbols of the columns; a repeated symbol is its first column.
        first: spellings of the same words at the start of a sentence, if they differ (without a space).
        blank: column of the blank.
        folder: folder for graphs, each in a subfolder named by its key.

    Raises:
        UserError: as in :func:`build_graph`.
    """
    units = {symbol: column for column, symbol in reversed(list(enumerate(symbols))) if column != blank}
    language = LexiconGrammar(lexicon, Path(arpa), units, first)
    key = language.key(_VERSION, len(symbols), blank)

    def build(step: Callable[[], None]) -> Graph:
        kaldifst = wheel("kaldifst")
        found = from_openfst(language.fst(len(symbols))[0])
        step()
        tokens = _smallest(replace(found, inputs=np.where(found.inputs > len(symbols), 0, found.inputs)))
        step()
        spellings = language.all_spellings
        columns = sorted({unit for spelled in spellings for each in spelled for unit in each})
        frames = to_openfst(token_fst(columns, blank))
        kaldifst.arcsort(frames, "olabel")
        kaldifst.arcsort(tokens, "ilabel")
        fst = kaldifst.compose(frames, tokens)
        step()
        about = About(
            inputs=len(symbols),
            spellings=spellings,
            emissions=[[column, 0, column] for column in (blank, *columns)],
            between=blank,
            blanks=True,
            left_out=language.left_out,
            key=key,
        )
        return Graph(kaldifst.StdConstFst(fst), language.words, about)

    return _load_or_build(None if folder is None else Path(folder) / key, key, build, progress)


def _smallest(fst: Fst) -> Any:
    """Minimise a transducer."""
    kaldifst = wheel("kaldifst")
    found = to_openfst(drop_epsilons(fst))
    kaldifst.connect(found)
    kaldifst.minimize_encoded(found, delta=FINER)
    return found


def _content(tree: Tree) -> str:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tree"
        tree.save(path)
        return hashlib.sha256(path.read_bytes()).hexdigest()


def _load_or_build(
    folder: str | Path | None,
    key: str,
    build: Callable[[Callable[[], None]], Graph],
    progress: StageProgress | None,
) -> Graph:
    """Load the graph in `folder` if it has the key; otherwise build and save it."""
    done = 0

    def step() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress("decoding graph", done, _STEPS)

    if folder is None:
        graph = build(step)
        step()
        return graph
    root = Path(folder)
    with one_at_a_time(root / ".lock"):
        with contextlib.suppress(UserError):
            is_current = Graph.load(root)
            if is_current.about.key == key:
                return is_current
        graph = build(step)
        graph.save(root)
        step()
    return replace(graph, folder=root)
