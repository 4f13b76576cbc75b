"""Statistics of the teachers of a hybrid run, one line each, measured once on validation texts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from retort.alignment.tree import SenoneTree
from retort.common.errors import UserError
from retort.common.files import write_whole
from retort.common.json_reader import read_json
from retort.config.schema import Recipe, TeacherConfig
from retort.teachers import (
    CachedTeacher,
    StoredTeacher,
    Teacher,
    TeacherDescription,
    TeacherModel,
    describe_teacher,
)
from retort.teachers.fingerprint import identity_key
from retort.training.data import Progress
from retort.training.frames import FrameReader

MEASURED = 200
"""Maximum number of texts for the measurement, chosen evenly."""
_VERSION = 1
"""To be increased when the measurement changes."""


def teacher_notes(
    recipe: Recipe,
    readers: Mapping[str, FrameReader],
    teachers: Mapping[str, Teacher],
    texts_of: Callable[[str], Sequence[str]],
    tree: SenoneTree,
    stores: Path,
    device: torch.device,
    progress: Progress,
) -> Iterator[str]:
    """A line for each teacher of soft labels, in the order of `readers`; a teacher without texts has none.

    The result is written to `about-KEY.json` in the teacher's folder below `stores`.

    Args:
        readers: teachers of frames, by name.
        texts_of: returns the texts for a teacher's name.
        tree: senone tree of the alignments.
        stores: folder of the stores.
        device: device of the teachers.
    """
    for name, reader in readers.items():
        config, texts = recipe.teachers[name], _some(texts_of(name))
        if config.topk is None or not texts:
            continue
        own = tree if config.unit == "senone" else None
        path = stores / identity_key(_identity(teachers[name])) / f"about-{_key(texts, own)}.json"
        try:
            found = _read(path)
            if found is None:
                found = describe_teacher(
                    config,
                    reader.tokenizer,
                    texts,
                    tree=own,
                    device=device,
                    progress=partial(progress, f"statistics of teacher {name}"),
                )
                path.parent.mkdir(parents=True, exist_ok=True)
                write_whole(path, json.dumps(asdict(found), indent=1) + "\n")
        except (UserError, OSError) as error:
            yield f"teacher {name}: its statistics could not be measured ({error})"
            continue
        yield f"teacher {name}: {describe_line(found, config, len(texts))}"


def describe_line(found: TeacherDescription, config: TeacherConfig, texts: int) -> str:
    """A description as one line."""
    parts = [
        f"perplexity {found.perplexity:.3g}",
        f"entropy {found.entropy:.2f} nats",
        f"top-1 accuracy {found.top1:.1%}",
        f"mass of the top {config.topk} {found.mass:.1%}",
    ]
    if found.kept < 0.9995:
        parts.append(f"{1 - found.kept:.1%} missing")
    if found.silent:
        parts.append(f"no prediction for {found.silent:,} more")
    if len(found.states) > 1:
        parts.append("entropy by HMM state " + ", ".join(f"{each.entropy:.2f}" for each in found.states))
    unit = "piece" if config.unit == "text" else config.unit
    return f"{', '.join(parts)} ({found.units:,} {unit}s of {texts:,} validation texts)"


def _identity(teacher: Teacher) -> Mapping[str, object]:
    if isinstance(teacher, StoredTeacher):
        return teacher.identity
    fresh: Any = teacher.teacher if isinstance(teacher, CachedTeacher) else teacher
    identified: TeacherModel = fresh
    return identified.identity()


def _key(texts: Sequence[str], tree: SenoneTree | None) -> str:
    parts = [_VERSION, "" if tree is None else str(tree), *texts]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _some(texts: Sequence[str]) -> list[str]:
    """Distinct non-empty texts, chosen evenly if there are many."""
    distinct = sorted({text for text in texts if text})
    step = max(len(distinct) / MEASURED, 1.0)
    return [distinct[int(place * step)] for place in range(min(len(distinct), MEASURED))]


def _read(path: Path) -> TeacherDescription | None:
    """The result of an earlier call."""
    try:
        content = read_json(path)
        return TeacherDescription(
            **{**content, "states": [TeacherDescription(**each) for each in content["states"]]}
        )
    except (OSError, ValueError, KeyError, TypeError):
        return None
