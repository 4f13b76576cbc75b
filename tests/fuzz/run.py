"""Files with changed bytes and fields are opened through public functions: a result, or an error for the user.

`python tests/fuzz/run.py FOLDER SEED ROUNDS KIND...` prints a JSON line a finding. It is a process of its own, because
a damaged file may end it (a signal), take all memory (there is a limit) or never come back (there is an alarm).
"""

from __future__ import annotations

import contextlib
import io
import json
import logging
import random
import resource
import shutil
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
import yaml
from mutations import mutated_bytes, mutated_fields

import retort
from retort.audio.fbank import FbankConfig
from retort.audio.files import read_audio
from retort.common.errors import UserError
from retort.config.loading import load_recipe, recipe_to_dict
from retort.config.schema import NormaliserConfig
from retort.corpora.features import CutFeatures
from retort.corpora.open_cuts import open_cuts
from retort.decoding.recogniser import Recogniser
from retort.engine.checkpoints import CheckpointFolder
from retort.nn.conformer import ConformerConfig
from retort.nn.decoder import AutoregressiveConfig
from retort.nn.frontend import Conv2dConfig
from retort.students.cif import CifConfig, CifStudent, CifStudentConfig
from retort.text.tokenizers import CharacterTokenizer

MEMORY = 12 * 2**30
"""Bytes of addresses: torch alone maps several gigabytes."""
LONGEST = 30
"""Seconds of the processor for one file."""


class TooSlow(BaseException):
    """A file took longer than :data:`LONGEST` seconds."""


def tone(seconds: float = 0.6, rate: int = 16000) -> np.ndarray:
    times = np.arange(int(seconds * rate)) / rate
    return (0.3 * np.sin(2 * np.pi * 300 * times) + 0.01 * np.cos(times * 9000)).astype(np.float32)


class Bench:
    """What the kinds of files are made of."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.audio = []
        for suffix, subtype in (
            ("wav", "PCM_16"), ("wav", "FLOAT"), ("wav", "ULAW"), ("wav", "IMA_ADPCM"), ("flac", "PCM_16"),
            ("ogg", "VORBIS"), ("mp3", "MPEG_LAYER_III"), ("aiff", "PCM_16"), ("au", "PCM_16"), ("w64", "PCM_16"),
            ("caf", "PCM_16"),
        ):  # fmt: skip
            path = folder / f"{subtype.lower()}.{suffix}"
            soundfile.write(path, tone(), 16000, subtype=subtype)
            self.audio.append(path)
        self.cuts = [self._cut(f"u{number}", self.audio[number]) for number in range(3)]
        encoder = ConformerConfig(layers=1, dim=16, heads=2, feedforward=16, kernel=3, pool_after=[])
        decoder = AutoregressiveConfig(layers=1, dim=16, heads=2, feedforward=16)
        frontend = Conv2dConfig(channels=4, layers=2)
        config = CifStudentConfig(frontend=frontend, encoder=encoder, cif=CifConfig(), decoder=decoder)
        tokenizer = CharacterTokenizer.train(["ab c"])
        torch.manual_seed(0)
        self.student = CifStudent(config, tokenizer.size, 20)
        recogniser = Recogniser(self.student, tokenizer, FbankConfig(bins=20), NormaliserConfig())
        self.model = folder / "model"
        recogniser.save(self.model)
        self.objective = torch.nn.Linear(2, 2)
        self.optimizer = torch.optim.AdamW([*self.student.parameters(), *self.objective.parameters()])
        sum(each.sum() for each in self.student.parameters()).backward()  # type: ignore[union-attr]
        self.optimizer.step()
        self.checkpoints = folder / "checkpoints"
        for step in (1, 2):
            state = {"epoch": 0, "batches": step, "scores": {"1": 0.5}, "rejected": {}, "seconds": 1.0}
            CheckpointFolder(self.checkpoints).save(
                step, self.student, self.objective, self.optimizer, state
            )
        self.recipe = recipe_to_dict(load_recipe("demo/hkd"))

    @staticmethod
    def _cut(name: str, path: Path) -> dict[str, Any]:
        source = {"type": "file", "channels": [0], "source": str(path)}
        times = {"start": 0.0, "duration": 0.6, "channel": 0}
        recording = {"id": name, "sources": [source], "sampling_rate": 16000, "num_samples": 9600, "duration": 0.6}
        words = {"id": name, "recording_id": name, **times, "text": "ab", "speaker": "s"}
        return {"id": name, **times, "supervisions": [words], "recording": recording, "type": "MonoCut"}


def audio(bench: Bench, draw: random.Random, folder: Path) -> object:
    source = draw.choice(bench.audio)
    path = folder / f"damaged{source.suffix}"
    path.write_bytes(mutated_bytes(draw, source.read_bytes()))
    samples = read_audio(path)
    assert samples.ndim == 1
    assert samples.dtype == np.float32
    return samples


def manifests(bench: Bench, draw: random.Random, folder: Path) -> object:
    lines = [json.dumps(mutated_fields(draw, each) if draw.random() < 0.6 else each) for each in bench.cuts]
    content = ("\n".join(lines) + "\n").encode()
    path = folder / "cuts.jsonl"
    path.write_bytes(mutated_bytes(draw, content) if draw.random() < 0.4 else content)
    features = CutFeatures(FbankConfig(bins=20))
    for cut in open_cuts(path).cuts:
        with contextlib.suppress(UserError):
            features(cut)
    return path


def models(bench: Bench, draw: random.Random, folder: Path) -> object:
    shutil.copytree(bench.model, folder / "model")
    files = sorted(each for each in (folder / "model").rglob("*") if each.is_file())
    _damage(draw, draw.choice(files))
    return retort.load(folder / "model").transcribe(bench.audio[0])


def checkpoints(bench: Bench, draw: random.Random, folder: Path) -> object:
    shutil.copytree(bench.checkpoints, folder / "checkpoints")
    files = sorted(each for each in (folder / "checkpoints").rglob("*") if each.is_file())
    for _ in range(draw.randint(1, 2)):
        _damage(draw, draw.choice(files))
    return CheckpointFolder(folder / "checkpoints").restore(bench.student, bench.objective, bench.optimizer)


def recipes(bench: Bench, draw: random.Random, folder: Path) -> object:
    path = folder / "recipe.yaml"
    content = yaml.safe_dump(mutated_fields(draw, bench.recipe)).encode()
    path.write_bytes(mutated_bytes(draw, content) if draw.random() < 0.3 else content)
    return load_recipe(str(path))


def _damage(draw: random.Random, path: Path) -> None:
    content = path.read_bytes()
    if path.suffix == ".json" and draw.random() < 0.7:
        path.write_text(json.dumps(mutated_fields(draw, json.loads(content))))
    else:
        path.write_bytes(mutated_bytes(draw, content))


KINDS: dict[str, Callable[[Bench, random.Random, Path], object]] = {
    each.__name__: each for each in (audio, manifests, models, checkpoints, recipes)
}


SHARES = {"audio": 10, "manifests": 10, "models": 1, "checkpoints": 4, "recipes": 3}
"""How many files of each kind take about as long."""


def main(root: Path, seed: int, rounds: int, kinds: list[str]) -> None:
    """So many rounds of each kind."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    logging.disable(logging.CRITICAL)
    torch.set_num_threads(1)
    signal.signal(signal.SIGPROF, _alarm)
    bench = Bench(root / "bench")
    for kind in kinds:
        for number in range(rounds * SHARES[kind]):
            case = f"{kind} {seed} {number}"
            (root / "case").write_text(case)  # who finds this process dead reads which file it was
            if problem := _problem(KINDS[kind], bench, random.Random(case), root / "scratch"):
                print(json.dumps({"case": case, **problem}), flush=True)
        print(json.dumps({"kind": kind, "files": rounds * SHARES[kind]}), flush=True)


def _problem(
    attempt: Callable[[Bench, random.Random, Path], object], bench: Bench, draw: random.Random, folder: Path
) -> dict[str, str]:
    """What opening one file raises that is no error for the user."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    signal.setitimer(signal.ITIMER_PROF, LONGEST)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            attempt(bench, draw, folder)
    except UserError:
        return {}
    except (Exception, TooSlow) as error:
        places = [each for each in traceback.extract_tb(error.__traceback__) if "/retort/" in each.filename]
        where = f"{Path(places[-1].filename).name}:{places[-1].lineno}" if places else ""
        return {"error": f"{type(error).__name__}: {error}"[:200], "where": where}
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
    return {}


def _alarm(*_: object) -> None:
    raise TooSlow


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:] or list(KINDS))
