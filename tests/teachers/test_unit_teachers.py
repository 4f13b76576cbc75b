"""Teachers whose positions are laid on frames: over senones and phones, and over pieces of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from retort.alignment.unit_text import AcousticUnit, unit_symbols, unit_text
from retort.common.errors import UserError
from retort.config.schema import NormaliserConfig, TeacherConfig
from retort.lm.config import ModelConfig
from retort.lm.factory import open_causal_lm, save_causal_lm
from retort.lm.masked import build_bert
from retort.lm.neural import CausalLstm, NeuralLM
from retort.lm.pieces import word_level
from retort.lm.units import LmUnits
from retort.pretrained.hub import open_masked_lm, open_tokenizer, save_model
from retort.teachers import (
    MaskedLMTeacher,
    StoredTeacher,
    check_units,
    fill,
    open_teacher,
    open_teacher_model,
    symbol_ids,
    teacher_symbols,
    token_targets,
)
from retort.teachers.masked_lm import MaskedLMConfig
from retort.teachers.posteriors import CausalLMConfig
from retort.text.normalise import Normaliser
from retort.text.tokenizers import BpeTokenizer, CharacterTokenizer, Tokenizer, WordTokenizer
from tiny_lms import masked_bert
from tiny_units import LEXICON, aligned, pronounce_units, tiny_tree

TREE = tiny_tree()
UNITS: tuple[AcousticUnit, ...] = ("senone", "phone")
WORDS = [["one", "two"], ["eight"], ["three", "six", "one"], ["one", "two"]]


def texts_of(unit: AcousticUnit) -> list[str]:
    return [pronounce_units(words, LEXICON, TREE, unit) for words in WORDS]


def save_lstm(folder: Path, tokenizer: Tokenizer, units: LmUnits | None, sharpness: float = 4.0) -> Path:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = CausalLstm(ModelConfig(kind="lstm", layers=1, dim=8, dropout=0.0), tokenizer.size)
        with torch.no_grad():
            network.norm.weight.mul_(sharpness)
    save_causal_lm(NeuralLM(network, tokenizer, Normaliser(NormaliserConfig())), folder / "model")
    if units is not None:
        units.save(folder / "model")
    return folder


@pytest.fixture(scope="module")
def causal(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By unit a causal model of random weights."""
    root = tmp_path_factory.mktemp("causal")
    return {
        unit: save_lstm(root / unit, WordTokenizer(unit_symbols(TREE, unit)), LmUnits.of(unit, TREE))
        for unit in UNITS
    }


@pytest.fixture(scope="module")
def masked(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By unit a masked one."""
    root = tmp_path_factory.mktemp("masked")
    for unit in UNITS:
        tokenizer = word_level(unit_symbols(TREE, unit))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = build_bert(ModelConfig(layers=1, dim=8, heads=2, feedforward=16), tokenizer, 64)
            for parameter in model.parameters():
                torch.nn.init.normal_(parameter, std=0.4)
        save_model(model, tokenizer, root / unit / "model")
        LmUnits.of(unit, TREE).save(root / unit / "model")
    return {unit: root / unit for unit in UNITS}


def config_of(model: Path, unit: str, topk: int = 5, kind: str = "causal_lm") -> TeacherConfig:
    made = CausalLMConfig if kind == "causal_lm" else MaskedLMConfig
    return made(model=str(model), unit=unit, topk=topk)


def slowly(config: TeacherConfig, text: str) -> Tensor:
    """`(n, V)` float64: what the model says of every symbol of a text, asked for one at a time."""
    symbols, computed = text.split(), []
    if config.kind == "causal_lm":
        lm = open_causal_lm(config.model)
        assert isinstance(lm, NeuralLM)
        ids = [2, *(lm.symbols.index(symbol) for symbol in symbols)]
        with torch.no_grad():
            for place in range(len(symbols)):
                logits = lm.network(torch.tensor([ids[: place + 1]]))[0][0, -1]
                computed.append(logits.double().softmax(-1))
        return torch.stack(computed)
    model, tokenizer = open_masked_lm(config.model), open_tokenizer(config.model)
    own = teacher_symbols(config)
    columns = [tokenizer.get_vocab()[symbol] for symbol in own.symbols[4:]]
    for place in range(len(symbols)):
        hidden = " ".join([*symbols[:place], "[MASK]", *symbols[place + 1 :]])
        with torch.no_grad():
            logits = model(**tokenizer(hidden, return_tensors="pt")).logits[0, place + 1]
        computed.append(torch.cat([torch.zeros(4).double(), logits.double().softmax(-1)[columns]]))
    return torch.stack(computed)


@pytest.mark.parametrize("unit", UNITS)
@pytest.mark.parametrize("kind", ["causal_lm", "masked_lm"])
class TestUnits:
    @pytest.fixture
    def config(self, kind: str, unit: AcousticUnit, request: pytest.FixtureRequest) -> TeacherConfig:
        models = request.getfixturevalue("causal" if kind == "causal_lm" else "masked")
        return config_of(models[unit], unit, kind=kind)

    def test_its_symbols_are_all_of_the_unit(self, config: TeacherConfig, unit: AcousticUnit) -> None:
        own = teacher_symbols(config)
        assert own.symbols[4:] == unit_symbols(TREE, unit)
        text = texts_of(unit)[2]
        assert [own.symbols[piece.id] for piece in own.pieces(text)] == text.split()

    def test_it_says_what_the_model_says(self, config: TeacherConfig, unit: AcousticUnit) -> None:
        texts, own = texts_of(unit), teacher_symbols(config)
        targets = token_targets(
            open_teacher(config, tokenizer=own).read(texts), texts, [own.pieces(text) for text in texts]
        )
        assert targets.ids is not None
        for row, text in enumerate(texts):
            expected = slowly(config, text)
            top = expected.topk(5)
            count = len(text.split())
            assert targets.valid[row].tolist() == [place <= count for place in range(targets.valid.shape[1])]
            torch.testing.assert_close(targets.vectors[row, :count].double(), top.values, rtol=1e-4, atol=1e-6)
            named = expected.gather(1, targets.ids[row, :count])
            torch.testing.assert_close(named, top.values, rtol=1e-4, atol=1e-6)

    def test_other_texts_with_one_change_nothing(self, config: TeacherConfig, unit: AcousticUnit) -> None:
        texts = [*texts_of(unit), ""]  # an utterance of silence alone
        teacher = open_teacher_model(config)
        for text, together in zip(texts, teacher.read(texts), strict=True):
            (alone,) = teacher.read([text])
            torch.testing.assert_close(alone.vectors, together.vectors, rtol=1e-5, atol=1e-7)

    def test_equal_units_share_an_output_on_disk(
        self, config: TeacherConfig, unit: AcousticUnit, tmp_path: Path
    ) -> None:
        config.storage = "disk"
        texts, own = texts_of(unit), teacher_symbols(config)
        fresh = open_teacher_model(config, tokenizer=own)
        store = open_teacher(config, tokenizer=own, stores=tmp_path)
        assert isinstance(store, StoredTeacher)
        assert fill(store, fresh, texts) == len(set(texts)) == 3
        outputs = store.read(texts)
        assert outputs[0] is outputs[3]
        for stored, computed in zip(outputs, fresh.read(texts), strict=True):
            assert stored.ids is not None
            assert computed.ids is not None
            assert torch.equal(stored.ids, computed.ids)
            assert stored.spans == computed.spans
            torch.testing.assert_close(stored.vectors.float(), computed.vectors, rtol=2**-10, atol=1e-7)
        assert store.identity["unit"] == unit
        assert store.identity["tokenizer"] == own.fingerprint()

    def test_a_frame_takes_what_is_predicted_of_its_unit(self, config: TeacherConfig, unit: AcousticUnit) -> None:
        alignment = aligned("u", ["two", "seven"], TREE)
        text, index = unit_text(alignment, unit)
        own = teacher_symbols(config)
        targets = token_targets(open_teacher_model(config).read([text]), [text], [own.pieces(text)])
        frames = targets.vectors[0][index.clip(0)]
        expected = slowly(config, text).topk(5).values
        for frame, number in enumerate(index.tolist()):
            if number >= 0:
                torch.testing.assert_close(frames[frame].double(), expected[number], rtol=1e-4, atol=1e-6)
        assert int(index.max()) + 1 == len(text.split()) == targets.valid.shape[1] - 1


def test_another_unit_is_another_store(causal: dict[str, Path], masked: dict[str, Path]) -> None:
    """Even of one and the same model."""
    config = config_of(causal["phone"], "phone")
    identity = open_teacher_model(config).identity()
    text = open_teacher_model(config_of(causal["phone"], "text"), tokenizer=teacher_symbols(config)).identity()
    assert {**text, "unit": "phone"} == identity
    assert "unit" not in text, "the stores that are there keep their names"
    hidden = MaskedLMConfig(model=str(masked["phone"]), unit="phone")
    teacher = open_teacher_model(hidden)
    assert isinstance(teacher, MaskedLMTeacher)
    assert teacher.identity()["unit"] == "phone"
    (output,) = teacher.read([texts_of("phone")[0]])
    assert len(output.spans) == len(texts_of("phone")[0].split())


class TestWrongUnits:
    def test_the_model_is_over_another_unit(self, causal: dict[str, Path], bpe: Path) -> None:
        for model, found, asked in (
            (causal["phone"], "phone", "senone"),
            (causal["senone"], "senone", "text"),
            (bpe, "text", "phone"),
        ):
            with pytest.raises(
                UserError, match=f"is over {found}, .*unit: {asked}"
            ) as caught:
                teacher_symbols(config_of(model, asked))
            assert "\n" not in str(caught.value)
        with pytest.raises(UserError, match="is over text"):
            open_teacher_model(config_of(bpe, "phone"), tokenizer=CharacterTokenizer.train(["a"]))
        with pytest.raises(UserError, match=r"case is upper, but senones have no case"):
            teacher_symbols(MaskedLMConfig(model=str(causal["senone"]), unit="senone", topk=1, case="upper"))

    def test_the_alignments_are_others(self, causal: dict[str, Path]) -> None:
        other = tiny_tree(seed=1)
        check_units(config_of(causal["senone"], "senone"), TREE)
        check_units(config_of(causal["phone"], "phone"), other)  # its phones are the same
        with pytest.raises(UserError, match="its senones belong to other alignments"):
            check_units(config_of(causal["senone"], "senone"), other)

    def test_what_is_written_is_broken(self, tmp_path: Path) -> None:
        model = save_lstm(tmp_path, WordTokenizer(["A"]), LmUnits("phone", "x"))
        (model / "model" / "units.json").write_text('{"unit": "phone"}')
        with pytest.raises(UserError, match="cannot be read"):
            teacher_symbols(config_of(model, "phone"))


class TestSymbolIds:
    def test_senones_of_symbols(self, causal: dict[str, Path]) -> None:
        own = teacher_symbols(config_of(causal["senone"], "senone"))
        ids = symbol_ids(own, TREE.count)
        assert (ids.dtype, ids.shape) == (torch.int64, (own.size,))
        assert ids[:4].tolist() == [-1] * 4
        assert [f"S{each}" for each in ids[4:].tolist()] == own.symbols[4:]

    def test_what_is_no_senone(self, causal: dict[str, Path]) -> None:
        own = teacher_symbols(config_of(causal["senone"], "senone"))
        with pytest.raises(UserError, match=r"'S10' is none of the 10 senones"):
            symbol_ids(own, 10)
        with pytest.raises(UserError, match=r"'AH' is none of the 99 senones .2 of its 3"):
            symbol_ids(WordTokenizer(["S1", "AH", "S01"]), 99)


@pytest.fixture(scope="module")
def bpe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal model over pieces of its own."""
    return save_lstm(tmp_path_factory.mktemp("bpe"), BpeTokenizer.train(TRANSCRIPTS, 24), None)


TRANSCRIPTS = [" ".join(words) for words in WORDS]
PIECES = [
    "[PAD]",
    "[UNK]",
    "[CLS]",
    "[SEP]",
    "[MASK]",
    *["one", "two", "eight", "three", "si", "##x", "nine"],
]


class TestSubwords:
    """The pieces are the teacher's, whatever the student's."""

    def test_of_a_causal_model_of_ours(self, bpe: Path) -> None:
        config = config_of(bpe, "text")
        own = teacher_symbols(config)
        assert own.fingerprint() == BpeTokenizer.train(TRANSCRIPTS, 24).fingerprint()
        cut = [own.pieces(text) for text in TRANSCRIPTS]
        targets = token_targets(open_teacher(config, tokenizer=own).read(TRANSCRIPTS), TRANSCRIPTS, cut)
        assert targets.valid.sum(1).tolist() == [len(each) + 1 for each in cut]

    def test_of_a_hugging_face_model_those_that_the_text_has(self, tmp_path: Path) -> None:
        bert = masked_bert(tmp_path / "bert", PIECES)
        config = MaskedLMConfig(model=str(bert), topk=3)
        own = teacher_symbols(config, TRANSCRIPTS)
        assert set(own.symbols[4:]) == set(PIECES[5:-1])  # "nine" is in no text
        teacher = open_teacher_model(config, tokenizer=own)
        targets = token_targets(
            teacher.read(TRANSCRIPTS), TRANSCRIPTS, [own.pieces(text) for text in TRANSCRIPTS]
        )
        assert targets.valid.sum(1).tolist() == [3, 2, 5, 3]
        with pytest.raises(ValueError, match="needs texts"):
            teacher_symbols(config)
