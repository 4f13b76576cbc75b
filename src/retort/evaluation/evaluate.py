"""`retort evaluate`: decode a set of cuts, score it, and write the results."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

from retort import __version__
from retort.alignment.store import AlignmentStore
from retort.common.errors import UserError
from retort.common.files import contents, write_whole
from retort.common.json_reader import read_json
from retort.common.progress import StageProgress
from retort.corpora.cuts import CheckedCuts, Rejected, read_rejected, write_rejected
from retort.corpora.features import features_key
from retort.corpora.open_cuts import find_data, open_cuts
from retort.decoding.hotwords import read_hotwords
from retort.decoding.options import GREEDY, DecodingOptions, options_to_dict
from retort.decoding.recogniser import Recogniser
from retort.evaluation.bootstrap import intervals
from retort.evaluation.frame_accuracy import FrameAccuracy, watch_frames
from retort.evaluation.noise import NoiseScore, score_noise
from retort.evaluation.recognise import recognise, write_hypotheses
from retort.evaluation.reliability import Reliability, reliability, word_outcomes
from retort.evaluation.scoring import Interval, Score, score, score_from_dict, score_to_dict
from retort.text.normalise import split_words


@dataclass(frozen=True)
class Evaluation:
    """A score with intervals of `cer` and `wer`, its folder and decoding options.

    Attributes:
        parameters: numbers of parameters at run time, of `student`, `lm`, `rescore`.
        short: number of utterances with fewer hypotheses than the beam size.
        frames: frame accuracy of a hybrid student, if its data have alignments.
        noise: missed noise and false alarms, if requested.
        reliability: of the confidences of words; None without words.
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
    reliability: Reliability | None = None


def evaluate(
    recogniser: Recogniser,
    source: str,
    folder: Path,
    progress: StageProgress,
    options: DecodingOptions = GREEDY,
    *,
    reuse: bool = False,
    alignments: AlignmentStore | None = None,
    noise: int = 0,
) -> Evaluation:
    """Score a model on a manifest or Kaldi folder.

    Writes `folder/evaluation/NAME/{hyp.jsonl,score.json}`, and `rejected.tsv` there if an utterance could not
    be used. NAME is the source's name with that of its parent, so that `test` of two corpora differ, with
    the suffix `-beamN` for a beam search, and with the names of language models
    (:attr:`retort.decoding.options.DecodingOptions.label`), so that all results are kept.

    Args:
        reuse: return the results of an earlier call that :func:`evaluated` finds.
        alignments: alignments of the data, in the senones of a hybrid student
            (:func:`retort.evaluation.aligned.open_aligned`); frame accuracy is then measured as well.
        noise: also recognise this number of clips of synthetic noise (:func:`retort.evaluation.noise.score_noise`).
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
    references = {name: split_words(text) for name, text in recognised.references.items()}
    sure = reliability(word_outcomes(references, recognised.words, recognised.speakers))
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
        **({"confidence": asdict(sure)} if sure is not None else {}),
    }
    write_whole(out / "score.json", json.dumps(content, indent=1) + "\n")  # last: it marks complete results
    split = data_name(find_data(source))
    return Evaluation(
        split, result, bounds, rejected, out, options, parameters, recognised.short, frames, on_noise, sure
    )


def evaluated(
    recogniser: Recogniser, source: str, folder: Path, options: DecodingOptions = GREEDY
) -> Evaluation | None:
    """Results of an earlier :func:`evaluate` with the same model, options, cuts, texts and audio files."""
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
        sure = Reliability.from_dict(content["confidence"]) if "confidence" in content else None
    except (UserError, ValueError, KeyError, TypeError):
        return None
    rejected = read_rejected(out / "rejected.tsv")
    split = data_name(find_data(source))
    return Evaluation(
        split, result, intervals(result), rejected, out, options, parameters, short, frames, reliability=sure
    )


def evaluation_name(source: str, options: DecodingOptions) -> str:
    """Name of the folder with the scores of a manifest or Kaldi folder."""
    name = data_name(find_data(source)).replace("/", "-")
    return f"{name}-{options.label}" if options.label else name


def _place(source: str, folder: Path, options: DecodingOptions) -> Path:
    return folder / "evaluation" / evaluation_name(source, options)


def evaluation_key(recogniser: Recogniser, opened: CheckedCuts, options: DecodingOptions) -> str:
    """Hash of everything that a score depends on, including the version of Retort."""
    references = [[cut.supervisions[0].text, cut.supervisions[0].speaker] for cut in opened.cuts]
    audio = features_key("evaluation", opened.cuts, recogniser.features)
    rejected = [asdict(each) for each in opened.rejected]
    parts = [__version__, recogniser.fingerprint(), options_to_dict(options), audio, references, rejected]
    parts += [contents(each) for each in (options.lm, options.rescore, options.graph) if each]
    if options.hotwords:
        parts.append([[each.text, each.weight] for each in read_hotwords(options.hotwords)])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]


def data_name(path: Path) -> str:
    """Name of a manifest or folder in results: parent and name, `speechocean762/dev`."""
    return f"{path.parent.name}/{path.name.removesuffix('.gz').removesuffix('.jsonl')}"
