"""`retort evaluate`: decode a set of cuts, score it, and write both down."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from retort.corpora.cuts import Rejected, write_rejected
from retort.corpora.opening import find_data, open_cuts
from retort.decoding.options import GREEDY, DecodingOptions
from retort.decoding.recogniser import Recogniser
from retort.evaluation.bootstrap import intervals
from retort.evaluation.recognise import recognise, write_hypotheses
from retort.evaluation.scoring import Interval, Score, score, score_to_dict

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Evaluation:
    """What was scored, with intervals of `cer` and `wer`, and where it was written."""

    split: str
    score: Score
    intervals: dict[str, Interval]
    rejected: list[Rejected]
    folder: Path


def evaluate(
    recogniser: Recogniser,
    source: str,
    folder: Path,
    progress: Progress,
    options: DecodingOptions = GREEDY,
) -> Evaluation:
    """Score a model on a manifest or Kaldi folder.

    Writes `folder/evaluation/NAME/{hyp.jsonl,score.json}`, and `rejected.tsv` there if an utterance could not
    be used. NAME is the source's own with its parent's, so that two corpora's `test` do not meet, and with
    `-beamN` behind it after a beam search, so that it can be compared with greedy decoding.
    """
    path = find_data(source)
    opened = open_cuts(path)
    recognised = recognise(
        recogniser, opened.cuts, lambda done, total: progress("decoding", done, total), options
    )
    result = score(
        recognised.references,
        recognised.hypotheses,
        recognised.speakers,
        seconds=sum(recognised.durations.values()),
        decoding_seconds=recognised.decoding_seconds,
    )
    bounds = intervals(result)
    rejected = opened.rejected + recognised.rejected
    name = data_name(path).replace("/", "-")
    out = folder / "evaluation" / (f"{name}-beam{options.beam}" if options.beam > 1 else name)
    out.mkdir(parents=True, exist_ok=True)
    write_hypotheses(out / "hyp.jsonl", recognised)
    write_rejected(rejected, out / "rejected.tsv")
    (out / "score.json").write_text(json.dumps(score_to_dict(result, bounds), indent=1) + "\n")
    return Evaluation(data_name(path), result, bounds, rejected, out)


def data_name(path: Path) -> str:
    """How results call a manifest or folder: its own name behind its parent's, `speechocean762/dev`."""
    return f"{path.parent.name}/{path.name.removesuffix('.gz').removesuffix('.jsonl')}"
