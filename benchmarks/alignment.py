"""Word and phone times of Retort's alignment next to those of pocketsphinx, an aligner with a model of its own.

    PYTHONPATH=src python benchmarks/alignment.py exp/alignments/speechocean762_40ms speechocean762/train [--every 5]

Needs `pip install retort[hybrid]` and 16 kHz speech. pocketsphinx's English model was trained on other speech, and knows
nothing of ours. Utterances with a word that its dictionary lacks, or that it cannot align, are left out and counted.
Prints how far the starts and ends of words lie apart, and in how many frames (10 ms) both have the same phone.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.console import Console

from retort.alignment.alignment import Timed
from retort.alignment.phones import SILENCE
from retort.alignment.store import AlignmentStore
from retort.common.progress import stage_progress
from retort.corpora.features import load_samples
from retort.corpora.open_cuts import find_data, open_cuts

RATE = 16_000
WITHIN = (20, 50, 100)


class Span(NamedTuple):
    symbol: str
    start: float
    end: float


class Times(NamedTuple):
    """In milliseconds."""

    words: list[Span]
    phones: list[Span]


class Pocketsphinx:
    """The other aligner."""

    def __init__(self) -> None:
        from pocketsphinx import Decoder

        # With the best path through its lattice a quarter of learners' utterances get no phones.
        self.decoder = Decoder(samprate=RATE, lm=None, loglevel="FATAL", bestpath=False)

    def knows(self, words: Sequence[str]) -> bool:
        """Whether its dictionary has them all."""
        return all(self.decoder.lookup_word(word.lower()) for word in words)

    def align(self, samples: np.ndarray[Any, np.dtype[np.float32]], words: Sequence[str]) -> Times | None:
        """None where it finds no path. Words first, then phones inside of these words."""
        sound = (samples.clip(-1, 1) * 32767).astype(np.int16).tobytes()
        self.decoder.set_align_text(" ".join(words).lower())
        try:
            self._read(sound)
            self.decoder.set_alignment()
            self._read(sound)
        except RuntimeError:
            return None
        found = self.decoder.get_alignment()
        if found is None:
            return None
        said, phones = [], []
        for word in found:
            phones += [_span(each, each.name) for each in word]
            if not word.name.startswith(("<", "[", "+")):
                said.append(_span(word, word.name.split("(")[0].upper()))
        return Times(said, phones)

    def _read(self, sound: bytes) -> None:
        self.decoder.start_utt()
        self.decoder.process_raw(sound, full_utt=True)
        self.decoder.end_utt()


def _span(entry: Any, symbol: str) -> Span:
    """Of pocketsphinx, whose frames are 10 ms."""
    return Span(symbol, 10 * entry.start, 10 * (entry.start + entry.duration))


def spans(timed: Sequence[Timed], shift: float) -> list[Span]:
    """Of ours, whose frames are `shift` milliseconds."""
    return [Span(each.symbol, shift * each.start, shift * (each.start + each.frames)) for each in timed]


def same_phones(ours: Sequence[Span], theirs: Sequence[Span]) -> tuple[int, int]:
    """Of every 10 ms: those with the same phone, and those where both have a phone that is no silence."""
    length = round(max(ours[-1].end, theirs[-1].end) / 10)
    first, second = np.full((2, length), SILENCE, dtype=object)
    for frames, phones in ((first, ours), (second, theirs)):
        for phone in phones:
            frames[round(phone.start / 10) : round(phone.end / 10)] = phone.symbol
    spoken = (first != SILENCE) & (second != SILENCE)
    return int((first == second)[spoken].sum()), int(spoken.sum())


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("alignments", type=Path, help="folder of an alignment")
    parser.add_argument("cuts", help="the speech that was aligned")
    parser.add_argument("--every", type=int, default=1, help="take each N-th utterance")
    options = parser.parse_args()
    store, aligner = AlignmentStore(options.alignments / "alignments"), Pocketsphinx()
    cuts = [cut for cut in open_cuts(find_data(options.cuts)).cuts if cut.id in store][:: options.every]
    shift = 1000 * store.frame_shift
    apart: list[tuple[float, float]] = []
    left_out = {"word unknown": 0, "no path": 0}
    same = spoken = 0
    with stage_progress(Console(stderr=True)) as progress:
        for number, cut in enumerate(cuts, 1):
            ours = store[cut.id]
            words = [word.symbol for word in ours.words]
            theirs = aligner.align(load_samples(cut, RATE), words) if aligner.knows(words) else None
            if theirs is None or [word.symbol for word in theirs.words] != words:
                left_out["no path" if aligner.knows(words) else "word unknown"] += 1
            else:
                pairs = zip(spans(ours.words, shift), theirs.words)
                apart += [(mine.start - other.start, mine.end - other.end) for mine, other in pairs]
                equal, both = same_phones(spans(ours.phones, shift), theirs.phones)
                same, spoken = same + equal, spoken + both
            progress("alignment", number, len(cuts))
    report: dict[str, Any] = {"utterances": len(cuts), "left out": left_out, "words": len(apart)}
    for name, values in zip(("starts", "ends"), np.array(apart).T):
        report[name] = {
            "median apart (ms)": float(np.median(np.abs(values))),
            "ours later by (ms, median)": float(np.median(values)),
            **{f"within {limit} ms": round(float((np.abs(values) <= limit).mean()), 3) for limit in WITHIN},
        }
    report["frames with the same phone, where both have one"] = round(same / max(spoken, 1), 3)
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
