"""docs/corpora.md: its commands, run as they stand there on corpora of a few utterances."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from miniatures import SPEAKERS, make_aishell1, make_librispeech

from retort import cli
from retort.config.loading import recipe_names
from retort.evaluation import read_score

PAGE = (Path(__file__).parents[2] / "docs" / "corpora.md").read_text(encoding="utf-8")
SECONDS = 2.0
TINY = """
student.frontend.channels=4 student.encoder.layers=1 student.encoder.dim=16 student.encoder.heads=2
student.encoder.feedforward=16 student.encoder.kernel=3 student.encoder.pool_after=[1] student.decoder.layers=1
student.decoder.dim=16 student.decoder.heads=2 student.decoder.feedforward=16 batches.seconds=8
batches.buckets=2 batches.workers=0 features.bins=20 features.storage=online training.steps=2 training.evaluate_steps=2
training.checkpoints=1 training.device=cpu training.precision=fp32
"""
"""Settings with which the recipes of the page train in no time."""

WGET = """#!/bin/sh
for last; do :; done
cp "$MINIATURES/$(basename "$last")" .
"""


def commands(section: str) -> list[str]:
    (text,) = re.findall(rf"^## {section}\n(.*?)(?=^## )", PAGE, flags=re.MULTILINE | re.DOTALL)
    (block,) = re.findall(r"^```sh\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    return str(block).splitlines()


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from which `wget` fetches, by the last part of the address; the commands run elsewhere."""
    server, programs = tmp_path / "server", tmp_path / "bin"
    programs.mkdir()
    (programs / "wget").write_text(WGET)
    (programs / "wget").chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    monkeypatch.setenv("MINIATURES", str(server))
    monkeypatch.delenv("RETORT_DATA", raising=False)
    server.mkdir()
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return server


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[list[str], Path], str]:
    """`run(lines, teacher)`: what the last of the commands printed; `retort` runs in this process."""

    def each(lines: list[str], teacher: Path) -> str:
        out = ""
        for line in lines:
            words = shlex.split(line)
            if words[0] != "retort":
                subprocess.run(["bash", "-euc", line], check=True)
                continue
            words += list(_more(words, teacher))
            monkeypatch.setattr(sys, "argv", words)
            code = None
            try:
                cli.main()
            except SystemExit as stop:
                code = stop.code
            out, error = capsys.readouterr()
            assert not code, (line, error)
        return out

    return each


def _more(words: list[str], teacher: Path) -> Iterator[str]:
    if words[1] in ("train", "info"):
        yield from (*TINY.split(), f"teachers={{bert: {{model: {teacher}, case: lower, dim: 16}}}}")
        size = 14 if words[2].endswith("_bpe") else "null"
        yield f"tokenizer.size={20 if words[1] == 'info' else size}"


def pack(folder: Path, archive: Path) -> None:
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, folder.name)


def test_aishell1(server: Path, run: Callable[..., str], make_bert: Callable[..., Path]) -> None:
    corpus = make_aishell1(server, "我 爱 编程", SECONDS)
    for part, speakers in SPEAKERS.items():
        for speaker in speakers:
            with tarfile.open(corpus / "wav" / f"{speaker}.tar.gz", "w:gz") as file:
                file.add(corpus / "wav" / part / speaker, f"{part}/{speaker}")
        shutil.rmtree(corpus / "wav" / part)
    pack(corpus, server / "data_aishell.tgz")
    out = run(commands("AISHELL-1"), make_bert())
    assert "2 utterances, 1 speakers" in out
    for system in ("cif", "acd", "lrd", "hkd"):
        score = read_score(Path(f"exp/aishell1/{system}/evaluation/aishell1-test-beam10/score.json"))
        assert len(score.utterances) == 2


def test_librispeech(server: Path, run: Callable[..., str], tone_bert: Path) -> None:
    lines = commands("LibriSpeech")
    (parts,) = re.findall(r"for part in (.*?);", lines[0])
    chapters = {part: [(str(number), "7")] for number, part in enumerate(parts.split(), 1)}
    corpus = make_librispeech(server, chapters, "BAD CAFE DAD", SECONDS)
    for part in chapters:
        with tarfile.open(server / f"{part}.tar.gz", "w:gz") as file:
            file.add(corpus / part, f"LibriSpeech/{part}")
    out = run(lines, tone_bert)
    assert "2 utterances, 1 speakers" in out
    for system in ("cif", "hkd", "hkd_bpe"):
        folder = Path(f"exp/librispeech/{system}/evaluation")
        assert {each.name for each in folder.iterdir()} == {
            "librispeech-test-clean",
            "librispeech-test-other",
            "librispeech-test-clean-beam10",
        }


def test_the_page_names_every_recipe_of_these_corpora() -> None:
    recipes = [name for name in recipe_names() if name.startswith(("aishell1/", "librispeech/"))]
    assert len(recipes) > 20
    for name in recipes:
        assert re.search(rf"(?<!exp/){name}\b(?![/.])", PAGE), name
