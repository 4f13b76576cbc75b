"""Retort and what a user would otherwise run: fine-tuning with transformers, decoding with faster-whisper.

    PYTHONPATH=src python benchmarks/peers.py train [--utterances 8] [--rounds 3]
    PYTHONPATH=src python benchmarks/peers.py decode NAME=FOLDER ... [--whisper NAME=FOLDER ...] [--utterances 50]

`train` makes updates of Whisper base (`whisper/plain` and `WhisperForConditionalGeneration`, random weights) on
utterances of the recipe's durations, on one thread, both under bfloat16 autocast where the processor has it, both with
clipping and fused AdamW, without features. transformers pads each utterance to 30 s and has the whole vocabulary, as in
its documentation, but without the gradient checkpointing of it, which would make it slower; ours has the utterances in
two batches of similar durations, accumulated, and the vocabulary of the recipe.

`decode` transcribes utterances of each test set at even steps, one at a time and greedily, with folders that `retort.load`
opens and with models in CTranslate2's format (`--whisper`, from `ct2-transformers-converter --quantization int8`), all
on one thread and in turns, utterance by utterance. WER is that of lower-case words without punctuation, with digits as
words; larger numbers in figures are errors. faster-whisper has its default options but for `beam_size=1`. Needs
`pip install faster-whisper`.

Times are process CPU time. Exit code 1 if a goal is missed: three times the utterances a second in training; in
decoding, no peer with both a lower WER and a lower real-time factor than all of ours.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from retort.common.environment import ALLOCATOR

SETTINGS = {**ALLOCATOR, "OMP_NUM_THREADS": "1"}
if any(os.environ.get(key) != value for key, value in SETTINGS.items()):
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **SETTINGS})

import jiwer  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from transformers import WhisperConfig, WhisperForConditionalGeneration  # noqa: E402

import retort  # noqa: E402
from distill import System  # noqa: E402
from results import Measured, add_json, finish  # noqa: E402
from retort.config.loading import load_recipe  # noqa: E402
from retort.config.schema import Recipe  # noqa: E402
from retort.corpora.features import load_samples  # noqa: E402
from retort.corpora.open_cuts import open_cuts  # noqa: E402
from retort.report.figures import new_figure, save_figure  # noqa: E402
from retort.text.tokenizers import EOS, SPECIAL  # noqa: E402
from retort.training.batches import Batch  # noqa: E402

GOAL = 3.0
TOKENS_PER_SECOND, WHISPER_FRAMES = 3, 3000
CONDITIONS = "faster-whisper with its default options but for beam_size=1; numbers above nine in figures are errors"
DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
SETS = ("librispeech_clips/dev", "speechocean762/dev")


def durations(recipe: Recipe, count: int) -> list[float]:
    """Durations of `count` utterances of the training data, at even steps through the sorted ones."""
    found = sorted(cut.duration for name in recipe.data.train for cut in open_cuts(name).cuts)
    return [found[(2 * number + 1) * len(found) // (2 * count)] for number in range(count)]


def random_batch(recipe: Recipe, seconds: Sequence[float]) -> Batch:
    """Random features and tokens of utterances of these durations."""
    generator = torch.Generator().manual_seed(0)
    frames = torch.tensor([round(100 * each) for each in seconds])
    counts = torch.tensor([round(TOKENS_PER_SECOND * each) + 1 for each in seconds])
    features = torch.randn(len(seconds), int(frames.max()), recipe.features.bins, generator=generator)
    tokens = torch.randint(
        len(SPECIAL), recipe.tokenizer.size or 1000, (len(seconds), int(counts.max())), generator=generator
    )
    tokens[torch.arange(len(seconds)), counts - 1] = EOS
    names = [str(number) for number in range(len(seconds))]
    return Batch(names, names, [[] for _ in names], features, frames, tokens, counts, [])


def own_update(recipe: Recipe, seconds: Sequence[float]) -> tuple[System, Callable[[], None]]:
    system, half = System(recipe, {}), len(seconds) // 2
    batches = [random_batch(recipe, part) for part in (seconds[:half], seconds[half:]) if len(part)]
    total = sum(int(batch.token_lengths.sum()) for batch in batches)

    def update() -> None:
        system.module.train()
        for batch in batches:
            with system.autocast():
                output = system.module(batch, {}, system.step)
            (output.token_sum / total).backward()
        torch.nn.utils.clip_grad_norm_(system.module.student.parameters(), system.clip)
        system.optimiser.step()
        system.optimiser.zero_grad(set_to_none=True)

    return system, update


def peer_update(recipe: Recipe, seconds: Sequence[float], autocast: Callable[[], Any]) -> Callable[[], None]:
    architecture = dict(recipe.student.encoder.architecture)  # type: ignore[attr-defined]
    known = WhisperConfig().to_dict()
    model = WhisperForConditionalGeneration(
        WhisperConfig(**{key: value for key, value in architecture.items() if key in known and key != "model_type"})
    ).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    counts = [round(TOKENS_PER_SECOND * each) + 5 for each in seconds]  # with Whisper's four first tokens
    features = torch.randn(len(seconds), recipe.features.bins, WHISPER_FRAMES)
    labels = torch.full((len(seconds), max(counts)), -100)
    for row, count in enumerate(counts):
        labels[row, :count] = torch.randint(1000, 50000, (count,))

    def update() -> None:
        with autocast():
            loss = model(input_features=features, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    return update


def train(count: int, rounds: int) -> list[Measured]:
    recipe = load_recipe("whisper/plain", [])
    seconds = durations(recipe, count)
    system, own = own_update(recipe, seconds)
    updates = {"retort": own, "transformers": peer_update(recipe, seconds, system.autocast)}
    times: dict[str, list[float]] = {name: [] for name in updates}
    for number in range(rounds + 1):
        for name, update in updates.items():
            started = time.process_time()
            update()
            if number:  # the first one prepares kernels
                times[name].append(time.process_time() - started)
    rates = {name: count / statistics.median(each) for name, each in times.items()}
    for name, rate in rates.items():
        print(f"{name:>14}: {rate:.2f} utterances a second (median of {rounds} updates of {count})")
    ratio, kind = rates["retort"] / rates["transformers"], "bf16" if system.bf16 else "fp32"
    print(f"ratio {ratio:.2f}, goal {GOAL}", flush=True)
    detail = f"{kind}, {count} utterances of {min(seconds):.1f} to {max(seconds):.1f} s, mean {sum(seconds) / count:.1f} s; "
    detail += ", ".join(f"{name} {rate:.2f} utterances/s" for name, rate in rates.items())
    return [Measured("fine-tuning Whisper base: utterances a second over transformers'", ratio, GOAL, False, detail)]


def whisper(folder: str) -> Callable[[np.ndarray], str]:
    """Greedy transcription with faster-whisper."""
    try:
        from faster_whisper import WhisperModel
    except ImportError:
        sys.exit("faster-whisper is not installed: pip install faster-whisper")
    model = WhisperModel(folder, device="cpu", compute_type="int8", cpu_threads=1, local_files_only=True)

    def transcribe(samples: np.ndarray) -> str:
        segments, _ = model.transcribe(samples, language="en", beam_size=1)
        return " ".join(segment.text for segment in segments)

    return transcribe


def own_model(folder: str) -> Callable[[np.ndarray], str]:
    """Greedy transcription with a model of Retort, trained or exported."""
    asr = retort.load(folder)

    def transcribe(samples: np.ndarray) -> str:
        text: str = asr.transcribe_samples(samples).text
        return text

    return transcribe


def words_of(text: str) -> str:
    """Lower-case words without punctuation, digits as words."""
    plain = re.sub(r"[^a-z0-9' ]+", " ", text.lower())
    return " ".join(DIGITS[int(word)] if len(word) == 1 and word.isdigit() else word for word in plain.split())


def draw(wers: dict[str, list[float]], factors: dict[str, float], own: Sequence[str], path: Path) -> None:
    """Write a picture of the word error rate over the real-time factor, one panel for each test set."""
    figure, axes = new_figure(9, 3.6, columns=len(SETS), ink="black")
    for number, (axis, data) in enumerate(zip(axes[0], SETS)):
        for name, factor in factors.items():
            colour, place = "C0" if name in own else "C1", (factor, 100 * wers[name][number])
            axis.plot(*place, "o", color=colour)
            label = name.removeprefix("faster-whisper ")
            axis.annotate(label, place, (3, 5), textcoords="offset points", fontsize=8, rotation=50)
        for kind, colour in (("Retort", "C0"), ("faster-whisper", "C1")):
            axis.plot([], [], "o", color=colour, label=kind)
        axis.set(title=data, xlabel="real-time factor", ylabel="WER %")
        axis.set(
            xlim=(0, 1.3 * max(factors.values())),
            ylim=(0, 130 * max(rates[number] for rates in wers.values())),
        )
    axes[0][-1].legend(fontsize=8)
    save_figure(figure, path)


def decode(own: dict[str, str], peers: dict[str, str], count: int, picture: Path | None) -> list[Measured]:
    systems = {name: own_model(folder) for name, folder in own.items()}
    systems |= {f"faster-whisper {name}": whisper(folder) for name, folder in peers.items()}
    texts: defaultdict[tuple[str, str], list[str]] = defaultdict(list)
    spent: defaultdict[str, float] = defaultdict(float)
    audio = 0.0
    for data in SETS:
        cuts = list(open_cuts(data).cuts)
        for number, cut in enumerate(cuts[:: max(len(cuts) // count, 1)][:count]):
            samples = load_samples(cut, 16_000)
            texts[data, ""].append(words_of(cut.supervisions[0].text or ""))
            audio += cut.duration
            for name, transcribe in systems.items():
                if number == 0:
                    transcribe(samples)  # prepares kernels
                started = time.process_time()
                text = transcribe(samples)
                spent[name] += time.process_time() - started
                texts[data, name].append(words_of(text))
    wers = {name: [jiwer.wer(texts[data, ""], texts[data, name]) for data in SETS] for name in systems}
    factors = {name: spent[name] / audio for name in systems}
    for name in systems:
        rates = ", ".join(f"{data} {100 * wer:.2f} %" for data, wer in zip(SETS, wers[name]))
        print(f"{name:>24}: real-time factor {factors[name]:.4f}, WER {rates}")
    if picture is not None:
        draw(wers, factors, list(own), picture)
    points = {name: (statistics.mean(wers[name]), factors[name]) for name in systems}
    ahead = [
        name
        for name in points
        if name not in own and all(points[name][0] < points[mine][0] and points[name][1] < points[mine][1] for mine in own)
    ]
    rows = [
        Measured(f"decoding: real-time factor of {name}", factors[name], detail="WER " + ", ".join(
            f"{100 * wer:.1f} % ({data})" for data, wer in zip(SETS, wers[name])
        ))
        for name in systems
    ]  # fmt: skip
    detail = f"{count} utterances of each set, {audio:.0f} s of audio, one thread, greedy; {CONDITIONS}"
    rows.append(Measured("decoding: peers with lower WER and lower factor than all of ours", len(ahead), 0, True, detail))
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("train", "decode"))
    parser.add_argument("models", nargs="*", help="NAME=FOLDER of models of Retort")
    parser.add_argument("--whisper", nargs="*", default=[], help="NAME=FOLDER of models in CTranslate2's format")
    parser.add_argument("--utterances", type=int, help="8 for train, 50 of each set for decode")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--picture", type=Path, help="PNG file of WER over real-time factor that decode writes"
    )
    add_json(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.part == "train":
        return finish(train(given.utterances or 8, given.rounds), given.json)
    own, peers = (dict(each.split("=", 1) for each in part) for part in (given.models, given.whisper))
    return finish(decode(own, peers, given.utterances or 50, given.picture), given.json)


if __name__ == "__main__":
    sys.exit(main())
