"""Plain text, sentence by sentence: text files, and the transcripts of Kaldi folders and manifests."""

from __future__ import annotations

import gzip
import hashlib
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, cast

from retort.common.errors import UserError
from retort.common.files import LONGEST_TEXT, lines_up_to
from retort.corpora.open_cuts import find_data, open_cuts


class Sentences:
    """The sentences of one source, in order, blank lines left out; they are read anew at each iteration.

    Args:
        source: a text file (plain, `.gz`, `.xz`; UTF-8, one sentence a line), a Kaldi folder or a manifest; see
            :func:`find_data`.

    Raises:
        UserError: nothing there; while iterating: not UTF-8, damaged, or no sentence in it.
    """

    def __init__(self, source: str | Path) -> None:
        self.path = find_data(source)
        self._texts: list[str] | None = None
        if self.path.is_dir() or self.path.name.endswith((".jsonl", ".jsonl.gz")):
            self._texts = [cut.supervisions[0].text for cut in open_cuts(self.path).cuts]

    def __iter__(self) -> Iterator[str]:
        found = False
        for line in self._lines() if self._texts is None else self._texts:
            if line := line.strip():
                found = True
                yield line
        if not found:
            raise UserError("no text in it", where=self.path, remedy="Give one sentence a line")

    def fingerprint(self) -> str:
        """32 hex digits of what is in it, wherever it lies."""
        if self._texts is None:
            with self.path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()[:32]
        return hashlib.sha256("\n".join(self._texts).encode()).hexdigest()[:32]

    def _lines(self) -> Iterator[str]:
        number = 0
        try:
            with _open(self.path) as file:
                for number, line in enumerate(lines_up_to(LONGEST_TEXT, file, self.path), 1):
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise UserError(
                f"line {number} is not UTF-8", where=self.path, remedy="Save it as UTF-8"
            ) from None
        except (lzma.LZMAError, gzip.BadGzipFile, EOFError, zlib.error):
            raise UserError("damaged or cut short", where=self.path, remedy="Fetch it again") from None
        except OSError as error:
            raise UserError(f"cannot be read ({error.strerror or error})", where=self.path) from None


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".xz":
        return lzma.open(path)
    return cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb")
