"""AISHELL-1 (OpenSLR 33; Bu et al., O-COCOSDA 2017), by lhotse's recipe."""

from __future__ import annotations

import tempfile
from pathlib import Path

from lhotse.recipes.aishell import prepare_aishell

from retort.common.errors import UserError
from retort.corpora.cuts import Prepared, Rejected, checked, write_split
from retort.corpora.recipes import link_audio, read_transcripts, recipe_cuts, run_recipe

PARTS = ("train", "dev", "test")
TRANSCRIPTS = Path("transcript/aishell_transcript_v0.8.txt")


def prepare(source: str | Path, out: str | Path) -> Prepared:
    """Write `OUT/{train,dev,test}.jsonl.gz`. Texts have no spaces; Latin letters are in upper case.

    Args:
        source: the unpacked `data_aishell`, or its parent folder. It must contain
            `wav/PART/SPEAKER/ID.wav` and `transcript/aishell_transcript_v0.8.txt`.

    Raises:
        UserError: the layout is not found, or a part has no usable utterance.
    """
    corpus = _find(Path(source))
    stray: list[Rejected] = []  # only in the transcript, which does not contain the part
    texts = read_transcripts(corpus / TRANSCRIPTS, stray)
    listed = texts.keys() | {entry.id for entry in stray}
    prepared = Prepared()
    with tempfile.TemporaryDirectory() as folder:
        view = Path(folder) / "data_aishell"
        rejected: dict[str, list[Rejected]] = {part: [] for part in PARTS}
        usable: dict[str, str] = {}
        for part in PARTS:
            audio = _audio(corpus / "wav" / part)
            # The published transcript lacks some utterances of the archives.
            rejected[part] += [Rejected(name, "no line in the transcript") for name in audio.keys() - listed]
            transcribed = {name: path for name, path in audio.items() if name in texts}
            links = {name: view / path.relative_to(corpus) for name, path in transcribed.items()}
            usable.update((name, texts[name]) for name in link_audio(transcribed, links, rejected[part]))
            if not usable.keys() & audio.keys():
                checked([], rejected[part], corpus / "wav" / part)
            listed -= audio.keys()
        stray += [Rejected(name, "in the transcript, but has no audio") for name in listed & texts.keys()]
        for entry in sorted(stray, key=lambda each: each.id):
            rejected[_part_of(entry.id, corpus)].append(entry)
        (view / TRANSCRIPTS).parent.mkdir(parents=True)
        lines = [f"{name} {text}\n" for name, text in usable.items()]
        (view / TRANSCRIPTS).write_text("".join(lines), encoding="utf-8")
        manifests = run_recipe(prepare_aishell, Path(folder))
        splits = {part: recipe_cuts(manifests[part], rejected[part], corpus / "wav" / part) for part in PARTS}
    for part, cuts in splits.items():
        write_split(part, cuts, Path(out), prepared)
    return prepared


def _audio(folder: Path) -> dict[str, Path]:
    """Files of a part by utterance id."""
    audio = {path.stem: path for path in sorted(folder.glob("*/*.wav"))}
    if not audio:
        raise UserError("no audio in it", where=folder, remedy="Unpack the archives of the speakers there")
    return audio


def _part_of(name: str, corpus: Path) -> str:
    """The part of the speaker in an id such as BAC009S0002W0122; `train` for an unknown speaker."""
    return next((part for part in PARTS if (corpus / "wav" / part / name[6:11]).is_dir()), PARTS[0])


def _find(source: Path) -> Path:
    if not source.is_dir():
        raise UserError("no such folder", where=source, remedy="Choose the folder data_aishell of AISHELL-1")
    for folder in (source, source / "data_aishell", source / "aishell" / "data_aishell"):
        if not (folder / TRANSCRIPTS).is_file():
            continue
        if not any((folder / "wav" / part).is_dir() for part in PARTS) and any(folder.glob("wav/*.tar.gz")):
            raise UserError(
                "the archives of the speakers are still packed",
                where=folder / "wav",
                remedy=f"Unpack them: for f in {folder}/wav/*.tar.gz; do tar -xzf $f -C {folder}/wav; done",
            )
        missing = [part for part in PARTS if not (folder / "wav" / part).is_dir()]
        if missing:
            raise UserError(
                f"no folder {' and no folder '.join(missing)}", where=folder / "wav", remedy="Unpack it again"
            )
        return folder.absolute()
    raise UserError(
        f"not AISHELL-1: it has neither {TRANSCRIPTS} nor data_aishell/{TRANSCRIPTS}",
        where=source,
        remedy="Choose the folder that data_aishell.tgz was unpacked into",
    )
