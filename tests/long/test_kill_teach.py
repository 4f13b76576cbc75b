"""`retort teach` is killed with SIGKILL at random moments; nothing that was stored is ever lost."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from retort.teachers import MaskedLMTeacher, StoredTeacher, open_store
from retort.teachers.masked_lm import MaskedLMConfig

MakeBert = Callable[..., Path]
KILLS = 20
TEXTS = 6000
SHARD_TEXTS = 128
LONGEST = 0.4
"""Seconds of work, at most, before a kill."""

# The verb itself with small shards: a kill then falls between, into and around many of them.
COMMAND = f"""
import functools
import retort.training.teach as teach
teach.fill = functools.partial(teach.fill, shard_texts={SHARD_TEXTS})
from retort.cli import main
from retort.teachers.masked_lm import MaskedLMConfig
main()
"""


def make_corpus(folder: Path, texts: Sequence[str]) -> None:
    """A Kaldi folder of overlapping segments of one recording."""
    folder.mkdir()
    noise = 0.1 * np.random.default_rng(0).standard_normal(16000 * 10)
    soundfile.write(folder / "a.wav", noise, 16000)
    (folder / "wav.scp").write_text("a a.wav\n")
    names = [f"u{number:05d}" for number in range(len(texts))]
    starts = [number * 8 / len(texts) for number in range(len(texts))]
    (folder / "text").write_text("".join(f"{name} {text}\n" for name, text in zip(names, texts)))
    (folder / "segments").write_text(
        "".join(f"{name} a {start:.4f} {start + 1:.4f}\n" for name, start in zip(names, starts))
    )
    (folder / "utt2spk").write_text("".join(f"{name} s\n" for name in names))


def start(recipe: Path, folder: Path) -> subprocess.Popen[str]:
    settings = {"OMP_NUM_THREADS": "1", "MALLOC_TRIM_THRESHOLD_": str(2**30), "COLUMNS": "300"}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, "teach", str(recipe)],
        cwd=folder,
        env={**os.environ, **settings},
        stdout=subprocess.PIPE,
        text=True,
    )


def kill_at_work(process: subprocess.Popen[str], seconds: float) -> bool:
    """Kill it so long after it has printed what it will take; whether it was still at work."""
    assert process.stdout is not None
    line = process.stdout.readline()
    assert "texts to compute, about" in line, line
    time.sleep(seconds)
    process.send_signal(signal.SIGKILL)
    process.stdout.close()
    return process.wait() == -signal.SIGKILL


@pytest.mark.long
def test_twenty_kills(make_bert: MakeBert, tmp_path: Path) -> None:
    draw = random.Random()
    letters = "abcdefgh"
    bert = make_bert(
        vocabulary=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *map("##{}".format, letters)]
    )
    texts = sorted({"".join(draw.choices(letters, k=8)) for _ in range(TEXTS)})
    make_corpus(tmp_path / "corpus", texts)
    recipe = tmp_path / "kill.yaml"
    recipe.write_text(
        f"name: kill\ndata: {{train: ['{tmp_path / 'corpus'}']}}\nnormaliser: {{case: lower}}\n"
        f"teachers: {{bert: {{model: '{bert}', storage: disk}}}}\n"
        "distill: [{tap: acoustic, teacher: bert, loss: regression}]\ntraining: {device: cpu}\n"
    )
    teacher = MaskedLMTeacher(MaskedLMConfig(model=str(bert)))

    def look() -> StoredTeacher:
        return open_store(teacher, tmp_path / "exp" / "cache" / "teachers")

    kills, had = 0, 0
    while kills < KILLS:
        kills += kill_at_work(start(recipe, tmp_path), draw.uniform(0, LONGEST))
        store = look()
        assert store.broken == []
        assert len(store) >= had, "a stored text was lost"
        had = len(store)
        if not store.missing(texts):  # then there is more to do: a shard is cut, another is gone
            cut, gone = draw.sample(sorted(store.folder.glob("*.safetensors")), 2)
            os.truncate(cut, draw.randrange(cut.stat().st_size))
            gone.unlink()
            had = len(look())
            assert 0 < had < len(texts)
    process = start(recipe, tmp_path)
    process.communicate(timeout=300)
    assert process.returncode == 0
    store = look()
    assert store.missing(texts) == []
    assert len(store) == len(texts)
    for first in range(0, len(texts), 500):
        some = texts[first : first + 500]
        for stored, fresh in zip(store.read(some), teacher.read(some), strict=True):
            assert stored.spans == fresh.spans
            torch.testing.assert_close(stored.vectors.float(), fresh.vectors, rtol=2**-10, atol=1e-5)
