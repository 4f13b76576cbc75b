from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile

from answers import Answer, Retort, is_one_line
from retort.corpora.open_cuts import open_cuts

MakeCorpus = Callable[..., Path]
WriteRecipe = Callable[..., Path]
Say = Callable[..., np.ndarray]


class TestInfo:
    def test_the_published_sizes(self, retort: Retort) -> None:
        assert "47,208,587" in retort("info", "aishell1/cif").out
        hkd = retort("info", "aishell1/hkd").out
        assert "47,208,587" in hkd
        assert "47,603,339" in hkd

    def test_what_it_asks_of_a_gpu(self, retort: Retort, write_recipe: WriteRecipe) -> None:
        recipe = write_recipe()
        settings = ("tokenizer.size=13", "training.steps=1000000000", "training.precision=bf16")
        shown = retort("info", recipe, *settings, "--gpu", "V100", "--utterance", 5).out
        assert "tiny on V100, an estimate" in shown
        assert "12 s with utterances of 5 s" in shown
        assert "at 10% of 125 TFLOP/s" in shown
        assert "set training.precision=fp16" in shown
        (hours,) = re.findall(r"1,000,000,000 updates: ([\d.]+) h", shown)
        twice = retort(
            "info", recipe, *settings, "--gpu", "32:125", "--utterance", 5, "--utilisation", 0.2
        ).out
        (minutes,) = re.findall(r"1,000,000,000 updates: ([\d.]+) min", twice)
        assert float(hours) == pytest.approx(2 * float(minutes) / 60, abs=0.06) != 0.0
        assert "fp16" not in twice
        assert "up to about" not in twice
        small = retort("info", recipe, *settings, "--gpu", "0.002:125").out
        (most,) = re.findall(r"batches.seconds up to about (\d+)", small)
        assert 0 < int(most) < 12
        is_one_line(retort("info", recipe, *settings, "--gpu", "A200"), "--gpu A200", "H100")


class TestPrepare:
    def check(self, answer: Answer, out: Path, **utterances: int) -> None:
        assert (answer.code, answer.error) == (0, "")
        for name, count in utterances.items():
            path = out / f"{name.replace('_', '-')}.jsonl.gz"
            assert len(open_cuts(path).cuts) == count
            assert path.name in answer.out
            assert f"{count} utterances" in answer.out

    def noise(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, np.random.default_rng(0).uniform(-0.1, 0.1, 8000), 16000)

    def test_kaldi(self, retort: Retort, corpus: Path, tmp_path: Path) -> None:
        answer = retort("prepare", "kaldi", corpus, "out")
        self.check(answer, tmp_path / "out", train=24, validation=6, test=6)

    def test_table(self, retort: Retort, tmp_path: Path) -> None:
        rows = ["audio,text,speaker,split"]
        for index in range(6):
            self.noise(tmp_path / f"{index}.wav")
            rows.append(f"{index}.wav,hello there,s{index},{'test' if index > 3 else 'train'}")
        (tmp_path / "own.csv").write_text("\n".join([*rows, "gone.wav,hello,s1,train"]))
        answer = retort("prepare", "table", "own.csv", "out")
        self.check(answer, tmp_path / "out", train=4, test=2)
        assert "1 utterances left out" in answer.out
        assert "gone" in (tmp_path / "out" / "train.rejected.tsv").read_text()
        (tmp_path / "plain.csv").write_text("\n".join(row.rsplit(",", 1)[0] for row in rows))
        held = retort("prepare", "table", "plain.csv", "held", "--held-out", "0.2")
        self.check(held, tmp_path / "held", train=4, validation=1, test=1)

    def test_aishell1(self, retort: Retort, tmp_path: Path) -> None:
        corpus, lines = tmp_path / "data_aishell", []
        for part, speaker in (("train", "S0002"), ("dev", "S0724"), ("test", "S0764")):
            self.noise(corpus / "wav" / part / speaker / f"BAC009{speaker}W0122.wav")
            lines.append(f"BAC009{speaker}W0122 而 对 楼市\n")
        (corpus / "transcript").mkdir()
        (corpus / "transcript" / "aishell_transcript_v0.8.txt").write_text("".join(lines), encoding="utf-8")
        answer = retort("prepare", "aishell1", corpus, "out")
        self.check(answer, tmp_path / "out", train=1, dev=1, test=1)

    def test_librispeech(self, retort: Retort, tmp_path: Path) -> None:
        chapter = tmp_path / "LibriSpeech" / "dev-clean" / "84" / "121123"
        self.noise(chapter / "84-121123-0000.flac")
        (chapter / "84-121123.trans.txt").write_text("84-121123-0000 GO DO YOU HEAR\n")
        answer = retort("prepare", "librispeech", tmp_path / "LibriSpeech", "out")
        self.check(answer, tmp_path / "out", dev_clean=1)

    def test_synthetic(self, retort: Retort, tmp_path: Path) -> None:
        pytest.importorskip("espeakng_loader")
        sentences = ["the cat sat", "a dog ran home", "nobody came", "it rained", "we sang"]
        (tmp_path / "text.txt").write_text("\n".join(sentences))
        answer = retort("prepare", "synthetic", "text.txt", "out")
        self.check(answer, tmp_path / "out", train=3, validation=1, test=1)
