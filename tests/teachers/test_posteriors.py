"""Soft labels: of a language model over the student's pieces, of pretrained ones, fresh and from a store."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from retort.common.errors import UserError
from retort.config.schema import TokenizerConfig
from retort.pretrained.hub import open_tokenizer
from retort.teachers import (
    CachedTeacher,
    PosteriorTeacher,
    StoredTeacher,
    TeacherOutput,
    fill,
    open_teacher_model,
    token_targets,
)
from retort.teachers.masked_lm import MaskedLMConfig
from retort.teachers.posteriors import CausalLMConfig, PieceLMTeacher
from retort.teachers.pretrained_posteriors import CausalPosteriorTeacher, MaskedPosteriorTeacher
from retort.text.tokenizer_io import train_tokenizer
from retort.text.tokenizers import EOS, CharacterTokenizer, Tokenizer
from tiny_lms import TableLM, causal_gpt, masked_bert

TEXTS = ["ab", "", "bca ab", "c", "aabbcc abc abc", "ab"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two", "##ty", "three", "four", "five"]
SENTENCES = ["one two", "twoty three one", "three", "one two three one two", "four one"]


@pytest.fixture(scope="module")
def letters() -> Tokenizer:
    return CharacterTokenizer.train(["abc abc"])


def piece_teacher(tokenizer: Tokenizer, topk: int = 3, batch_rows: int = 256) -> PieceLMTeacher:
    config = CausalLMConfig(model="lm", topk=topk)
    return PieceLMTeacher(config, tokenizer, TableLM(tokenizer), batch_rows=batch_rows)


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return masked_bert(tmp_path_factory.mktemp("masked"), WORDS)


@pytest.fixture(scope="module")
def gpt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return causal_gpt(tmp_path_factory.mktemp("causal"), ["one", "two", "twoty", "three", "four", "five"])


def student_of(teacher: Path, texts: list[str]) -> Tokenizer:
    return train_tokenizer(texts, TokenizerConfig("teacher"), teacher=open_tokenizer(str(teacher)))


def distribution(output: TeacherOutput, row: int, size: int) -> Tensor:
    """`(V,)`, zero for what is not named."""
    assert output.ids is not None
    return torch.zeros(size).index_add(0, output.ids[row].long(), output.vectors[row].float())


def check_top(output: TeacherOutput, row: int, expected: Tensor) -> None:
    """The row names the largest of `expected (V,)` with their probabilities."""
    assert output.ids is not None
    top = expected.topk(output.vectors.shape[1])
    torch.testing.assert_close(output.vectors[row], top.values, atol=1e-6, rtol=1e-4)
    found = expected[output.ids[row].long()]
    torch.testing.assert_close(found, output.vectors[row], atol=1e-6, rtol=1e-4)
    assert len(set(output.ids[row].tolist())) == output.ids.shape[1]


class TestPieceLM:
    @pytest.mark.parametrize("batch_rows", [1, 2, 256])
    def test_each_token_from_those_before_it(self, letters: Tokenizer, batch_rows: int) -> None:
        teacher = piece_teacher(letters, batch_rows=batch_rows)
        for text, output in zip(TEXTS, teacher.read(TEXTS), strict=True):
            ids = letters.encode(text)
            assert (output.text, len(output.vectors)) == (text, len(ids) + 2)
            assert output.spans == [(place, place + 1) for place in range(len(text))]
            assert (output.vectors[0] == 0).all()
            for place in range(len(ids) + 1):
                check_top(output, place + 1, teacher.lm.after(ids[:place]).exp())

    def test_a_signal_of_it_is_of_every_token(self, letters: Tokenizer) -> None:
        teacher = piece_teacher(letters)
        pieces = [letters.pieces(text) for text in TEXTS]
        outputs = teacher.read(TEXTS)
        targets = token_targets(outputs, TEXTS, pieces)
        assert targets.ids is not None
        for b, (output, own) in enumerate(zip(outputs, pieces)):
            assert output.ids is not None
            size = len(own) + 1
            assert targets.valid[b].tolist() == [True] * size + [False] * (targets.valid.shape[1] - size)
            assert torch.equal(targets.vectors[b, :size], output.vectors[1:])
            assert torch.equal(targets.ids[b, :size], output.ids[1:].long())
            assert (targets.vectors[b, size:] == 0).all()

    def test_a_small_vocabulary_is_named_whole(self, letters: Tokenizer) -> None:
        teacher = piece_teacher(letters, 99)
        assert teacher.dim == letters.size == 8
        (output,) = teacher.read(["ab"])
        torch.testing.assert_close(output.vectors[1:].sum(1), torch.ones(3))

    def test_other_pieces_are_one_line(self, letters: Tokenizer) -> None:
        config = CausalLMConfig(model="exp/lm", topk=3)
        other = TableLM(CharacterTokenizer.train(["xyz"]))
        with pytest.raises(UserError, match=r"exp/lm.*7 pieces .* 8 pieces of the student.*kind: student"):
            PieceLMTeacher(config, letters, other)

    def test_of_other_pieces_no_signal_is_made(self, letters: Tokenizer) -> None:
        output = piece_teacher(letters).read(["ab"])
        pieces = [CharacterTokenizer.train(["ab"]).pieces("ab")[:1]]
        with pytest.raises(ValueError, match="other pieces than the student's"):
            token_targets(output, ["ab"], pieces)


class TestMasked:
    def slowly(self, teacher: MaskedPosteriorTeacher, ids: list[int], place: int) -> Tensor:
        """The posterior over the teacher's pieces with this one hidden."""
        hidden = [2, *ids, 3]
        hidden[place + 1] = 4
        logits = teacher._model.model(input_ids=torch.tensor([hidden])).logits
        return logits[0, place + 1].softmax(-1)

    @pytest.mark.parametrize("batch_pieces", [1, 4096])
    def test_each_piece_from_all_others(self, bert: Path, batch_pieces: int) -> None:
        student = student_of(bert, SENTENCES[:4])
        config = MaskedLMConfig(model=str(bert), topk=3)
        teacher = MaskedPosteriorTeacher(config, student, batch_pieces=batch_pieces)
        known = {WORDS.index(symbol): own for own, symbol in enumerate(student.symbols) if symbol in WORDS}
        assert len(known) == 4  # one two ##ty three; four and five stand in no text
        for text, output in zip(SENTENCES[:4], teacher.read(SENTENCES[:4])):
            ids = open_tokenizer(str(bert))(text, add_special_tokens=False)["input_ids"]
            assert len(ids) == len(output.spans)
            for place in range(len(ids)):
                posterior = self.slowly(teacher, ids, place)
                expected = torch.zeros(student.size)
                for each, own in known.items():
                    expected[own] = posterior[each]
                check_top(output, place + 1, expected)
                assert output.vectors[place + 1].sum() < 0.999  # what it gives to others is missing
            over = distribution(output, len(ids) + 1, student.size)
            assert (over[EOS], over.sum()) == (1.0, 1.0)

    def test_a_token_that_is_not_its_piece_is_left_out(self, bert: Path) -> None:
        student = student_of(bert, SENTENCES[:4])
        teacher = MaskedPosteriorTeacher(MaskedLMConfig(model=str(bert), topk=3), student)
        text = "four one"  # unknown to the student, known to the teacher
        outputs, pieces = teacher.read([text]), [student.pieces(text)]
        assert token_targets(outputs, [text], pieces).valid.tolist() == [[False, True, True]]

    def test_what_is_too_long_loses_its_end(self, bert: Path) -> None:
        student = student_of(bert, SENTENCES[:4])
        teacher = MaskedPosteriorTeacher(MaskedLMConfig(model=str(bert), topk=3), student)
        text = "one two " * 30
        targets = token_targets(teacher.read([text]), [text], [student.pieces(text)])
        assert targets.valid[0].tolist() == [True] * 38 + [False] * 22 + [True]

    def test_han_characters_of_a_student_of_its_own(self, tmp_path: Path) -> None:
        folder = masked_bert(tmp_path, [*WORDS[:5], *"我爱你", "x"])
        student = CharacterTokenizer.train(["我爱你它X"])
        teacher = MaskedPosteriorTeacher(MaskedLMConfig(model=str(folder), topk=9), student)
        text = "我爱它X"
        targets = token_targets(teacher.read([text]), [text], [student.pieces(text)])
        assert targets.valid.tolist() == [[True, True, False, False, True]]

    def test_no_piece_in_common_is_one_line(self, bert: Path) -> None:
        with pytest.raises(
            UserError, match=r"none of the student's 6 pieces.*tokenizer.kind: teacher"
        ):
            MaskedPosteriorTeacher(MaskedLMConfig(model=str(bert), topk=3), CharacterTokenizer.train(["xy"]))

    def test_an_encoder_without_a_head_is_one_line(self, tone_bert: Path) -> None:
        student = student_of(tone_bert, ["abc"])
        with pytest.raises(UserError, match="masked-LM head"):
            MaskedPosteriorTeacher(MaskedLMConfig(model=str(tone_bert), topk=3), student)


class TestCausal:
    @pytest.mark.parametrize("batch_pieces", [1, 4096])
    def test_each_piece_from_those_before_it(self, gpt: Path, batch_pieces: int) -> None:
        texts = SENTENCES[:4]
        student = student_of(gpt, texts)
        config = CausalLMConfig(model=str(gpt), topk=3)
        teacher = CausalPosteriorTeacher(config, student, batch_pieces=batch_pieces)
        pieces = open_tokenizer(str(gpt))
        end = pieces.eos_token_id
        known = {pieces.get_vocab()[symbol]: own for own, symbol in enumerate(student.symbols[4:], 4)} | {
            end: EOS
        }
        for text, output in zip(texts, teacher.read(texts)):
            ids = pieces(text, add_special_tokens=False)["input_ids"]
            for place in range(len(ids) + 1):
                with torch.no_grad():
                    posterior = teacher._model(torch.tensor([[end, *ids[:place]]])).logits[0, -1].softmax(-1)
                expected = torch.zeros(student.size)
                for each, own in known.items():
                    expected[own] = posterior[each]
                check_top(output, place + 1, expected)

    def test_of_what_is_too_long_nothing_is_predicted(self, gpt: Path) -> None:
        student = student_of(gpt, SENTENCES)
        teacher = CausalPosteriorTeacher(CausalLMConfig(model=str(gpt), topk=3), student)
        texts = ["one " * 11, "one " * 12]
        targets = token_targets(teacher.read(texts), texts, [student.pieces(text) for text in texts])
        assert targets.valid.sum(1).tolist() == [12, 0]

    def test_a_model_without_an_end_and_one_that_sees_ahead(self, tmp_path: Path, bert: Path) -> None:
        endless = causal_gpt(tmp_path, ["one", "two"], end=False)
        student = student_of(endless, ["one two"])
        with pytest.raises(UserError, match="no end-of-text piece"):
            CausalPosteriorTeacher(CausalLMConfig(model=str(endless), topk=3), student)
        config = CausalLMConfig(model=str(bert), topk=3)
        with pytest.raises(UserError, match="no end-of-text piece"):
            CausalPosteriorTeacher(config, student_of(bert, SENTENCES))


class TestOpening:
    def test_kinds(self, bert: Path, gpt: Path, letters: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
        student = student_of(bert, SENTENCES)
        assert isinstance(
            open_teacher_model(MaskedLMConfig(model=str(bert), topk=3), tokenizer=student), MaskedPosteriorTeacher
        )
        config = CausalLMConfig(model=str(gpt), topk=3)
        assert isinstance(open_teacher_model(config, tokenizer=student_of(gpt, SENTENCES)), CausalPosteriorTeacher)
        monkeypatch.setattr("retort.teachers.factory.is_causal_lm", lambda name: name == "exp/lm")
        monkeypatch.setattr("retort.teachers.factory.open_causal_lm", lambda name, device: TableLM(letters))
        config = CausalLMConfig(model="exp/lm", topk=3)
        assert isinstance(open_teacher_model(config, tokenizer=letters), PieceLMTeacher)

    def test_without_the_students_tokenizer(self, bert: Path) -> None:
        with pytest.raises(UserError, match=r"not exist yet.*retort train"):
            open_teacher_model(MaskedLMConfig(model=str(bert), topk=3))


class TestStore:
    def stored(self, teacher: PosteriorTeacher, root: Path, texts: list[str]) -> StoredTeacher:
        store = StoredTeacher(root, teacher.identity())
        fill(store, teacher, texts, shard_texts=2)
        return StoredTeacher(root, teacher.identity())

    def test_what_was_stored_is_there_half_as_exact(self, bert: Path, tmp_path: Path) -> None:
        student = student_of(bert, SENTENCES[:4])
        teacher = MaskedPosteriorTeacher(MaskedLMConfig(model=str(bert), topk=3), student)
        store = self.stored(teacher, tmp_path, SENTENCES)
        for stored, fresh in zip(store.read(SENTENCES), teacher.read(SENTENCES)):
            assert stored.ids is not None
            assert fresh.ids is not None
            assert (stored.vectors.dtype, stored.ids.dtype) == (torch.float16, torch.int32)
            assert torch.equal(stored.ids, fresh.ids)
            assert stored.spans == fresh.spans
            torch.testing.assert_close(stored.vectors.float(), fresh.vectors, rtol=2**-10, atol=1e-7)
        pieces = [student.pieces(text) for text in SENTENCES]
        one, two = (token_targets(each.read(SENTENCES), SENTENCES, pieces) for each in (store, teacher))
        assert one.ids is not None
        assert two.ids is not None
        assert torch.equal(one.valid, two.valid)
        assert torch.equal(one.ids[one.valid], two.ids[two.valid])

    def test_another_k_model_case_or_student_is_another_store(self, bert: Path, tmp_path: Path) -> None:
        student, other = student_of(bert, SENTENCES[:2]), student_of(bert, SENTENCES)
        twin = masked_bert(tmp_path / "twin", WORDS, seed=1)
        configs = [
            (MaskedLMConfig(model=str(bert), topk=3), student),
            (MaskedLMConfig(model=str(bert), topk=2), student),
            (MaskedLMConfig(model=str(bert), topk=3, case="lower"), student),
            (MaskedLMConfig(model=str(bert), topk=3), other),
            (MaskedLMConfig(model=str(twin), topk=3), student),
        ]
        keys = [
            StoredTeacher(tmp_path, MaskedPosteriorTeacher(config, tokenizer).identity()).key
            for config, tokenizer in configs
        ]
        assert len(set(keys)) == len(keys)

    def test_a_piece_lm_is_known_by_its_files(self, letters: Tokenizer, tmp_path: Path) -> None:
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text("{}")
        config = CausalLMConfig(model=str(tmp_path), topk=3)
        teacher = PieceLMTeacher(config, letters, TableLM(letters))
        first = teacher.identity()
        store = self.stored(teacher, tmp_path / "stores", TEXTS)
        assert store.missing(TEXTS) == []
        (tmp_path / "model" / "weights").write_text("other")
        assert teacher.identity()["weights"] != first["weights"]

    def test_a_shard_whose_ids_are_damaged_is_made_again(self, bert: Path, tmp_path: Path) -> None:
        from safetensors import safe_open
        from safetensors.torch import load_file, save_file

        teacher = MaskedPosteriorTeacher(MaskedLMConfig(model=str(bert), topk=3), student_of(bert, SENTENCES))
        store = self.stored(teacher, tmp_path, SENTENCES[:2])
        (path,) = store.folder.glob("*.safetensors")
        with safe_open(path, "pt") as file:
            metadata = file.metadata()
        tensors = load_file(path)
        save_file({**tensors, "ids": tensors["ids"][1:].contiguous()}, path, metadata)
        assert StoredTeacher(tmp_path, teacher.identity()).broken == [path]

    def test_memory_counts_the_ids_too(self, letters: Tokenizer) -> None:
        cache = CachedTeacher(piece_teacher(letters))
        cache.read(["ab"])
        assert cache.bytes == 4 * 3 * (4 + 4)
