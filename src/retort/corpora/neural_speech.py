"""Speech synthesis with Kokoro, once for all experiments: a content-addressed store of Opus files.

The samples of a sentence depend only on the seed and its text, not on its position or the number
of processes. A sidecar file `KEY.json`, written last, marks a finished sentence, so that an interrupted run can be
resumed.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import resample_poly

from retort.common.errors import BadUtterance, UserError
from retort.common.files import PARTIAL, write_whole
from retort.common.json_reader import read_json
from retort.common.locks import one_at_a_time
from retort.common.workers import cores, workers
from retort.corpora.cuts import CheckedCuts, Rejected, checked, make_cut, open_recording
from retort.corpora.kokoro import Kokoro, kokoro_folder, phonemise
from retort.corpora.reading_check import ReadingCheck
from retort.corpora.synthetic import SAMPLING_RATE, Conditions, in_a_room
from retort.pretrained.cache import RECORD, resolve

VERSION = 1
"""Version of the store; increased when the samples of a sentence change."""
MOST_VOICES = 3
"""Range of the number of voices of a mix."""


@dataclass(frozen=True)
class SynthesisSettings:
    """Settings of the synthesis.

    Attributes:
        language: `english` or `mandarin`.
        voices: names of voices; each sentence draws one or, with probability `mixes`, a mix of two or three.
        speed: range of speeds.
        mixes: fraction of sentences with a mix of voices.
        seed: seed of all random draws.
        check: name of a recogniser that checks the sentences; empty for none.
        worst: maximum error rate of the check.
    """

    language: str
    voices: tuple[str, ...]
    speed: tuple[float, float] = (0.8, 1.2)
    mixes: float = 0.5
    seed: int = 1
    check: str = "whisper-base"
    worst: float = 0.2


@dataclass(frozen=True)
class _Job:
    text: str
    key: str
    settings: SynthesisSettings
    model: Path
    store: Path


def read_by_kokoro(
    texts: Sequence[str],
    settings: SynthesisSettings,
    store: Path,
    folder: Path,
    prefix: str,
    *,
    conditions: Conditions,
    processes: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> CheckedCuts:
    """Synthesise each text once, into `folder/PREFIX-NUMBER.ogg` (Opus, 16 kHz), with silence, loudness and noise.

    Args:
        texts: distinct sentences.
        settings: settings of the synthesis.
        store: folder of clean speech, shared by all runs.
        folder, prefix: folder of the files, prefix of files and ids.
        conditions: silence, loudness and noise; rate and pitch are ignored.
        processes: number of processes; 0 for one per core.
        progress: called with the number of sentences done and in total.

    Returns:
        The cuts; sentences that could not be synthesised or failed the check are among the rejected.

    Raises:
        UserError: the model or a package is missing, or nothing could be synthesised.
    """
    _check_opus()
    model = kokoro_folder()
    resolve(settings.check)  # errors are raised before the first sentence
    jobs = [_Job(text, _key(text, settings, model), settings, model, store) for text in texts]
    with one_at_a_time(store / "lock"):
        _fill(jobs, processes, progress or (lambda done, total: None))
    folder.mkdir(parents=True, exist_ok=True)
    cuts, rejected = [], []
    for number, job in enumerate(jobs):
        name = f"{prefix}-{number:05d}"
        try:
            cuts.append(_in_place(name, job, folder / f"{name}.ogg", conditions))
        except BadUtterance as error:
            rejected.append(Rejected(name, error.what))
    return checked(cuts, rejected, folder)


def _key(text: str, settings: SynthesisSettings, model: Path) -> str:
    """Hash of everything that the samples of a sentence depend on; the check is excluded."""
    origin = (model / RECORD).read_text(encoding="utf-8")
    sound = {key: value for key, value in asdict(settings).items() if key not in ("check", "worst")}
    content = json.dumps([VERSION, origin, sound, text], sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(content.encode()).hexdigest()[:24]


def _fill(jobs: Sequence[_Job], processes: int, progress: Callable[[int, int], None]) -> None:
    pending = [job for job in dict.fromkeys(jobs) if not _is_done(job)]
    done = len(jobs) - len(pending)
    progress(done, len(jobs))
    if not pending:
        return
    remedy = "Run the same command again to resume; set data.spoken.processes to use less memory"
    with workers(min(processes or cores(), len(pending)), "synthesis", remedy) as pool:
        for _ in pool.map(_read, pending):
            done += 1
            progress(done, len(jobs))


def _is_done(job: _Job) -> bool:
    record = _record(job)
    if not record or "failed" in record:
        return bool(record)
    return not job.settings.check or job.settings.check in record["checks"]


def _paths(job: _Job) -> tuple[Path, Path]:
    folder = job.store / job.key[:2]
    return folder / f"{job.key}.ogg", folder / f"{job.key}.json"


def _record(job: _Job) -> dict[str, Any]:
    """Content of the sidecar file; empty if it or the audio is missing or unreadable."""
    sound, sidecar = _paths(job)
    try:
        record = read_json(sidecar)
    except (OSError, ValueError):
        return {}
    whole = isinstance(record, dict) and ("failed" in record or ("checks" in record and sound.is_file()))
    return record if whole else {}


def _read(job: _Job) -> None:
    """Synthesise and check one sentence, if not yet done; runs in a worker process."""
    sound, sidecar = _paths(job)
    sound.parent.mkdir(parents=True, exist_ok=True)
    record = _record(job)
    try:
        if not record:
            record = _synthesise(job, sound)
        if (name := job.settings.check) and name not in record["checks"]:
            samples, _ = soundfile.read(sound, dtype="float32")
            rate, read = _checker(name, job.settings.language).error_rate(samples, job.text)
            record["checks"][name] = {"error_rate": round(rate, 4), "read": read}
    except BadUtterance as error:
        record = {"text": job.text, "failed": error.what}
    write_whole(sidecar, json.dumps(record, ensure_ascii=False, indent=1) + "\n")


def _synthesise(job: _Job, sound: Path) -> dict[str, Any]:
    generator = np.random.default_rng([job.settings.seed, *bytes.fromhex(job.key)])
    voice = _draw_voice(generator, job.settings)
    speed = float(generator.uniform(*job.settings.speed))
    phonemes = phonemise(job.text, max(voice, key=lambda name: voice[name]))
    samples = _synthesiser(job.model).speak(phonemes, voice, speed)
    clean = resample_poly(samples.astype(np.float64), 2, 3)  # 24,000 x 2 / 3 = 16,000
    _write_opus(sound, clean / np.abs(clean).max() * 0.5)
    return {
        "text": job.text,
        "phonemes": phonemes,
        "voice": {name: round(weight, 4) for name, weight in voice.items()},
        "speed": round(speed, 4),
        "checks": {},
    }


def _draw_voice(generator: np.random.Generator, settings: SynthesisSettings) -> dict[str, float]:
    """Voices with weights that sum to 1."""
    count = (
        int(generator.integers(2, MOST_VOICES, endpoint=True)) if generator.random() < settings.mixes else 1
    )
    names = generator.choice(settings.voices, min(count, len(settings.voices)), replace=False)
    weights = generator.dirichlet(np.full(len(names), 2.0))
    return {str(name): float(weight) for name, weight in zip(names, weights)}


@lru_cache(1)
def _synthesiser(folder: Path) -> Kokoro:
    return Kokoro(folder)


@lru_cache(1)
def _checker(name: str, language: str) -> ReadingCheck:
    return ReadingCheck(name, language)


def _in_place(name: str, job: _Job, path: Path, conditions: Conditions) -> Any:
    record, check = _record(job), job.settings.check
    if "failed" in record:
        raise BadUtterance(f"{record['failed']}: '{job.text}'")
    if check and (rate := record["checks"][check]["error_rate"]) > job.settings.worst:
        raise BadUtterance(f"{check} recognises it with {rate:.0%} errors: '{record['checks'][check]['read']}'")
    if not path.is_file():
        clean, _ = soundfile.read(_paths(job)[0], dtype="float64")
        generator = np.random.default_rng([1, job.settings.seed, *bytes.fromhex(job.key)])
        samples, _ = in_a_room(clean, generator, conditions)
        _write_opus(path, samples)
    speaker = "+".join(record["voice"])
    return make_cut(name, open_recording(name, path), job.text, speaker)


def _write_opus(path: Path, samples: NDArray[np.float64]) -> None:
    partial = path.with_name(path.name + PARTIAL)
    soundfile.write(partial, samples, SAMPLING_RATE, format="OGG", subtype="OPUS")
    partial.replace(path)


def _check_opus() -> None:
    if "OPUS" not in soundfile.available_subtypes("OGG"):
        raise UserError(
            f"libsndfile {soundfile.__libsndfile_version__} cannot write Opus",
            remedy="Run: pip install --upgrade soundfile",
        )
