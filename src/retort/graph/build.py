"""The decoding graph: what may be heard, as the words that it says, with what the language model asks for them.

Built as Kaldi builds it (Povey et al., "Generating exact lattices in the WFST framework", 2012, section 2):
lexicon and grammar are composed, determinised and minimised, then context and HMM states are added and all is
determinised again, and only then come self-loops, which could not be determinised.
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

Progress = Callable[[str, int, int], None]
_VERSION = 1
_STEPS = 4
_FST, _WORDS, _ABOUT = "graph.fst", "words.txt", "graph.json"
_SUMS = "sha256"
"""In `graph.json`, which is written last: the digests of all three."""


@dataclass(frozen=True)
class About:
    """What a graph is, beside its arcs.

    Attributes:
        inputs: columns of the scores that it reads; its input label i is column i - 1.
        spellings: of each word its pronunciations in units (phones or columns of CTC).
        emissions: unit, state and column, each once: which columns a state of a unit may be.
        between: unit that may stand between words: silence; with CTC the blank, between all units.
        blanks: whether equal units in a row need one between them, as CTC has it.
        left_out: words of the language model that have no pronunciation in the units.
        key: of what it was built from.
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
        fst: OpenFst transducer (a `StdConstFst`); input label column + 1, output label number of the word + 1.
        words: by number.
        folder: where it was when it was opened or kept; None of one that is only here.
    """

    fst: Any
    words: list[str]
    about: About
    folder: Path | None = field(default=None, compare=False)

    def save(self, folder: str | Path, *, link: bool = False) -> None:
        """Write it; the file that tells what it is comes last, so that half a graph is none.

        Args:
            link: share the bytes of the arcs with :attr:`folder` where the file system can (a hard link). Both are
                whole by themselves, and since no file of a graph is ever written into, only replaced, neither
                changes with the other.

        Raises:
            UserError: it cannot be written.
        """
        root = Path(folder)
        partial = root / f"{_FST}{PARTIAL}"
        try:
            root.mkdir(parents=True, exist_ok=True)
            (root / _ABOUT).unlink(missing_ok=True)
            partial.unlink(missing_ok=True)  # of a process that died; it may share its bytes
            if not (link and self._linked(partial)):
                write_fst(self.fst, partial)
            partial.rename(root / _FST)
        except OSError as error:
            what = f"cannot be written ({error.strerror or error})"
            raise UserError(what, where=root, remedy="Free space, run again") from None
        symbols = ["<eps>", *self.words]
        write_whole(root / _WORDS, "".join(f"{symbol} {label}\n" for label, symbol in enumerate(symbols)))
        flush([root / _FST])
        about = asdict(self.about)
        sums = {_FST: sha256(root / _FST), _WORDS: sha256(root / _WORDS), _ABOUT: _digest(about)}
        write_whole(root / _ABOUT, json.dumps({"version": _VERSION, **about, _SUMS: sums}) + "\n")

    @property
    def is_current(self) -> bool:
        """Whether :attr:`folder` still has just this graph."""
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
        if self.is_current:  # else another took its place meanwhile
            return True
        path.unlink()
        return False

    @classmethod
    def load(cls, folder: str | Path) -> Graph:
        """Open what :meth:`save` wrote.

        Raises:
            UserError: there is none, it is broken or of another version.
        """
        root = Path(folder)
        remedy = "Build it again"
        try:
            content = _read_about(root)
            version = content.pop("version")
            if version != _VERSION:
                raise UserError(f"a graph of version {version}, not {_VERSION}", where=root, remedy=remedy)
            sums = content.pop(_SUMS, None)  # an earlier version wrote none
            if sums is not None:
                found = {_FST: sha256(root / _FST), _WORDS: sha256(root / _WORDS), _ABOUT: _digest(content)}
                if changed := [name for name in found if found[name] != sums.get(name)]:
                    raise ValueError(f"{changed[0]} is damaged: its SHA-256 is another")
            about = About(**content)
            lines = (root / _WORDS).read_text(encoding="utf-8").split("\n")[1:-1]
            words = [line.rpartition(" ")[0] for line in lines]
            check_const_fst(root / _FST, about.inputs, len(words))
            fst = wheel("kaldifst").StdConstFst.read(str(root / _FST))
            if fst is None:
                raise ValueError(f"{_FST} is torn")
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
    progress: Progress | None = None,
) -> Graph:
    """HCLG: from senones to the words that lexicon and language model share.

    It has the transition probabilities of the HMM in it. What is beyond the ends of the utterance is silence to the
    tree.

    Args:
        lexicon: words to pronunciations in phones; those with a phone that the tree does not know are left out.
        arpa: an n-gram model in an ARPA file, `.gz` or plain.
        self_loops: `(S,)` probability of staying in each senone, in (0, 1).
        silence_probability: of a silence at the start and behind every word, in (0, 1).
        folder: where it is kept; opened instead of built if it was built from the same.
        progress: told the stage, steps done and steps in all.

    Raises:
        UserError: the ARPA file is broken, no word of it has a pronunciation, or a wheel is missing.
        ValueError: a probability is out of its range, or `self_loops` does not fit the tree.
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
    progress: Progress | None = None,
) -> Graph:
    """TLG: from the columns of a CTC output to the words that lexicon and language model share.

    Its size and time grow with the square of the number of symbols that the lexicon uses.

    Args:
        lexicon: words to spellings in symbols; those with another symbol are left out.
        arpa: as :func:`build_graph` has it, and so the rest.
        symbols: of the columns; one that is there several times is its first column.
        first: spellings of the same words where a sentence begins, if they are others there (without a space).
        blank: column of the blank.
        folder: where graphs are kept, each in a folder of its key.

    Raises:
        UserError: as there.
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
    """The smallest transducer of OpenFst that is found for the same paths."""
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
    progress: Progress | None,
) -> Graph:
    """The graph in `folder` if it has the key, else one that is built and kept there."""
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
