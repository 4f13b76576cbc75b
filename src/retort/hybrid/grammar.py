"""An n-gram model in an ARPA file as a transducer of words, by kaldilm (Kaldi's `arpa2fst`)."""

from __future__ import annotations

import gzip
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import IO, Any, cast

from retort.errors import UserError
from retort.files import LONGEST_TEXT, lines_up_to
from retort.hybrid.fst import wheel

_START, _END, _BACKOFF = "<s>", "</s>", "#0"
_RESERVED = {_START, _END, _BACKOFF, "<eps>", "<unk>", "<UNK>"}
_REMEDY = "Make the file again"


def words_of(arpa: Path) -> list[str]:
    """The words of an ARPA file, in its order, without those that stand for none (sentence ends, the unknown).

    Raises:
        UserError: it cannot be read, or has no words.
    """
    words: list[str] = []
    inside = False
    try:
        with opened(arpa) as file:
            for line in lines_up_to(LONGEST_TEXT, file, arpa):
                text = line.rstrip(b"\r\n").decode()
                if text.startswith("\\"):
                    if inside:
                        break
                    inside = text.startswith("\\1-grams:")
                elif inside:
                    fields = [each for each in text.replace("\t", " ").split(" ") if each]
                    words += fields[1:2]
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as error:
        raise UserError(f"cannot be read ({error})", where=arpa, remedy=_REMEDY) from None
    words = [word for word in dict.fromkeys(words) if word not in _RESERVED]
    if not words:
        raise UserError("no words in it", where=arpa, remedy="Give an ARPA file")
    return words


def grammar_fst(arpa: Path, words: Sequence[str]) -> Any:
    """The model as a `StdVectorFst`, sorted by input: word i has label i + 1, its back-off one more than the last.

    N-grams with other words are left out, as are those of the unknown word.

    Raises:
        UserError: the file is broken.
    """
    kaldifst = wheel("kaldifst")
    wheel("kaldilm")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        symbols = ["<eps>", *words, _BACKOFF, _START, _END]
        lines = "".join(f"{symbol} {label}\n" for label, symbol in enumerate(symbols))
        (folder / "words.txt").write_text(lines, encoding="utf-8")
        with opened(arpa) as packed, (folder / "arpa").open("wb") as plain:
            plain.writelines(lines_up_to(LONGEST_TEXT, packed, arpa))
        # A process of its own: the library writes its log to the terminal, whatever Python's stderr is.
        done = subprocess.run(
            [
                *(sys.executable, "-m", "kaldilm", f"--disambig-symbol={_BACKOFF}", "--max-arpa-warnings=0"),
                *("--read-symbol-table=words.txt", "arpa", "grammar.fst"),
            ],
            cwd=folder,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            check=False,
        )
        if done.returncode or not (folder / "grammar.fst").exists():
            said = [
                line for line in done.stderr.decode(errors="replace").splitlines() if line.startswith("[E]")
            ]
            reason = said[-1].removeprefix("[E]").strip() if said else f"kaldilm ended with {done.returncode}"
            raise UserError(f"no graph can be made of it ({reason})", where=arpa, remedy=_REMEDY)
        return kaldifst.StdVectorFst.read(str(folder / "grammar.fst"))


def opened(path: Path) -> IO[bytes]:
    """What is in an ARPA file, whether it is compressed or not."""
    return cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb")
