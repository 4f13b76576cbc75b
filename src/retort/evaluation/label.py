"""Pseudo-labelling: confident transcripts of unlabelled speech become training data."""

from __future__ import annotations

import math
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from lhotse import CutSet, MonoCut, SupervisionSegment
from lhotse.cut import Cut

from retort.common.errors import BadUtterance, UserError
from retort.common.progress import CountProgress
from retort.corpora.cuts import Rejected
from retort.corpora.features import load_samples
from retort.corpora.open_cuts import find_data, open_cuts
from retort.decoding.options import GREEDY, DecodingOptions
from retort.decoding.recogniser import Recogniser
from retort.decoding.transcript import Transcript

MOST_COMPRESSION = 2.4
"""Compression ratio of zlib above which a text is repetitive (openai-whisper's threshold)."""



@dataclass
class Labelled:
    """Result of pseudo-labelling.

    Attributes:
        cuts: cuts with normalised transcripts and `confidence` (mean of the tokens, geometric) in `custom`.
        rejected: the other cuts, with the reason.
        seconds: duration of `cuts`.
    """

    cuts: list[Cut] = field(default_factory=list)
    rejected: list[Rejected] = field(default_factory=list)
    seconds: float = 0.0


def label_cuts(
    recogniser: Recogniser,
    source: str,
    confidence: float,
    progress: CountProgress | None = None,
    options: DecodingOptions = GREEDY,
) -> Labelled:
    """Transcribe every cut of `source` and keep those with a confident transcript.

    Args:
        source: manifest of cuts or recordings, or a Kaldi folder; its transcripts are ignored.
        confidence: minimum geometric mean of the confidences of a transcript's tokens, from 0 to 1.

    Raises:
        UserError: the data do not exist, or the confidence is invalid.
    """
    if not 0.0 <= confidence <= 1.0:
        raise UserError(f"confidence is {confidence:g}", remedy="Set a number from 0 to 1")
    opened = open_cuts(find_data(source), texts=False)
    result = Labelled(rejected=list(opened.rejected))
    cuts = list(opened.cuts)
    for done, cut in enumerate(cuts, 1):
        try:
            samples = load_samples(cut, recogniser.sampling_rate)
            transcript = recogniser.transcribe_samples(samples, where=cut.id, options=options)
        except BadUtterance as error:
            result.rejected.append(Rejected(cut.id, error.what))
            continue
        text, certain = recogniser.normalise(transcript.text), _confidence(transcript)
        if reason := _doubt(text, certain, confidence):
            result.rejected.append(Rejected(cut.id, reason))
        else:
            result.cuts.append(_with_text(cut, text, certain))
            result.seconds += cut.duration
        if progress is not None:
            progress(done, len(cuts))
    return result


def _confidence(transcript: Transcript) -> float:
    """Geometric mean of the confidences of the tokens; 0 without tokens."""
    scores = [math.log(max(token.confidence, 1e-30)) for token in transcript.tokens]
    return math.exp(sum(scores) / len(scores)) if scores else 0.0


def write_labelled(path: Path, labelled: Labelled) -> None:
    """Write the cuts as a manifest `*.jsonl.gz`.

    Raises:
        UserError: there is no cut.
    """
    if not labelled.cuts:
        raise UserError("no utterance has this confidence", where=path, remedy="Set a lower --confidence")
    path.parent.mkdir(parents=True, exist_ok=True)
    CutSet.from_cuts(labelled.cuts).to_file(path)


def _doubt(text: str, certain: float, least: float) -> str:
    """Why a transcript is rejected; empty if it is accepted."""
    if not text:
        return "nothing was recognised"
    raw = text.encode()
    if len(raw) / len(zlib.compress(raw)) > MOST_COMPRESSION:
        return f"its transcript is repetitive: {text[:60]}"
    return f"its confidence is {certain:.2f}: {text[:60]}" if certain < least else ""


def _with_text(cut: Cut, text: str, certain: float) -> Cut:
    assert isinstance(cut, MonoCut)
    speaker = cut.supervisions[0].speaker if cut.supervisions else None
    segment = SupervisionSegment(
        id=cut.id, recording_id=cut.recording_id, start=0.0, duration=cut.duration, text=text, speaker=speaker
    )
    labelled = cut.drop_supervisions()
    labelled.supervisions = [segment]
    return labelled.with_custom("confidence", round(certain, 4))
