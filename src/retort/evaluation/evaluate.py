"""`retort evaluate`: decode a set of cuts, score it, and write both down."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from retort import __version__
from retort.alignment.store import AlignmentStore
from retort.common.errors import UserError
from retort.common.files import contents, write_whole
from retort.common.json_reader import read_json
from retort.corpora.cuts import CheckedCuts, Rejected, read_rejected, write_rejected
from retort.corpora.features import features_key
from retort.corpora.open_cuts import find_data, open_cuts
from retort.decoding.options import GREEDY, DecodingOptions, options_to_dict
from retort.decoding.recogniser import Recogniser
from retort.evaluation.bootstrap import intervals
from retort.evaluation.frame_accuracy import FrameAccuracy, watch_frames
from retort.evaluation.noise import NoiseScore, score_noise
from retort.evaluation.recognise import recognise, write_hypotheses
from retort.evaluation.scoring import Interval, Score, score, score_from_dict, score_to_dict

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Evaluation:
    """What was scored, with intervals of `cer` and `wer`, where it was written, and how it was decoded.

    Attributes:
        parameters: numbers held at run time, by what holds them: `student`, `lm`, `rescore`.
        short: utterances of which the search found fewer than the beam keeps: there are no more.
        frames: of a hybrid student, where its data has alignments.
        noise: missed noise and false alarms, if they were asked for.
    """

    split: str
    score: Score
    intervals: dict[str, Interval]
    rejected: list[Rejected]
    folder: Path
    options: DecodingOptions = GREEDY
    parameters: dict[str, int] = field(default_factory=dict)
    short: int = 0
    frames: FrameAccuracy | None = None
    noise: NoiseScore | None = None


def evaluate(
    recogniser: Recogniser,
    source: str,
    folder: Path,
    progress: Progress,
    options: DecodingOptions = GREEDY,
    *,
    reuse: bool = False,
    alignments: AlignmentStore | None = None,
    noise: int = 0,
) -> Evaluation:
    """Score a model on a manifest or Kaldi folder.

    Writes `folder/evaluation/NAME/{hyp.jsonl,score.json}`, and `rejected.tsv` there if an utterance could not
    be used. NAME is the source's own with its parent's, so that two corpora's `test` do not meet, and with
    `-beamN` behind it after a beam search, and the names of language models that had a say
    (:attr:`retort.decoding.options.DecodingOptions.label`), so that all can be compared.

    Args:
        reuse: do nothing where :func:`evaluated` finds what an earlier call wrote.
        alignments: of the data, in the senones of a hybrid student (:func:`retort.evaluation.aligned.open_aligned`);
            their frames are counted beside the errors.
        noise: recognise so many clips of synthetic noise as well (:func:`retort.evaluation.noise.score_noise`).
    """
    if reuse and (before := evaluated(recogniser, source, folder, options)) is not None:
        return before
    opened = open_cuts(find_data(source))
    watch = watch_frames(recogniser.student, alignments)
    recognised = recognise(
        recogniser, opened.cuts, lambda done, total: progress("decoding", done, total), options, watch
    )
    result = score(
        recognised.references,
        recognised.hypotheses,
        recognised.speakers,
        seconds=sum(recognised.durations.values()),
        decoding_seconds=recognised.decoding_seconds,
        workers=recognised.workers,
    )
    on_noise = None
    if noise:
        on_noise = score_noise(recogniser, recognised, options, partial(progress, "noise"), noise)
    bounds = intervals(result)
    rejected = opened.rejected + recognised.rejected
    out = _place(source, folder, options)
    out.mkdir(parents=True, exist_ok=True)
    write_hypotheses(out / "hyp.jsonl", recognised)
    write_rejected(rejected, out / "rejected.tsv")
    parameters = recogniser.opened(options).parameters
    frames = watch.found if watch is not None else None
    content = {
        **score_to_dict(result, bounds),
        "decoding": options_to_dict(options),
        "parameters": parameters,
        "short": recognised.short,
        "key": evaluation_key(recogniser, opened, options),
        **({"frames": asdict(frames)} if frames is not None else {}),
        **({"noise": asdict(on_noise)} if on_noise is not None else {}),
    }
    write_whole(out / "score.json", json.dumps(content, indent=1) + "\n")  # last: where it is, all is
    split = data_name(find_data(source))
    return Evaluation(
        split, result, bounds, rejected, out, options, parameters, recognised.short, frames, on_noise
    )


def evaluated(
    recogniser: Recogniser, source: str, folder: Path, options: DecodingOptions = GREEDY
) -> Evaluation | None:
    """What :func:`evaluate` wrote, if it was of the same model, options and cuts, their texts and audio files."""
    out = _place(source, folder, options)
    path = out / "score.json"
    if not path.is_file():
        return None
    opened = open_cuts(find_data(source))
    try:
        content = read_json(path)
        if content["key"] != evaluation_key(recogniser, opened, options):
            return None
        result = score_from_dict(content, path)
        parameters, short = dict(content.get("parameters", {})), int(content.get("short", 0))
        frames = FrameAccuracy.from_dict(content["frames"]) if "frames" in content else None
    except (UserError, ValueError, KeyError, TypeError):
        return None
    rejected = read_rejected(out / "rejected.tsv")
    split = data_name(find_data(source))
    return Evaluation(split, result, intervals(result), rejected, out, options, parameters, short, frames)


def evaluation_name(source: str, options: DecodingOptions) -> str:
    """Of the folder that holds the scores of a manifest or Kaldi folder."""
    name = data_name(find_data(source)).replace("/", "-")
    return f"{name}-{options.label}" if options.label else name


def _place(source: str, folder: Path, options: DecodingOptions) -> Path:
    return folder / "evaluation" / evaluation_name(source, options)


def evaluation_key(recogniser: Recogniser, opened: CheckedCuts, options: DecodingOptions) -> str:
    """Changes with whatever a score depends on, this version of Retort among it."""
    said = [[cut.supervisions[0].text, cut.supervisions[0].speaker] for cut in opened.cuts]
    audio = features_key("evaluation", opened.cuts, recogniser.features)
    rejected = [asdict(each) for each in opened.rejected]
    parts = [__version__, recogniser.fingerprint(), options_to_dict(options), audio, said, rejected]
    parts += [contents(each) for each in (options.lm, options.rescore, options.graph) if each]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def data_name(path: Path) -> str:
    """How results call a manifest or folder: its own name behind its parent's, `speechocean762/dev`."""
    return f"{path.parent.name}/{path.name.removesuffix('.gz').removesuffix('.jsonl')}"
