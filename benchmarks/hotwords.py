r"""Hotwords measured: recall of words that the training text lacks, false insertions, and error rates, by weight.

The hotwords are the words of the test data that no training text has, with as many distractors: words of another text that
neither has. A false insertion is a hotword in a hypothesis more often than in its reference.

PYTHONPATH=src python benchmarks/hotwords.py models/english --data speechocean762/tune \
    --others $RETORT_DATA/text/librispeech_100_sentences.txt.xz
"""

from __future__ import annotations

import argparse
import lzma
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from retort.corpora.features import load_samples
from retort.corpora.open_cuts import find_data, open_cuts
from retort.decoding.options import GREEDY, DecodingOptions
from retort.decoding.recogniser import Recogniser, load
from retort.decoding.transcript import hypothesis_text
from retort.evaluation.scoring import count_errors
from retort.report.experiment import open_experiment
from retort.students.student import Encoded

BATCH_SECONDS = 120.0
FEWEST_LETTERS = 4


@dataclass
class Data:
    """Utterances encoded once: batches of encoder outputs, and the reference of each utterance of a batch."""

    batches: list[tuple[Encoded, list[str]]] = field(default_factory=list)

    @property
    def references(self) -> list[str]:
        return [text for _, texts in self.batches for text in texts]


@torch.inference_mode()
def encode(recogniser: Recogniser, names: Sequence[str], most: int) -> Data:
    """Encode the first segment of each of up to `most` utterances of each data set."""
    found = []
    for name in names:
        cuts = sorted(open_cuts(find_data(name)).cuts, key=lambda cut: cut.id)
        random.Random(0).shuffle(cuts)
        for cut in cuts[:most]:
            pieces = list(recogniser.speech_segments([load_samples(cut, recogniser.sampling_rate)]))
            if len(pieces) == 1:
                found.append((pieces[0], recogniser.normalise(cut.supervisions[0].text)))
    found.sort(key=lambda each: each[0].duration)
    data, batch = Data(), []
    for each in found:
        if batch and (len(batch) + 1) * each[0].duration > BATCH_SECONDS:
            data.batches.append((recogniser.encode([piece.features for piece, _ in batch]), [text for _, text in batch]))
            batch = []
        batch.append(each)
    data.batches.append((recogniser.encode([piece.features for piece, _ in batch]), [text for _, text in batch]))
    return data


def words_of(recogniser: Recogniser, texts: Iterable[str]) -> set[str]:
    return {word for text in texts for word in recogniser.normalise(text).split()}


@torch.inference_mode()
def measure(recogniser: Recogniser, data: Data, options: DecodingOptions, hotwords: set[str]) -> str:
    """One line: recall, false insertions, and error rates of utterances with and without hotwords in the reference."""
    search = recogniser.opened(options)
    spoken = hits = false = 0
    counts = {True: [0, 0], False: [0, 0]}
    for encoded, references in data.batches:
        for found, reference in zip(search(encoded), references):
            text = recogniser.normalise(hypothesis_text(recogniser.tokenizer, found[0].ids))
            own, wanted = Counter(text.split()), Counter(reference.split())
            for word in hotwords & (own.keys() | wanted.keys()):
                spoken += wanted[word]
                hits += min(own[word], wanted[word])
                false += max(own[word] - wanted[word], 0)
            here = bool(hotwords & wanted.keys())
            result = count_errors(reference.split(), text.split())
            counts[here][0] += result.reference
            counts[here][1] += result.errors
    rates = [counts[here][1] / max(counts[here][0], 1) for here in (True, False)]
    words, errors = (sum(each[part] for each in counts.values()) for part in (0, 1))
    return (
        f"recall {hits}/{spoken} {hits / max(spoken, 1):6.1%}  false insertions {false} ({1000 * false / words:.2f} per "
        f"1,000 words)  WER with hotwords {rates[0]:.2%}, without {rates[1]:.2%}, all {errors / words:.2%}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", nargs="+", default=["librispeech_clips/dev", "speechocean762/dev"])
    parser.add_argument("--others", type=Path, required=True, help="text (.txt.xz) whose words are distractors")
    parser.add_argument("--sentences", type=int, default=20_000, help="sentences of that text")
    parser.add_argument("--weights", nargs="+", type=float, default=[1.0, 2.0, 3.0])
    parser.add_argument("--distractors", nargs="+", type=int, default=[100, 1000])
    parser.add_argument("--utterances", type=int, default=100_000, help="most of each data set")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    recogniser = load(arguments.model)
    recipe = open_experiment(arguments.model).recipe
    trained = words_of(
        recogniser,
        (cut.supervisions[0].text for name in recipe.data.train_sources for cut in open_cuts(find_data(name)).cuts),
    )
    data = encode(recogniser, arguments.data, arguments.utterances)
    own = words_of(recogniser, data.references)
    targets = {word for word in own - trained if len(word) >= FEWEST_LETTERS}
    with lzma.open(arguments.others, "rt", encoding="utf-8") as file:
        lines = file.read().splitlines()[: arguments.sentences]
    others = sorted(word for word in words_of(recogniser, lines) - trained - own if len(word) >= FEWEST_LETTERS)
    random.Random(0).shuffle(others)
    print(f"{len(data.references)} utterances, {len(targets)} hotwords that no training text has, {len(others)} others")
    print(f"{'greedy':<28}", measure(recogniser, data, GREEDY, targets), flush=True)
    print(f"{'beam 4':<28}", measure(recogniser, data, DecodingOptions(beam=4), targets), flush=True)
    for count in arguments.distractors:
        listed = {*targets, *others[:count]}
        for weight in arguments.weights:
            options = DecodingOptions(hotwords=tuple(sorted(listed)), hotword_weight=weight)
            name = f"weight {weight:g}, {count} distractors"
            print(f"{name:<28}", measure(recogniser, data, options, listed), flush=True)


if __name__ == "__main__":
    main()
