"""Training, saving and opening of tokenizers."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from retort.common.checksums import verify
from retort.common.errors import UserError
from retort.common.files import check_format
from retort.common.json_reader import read_json
from retort.config.schema import TokenizerConfig
from retort.text.teacher_pieces import TeacherTokenizer
from retort.text.tokenizers import FILE, FORMAT, BpeTokenizer, CharacterTokenizer, Tokenizer, WordTokenizer
from retort.text.whisper_pieces import WhisperTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def train_tokenizer(
    texts: Iterable[str],
    config: TokenizerConfig,
    *,
    teacher: PreTrainedTokenizerFast | str | Path | None = None,
    teacher_case: str = "keep",
    text_case: str = "keep",
) -> Tokenizer:
    """Train the tokenizer of a recipe on normalised training text.

    Args:
        texts: transcripts of the training data only.
        config: kind and size.
        teacher: for `teacher`: a fast Hugging Face tokenizer or the folder of one.
        teacher_case: for `teacher`: the case of its input.
        text_case: for `teacher`: the case of decoded text; `keep` is that of the training text.

    Raises:
        UserError: there is no text or no usable teacher, the kind is unknown, or the text does not allow the size.
    """
    lines = [text for text in texts if text.strip()]
    if not lines:
        raise UserError(
            "the training text for the tokenizer is empty", remedy="Check data.train and the normaliser"
        )
    result: Tokenizer
    if config.kind == "characters":
        result = CharacterTokenizer.train(lines)
    elif config.kind == "bpe":
        if config.size is None:
            raise UserError("tokenizer.kind is bpe, but tokenizer.size is not set", remedy="Add size, e.g. 300")
        result = BpeTokenizer.train(lines, config.size)
    elif config.kind == "teacher":
        if teacher is None:
            raise UserError("tokenizer.kind is teacher, but there is no teacher", remedy="Set tokenizer.teacher")
        result = TeacherTokenizer.train(lines, teacher, teacher_case, text_case)
    else:
        raise UserError(f"tokenizer.kind is '{config.kind}'", remedy="Choose characters, bpe or teacher")
    if config.size is not None and config.size != result.size:
        raise UserError(
            f"tokenizer.size is {config.size}, but the training text has {result.size}",
            remedy=f"Set tokenizer.size to {result.size}, or remove it",
        )
    return result


def open_tokenizer(folder: str | Path, *, decode_only: bool = False) -> Tokenizer:
    """Open a tokenizer saved by :meth:`Tokenizer.save`.

    Args:
        folder: the folder.
        decode_only: without the packages `tokenizers` and `sentencepiece`; texts cannot be encoded.

    Raises:
        UserError: a file is missing, damaged, or of another version.
    """
    path = Path(folder) / FILE
    again = "Train the tokenizer again, or copy the whole folder"
    try:
        verify(Path(folder), remedy=again)
        state = read_json(path)
        check_format(state["format"], FORMAT, path)
        return _kind(state["kind"])._open(state, Path(folder), decode_only)
    except FileNotFoundError as error:
        raise UserError("no such file", where=error.filename, remedy=again) from None
    except (UserError, ImportError):
        raise
    except Exception as error:  # sentencepiece and tokenizers raise bare Exception and RuntimeError
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"damaged tokenizer ({reason})", where=folder, remedy=again) from None


def _kind(name: str) -> type[Tokenizer]:
    kinds: tuple[type[Tokenizer], ...] = (
        CharacterTokenizer,
        BpeTokenizer,
        WordTokenizer,
        TeacherTokenizer,
        WhisperTokenizer,
    )
    return {each.kind: each for each in kinds}[name]
