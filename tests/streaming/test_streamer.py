"""Streamed results are those of whole utterances with the same limits of context, however the audio is cut.

Values differ from those of whole utterances by the order of summation in matrix products and attention only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from retort.audio.online import online_features
from retort.common.errors import UserError
from retort.decoding.greedy import NEVER_EMITTED
from retort.decoding.hypothesis import Hypothesis
from retort.decoding.recogniser import Recogniser
from retort.nn.decoder import CifDecoder, RowState
from retort.nn.whisper_fired import FiredWhisperDecoder, Frames
from retort.streaming.attended import EDGE, AttendedFires
from retort.streaming.streamer import StreamBatch, Streamer
from retort.streaming.utterances import StreamOptions
from retort.students.cif import CifStudent
from retort.students.student import Encoded
from retort.text.tokenizers import EOS
from tiny_streams import ENCODERS, LEFT, tiny_stream_recogniser

PAIRS = [(encoder, "cif") for encoder in ENCODERS] + [
    (encoder, student)
    for encoder, student in (
        ("rotary", "window"),
        ("whisper", "whisper_decoder"),
        ("whisper", "whisper_window"),
        ("relative", "ctc"),
        ("zipformer", "transducer"),
    )
]
SEEDS = {("relative", "cif"): 0, ("relative", "ctc"): 0, ("zipformer", "transducer"): 6}
"""Seeds of weights with which the models recognise several tokens; 2 for the others."""
RECOGNISERS = {pair: tiny_stream_recogniser(*pair, seed=SEEDS.get(pair, 2)) for pair in PAIRS}


def noise(samples: int, seed: int) -> np.ndarray:
    """Noise whose loudness changes, so that normalisation matters."""
    random = np.random.default_rng(seed)
    steps = random.uniform(0.001, 0.5, samples // 800 + 2)
    loudness = np.interp(np.arange(samples), 800 * np.arange(len(steps)), steps)
    return (random.normal(size=samples) * loudness).astype(np.float32)


def whole(recogniser: Recogniser, samples: np.ndarray, chunk: int, left: int = LEFT) -> Hypothesis:
    """The greedy hypothesis of an utterance with a mask, in float64."""
    online = online_features(recogniser.features)
    features = torch.from_numpy(np.concatenate((online.accept(samples), online.finish())))
    recogniser.limit(chunk, left)
    try:
        if isinstance(getattr(recogniser.student, "decoder", None), FiredWhisperDecoder):
            with torch.no_grad():
                return attended(recogniser, recogniser.encode([features]), chunk)
        return recogniser.decode([features])[0]
    finally:
        recogniser.limit(0)


def attended(recogniser: Recogniser, encoded: Encoded, chunk: int) -> Hypothesis:
    """Whisper's decoder with teacher forcing over all tokens so far, again for every token: the slow equivalent of a
    stream, whose fires are placed by the attention of the token before."""
    student = recogniser.student
    assert isinstance(student, CifStudent)
    assert student.weights is not None
    decoder, hidden, count = student.decoder, encoded.hidden, int(encoded.lengths[0])
    assert isinstance(decoder, FiredWhisperDecoder)
    alphas = student.weights(hidden, encoded.lengths, student.encoder.chunks)[0]
    fires, ids, log_probs, times = AttendedFires(), [], [], []
    vectors, places, ends = [], [], []

    def decode(seen: int, edge: int = 0) -> bool:
        nonlocal vectors, places, ends
        found, time = fires.next()
        vector = torch.from_numpy(found)
        given, embeddings = torch.tensor([[EOS, *ids]]), torch.stack([*vectors, vector])[None]
        rows = [*places, min(int(time), seen - 1)], [*ends, seen]
        frames = Frames(hidden, encoded.lengths, torch.tensor([rows[0]]), torch.tensor([rows[1]]))
        scores = decoder(given, embeddings, frames)[1][0, -1].float().log_softmax(-1)
        scores[NEVER_EMITTED] = float("-inf")
        place = int(attention(decoder, given, embeddings, frames).argmax())
        if int(scores.argmax()) == EOS or place >= seen - edge:
            return False
        fires.attended(place)
        ids.append(int(scores.argmax()))
        log_probs.append(float(scores.max()))
        times.append(max([time, *times[-1:]]))
        vectors, (places, ends) = [*vectors, vector], rows
        return True

    for begin in range(0, count, chunk):
        seen = min(begin + chunk, count)
        fires.add(hidden[0, begin:seen].numpy(), alphas[begin:seen].numpy())
        while fires.ready and decode(seen, EDGE):
            pass
    for _ in range(fires.remaining + student.config.cif.spare):
        if not decode(count):
            break
    return Hypothesis(ids, log_probs, times, None, sum(log_probs))


def attention(decoder: FiredWhisperDecoder, given: Tensor, vectors: Tensor, frames: Frames) -> Tensor:
    """The attention `(T,)` of the last token: the mean of the alignment heads."""
    whisper, steps = decoder.whisper, given.shape[1]
    assert frames.ends is not None
    before = whisper.sizes.prompt - 1
    hidden = whisper.with_prompt(given)
    hidden = hidden + torch.cat((torch.zeros(1, before, hidden.shape[-1]), decoder.fired(vectors)), 1)
    mask = torch.zeros(1, 1, before + steps, frames.source.shape[1], dtype=torch.bool)
    for row in range(before + steps):
        token = max(row - before, 0)
        for frame in range(int(frames.ends[0, token])):
            far = row >= before and abs(frame - int(frames.places[0, token])) > decoder.window
            mask[0, 0, row, frame] = not (decoder.window and far)
    found = []
    for number, (layer, memory) in enumerate(zip(whisper.layers, whisper.memories(frames.source))):
        weights = layer.weights(hidden, memory, mask)
        found += [weights[0, head, -1] for index, head in whisper.sizes.alignment_heads if index == number]
        hidden = layer(hidden, memory, mask)[0]
    return torch.stack(found).mean(0)


def pieces(samples: np.ndarray, cuts: Sequence[int]) -> list[np.ndarray]:
    return np.split(samples, sorted(cut % (len(samples) + 1) for cut in cuts))


def streamed(recogniser: Recogniser, parts: Sequence[np.ndarray], chunk: int) -> Hypothesis:
    batch = StreamBatch(recogniser, StreamOptions(chunk, LEFT, pause=0.0))
    for part in parts:
        batch.accept([part])
    batch.finish()
    return batch.hypotheses()[0]


def assert_equal(found: Hypothesis, expected: Hypothesis) -> None:
    assert found.ids == expected.ids
    assert np.allclose(found.ends, expected.ends, rtol=0.0, atol=1e-9)
    assert np.allclose(found.log_probs, expected.log_probs, rtol=0.0, atol=1e-5)  # computed in float32
    assert (found.starts or None) == (expected.starts or None)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
@settings(max_examples=6, deadline=None)
@given(
    samples=st.integers(1300, 6000),
    seed=st.integers(0, 1000),
    cuts=st.lists(st.integers(0, 9000), max_size=6),
    chunk=st.sampled_from([1, 2, 4, 7]),
)
def test_streamed_is_the_masked_utterance(
    pair: tuple[str, str], samples: int, seed: int, cuts: list[int], chunk: int
) -> None:
    recogniser, wave = RECOGNISERS[pair], noise(samples, seed)
    chunk *= recogniser.student.encoder.chunk_step
    expected = whole(recogniser, wave, chunk)
    assert_equal(streamed(recogniser, pieces(wave, cuts), chunk), expected)


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_the_examples_have_tokens_and_depend_on_the_chunk(pair: tuple[str, str]) -> None:
    recogniser = RECOGNISERS[pair]
    found = [whole(recogniser, noise(8000, seed), chunk) for seed in range(2) for chunk in (2, 8)]
    assert max(len(each.ids) for each in found) >= 2
    assert any(
        short.ids != long.ids or not np.allclose(short.log_probs, long.log_probs, rtol=1e-3)
        for short, long in zip(found[::2], found[1::2])
    )


def test_one_sample_at_a_time() -> None:
    recogniser, wave = RECOGNISERS["rotary", "cif"], noise(2000, 1)
    assert_equal(streamed(recogniser, np.split(wave, len(wave)), 2), whole(recogniser, wave, 2))


BATCHED = [
    ("rotary", "cif"),
    ("rotary", "window"),
    ("whisper", "cif"),
    ("whisper", "whisper_decoder"),
    ("relative", "ctc"),
    ("zipformer", "transducer"),
]
"""Of every decoder, and of the front end with positions."""


@pytest.mark.parametrize("pair", BATCHED, ids="-".join)
def test_a_stream_is_the_same_alone_and_in_any_batch(pair: tuple[str, str]) -> None:
    recogniser, random = RECOGNISERS[pair], np.random.default_rng(3)
    waves = [noise(samples, samples) for samples in (9000, 1700, 5000, 7777)]
    batch = StreamBatch(recogniser, StreamOptions(2, LEFT, pause=0.0), len(waves))
    parts = [pieces(wave, random.integers(0, 9000, 5).tolist()) for wave in waves]
    for step in range(6):
        batch.accept([part[step] for part in parts])
        if step == 3:
            batch.accept([[], [], [], []])
    batch.finish([1])
    batch.finish()
    for found, wave in zip(batch.hypotheses(), waves):
        assert_equal(found, whole(recogniser, wave, 2))


@pytest.mark.parametrize("pair", [("rotary", "cif"), ("rotary", "window")], ids="-".join)
def test_fires_of_several_streams_are_decoded_in_one_step(
    pair: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the streams have different numbers of tokens, because they began at different times."""
    recogniser, rows = RECOGNISERS[pair], []
    step = CifDecoder.step_rows

    def counted(self: CifDecoder, states: Sequence[RowState], *given: Any) -> Any:
        rows.append([len(each.past) for each in states])
        return step(self, states, *given)

    monkeypatch.setattr(CifDecoder, "step_rows", counted)
    waves = [noise(samples, samples) for samples in (9000, 6000, 7777, 8000)]
    batch = StreamBatch(recogniser, StreamOptions(2, LEFT, pause=0.0), len(waves))
    batch.advance({0: waves[0][:3000]})
    batch.accept([waves[0][3000:], *waves[1:]])
    batch.finish()
    for found, wave in zip(batch.hypotheses(), waves):
        assert_equal(found, whole(recogniser, wave, 2))
    assert any(len(set(each)) > 1 for each in rows)
    assert len(rows) < sum(len(each) for each in rows)


def test_the_last_token_is_not_lost() -> None:
    """The weight that remains at the end fires when the stream ends."""
    recogniser = RECOGNISERS["rotary", "cif"]
    lost = 0
    for seed in range(20):
        wave = noise(4000, seed)
        streamer = Streamer(recogniser, 2, LEFT, pause=0.0)
        before = streamer.accept(wave).text
        (after,) = streamer.finish().finished
        assert after.text.startswith(before)
        lost += len(after.text) > len(before)
    assert lost > 3


def test_results_do_not_depend_on_pieces_where_a_stream_has_several_utterances() -> None:
    recogniser, wave = RECOGNISERS["rotary", "cif"], noise(40000, 5)
    found = []
    for cuts in ([], [100, 20000], list(range(0, 40000, 777))):
        streamer = Streamer(recogniser, 2, LEFT, longest=0.7, pause=0.2)
        finished = [each for part in pieces(wave, cuts) for each in streamer.accept(part).finished]
        found.append(finished + streamer.finish().finished)
    assert len(found[0]) >= 3
    assert found[0] == found[1] == found[2]
    times = [word.end for each in found[0] for word in each.words]
    assert times == sorted(times)
    assert 2.0 < times[-1] <= 2.5


def test_partial_results_only_grow() -> None:
    recogniser, wave = RECOGNISERS["rotary", "cif"], noise(9000, 8)
    streamer = Streamer(recogniser, 2, LEFT, pause=0.0)
    before = streamer.accept([])
    assert (before.text, before.words, before.stable_until, before.finished) == ("", [], 0.0, [])
    for part in np.array_split(wave, 20):
        partial = streamer.accept(part)
        assert partial.text.startswith(before.text)
        assert partial.stable_until >= before.stable_until
        stable = [word for word in before.words if word.end <= before.stable_until]
        assert partial.words[: len(stable)] == stable
        before = partial
    assert before.text
    words = streamer.finish().finished[0].words
    arrived = [seconds for _, seconds in streamer.emissions]
    assert len(arrived) == len(words)
    assert all(0.0 < word.end <= seconds + 1e-9 for word, seconds in zip(words, arrived))


def test_memory_does_not_grow() -> None:
    recogniser = RECOGNISERS["whisper", "whisper_decoder"]
    streamer = Streamer(recogniser, 2, LEFT, longest=0.8)
    sizes = []
    for seed in range(30):
        streamer.accept(noise(3200, seed))
        sizes.append(streamer.state_size())
    assert max(sizes[15:]) <= max(sizes[:15])


def test_whole_utterance_models_are_refused() -> None:
    recogniser = tiny_stream_recogniser("rotary", "cif")
    recogniser.student.encoder.config.chunk = [0]
    with pytest.raises(UserError):
        Streamer(recogniser, 4)
    with pytest.raises(UserError):
        recogniser.limit(4)


def test_a_finished_stream_takes_no_more_samples() -> None:
    streamer = Streamer(RECOGNISERS["rotary", "cif"], 2)
    assert streamer.finish().finished == []
    with pytest.raises(UserError):
        streamer.accept(noise(100, 0))
