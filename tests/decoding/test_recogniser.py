from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file, save_file

import retort
from retort.audio.files import resample
from retort.audio.segments import segments
from retort.audio.speech import open_detector
from retort.common.errors import BadUtterance, UserError
from retort.decoding.no_speech import UNCALIBRATED
from retort.decoding.options import DecodingOptions
from retort.decoding.recogniser import Recogniser, load, store_calibration
from retort.decoding.transcript import TimedText
from retort.text.tokenizers import BpeTokenizer, CharacterTokenizer

RATE = 16000
MakeRecogniser = Callable[..., Recogniser]
SENTENCES = ["the cat sat on the mat", "a dog ran over the hill", "the moon is over the hill"]


def speech(seconds: float, rate: int = RATE, seed: int = 0) -> np.ndarray:
    """Syllables of a kind: gated, sliding tones with a little noise."""
    rng = np.random.default_rng(seed)
    time = np.arange(int(seconds * rate)) / rate
    pitch = 200 + 80 * np.sin(2 * np.pi * 0.7 * time)
    gate = (np.sin(2 * np.pi * 3 * time) > -0.5).astype(float)
    voiced = np.sin(2 * np.pi * np.cumsum(pitch) / rate) + 0.4 * np.sin(
        2 * np.pi * 5 * np.cumsum(pitch) / rate
    )
    return (0.3 * gate * voiced + 0.003 * rng.standard_normal(len(time))).astype(np.float32)


def write(folder: Path, samples: np.ndarray, rate: int = RATE, name: str = "a.wav") -> Path:
    soundfile.write(folder / name, samples, rate, subtype="FLOAT")
    return folder / name


def assert_in_order(parts: list[TimedText], seconds: float) -> None:
    assert all(0.0 <= part.start <= part.end <= seconds + 1e-6 for part in parts)
    assert [part.start for part in parts] == sorted(part.start for part in parts)
    assert [part.end for part in parts] == sorted(part.end for part in parts)
    assert all(0.0 < part.confidence <= 1.0 for part in parts)


def test_a_file_has_text_words_and_tokens_with_times(recogniser: Recogniser, tmp_path: Path) -> None:
    transcript = recogniser.transcribe(write(tmp_path, speech(3.0)))
    assert len(transcript.tokens) > 5
    assert transcript.text == " ".join(word.text for word in transcript.words)
    assert_in_order(transcript.tokens, 3.0)
    assert_in_order(transcript.words, 3.0)
    assert transcript.tokens[-1].end > 2.0


def test_a_path_may_be_text(recogniser: Recogniser, tmp_path: Path) -> None:
    path = write(tmp_path, speech(1.0))
    assert recogniser.transcribe(str(path)) == recogniser.transcribe(path)


def test_any_rate_and_any_number_of_channels(recogniser: Recogniser, tmp_path: Path) -> None:
    wide = speech(2.0, 44100)
    stereo = write(tmp_path, np.stack((0.5 * wide, 1.5 * wide), axis=1), 44100, "wide.wav")
    expected = recogniser.transcribe_samples(resample(wide, 44100, RATE))
    got = recogniser.transcribe(stereo)
    assert got.text == expected.text
    assert_in_order(got.tokens, 2.0)

    narrow = speech(2.0, 8000)
    telephone = write(tmp_path, np.stack((narrow, narrow), axis=1), 8000, "narrow.wav")
    got = recogniser.transcribe(telephone)
    assert got.text == recogniser.transcribe_samples(resample(narrow, 8000, RATE)).text
    assert len(got.tokens) > 3
    assert_in_order(got.tokens, 2.0)


def quiet(seconds: float, level: float = 5e-4) -> np.ndarray:
    return (level * np.random.default_rng(1).standard_normal(int(seconds * RATE))).astype(np.float32)


def test_a_long_file_is_cut_at_its_pauses_and_timed_as_a_whole(
    recogniser: Recogniser, tmp_path: Path
) -> None:
    hush = quiet(0.6)
    samples = np.concatenate([speech(2.5, seed=1), hush, speech(3.0, seed=2), hush, speech(2.0, seed=3)])
    seconds = len(samples) / RATE
    transcript = recogniser.transcribe(write(tmp_path, samples), longest=4.0)
    found = list(segments([samples], RATE, open_detector("energy", RATE), 4.0))
    assert len(found) >= 3
    assert 2.5 * RATE < found[1].start < 3.1 * RATE  # in the first pause

    pieces = list(recogniser.speech_segments([samples], longest=4.0))
    assert [round(each.offset * RATE) for each in pieces] == [each.start for each in found]
    hypotheses = recogniser.decode([each.features for each in pieces])
    texts = [recogniser.tokenizer.decode(each.ids) for each in hypotheses]
    assert transcript.text.split() == " ".join(texts).split()
    assert_in_order(transcript.tokens, seconds)
    assert_in_order(transcript.words, seconds)
    assert transcript.tokens[-1].start > 5.0


@pytest.mark.parametrize("level", [0.0, 5e-4])
def test_silence_around_speech_changes_neither_text_nor_times(recogniser: Recogniser, level: float) -> None:
    samples = np.concatenate([quiet(0.5, level), speech(2.0), quiet(0.5, level)])
    alone = recogniser.transcribe_samples(samples)
    padded = recogniser.transcribe_samples(np.concatenate([quiet(7.0, level), samples, quiet(6.0, level)]))
    assert len(padded.tokens) > 3
    assert all(7.3 < each.start <= each.end < 9.7 for each in padded.words)
    assert abs(len(padded.tokens) - len(alone.tokens)) <= 1
    assert padded.tokens[0].start == pytest.approx(alone.tokens[0].start + 7.0, abs=0.1)


@pytest.mark.parametrize("wave", ["white", "hum"])
def test_noise_gives_no_words(recogniser: Recogniser, wave: str) -> None:
    noise = quiet(4.0, 0.05) if wave == "white" else 0.2 * np.sin(2 * np.pi * 50 * np.arange(4 * RATE) / RATE)
    found = recogniser.transcribe_samples(noise)
    assert (found.text, found.words, found.tokens, found.no_speech) == ("", [], [], 1.0)
    kept = recogniser.transcribe_samples(noise, options=DecodingOptions(vad="none"))
    assert 0.0 <= kept.no_speech < 1.0


def test_a_threshold_takes_words_away(recogniser: Recogniser, tmp_path: Path) -> None:
    samples = speech(2.0)
    found = recogniser.transcribe_samples(samples)
    assert found.text
    assert 0.0 < found.no_speech < 1.0
    silent = recogniser.transcribe_samples(
        samples, options=DecodingOptions(no_speech_threshold=found.no_speech / 2)
    )
    assert (silent.text, silent.words, silent.no_speech) == ("", [], found.no_speech)

    recogniser.save(tmp_path / "model")
    store_calibration(tmp_path / "model", no_speech=replace(UNCALIBRATED, threshold=found.no_speech / 2))
    calibrated = load(tmp_path / "model")
    assert calibrated.fingerprint() != recogniser.fingerprint()
    assert calibrated.transcribe_samples(samples).text == ""
    kept = calibrated.transcribe_samples(samples, options=DecodingOptions(no_speech_threshold=1.0))
    assert kept.text == found.text
    calibrated.save(tmp_path / "again")
    assert load(tmp_path / "again").no_speech == calibrated.no_speech


@pytest.mark.parametrize(
    "content", [3, {}, {"signals": []}, {"signals": {"confidence": [0, 0, 1]}, "bias": 0, "threshold": 1}]
)
def test_a_broken_threshold_is_refused(recogniser: Recogniser, tmp_path: Path, content: object) -> None:
    recogniser.save(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps({**config, "no_speech": content}))
    assert "broken" in refused(tmp_path / "model")


def test_a_batch_gives_what_each_gives_alone(recogniser: Recogniser) -> None:
    features = [torch.randn(frames, 20) for frames in (90, 30, 151)]
    together = recogniser.decode(features)
    for hypothesis, each in zip(together, features):
        alone = recogniser.decode([each])[0]
        assert hypothesis.ids == alone.ids
        assert hypothesis.ends == pytest.approx(alone.ends, abs=1e-3)


@pytest.mark.parametrize(
    ("samples", "word"),
    [
        (np.zeros(RATE, np.float32), "silence"),
        (np.full(RATE, 0.3, np.float32), "silence"),
        (np.zeros(0, np.float32), "no samples"),
        (np.where(np.arange(RATE) == 77, np.nan, speech(1.0)), "NaN"),
        (np.where(np.arange(RATE) == 77, np.inf, speech(1.0)), "NaN"),
        (speech(0.1), "shorter than 0.15 s"),
        (speech(0.01), "shorter than 0.15 s"),
        (speech(1.0)[300:301], "silence"),
        (speech(1.0)[300:310], "shorter than 0.15 s"),
    ],
)
def test_a_wave_that_cannot_be_recognised(
    recogniser: Recogniser, tmp_path: Path, samples: np.ndarray, word: str
) -> None:
    path = write(tmp_path, samples)
    with pytest.raises(BadUtterance, match=word) as caught:
        recogniser.transcribe(path)
    assert caught.value.where == str(path)
    assert caught.value.remedy
    assert "\n" not in str(caught.value)
    with pytest.raises(BadUtterance, match=word):
        recogniser.transcribe_samples(samples.astype(np.float32))


@pytest.mark.parametrize("layers", [1, 2])
def test_the_shortest_length_it_states_is_the_shortest_it_takes(
    make_recogniser: MakeRecogniser, layers: int
) -> None:
    recogniser = make_recogniser(layers=layers)
    shortest = {1: 0.07, 2: 0.15}[layers]
    with pytest.raises(BadUtterance, match=f"shorter than {shortest:.2f} s"):
        recogniser.transcribe_samples(speech(shortest - 0.01))
    recogniser.transcribe_samples(speech(shortest))


@pytest.mark.parametrize("content", [b"", b"these are no samples at all", b"RIFF\x10\x00\x00\x00WAVEfmt "])
def test_a_file_that_is_no_audio(recogniser: Recogniser, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(content)
    with pytest.raises(BadUtterance) as caught:
        recogniser.transcribe(path)
    assert caught.value.where == str(path)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(recogniser: Recogniser, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        recogniser.transcribe(tmp_path / "none.wav")


def test_a_model_folder_holds_what_a_user_needs_and_nothing_else(
    recogniser: Recogniser, tmp_path: Path
) -> None:
    recogniser.save(tmp_path / "model")
    names = sorted(str(path.relative_to(tmp_path / "model")) for path in (tmp_path / "model").rglob("*"))
    assert names == [
        "checksums.json",
        "config.json",
        "model.safetensors",
        "tokenizer",
        "tokenizer/tokenizer.json",
    ]
    weights = load_file(tmp_path / "model" / "model.safetensors")
    assert set(weights) == set(recogniser.student.state_dict())
    assert set(json.loads((tmp_path / "model" / "config.json").read_text())) == {
        "format",
        "vocabulary",
        "student",
        "features",
        "normaliser",
    }


@pytest.mark.parametrize("kind", ["characters", "bpe"])
def test_a_saved_model_gives_the_same_result_in_another_folder(
    make_recogniser: MakeRecogniser, tmp_path: Path, kind: str
) -> None:
    tokenizer = BpeTokenizer.train(SENTENCES, 40) if kind == "bpe" else CharacterTokenizer.train(SENTENCES)
    recogniser = make_recogniser(tokenizer)
    path = write(tmp_path, speech(2.0))
    expected = recogniser.transcribe(path)
    assert expected.text
    recogniser.save(tmp_path / "exp" / "model")
    assert retort.load(tmp_path / "exp").transcribe(path) == expected
    assert load(tmp_path / "exp" / "model").transcribe(path) == expected

    moved = tmp_path / "somewhere else" / "my model"
    shutil.copytree(tmp_path / "exp" / "model", moved)
    shutil.rmtree(tmp_path / "exp")
    opened = retort.load(str(moved))
    assert opened.transcribe(path) == expected
    assert opened.features == recogniser.features
    assert opened.student.config == recogniser.student.config
    assert opened.normalise("A Dog!") == "a dog"
    assert not opened.student.training


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_half_precision_differs_by_rounding_alone(
    make_recogniser: MakeRecogniser, tmp_path: Path, norm: str
) -> None:
    recogniser = make_recogniser(norm=norm)
    path = write(tmp_path, speech(2.0))
    recogniser.save(tmp_path / "half", stored="float16")
    stored = load_file(tmp_path / "half" / "model.safetensors")
    whole = recogniser.student.state_dict()
    opened = load(tmp_path / "half")
    for name, tensor in opened.student.state_dict().items():
        assert tensor.dtype == whole[name].dtype
        assert torch.equal(tensor, stored[name].to(tensor.dtype))
        if tensor.is_floating_point():
            assert stored[name].dtype == torch.float16
            torch.testing.assert_close(tensor, whole[name], rtol=2**-11, atol=2**-25)
        else:
            assert torch.equal(tensor, whole[name])

    # What it says is that of the same model with its weights rounded, to the last bit; and saved again the same.
    expected = make_recogniser(norm=norm)
    expected.student.load_state_dict({name: each.half().to(each.dtype) for name, each in whole.items()})
    assert opened.transcribe(path) == expected.transcribe(path)
    assert opened.fingerprint() == expected.fingerprint() != recogniser.fingerprint()
    opened.student.config.cif.tail += 0.1
    assert opened.fingerprint() != expected.fingerprint()
    opened.save(tmp_path / "again", stored="float16")
    first, second = (tmp_path / each / "model.safetensors" for each in ("half", "again"))
    assert first.read_bytes() == second.read_bytes()


def test_a_weight_that_half_precision_cannot_hold(make_recogniser: MakeRecogniser, tmp_path: Path) -> None:
    recogniser = make_recogniser()
    recogniser.student.decoder.vocabulary.weight.data[0, 0] = 1e5
    with pytest.raises(UserError, match="exceed the range of float16") as caught:
        recogniser.save(tmp_path / "half", stored="float16")
    assert caught.value.where == "decoder.vocabulary.weight"
    assert not (tmp_path / "half").exists()


@pytest.fixture(params=[False, True], ids=["float32", "float16"])
def model(recogniser: Recogniser, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    recogniser.save(tmp_path / "model", stored="float16" if request.param else "float32")
    return tmp_path / "model"


def refused(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        retort.load(folder)
    line = str(caught.value)
    assert "\n" not in line
    assert folder.name in line
    return line


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    assert "no trained model here" in refused(tmp_path)
    assert "no trained model here" in refused(tmp_path / "none")


def test_another_format_version(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "format": 99}))
    assert "format is 99" in refused(model)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", "{}", '"text"', '{"format": 1}'])
def test_a_broken_config(model: Path, content: str) -> None:
    (model / "config.json").write_text(content)
    assert "broken" in refused(model)


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("student", {"colour": "blue"}),
        ("student", {"label_smoothing": "much"}),
        ("student", {"kind": "oracle"}),
        ("student", {"encoder": 3}),
        ("features", {"bins": None}),
    ],
)
def test_a_config_that_does_not_fit(model: Path, section: str, change: dict[str, object]) -> None:
    config = json.loads((model / "config.json").read_text())
    config[section].update(change)
    (model / "config.json").write_text(json.dumps(config))
    refused(model)


@pytest.mark.parametrize("name", ["vocabulary", "student", "features", "normaliser", "format"])
def test_a_config_with_a_key_missing(model: Path, name: str) -> None:
    config = json.loads((model / "config.json").read_text())
    del config[name]
    (model / "config.json").write_text(json.dumps(config))
    assert name in refused(model)


def test_weights_missing_cut_short_or_of_another_model(model: Path, make_recogniser: MakeRecogniser) -> None:
    (model / "checksums.json").unlink()
    weights = model / "model.safetensors"
    content = weights.read_bytes()
    for broken in (content[: len(content) // 2], content[:-1], b"", b"no tensors"):
        weights.write_bytes(broken)
        refused(model)
    weights.unlink()
    refused(model)
    make_recogniser(layers=1).save(model.parent / "other")
    shutil.copy(model.parent / "other" / "model.safetensors", weights)
    assert "broken" in refused(model)


def test_a_tensor_missing_or_too_many(model: Path) -> None:
    (model / "checksums.json").unlink()
    path = model / "model.safetensors"
    weights = load_file(path)
    save_file({**weights, "decoder.more": torch.zeros(3)}, path)
    assert "decoder.more" in refused(model)
    gone = weights.pop("decoder.vocabulary.weight")
    save_file(weights, path)
    assert "decoder.vocabulary.weight" in refused(model)
    save_file({**weights, "decoder.vocabulary.weight": gone[1:].clone()}, path)
    assert "decoder.vocabulary.weight" in refused(model)


def test_a_tokenizer_missing_or_of_another_size(model: Path) -> None:
    shutil.rmtree(model / "tokenizer")
    assert "tokenizer" in refused(model)
    CharacterTokenizer.train(["ab"]).save(model / "tokenizer")
    refused(model)
    (model / "checksums.json").unlink()
    assert "vocabulary" in refused(model)


def flip(path: Path, share: float = 0.5) -> None:
    """Change one bit of a file."""
    content = bytearray(path.read_bytes())
    content[int(len(content) * share)] ^= 16
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer/tokenizer.json"])
def test_a_flipped_bit_is_noticed(model: Path, name: str) -> None:
    load(model)
    for share in (0.1, 0.5, 0.9):
        before = (model / name).read_bytes()
        flip(model / name, share)
        refused(model)
        (model / name).write_bytes(before)
    load(model)


def test_zeros_at_the_end_and_a_file_of_another_model_are_noticed(model: Path) -> None:
    path = model / "model.safetensors"
    before = path.read_bytes()
    path.write_bytes(before[:-4000] + bytes(4000))
    refused(model)
    path.write_bytes(before)
    save_file({name: each + 1 for name, each in load_file(path).items()}, path)
    assert path.stat().st_size == len(before)
    refused(model)


def test_a_model_without_checksums_is_opened(model: Path) -> None:
    (model / "checksums.json").unlink()
    load(model)


def test_a_configuration_that_was_edited_is_opened(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    del config["student"]["faithful"]
    (model / "config.json").write_text(json.dumps(config))
    load(model)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("which", [0, -1])
def test_weights_that_are_not_finite(model: Path, value: float, which: int) -> None:
    (model / "checksums.json").unlink()
    path = model / "model.safetensors"
    weights = load_file(path)
    name = [name for name, each in weights.items() if each.is_floating_point()][which]
    weights[name].view(-1)[-1] = value
    save_file(weights, path)
    assert name in refused(model)


def test_weights_of_another_type(model: Path) -> None:
    (model / "checksums.json").unlink()
    path = model / "model.safetensors"
    weights = load_file(path)
    name = next(name for name, each in weights.items() if each.is_floating_point())
    save_file({**weights, name: weights[name].to(torch.int32)}, path)
    assert name in refused(model)


@pytest.mark.parametrize(
    ("section", "change"),
    [
        ("student", {"kind": "diffusion"}),
        ("student", {"encoder": {"kind": "mamba"}}),
        ("student", {"encoder": {"positions": "alibi"}}),
        ("student", {"encoder": {"convolution_norm": "group"}}),
        ("student", {"cif": {"activation": "gelu"}}),
        ("student", {"decoder": {"kind": "diffusion"}}),
        ("student", {"frontend": {"kind": "sinc"}}),
        ("normaliser", {"case": "title"}),
        ("normaliser", {"form": "NFX"}),
        ("features", {"kind": "mfcc"}),
        ("student", {"encoder": {"heads": 0}}),
        ("student", {"encoder": {"layers": 10**12}}),
        ("student", {"encoder": {"dim": 10**9, "feedforward": 10**9}}),
    ],
)
def test_a_configuration_that_this_version_does_not_support(
    model: Path, section: str, change: dict[str, Any]
) -> None:
    config = json.loads((model / "config.json").read_text())
    for key, value in change.items():
        config[section][key] = config[section][key] | value if isinstance(value, dict) else value
    (model / "config.json").write_text(json.dumps(config))
    refused(model)


def test_a_configuration_with_a_part_of_a_later_version(model: Path) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "second_pass": {"kind": "x"}}))
    assert "second_pass" in refused(model)
