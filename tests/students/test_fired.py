"""Frames and fires of tokens, and the decoder's loss on them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from utterances import BINS, VOCABULARY, batch

from retort.nn.decoder import AutoregressiveConfig
from retort.nn.factored import FactoredConfig
from retort.nn.pretrained import PretrainedEncoderConfig
from retort.nn.whisper_fired import FiredWhisperConfig
from retort.pretrained.whisper import whisper_architecture
from retort.students.cif import CifConfig, CifStudent, CifStudentConfig
from retort.students.factory import build_student
from retort.students.fired import Segment, concatenated, pad_utterances, with_fires
from tiny_students import ENCODER, FRONTEND
from tiny_whispers import tiny_whisper_folder

SIZES = {"layers": 1, "dim": 16, "heads": 2, "feedforward": 32}
DECODERS = [AutoregressiveConfig(**SIZES), AutoregressiveConfig(**SIZES, window=2), FactoredConfig(**SIZES, window=2)]
UNITS = [4, 1, 3]


def build(decoder: AutoregressiveConfig, fires: str, context: int) -> CifStudent:
    config = CifStudentConfig(
        frontend=FRONTEND,
        encoder=ENCODER,
        cif=CifConfig(fires=fires, context_layers=context),
        decoder=decoder,
    )
    torch.manual_seed(0)
    student = build_student(config, VOCABULARY, BINS).eval()
    assert isinstance(student, CifStudent)
    return student


def whisper_student(folder: Path, window: int, alignment_weight: float) -> CifStudent:
    encoder = PretrainedEncoderConfig(
        architecture=whisper_architecture(str(tiny_whisper_folder(folder))), layers=3, dim=16, pool_after=[]
    )
    config = CifStudentConfig(
        encoder=encoder, decoder=FiredWhisperConfig(window=window), alignment_weight=alignment_weight, ctc_weight=0.0
    )
    torch.manual_seed(0)
    student = build_student(config, VOCABULARY, 80).eval()
    assert isinstance(student, CifStudent)
    torch.nn.init.normal_(student.get_parameter("decoder.fired.weight"))
    return student


def assert_it_reads_its_own_fires(student: CifStudent, bins: int) -> None:
    """All at once, and put together again from the segments of single tokens; only the decoder gets gradients."""
    speech = batch([60, 40, 52], UNITS)
    features = torch.randn(*speech.features.shape[:2], bins, generator=torch.Generator().manual_seed(1))
    output = student(features, *speech[1:])
    assert output.fired is not None
    torch.testing.assert_close(student.read_fired(output.fired).total, output.losses["ce"])
    segments = [
        output.fired.segments(row, [(token, token + 1) for token in range(count)]) for row, count in enumerate(UNITS)
    ]
    for own, length in zip(segments, output.fired.frame_lengths.tolist()):
        assert sum(len(each.frames) for each in own) == length
    tokens = [row[:count].tolist() for row, count in zip(speech.tokens, UNITS)]
    made = pad_utterances([concatenated(each) for each in segments], tokens, 16, 8)
    loss = student.read_fired(made).total
    torch.testing.assert_close(loss, output.losses["ce"])
    loss.backward()
    trained = {name.split(".")[0] for name, each in student.named_parameters() if each.grad is not None}
    assert trained == {"decoder"}


@pytest.mark.parametrize("decoder", DECODERS, ids=["plain", "window", "factored"])
@pytest.mark.parametrize(("fires", "context"), [("accumulate", 0), ("accumulate", 1), ("ctc", 0)])
def test_a_decoder_reads_its_own_fires(decoder: AutoregressiveConfig, fires: str, context: int) -> None:
    assert_it_reads_its_own_fires(build(replace(decoder), fires, context), BINS)


@pytest.mark.parametrize(("window", "alignment_weight"), [(0, 0.5), (0, 0.0), (3, 0.5)])
def test_whispers_decoder_reads_its_own_fires(tmp_path: Path, window: int, alignment_weight: float) -> None:
    assert_it_reads_its_own_fires(whisper_student(tmp_path / "whisper", window, alignment_weight), 80)


@given(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6))
def test_another_number_of_fires(there: int, wanted: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    segment = Segment(
        torch.randn(7, 3, generator=generator),
        torch.randn(there, 3, generator=generator),
        torch.randint(7, (there,), generator=generator).sort().values,
    )
    made = with_fires(segment, wanted)
    assert torch.equal(made.frames, segment.frames)
    shares = [[] for _ in range(wanted)]
    for number in range(there):  # slowly: the fire belongs to the share that its start is in
        for share in range(wanted):
            if share * there // wanted <= number < (share + 1) * there // wanted:
                shares[share].append(number)
    for share, own in enumerate(shares):
        own = own or [share * there // wanted]
        torch.testing.assert_close(made.fired[share], torch.stack([segment.fired[each] for each in own]).mean(0))
        assert made.places[share] == segment.places[own[-1]]
    if there == wanted:
        assert torch.equal(made.fired, segment.fired)
