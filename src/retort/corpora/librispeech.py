"""LibriSpeech (OpenSLR 12, and the mini version 31; Panayotov et al., ICASSP 2015), by lhotse's recipe."""

from __future__ import annotations

import tempfile
from pathlib import Path

from lhotse.recipes.librispeech import LIBRISPEECH, MINI_LIBRISPEECH, prepare_librispeech

from retort.common.errors import UserError
from retort.corpora.cuts import Prepared, Rejected, checked, write_split
from retort.corpora.recipes import link_audio, read_transcripts, recipe_cuts, run_recipe

PARTS: tuple[str, ...] = (*LIBRISPEECH, *MINI_LIBRISPEECH)


def prepare(source: str | Path, out: str | Path) -> Prepared:
    """Write `OUT/PART.jsonl.gz` for every existing part, such as `train-clean-100`.

    Args:
        source: the folder `LibriSpeech`, or its parent folder. It must contain
            `PART/SPEAKER/CHAPTER/SPEAKER-CHAPTER-NUMBER.flac` and `SPEAKER-CHAPTER.trans.txt` next to them.

    Raises:
        UserError: the layout is not found, or a part has no usable utterance.
    """
    corpus = _find(Path(source))
    prepared = Prepared()
    for part in PARTS:
        if not (corpus / part).is_dir():
            continue
        rejected: list[Rejected] = []
        with tempfile.TemporaryDirectory() as folder:
            _link(corpus, part, Path(folder), rejected)
            manifests = run_recipe(prepare_librispeech, Path(folder), dataset_parts=part)
            cuts = recipe_cuts(manifests[part], rejected, corpus / part)
        write_split(part, cuts, Path(out), prepared)
    return prepared


def _link(corpus: Path, part: str, view: Path, rejected: list[Rejected]) -> None:
    """Fill the view with the usable utterances of a part."""
    count = 0
    for transcript in sorted((corpus / part).glob("*/*/*.trans.txt")):
        chapter = view / transcript.parent.relative_to(corpus)
        texts = read_transcripts(transcript, rejected)
        audio = {name: transcript.parent / f"{name}.flac" for name in texts}
        linked = link_audio(audio, {name: chapter / f"{name}.flac" for name in texts}, rejected)
        silent = {entry.id for entry in rejected}
        rejected += [
            Rejected(path.stem, f"no line in {transcript.name}")
            for path in sorted(transcript.parent.glob("*.flac"))
            if path.stem not in texts and path.stem not in silent
        ]
        if linked:
            lines = [f"{name} {texts[name]}\n" for name in linked]
            (chapter / transcript.name).write_text("".join(lines), encoding="utf-8")
        count += len(linked)
    if not count:
        checked([], rejected, corpus / part)


def _find(source: Path) -> Path:
    if not source.is_dir():
        raise UserError("no such folder", where=source, remedy="Choose the folder LibriSpeech")
    for folder in (source, source / "LibriSpeech"):
        if any((folder / part).is_dir() for part in PARTS):
            return folder.absolute()
    if source.name in PARTS or any(source.glob("*/*/*.trans.txt")):
        raise UserError(
            "one part of LibriSpeech", where=source, remedy=f"Choose its parent folder: {source.parent}"
        )
    raise UserError(
        f"not LibriSpeech: none of {', '.join(PARTS)} in it or in a folder LibriSpeech in it",
        where=source,
        remedy="Choose the folder that the archives were unpacked into",
    )
