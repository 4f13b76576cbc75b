"""Processes that search decoding graphs, and the folder of graphs that searches build."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from retort.common.errors import BadUtterance, UserError
from retort.common.progress import StageProgress
from retort.common.workers import Workers, cores, workers
from retort.graph.build import Graph
from retort.graph.search import GraphHypothesis, GraphSearch, Settings

NBestList: TypeAlias = "list[GraphHypothesis] | BadUtterance"
"""The n-best list of an utterance, or the reason why there is none."""


class DecoderPool:
    """A pool of search processes, which are started on demand, and a folder of graphs.

    kaldi-decoder holds the GIL while it searches, so threads would not run in parallel. Every process reads
    the graph once; results do not depend on the number of processes. The processes end with :meth:`close`, at
    the end of the `with` block, or with this process.

    Args:
        jobs: number of processes; 1 searches in this process, 0 uses all available cores.
        graphs: folder for graphs that a search builds; None stores none.
        progress: called with the stage, the steps done and the total while a graph is built.

    Attributes:
        jobs: number of search processes.
    """

    def __init__(self, jobs: int = 1, graphs: Path | None = None, progress: StageProgress | None = None) -> None:
        self.jobs = jobs or cores()
        self.graphs, self.progress = graphs, progress
        self._open = ExitStack()
        self._pool: Workers | None = None
        self._saved: list[tuple[Graph, Path]] = []

    def __enter__(self) -> DecoderPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the processes; a later search starts new ones."""
        self._pool = None
        self._saved = []
        self._open.close()

    def prepare(self, search: GraphSearch, utterances: int) -> None:
        """Start as many processes as this number of utterances can use, and load the graph in them."""
        count = min(self.jobs, utterances)
        if count > 1:
            list(self._workers().map(_read, [self._task(search)] * count))

    def decode(
        self, search: GraphSearch, scores: Sequence[NDArray[np.float32]], most: int
    ) -> list[NBestList]:
        """Decode utterances of `(T, S)` scores: n-best lists of up to `most` hypotheses, in order.

        Raises:
            UserError: as in :meth:`retort.graph.search.GraphSearch.search`, or a process was killed.
        """
        if self.jobs == 1 or len(scores) < 2:
            return [_decode(search, each, most) for each in scores]
        task = self._task(search)
        return list(self._workers().map(_work, [_Job(task, each, most) for each in scores]))

    def _workers(self) -> Workers:
        if self._pool is None:
            remedy = "If memory was exhausted, give fewer --jobs"
            self._pool = self._open.enter_context(workers(self.jobs, "the graph search", remedy))
        return self._pool

    def _task(self, search: GraphSearch) -> _Task:
        return _Task(str(self._folder(search.graph)), search.graph.about.key, search.settings)

    def _folder(self, graph: Graph) -> Path:
        """Folder from which the processes load a graph: its own, or, if that was changed, a temporary copy."""
        if graph.is_current and graph.folder is not None:
            return graph.folder.resolve()
        for there, folder in self._saved:
            if there is graph:
                return folder
        folder = Path(self._open.enter_context(tempfile.TemporaryDirectory())) / "graph"
        graph.save(folder)
        self._saved.append((graph, folder))
        return folder


class _Task(NamedTuple):
    """Description of a search that a process can open."""

    folder: str
    key: str
    settings: Settings


class _Job(NamedTuple):
    task: _Task
    scores: NDArray[np.float32]
    most: int


def _decode(search: GraphSearch, scores: NDArray[np.float32], most: int) -> NBestList:
    try:
        return [search.search(scores)] if most == 1 else search.alternatives(scores, most)
    except BadUtterance as error:
        return error


def _work(job: _Job) -> NBestList:
    return _decode(_opened(job.task), job.scores, job.most)


def _read(task: _Task) -> None:
    _opened(task)


@lru_cache(maxsize=1)
def _opened(task: _Task) -> GraphSearch:
    return GraphSearch(_graph(task.folder, task.key), *task.settings)


@lru_cache(maxsize=1)
def _graph(folder: str, key: str) -> Graph:
    graph = Graph.load(folder)
    if graph.about.key != key:
        raise UserError("it was replaced by another decoding graph", where=folder, remedy="Run again")
    return graph
