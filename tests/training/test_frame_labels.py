from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from retort.alignment.store import AlignmentStore
from retort.common.errors import BadUtterance, UserError
from retort.text.tokenizers import CharacterTokenizer, WordTokenizer
from retort.training.frames import FrameLabels, FrameReader, collate
from tiny_alignments import senone_symbols, store_alignments

SENONES = FrameReader("senone", WordTokenizer(senone_symbols()))
PHONES = FrameReader("phone", WordTokenizer([*"abcdefgh"]))
LETTERS = FrameReader("text", CharacterTokenizer([*"▁abcdefgh"]))
READERS = {"senones": SENONES, "phones": PHONES, "letters": LETTERS}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> AlignmentStore:
    folder = tmp_path_factory.mktemp("alignments")
    texts = {"u": ("ab c", 72), "short": ("a", 15), "named_sp0.9": ("b", 40)}
    return store_alignments(folder, texts, skipped={"lost": "it fits its words far worse than the others"})


@pytest.mark.parametrize(("subsampling", "frames"), [(1, 72), (2, 36), (3, 24), (3, 23), (3, 25), (4, 17)])
def test_an_encoder_frame_is_what_its_middle_is(store: AlignmentStore, subsampling: int, frames: int) -> None:
    found = FrameLabels(store, READERS, subsampling)("u", "ab c", 72, frames)
    alignment = store["u"]
    names = {0: "a", 1: "b", 2: "c"}
    phones = [phone.symbol for phone in alignment.phones for _ in range(phone.frames)]
    assert found.senones.shape == (frames,)
    assert found.senones.dtype == np.int64
    for place in range(frames):
        source = min(place * subsampling + subsampling // 2, 71)  # the last goes on
        assert found.senones[place] == alignment.senones[source]
        for teacher in ("senones", "phones", "letters"):
            piece = found.inputs[teacher].segments[place]
            if phones[source] == "SIL":
                assert piece == -1
            elif teacher == "phones":
                assert names[piece] == phones[source]
            elif teacher == "senones":
                assert found.inputs[teacher].text.split()[piece] == f"S{alignment.senones[source]}"
            else:
                start = found.inputs[teacher].pieces[piece].start
                assert "ab c"[start] == phones[source]


def test_texts_are_those_of_the_alignments_own_rate(store: AlignmentStore) -> None:
    """However seldom the encoder looks, the teacher reads every unit."""
    found = FrameLabels(store, READERS, 24)("u", "ab c", 72, 3)
    assert found.inputs["phones"].text == "a b c"
    assert found.inputs["senones"].text == "S3 S4 S5 S6 S7 S8 S9 S10 S11"
    assert found.inputs["letters"].text == "ab c"
    assert [piece.id for piece in found.inputs["phones"].pieces] == [4, 5, 6]


@pytest.mark.parametrize("speed", [0.9, 1.1, 2.0])
def test_another_speed_takes_the_same_labels_stretched(store: AlignmentStore, speed: float) -> None:
    frames = round(72 / speed)
    found = FrameLabels(store, {"phones": PHONES}, 1)(f"u_sp{speed}", "ab c", frames, frames)
    own = FrameLabels(store, {"phones": PHONES}, 1)("u", "ab c", 72, 72)
    for place in range(frames):
        source = min(int((place + 0.5) * speed), 71)
        assert found.senones[place] == own.senones[source]
        assert found.inputs["phones"].segments[place] == own.inputs["phones"].segments[source]
    assert set(found.senones) == set(own.senones)


def test_a_name_that_looks_like_a_speed_is_a_name(store: AlignmentStore) -> None:
    found = FrameLabels(store, {}, 1)("named_sp0.9", "b", 40, 40)
    assert np.array_equal(found.senones, store["named_sp0.9"].senones)


def test_alignments_of_30_ms(tmp_path: Path) -> None:
    store = store_alignments(tmp_path, {"u": ("ab", 30)}, states=1, frame_shift=0.03, silence=3)
    found = FrameLabels(store, {}, 3)("u", "ab", 89, 30)
    assert np.array_equal(found.senones, store["u"].senones)
    assert len(FrameLabels(store, {}, 6)("u", "ab", 89, 15).senones) == 15
    with pytest.raises(UserError, match=r"frames have 30 ms, the student's 20 ms"):
        FrameLabels(store, {}, 2)


@pytest.mark.parametrize(
    ("name", "text", "features", "message"),
    [
        ("nobody", "ab c", 72, "it has no alignment"),
        ("nobody_sp0.9", "ab c", 72, "it has no alignment"),
        ("lost", "ab c", 72, "it fits its words far worse"),
        ("lost_sp1.1", "ab c", 72, "it fits its words far worse"),
        ("u", "ab c", 75, "72 frames of 10 ms, its features 75"),
        ("u", "ab c", 69, "72 frames of 10 ms, its features 69"),
        ("u_sp0.9", "ab c", 72, "80 frames of 10 ms, its features 72"),
        ("u", "ab d", 72, "of other words: AB C"),
    ],
)
def test_what_cannot_be_used(
    store: AlignmentStore, name: str, text: str, features: int, message: str
) -> None:
    with pytest.raises(BadUtterance, match=message) as reported:
        FrameLabels(store, READERS, 1)(name, text, features, features)
    assert reported.value.where in (name, "u")


@pytest.mark.parametrize(("features", "frames"), [(74, 74), (70, 70), (72, 70), (17, 17), (13, 12)])
def test_two_frames_more_or_less_do_not_matter(store: AlignmentStore, features: int, frames: int) -> None:
    name, text = ("u", "ab c") if features > 20 else ("short", "a")
    found = FrameLabels(store, READERS, 1)(name, text, features, frames)
    own = store[name].senones
    assert found.senones.tolist() == [int(own[min(place, len(own) - 1)]) for place in range(frames)]


def test_pieces_that_are_no_units_are_the_recipes_mistake(store: AlignmentStore) -> None:
    wrong = {"lm": FrameReader("senone", CharacterTokenizer([*"▁S0123456789"]))}
    with pytest.raises(UserError, match="pieces of teacher 'lm' are not senones"):
        FrameLabels(store, wrong, 1)("u", "ab c", 72, 72)


def test_a_batch_is_padded_with_none(store: AlignmentStore) -> None:
    labels = FrameLabels(store, {"phones": PHONES}, 3)
    utterances = [labels("u", "ab c", 72, 24), labels("short", "a", 15, 5)]
    senones, frames = collate(utterances)
    assert senones.shape == frames["phones"].segments.shape == (2, 24)
    assert senones[1].tolist() == [*utterances[1].senones.tolist(), *[-1] * 19]
    assert (frames["phones"].segments[1, 5:] == -1).all()
    assert frames["phones"].texts == ["a b c", "a"]
    assert [len(pieces) for pieces in frames["phones"].pieces] == [3, 1]
    none: Callable[..., object] = FrameLabels(store, {}, 3)
    assert collate([none("u", "ab c", 72, 24)])[1] == {}  # type: ignore[list-item]
