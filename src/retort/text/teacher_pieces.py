"""The teacher's pieces as the student's vocabulary, and access to a teacher's tokenizer."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retort.common.errors import UserError
from retort.common.huggingface import open_part
from retort.common.json_reader import parse_json
from retort.text.normalise import UNKNOWN_TEXT, character_class, recase
from retort.text.tokenizers import SPACE, SPECIAL, UNKNOWN, Piece, Tokenizer, strip_span
from retort.text.vocabulary import open_vocabulary

if TYPE_CHECKING:
    from tokenizers import Tokenizer as Backend
    from transformers import PreTrainedTokenizerFast

_FILE = "tokenizer.teacher.json"
_RUN = re.compile(r"\S+")


class TeacherReader:
    """Tokenises text as the teacher does.

    Args:
        backend: the teacher's tokenizer; a copy without truncation and padding is used.
        case: `upper`, `lower` or `keep`; applied to the text first.
    """

    def __init__(self, backend: Backend, case: str = "keep") -> None:
        self.backend = type(backend).from_str(backend.to_str())
        self.backend.no_truncation()
        self.backend.no_padding()
        self.case = case
        model = parse_json(self.backend.to_str())["model"]
        vocabulary = self.backend.get_vocab()
        # WordPiece marks continuations of words, byte-pair and unigram models mark their starts.
        self._continuing = model.get("continuing_subword_prefix") or ""
        marks = Counter(token[0] for token in vocabulary if token[:1] in (SPACE, "Ġ"))
        self._mark = marks.most_common(1)[0][0] if marks and model["type"] in ("BPE", "Unigram") else ""
        self._unknown = {
            each for each, token in self.backend.get_added_tokens_decoder().items() if token.special
        }
        self._unknown |= {vocabulary.get(model.get("unk_token"), -1), model.get("unk_id", -1)}

    def spacing(self, token: str) -> bool | None:
        """Whether a piece is preceded by a space; None if it is not marked."""
        if self._mark:
            return token.startswith(self._mark)
        return False if self._continuing and token.startswith(self._continuing) else None

    def piece_of(self, surface: str, starts: bool) -> int:
        """Id of the piece with the text `surface`, at the start of a word or within one; -1 if there is none."""
        surface = recase(surface, self.case)
        if not self._mark and self.backend.normalizer is not None:
            surface = self.backend.normalizer.normalize_str(surface).strip()  # BERT separates Han characters
        found = self.backend.token_to_id((self._mark if starts else self._continuing) + surface)
        return -1 if found is None or found in self._unknown else found

    def read(self, text: str) -> list[tuple[int, int, int]]:
        """Teacher id (-1: unknown to the teacher, special, or part of a character), start, end of each piece.

        Spans are as in :meth:`retort.text.tokenizers.Tokenizer.pieces`.
        """
        encoding = self.backend.encode(recase(text, self.case), add_special_tokens=False)
        found: list[tuple[int, int, int]] = []
        for each, token, span in zip(encoding.ids, encoding.tokens, encoding.offsets):
            start, end = strip_span(text, *span)
            if token == self._mark and text[start:end].strip():
                end = start  # a separate mark, whose span is that of the next character
            if found and start < found[-1][2]:
                found[-1] = (-1, found[-1][1], max(end, found[-1][2]))
            else:
                found.append((-1 if each in self._unknown else each, start, end))
        return _fill_gaps(text, found)


def _fill_gaps(text: str, pieces: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Assign characters that the teacher deletes (accents, controls) to an adjacent piece, or to the unknown piece."""
    found: list[tuple[int, int, int]] = []
    for each, start, end in [*pieces, (-1, len(text), len(text))]:
        position = found[-1][2] if found else 0
        for run in _RUN.finditer(text, position, max(start, position)):
            left, right = run.span()
            if found and found[-1][1] < found[-1][2] == left:
                found[-1] = (found[-1][0], found[-1][1], right)
            elif right == start < len(text):
                start = left
            else:
                found.append((-1, left, right))
        found.append((each, start, end))
    return found[:-1]


def open_backend(teacher: PreTrainedTokenizerFast | str | Path) -> Backend:
    """The `tokenizers` object of a fast tokenizer, or of a folder with `tokenizer.json` or BERT's
    `vocab.txt`.

    Raises:
        UserError: the folder has neither, the file is damaged, or the tokenizer is not fast.
    """
    if not isinstance(teacher, str | Path):
        backend: Backend | None = getattr(teacher, "backend_tokenizer", None)
        if backend is None:
            raise UserError(
                f"{type(teacher).__name__} has no character spans",
                remedy="Use the teacher's fast tokenizer",
            )
        return backend
    folder = Path(teacher)
    try:
        if (folder / "tokenizer.json").is_file():
            from tokenizers import Tokenizer as BackendClass

            return BackendClass.from_file(str(folder / "tokenizer.json"))
        if (folder / "vocab.txt").is_file():
            from transformers import BertTokenizerFast

            tokenizer: PreTrainedTokenizerFast = open_part(BertTokenizerFast, folder, local=True)
            return tokenizer.backend_tokenizer
    except ImportError:
        raise
    except Exception as error:  # tokenizers raises bare Exception
        reason = " ".join(str(error).split())
        raise UserError(
            f"damaged tokenizer of the teacher ({reason})", where=folder, remedy="Fetch the teacher again"
        ) from None
    raise UserError(
        "no tokenizer of a teacher", where=folder, remedy="Choose a folder with tokenizer.json or vocab.txt"
    )


class TeacherTokenizer(Tokenizer):
    """The teacher's pieces that occur in the training text, by frequency, then by the teacher's id.

    A student piece is a teacher piece, so their alignment is one to one. Decoding writes each piece as the
    training text did most often (with case and accents), and restores spaces: by the
    teacher's marks if it has them ("##ing", "Ġthe", "▁the"), otherwise as in most cases of the training text
    between such characters ("don", "'", "t" is "don't"; none between Han characters). Parts of a character (byte
    pieces) are unknown.

    Args:
        backend: the teacher's tokenizer; a copy is used.
        tokens: teacher pieces in the order of the ids.
        surfaces: text of each piece in decoded text.
        spaced: whether there is a space between two classes of characters (:func:`character_class`).
        teacher_case: `upper`, `lower` or `keep`; applied to the text before the teacher's tokenizer.
        text_case: the same, applied to decoded text.
    """

    kind = "teacher"

    def __init__(
        self,
        backend: Backend,
        tokens: Sequence[str],
        surfaces: Sequence[str],
        spaced: dict[tuple[str, str], bool],
        teacher_case: str = "keep",
        text_case: str = "keep",
    ) -> None:
        if len(tokens) != len(surfaces) or any(backend.token_to_id(token) is None for token in tokens):
            raise ValueError("the pieces differ from the teacher's")
        super().__init__(tokens)
        self._reader = TeacherReader(backend, teacher_case)
        self._student_ids = {backend.token_to_id(token): self._ids[token] for token in tokens}
        self._surfaces = ["", "", "", UNKNOWN_TEXT, *surfaces]
        self._shown = [recase(surface, text_case) for surface in self._surfaces]
        self._spaced = spaced
        self._han = spaced.get(("cjk", "cjk")) is False
        self._text_case = text_case

    @classmethod
    def train(
        cls, texts: Iterable[str], teacher: PreTrainedTokenizerFast | str | Path,
        teacher_case: str = "keep", text_case: str = "keep",
    ) -> TeacherTokenizer:  # fmt: skip
        """Collect the teacher's pieces of the texts; `teacher` is a fast tokenizer or the folder of one.

        Raises:
            UserError: the folder has no tokenizer, or it is not fast.
        """
        backend = open_backend(teacher)
        reader = TeacherReader(backend, teacher_case)
        counts: Counter[int] = Counter()
        written: dict[int, Counter[str]] = {}
        boundaries: Counter[tuple[str, str, bool]] = Counter()
        for text in texts:
            last = ""
            for each, start, end in reader.read(text):
                if each >= 0:
                    counts[each] += 1
                    written.setdefault(each, Counter())[text[start:end].strip()] += 1
                    if last and start < end and reader.spacing(_token(backend, each)) is None:
                        boundaries[
                            character_class(last), character_class(text[start]), text[start - 1] == " "
                        ] += 1
                last = text[end - 1] if end else ""
        found = sorted(counts, key=lambda each: (-counts[each], each))
        spaced = {
            (left, right): boundaries[left, right, True] >= boundaries[left, right, False]
            for left, right, _ in sorted(boundaries)
        }
        surfaces = [min(written[each], key=lambda text: (-written[each][text], text)) for each in found]
        tokens = [_token(backend, each) for each in found]
        return cls(backend, tokens, surfaces, spaced, teacher_case, text_case)

    def pieces(self, text: str) -> list[Piece]:
        found = [
            Piece(self._student_ids.get(each, UNKNOWN), *span) for each, *span in self._reader.read(text)
        ]
        # A separate mark ("▁") that is not in the training text covers no character.
        return [piece for piece in found if piece.id != UNKNOWN or text[piece.start : piece.end].strip()]

    def _texts(self, ids: list[int]) -> list[str]:
        texts, last = [], None
        for each in ids:
            text = self._shown[each]
            if each >= UNKNOWN:
                if last is not None and self._space_between(last, each):
                    text = " " + text
                last = each
            texts.append(text)
        return texts

    def _space_between(self, left: int, right: int) -> bool:
        spacing = self._reader.spacing(self.symbols[right]) if right != UNKNOWN else None
        if spacing is not None or not self._surfaces[left] or not self._surfaces[right]:
            return bool(spacing)
        classes = character_class(self._surfaces[left][-1]), character_class(self._surfaces[right][0])
        # Two classes that never occurred together: a space between words, unless the script has none.
        return self._spaced.get(classes, set(classes) <= {"letter", "digit"} and not self._han)

    def _state(self) -> dict[str, Any]:
        return {
            "teacher_case": self._reader.case,
            "text_case": self._text_case,
            "symbols": self.symbols[len(SPECIAL) :],
            "surfaces": self._surfaces[len(SPECIAL) :],
            "spaced": [[left, right, value] for (left, right), value in self._spaced.items()],
        }

    def _files(self) -> dict[str, bytes]:
        return {_FILE: self._reader.backend.to_str().encode()}

    @classmethod
    def _open(cls, state: dict[str, Any], folder: Path, decode_only: bool = False) -> TeacherTokenizer:
        backend = open_vocabulary((folder / _FILE).read_text(encoding="utf-8"), decode_only)
        spaced = {(left, right): bool(value) for left, right, value in state["spaced"]}
        return cls(
            backend, state["symbols"], state["surfaces"], spaced, state["teacher_case"], state["text_case"]
        )


def _token(backend: Backend, each: int) -> str:
    token = backend.id_to_token(each)
    assert token is not None, each
    return token
