"""AISHELL-1 and LibriSpeech with a handful of utterances of noise, laid out as they are unpacked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from waves import write_wave

SPEAKERS = {"train": ("S0002", "S0003"), "dev": ("S0724",), "test": ("S0764",)}
CHAPTERS = {
    "train-clean-100": (("103", "1240"), ("103", "1241"), ("1034", "121119")),
    "dev-other": (("116", "288045"),),
}


def make_aishell1(folder: Path, text: str = "而 对 楼市 成交 ｋ {number}", seconds: float = 0.5) -> Path:
    """`folder/data_aishell`: two utterances a speaker, transcripts with words apart."""
    corpus = folder / "data_aishell"
    lines = []
    for part, speakers in SPEAKERS.items():
        for speaker in speakers:
            for number in (122, 123):
                name = f"BAC009{speaker}W0{number}"
                write_wave(corpus / "wav" / part / speaker / f"{name}.wav", seconds)
                lines.append(f"{name} {text.format(number=number)}\n")
    transcript = corpus / "transcript" / "aishell_transcript_v0.8.txt"
    transcript.parent.mkdir()
    transcript.write_text("".join(lines), encoding="utf-8")
    return corpus


def make_librispeech(
    folder: Path,
    chapters: Mapping[str, Sequence[tuple[str, str]]] = CHAPTERS,
    text: str = "CHAPTER {chapter} MISSUS LYNDE'S",
    seconds: float = 0.5,
) -> Path:
    """`folder/LibriSpeech`: of every part these speakers' chapters, two utterances each."""
    corpus = folder / "LibriSpeech"
    for part, pairs in chapters.items():
        for speaker, chapter in pairs:
            place = corpus / part / speaker / chapter
            lines = []
            for number in range(2):
                name = f"{speaker}-{chapter}-{number:04d}"
                write_wave(place / f"{name}.flac", seconds)
                lines.append(f"{name} {text.format(chapter=chapter)}\n")
            (place / f"{speaker}-{chapter}.trans.txt").write_text("".join(lines))
    (corpus / "SPEAKERS.TXT").write_text("; speakers\n")
    return corpus
