from __future__ import annotations

import builtins
import hashlib
import re
import threading
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from numpy.typing import NDArray

from retort.common.errors import UserError
from retort.corpora import espeak, grammar
from retort.corpora.cuts import Prepared
from retort.corpora.open_cuts import open_cuts
from retort.corpora.synthetic import VOICES, Conditions, prepare, render

pytest.importorskip("espeakng_loader")

SENTENCE = "the old captain sold three green boats on monday"
QUIET = Conditions(silence=(0.25, 0.25), peak=(-6.0, -6.0), snr=(60.0, 60.0))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Prepared]:
    out = tmp_path_factory.mktemp("synthetic")
    return out, prepare(None, out, train=24, validation=8, test=8, seed=3, voices=4)


def level(samples: NDArray[Any], start: float, end: float, rate: int = espeak.SAMPLING_RATE) -> float:
    part = samples[round(start * rate) : round(end * rate)].astype(np.float64)
    return float(np.sqrt(np.mean(part**2)))


def test_every_word_has_its_time_in_order() -> None:
    words = espeak.speak(SENTENCE, "en-us+m3").words
    assert [word.text for word in words] == SENTENCE.split()
    assert all(word.start < word.end for word in words)
    assert all(before.end <= after.start for before, after in pairwise(words))


@pytest.mark.parametrize("voice", VOICES["english"][:8])
def test_a_pause_lies_between_the_words_that_it_divides(voice: str) -> None:
    speech = espeak.speak("the horses ran home, nobody saw them", voice)
    home, nobody = speech.words[3], speech.words[4]
    assert nobody.start - home.end > 0.1
    loud = level(speech.samples, 0.0, home.end)
    assert level(speech.samples, home.end + 0.03, nobody.start) < 0.05 * loud  # a variant has an echo
    assert level(speech.samples, home.end - 0.15, home.end) > 0.1 * loud
    assert level(speech.samples, nobody.start, nobody.start + 0.1) > 0.1 * loud


@pytest.mark.parametrize("voice", VOICES["english"][:8])
@pytest.mark.parametrize("text", ["my boy said nothing", "you know some people", "the green lamp saw"])
def test_a_hissing_word_starts_where_the_hiss_does(voice: str, text: str) -> None:
    speech = espeak.speak(text, voice)
    word = next(word for word in speech.words if word.text.startswith("s"))
    # An onset found without the synthesiser: 10 ms frames with most of their energy high up.
    frames = speech.samples[: len(speech.samples) // 220 * 220].reshape(-1, 220).astype(np.float64)
    spectrum = np.abs(np.fft.rfft(frames * np.hanning(220))) ** 2
    share = spectrum[:, 35:].sum(1) / (spectrum.sum(1) + 1.0)  # above 3.5 kHz
    near = [index for index in range(len(share)) if abs(index * 0.00998 - word.start) < 0.15]
    onset = next(index for index in near if share[index] > 0.5 and spectrum[index].sum() > 1e6) * 0.00998
    assert abs(onset - word.start) < 0.035


def test_words_spoken_as_one_are_divided() -> None:
    words = espeak.speak("the boat was in the harbour", "en-us+m3").words
    assert [word.text for word in words] == ["the", "boat", "was", "in", "the", "harbour"]
    within, the = words[3], words[4]
    assert 0.03 < within.end - within.start < 0.2
    assert within.end == the.start
    assert 0.03 < the.end - the.start < 0.2


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("to be  or not\tto be", ["to", "be", "or", "not", "to", "be"]),
        ("it is six", ["it", "is", "six"]),
        ("well — 25 years-old, he said", ["well", "25", "years-old,", "he", "said"]),
        ("— ...", []),
        ("", []),
    ],
)
def test_any_text_gets_one_time_a_word(text: str, words: list[str]) -> None:
    spoken = espeak.speak(text, "en-gb-x-rp+f4").words
    assert [word.text for word in spoken] == words
    assert all(before.end <= after.start for before, after in pairwise(spoken))
    assert all(word.end - word.start > 0.02 for word in spoken)


@pytest.mark.parametrize("voice", VOICES["mandarin"])
def test_every_han_character_has_its_time(voice: str) -> None:
    speech = espeak.speak("今天，天气很好 OK", voice)
    assert [word.text for word in speech.words] == [*"今天天气很好", "OK"]
    assert all(0.1 < word.end - word.start < 0.6 for word in speech.words)
    assert all(before.end <= after.start for before, after in pairwise(speech.words))
    assert speech.words[2].start - speech.words[1].end > 0.05  # the comma


def test_speech_does_not_depend_on_what_was_spoken_before() -> None:
    first = espeak.speak(SENTENCE, "en-us+m3", rate=150, pitch=40, seed=7)
    espeak.speak("open the window", "en-029+f4")
    again = espeak.speak(SENTENCE, "en-us+m3", rate=150, pitch=40, seed=7)
    assert np.array_equal(first.samples, again.samples)
    assert first.words == again.words


def test_threads_do_not_mix_their_speech() -> None:
    texts = ["open the window", SENTENCE, "the farmer was late", "we sell nine lamps"]
    expected = [espeak.speak(text, "en-us+m3").samples for text in texts]
    spoken: dict[int, NDArray[np.int16]] = {}

    def say(index: int) -> None:
        spoken[index] = espeak.speak(texts[index], "en-us+m3").samples

    threads = [threading.Thread(target=say, args=(index,)) for index in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(np.array_equal(spoken[index], wave) for index, wave in enumerate(expected))


def test_rate_pitch_and_voice_are_audible() -> None:
    slow, quick = (espeak.speak(SENTENCE, "en-us+m3", rate=rate).samples for rate in (120, 200))
    assert len(slow) > 1.3 * len(quick)
    low, high = (_pitch(espeak.speak(SENTENCE, "en-us+m3", pitch=pitch).samples) for pitch in (10, 90))
    assert high > 1.2 * low


def _pitch(samples: NDArray[np.int16]) -> float:
    """Median over the loud frames of 40 ms of the frequency at which they repeat themselves, Hz."""
    frames = samples[: len(samples) // 882 * 882].reshape(-1, 882).astype(np.float64)
    found = []
    for frame in frames[np.abs(frames).max(1) > 0.3 * np.abs(frames).max()]:
        correlation = np.correlate(frame, frame, "full")[881:]
        found.append(espeak.SAMPLING_RATE / (55 + int(np.argmax(correlation[55:400]))))
    return float(np.median(found))


def test_a_data_folder_with_a_long_path_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import espeakng_loader

    real = espeakng_loader.get_data_path()
    far = tmp_path / ("x" * 100) / ("y" * 100)
    far.mkdir(parents=True)
    (far / "espeak-ng-data").symlink_to(real, target_is_directory=True)
    monkeypatch.setattr(espeakng_loader, "get_data_path", lambda: str(far / "espeak-ng-data"))
    espeak._library_paths.cache_clear()
    try:
        assert len(espeak.speak("open the window", "en-us+m3").words) == 3
    finally:
        espeak._library_paths.cache_clear()


def test_manifests_open_and_splits_share_voices_but_no_sentence(corpus: tuple[Path, Prepared]) -> None:
    out, prepared = corpus
    assert prepared.utterances == {"train": 24, "validation": 8, "test": 8}
    texts: dict[str, set[str]] = {}
    for split, manifest in prepared.manifests.items():
        assert manifest == out / f"{split}.jsonl.gz"
        opened = open_cuts(manifest)
        cuts = list(opened.cuts)
        assert not opened.rejected
        assert {cut.supervisions[0].speaker for cut in cuts} == set(VOICES["english"][:4])
        assert sum(cut.duration for cut in cuts) == pytest.approx(prepared.seconds[split])
        texts[split] = {cut.supervisions[0].text for cut in cuts}
    assert set(grammar.splits(24, 8, 8, seed=3)["test"]) == texts["test"]
    assert not texts["test"] & (texts["train"] | texts["validation"])


def test_audio_is_flac_at_16_khz_and_words_lie_inside(corpus: tuple[Path, Prepared]) -> None:
    out, prepared = corpus
    for cut in open_cuts(prepared.manifests["test"]).cuts:
        info = soundfile.info(out / "audio" / "test" / f"{cut.id}.flac")
        assert (info.samplerate, info.channels, info.subtype, info.format) == (16000, 1, "PCM_16", "FLAC")
        assert cut.duration == info.frames / 16000
        supervision = cut.supervisions[0]
        words = supervision.alignment["word"]
        assert [word.symbol for word in words] == supervision.text.split()
        assert 0.1 <= words[0].start <= 0.41
        assert 0.09 <= cut.duration - words[-1].end <= 0.45
        assert all(a.end <= b.start + 1e-6 for a, b in pairwise(words))


def test_written_word_times_are_those_of_the_audio(tmp_path: Path) -> None:
    source = tmp_path / "lines.txt"
    source.write_text("the horses ran home, nobody saw them\n")
    prepared = prepare(source, tmp_path / "out", validation=0, test=0, voices=1, conditions=QUIET)
    cut = next(iter(open_cuts(prepared.manifests["train"]).cuts))
    wave, rate = soundfile.read(cut.recording.sources[0].source)
    words = cut.supervisions[0].alignment["word"]
    loud = level(wave, words[0].start, words[-1].end, rate)
    silences = [(0.0, words[0].start), (words[3].end + 0.03, words[4].start), (words[-1].end + 0.03, 99.0)]
    for start, end in silences:
        assert level(wave, start, end, rate) < 0.03 * loud
    assert level(wave, words[0].start, words[0].start + 0.1, rate) > 0.1 * loud


def test_noise_and_peak_are_as_drawn() -> None:
    speech = espeak.speak(SENTENCE, "en-us+m3").samples
    for seed in range(6):  # white and pink
        conditions = Conditions(silence=(1.0, 1.0), peak=(-9.0, -9.0), snr=(20.0, 20.0))
        samples, lead = render(speech, np.random.default_rng(seed), conditions)
        clean = Conditions(silence=(1.0, 1.0), peak=(-9.0, -9.0), snr=(200.0, 200.0))
        pure, _ = render(speech, np.random.default_rng(seed), clean)
        assert lead == 1.0
        assert np.abs(pure).max() == pytest.approx(10 ** (-9 / 20), rel=1e-3)
        voiced = pure[16000:-16000]
        ratio = np.mean(voiced**2) / np.mean((samples - pure) ** 2)
        assert 10 * np.log10(ratio) == pytest.approx(20.0, abs=0.2)


def test_seed_decides_every_byte(tmp_path: Path) -> None:
    def digest(name: str, seed: int) -> str:
        prepare("-", tmp_path / name, train=4, validation=0, test=1, seed=seed, voices=2)
        waves = sorted((tmp_path / name).rglob("*.flac"))
        assert len(waves) == 5
        return hashlib.sha256(b"".join(path.read_bytes() for path in waves)).hexdigest()

    assert digest("a", 1) == digest("b", 1)
    assert digest("c", 2) != digest("a", 1)


def test_progress_counts_to_the_end(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    prepare(None, tmp_path, train=3, validation=1, test=1, progress=lambda *call: calls.append(call))
    assert calls == [(done, 5) for done in range(1, 6)]


def test_a_text_file_is_divided_by_shares_without_repetition(tmp_path: Path) -> None:
    source = tmp_path / "lines.txt"
    lines = [f"sentence number {chr(letter)}" for letter in range(ord("a"), ord("m"))]
    source.write_text("\n".join([*lines, "", "Sentence  NUMBER A", "   "]), encoding="utf-8")
    prepared = prepare(source, tmp_path / "out", train=1000, validation=100, test=100, voices=2)
    assert prepared.utterances == {"train": 10, "validation": 1, "test": 1}
    texts = [cut.supervisions[0].text for path in prepared.manifests.values() for cut in open_cuts(path).cuts]
    assert sorted(texts) == sorted(lines)


def test_a_line_that_cannot_be_spoken_is_listed(tmp_path: Path) -> None:
    source = tmp_path / "lines.txt"
    source.write_text("good morning\n...\ngood night\n")
    prepared = prepare(source, tmp_path / "out", validation=0, test=0)
    assert prepared.utterances == {"train": 2}
    assert len(prepared.rejected) == 1
    assert "nothing to synthesise in '...'" in prepared.rejected[0].reason
    assert (tmp_path / "out" / "train.rejected.tsv").is_file()


@pytest.mark.parametrize(
    ("content", "arguments", "message"),
    [
        (None, {}, r"lines.txt: cannot be read \(No such file or directory\)"),
        (b"caf\xe9 au lait\n", {}, "lines.txt: not UTF-8 at byte 3. Save it as UTF-8"),
        (b"one line\nONE  line\n", {}, "1 distinct sentences cannot be divided into train, validation, test"),
        (b"a b\nc d\ne f\n", {"train": 0}, r"cannot make 0 \+ 100 \+ 100 utterances"),
        (b"a b\nc d\ne f\n", {"voices": 99}, "99 voices of english. Choose 1 to 16"),
        (b"a b\nc d\ne f\n", {"voices": []}, "there is no voice"),
        (b"a b\nc d\ne f\n", {"voices": ["klingon-empire"]}, "espeak-ng has no voice 'klingon-empire'"),
    ],
)
def test_bad_input_gets_one_clear_line(
    tmp_path: Path, content: bytes | None, arguments: dict[str, Any], message: str
) -> None:
    source = tmp_path / "lines.txt"
    if content is not None:
        source.write_bytes(content)
    with pytest.raises(UserError, match=message) as caught:
        prepare(source, tmp_path / "out", **arguments)
    assert "\n" not in str(caught.value)


def test_an_output_that_is_a_file_is_the_users_mistake(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("")
    with pytest.raises(UserError, match="cannot be made"):
        prepare(None, tmp_path / "out", train=1, validation=0, test=0)


def test_without_espeak_the_remedy_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    real = builtins.__import__

    def missing(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name == "espeakng_loader":
            raise ImportError(name)
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", missing)
    espeak._library_paths.cache_clear()
    with pytest.raises(UserError, match=re.escape("pip install 'retort-asr[demo]'")):
        prepare(None, tmp_path, train=1, validation=0, test=0)
