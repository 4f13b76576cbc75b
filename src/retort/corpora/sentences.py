"""Sentences of text files, and of the transcripts of Kaldi folders and manifests."""

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
    """The sentences of one source in order, without blank lines; the source is read at each iteration.

    Args:
        source: a text file (plain, `.gz`, `.xz`; UTF-8, one sentence per line), a Kaldi folder or a manifest; see
            :func:`find_data`.

    Raises:
        UserError: it does not exist; while iterating: it is not UTF-8, damaged, or has no sentence.
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
            raise UserError("it contains no text", where=self.path, remedy="Write one sentence per line")

    def fingerprint(self) -> str:
        """Hash of the content, 32 hex digits, independent of its path."""
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
            raise UserError("damaged or incomplete", where=self.path, remedy="Fetch it again") from None
        except OSError as error:
            raise UserError(f"cannot be read ({error.strerror or error})", where=self.path) from None


def _open(path: Path) -> IO[bytes]:
    if path.suffix == ".xz":
        return lzma.open(path)
    return cast(IO[bytes], gzip.open(path)) if path.suffix == ".gz" else path.open("rb")
