"""CTC models in sherpa-onnx: the engine gives the texts of torch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from retort.audio.fbank import FbankConfig
from retort.common.errors import UserError
from retort.config.schema import NormaliserConfig
from retort.decoding.options import DecodingOptions
from retort.decoding.recogniser import Recogniser
from retort.export.onnx_model import quantise_folder
from retort.export.scores import EngineScore, check_scores
from retort.export.sherpa import FLOOR, export_sherpa
from retort.nn.parallel_decoder import ParallelConfig
from retort.nn.predictor import TransducerConfig
from retort.students.factory import build_student
from retort.students.transducer import TransducerStudentConfig
from retort.text.tokenizers import CharacterTokenizer
from tiny_students import DECODER, ENCODER, FRONTEND, student_config, talking_student


def ctc_recogniser(kind: str = "ctc", floor: float = FLOOR) -> Recogniser:
    """A tiny model with random weights, 40 ms per output frame."""
    tokenizer = CharacterTokenizer.train(["abcdefgh ij"])
    encoder = replace(ENCODER, pool_after=[1], positions="relative", convolution_norm="batch")
    config = student_config(kind, frontend=FRONTEND, encoder=encoder, decoder=DECODER)
    torch.manual_seed(0)
    student = build_student(config, tokenizer.size, 80)
    with torch.no_grad():
        student.get_parameter("ctc.weight").mul_(20.0)
    return Recogniser(student, tokenizer, FbankConfig(floor=floor), NormaliserConfig())


def waves() -> list[np.ndarray]:
    rng = np.random.default_rng(1)
    seconds = [np.arange(size) / 16000 for size in (24000, 17000)]
    return [
        (0.2 * np.sin(2 * np.pi * (200 + 300 * each) * each) + 0.02 * rng.standard_normal(len(each))).astype(
            np.float32
        )
        for each in seconds
    ]


def test_sherpa_onnx_gives_the_same_texts(tmp_path: Path) -> None:
    pytest.importorskip("sherpa_onnx")
    made = export_sherpa(ctc_recogniser(), tmp_path)
    assert made.kind == "zipformer_ctc"
    assert not made.notes
    recognise = made.recognise()
    texts = [" ".join(recognise(wave).split()) for wave in waves()]
    assert texts == [made.torch(wave) for wave in waves()]
    assert all(texts)
    quantise_folder(tmp_path)
    assert made.recognise()(waves()[0])


def test_a_model_that_sherpa_onnx_cannot_run(tmp_path: Path) -> None:
    recogniser = ctc_recogniser()
    recogniser.features = replace(recogniser.features, kind="whisper")
    with pytest.raises(UserError, match="fbank"):
        export_sherpa(recogniser, tmp_path)
    assert not list(tmp_path.iterdir())


def test_scores_that_differ_are_errors() -> None:
    same = {"torch": EngineScore(0.2, 0.1, 1.0), "onnx": EngineScore(0.2005, 0.1, 0.5)}
    check_scores(same, "wer")
    check_scores({**same, "int8": EngineScore(0.204, 0.1, 0.3)}, "wer")
    with pytest.raises(UserError, match="--accept"):
        check_scores({**same, "int8": EngineScore(0.206, 0.1, 0.3)}, "wer")
    with pytest.raises(UserError, match="--accept"):
        check_scores({**same, "onnx": EngineScore(0.2015, 0.1, 0.3)}, "wer")


def test_a_stateless_transducer(tmp_path: Path) -> None:
    pytest.importorskip("sherpa_onnx")
    tokenizer = CharacterTokenizer.train(["abcdefgh ij"])
    own = TransducerConfig(dim=16, joiner_dim=16)
    config = TransducerStudentConfig(
        frontend=FRONTEND, encoder=replace(ENCODER, pool_after=[1]), transducer=own
    )
    torch.manual_seed(2)
    student = build_student(config, tokenizer.size, 80)
    with torch.no_grad():
        student.get_parameter("joiner.output.weight").mul_(20.0)
        student.get_parameter("joiner.output.bias")[3] = -100.0  # sherpa-onnx takes unknown tokens for blanks
    made = export_sherpa(
        Recogniser(student, tokenizer, FbankConfig(floor=FLOOR), NormaliserConfig()), tmp_path
    )
    recognise = made.recognise()
    texts = [" ".join(recognise(wave).split()) for wave in waves()]
    assert texts == [made.torch(wave) for wave in waves()]
    assert all(texts)


def parallel_recogniser(texts: str = "丁七万丈三上下不", spaces: str = "drop") -> Recogniser:
    """A tiny parallel CIF model with random weights and the features of Paraformer."""
    tokenizer = CharacterTokenizer.train([texts])
    decoder = ParallelConfig(layers=1, dim=16, heads=2, feedforward=32)
    encoder = replace(ENCODER, pool_after=[1])
    config = student_config("cif", frontend=FRONTEND, encoder=encoder, decoder=decoder)
    student = talking_student(config, tokenizer.size, 80)
    features = FbankConfig(convention="paraformer")
    return Recogniser(student, tokenizer, features, NormaliserConfig(spaces=spaces))


def test_a_parallel_student_is_a_paraformer(tmp_path: Path) -> None:
    sherpa_onnx = pytest.importorskip("sherpa_onnx")
    recogniser = parallel_recogniser()
    made = export_sherpa(recogniser, tmp_path)
    assert made.kind == "paraformer"
    assert not made.notes
    recognise = made.recognise()
    expected = [made.torch(wave) for wave in waves()]
    assert [recognise(wave) for wave in waves()] == expected
    assert all(expected)
    assert "--paraformer=model.onnx" in made.commands[-1]
    engine = sherpa_onnx.OfflineRecognizer.from_paraformer(
        str(tmp_path / "model.onnx"), str(tmp_path / "tokens.txt")
    )
    streams = [engine.create_stream() for _ in waves()]
    for stream, wave in zip(streams, waves()):
        stream.accept_waveform(16000, wave)
    engine.decode_streams(streams)
    for stream, wave, text in zip(streams, waves(), expected):
        assert stream.result.text == text
        options = DecodingOptions(vad="none", no_speech_threshold=1.0)
        tokens = recogniser.transcribe_samples(wave, options=options).tokens
        assert len(stream.result.timestamps) == len(tokens)
    quantise_folder(tmp_path)
    assert made.recognise()(waves()[0])


def test_texts_that_a_paraformer_would_take_apart(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--for onnx"):
        export_sherpa(parallel_recogniser("ab cd", spaces="keep"), tmp_path)
    letters = export_sherpa(parallel_recogniser("丁七万丈三上下a"), tmp_path)
    assert "ASCII" in letters.notes[0]
    recogniser = ctc_recogniser()
    recogniser.features = replace(recogniser.features, convention="paraformer")
    with pytest.raises(UserError, match="convention: kaldi"):
        export_sherpa(recogniser, tmp_path)
