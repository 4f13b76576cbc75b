"""Folders in object storage or on web servers, read through fsspec by way of local copies of whole files."""

from __future__ import annotations

import contextlib
import hashlib
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from retort.common.errors import UserError
from retort.common.files import PARTIAL
from retort.common.locks import one_at_a_time
from retort.pretrained.cache import cache_folder

_ATTEMPTS = 4
_SMALL = 2**26
"""Maximum bytes of a file whose size is not known in advance."""


class RemoteFolder:
    """A remote folder with a local cache, which the processes of a machine share.

    Files are read from their start to their end, and verified. The cache is below `$RETORT_CACHE/shards`; the files
    that were not used for the longest time are removed when it exceeds its limit.

    Args:
        address: such as `s3://bucket/shards/train` or `https://host/shards/train`.
        limit: maximum bytes of the cached files of this folder.

    Raises:
        UserError: the package for this kind of storage is not installed.
    """

    def __init__(self, address: str, limit: int) -> None:
        self.address, self.limit = address.rstrip("/"), limit
        key = hashlib.sha256(self.address.encode()).hexdigest()[:16]
        self.cache = cache_folder() / "shards" / key
        _file_system(self.address)  # raises the errors of an unknown kind

    def read(self, name: str) -> bytes:
        """The content of a small file.

        Raises:
            UserError: it is too long, or cannot be read.
            FileNotFoundError: it does not exist.
        """
        return b"".join(self._blocks(name, _SMALL))

    def local(self, name: str, size: int, digest: str) -> Path:
        """The local copy of a file, made if it is missing.

        Args:
            size: bytes of the file.
            digest: its SHA-256.

        Raises:
            UserError: it cannot be read, or has another length or content.
        """
        path = self.cache / f"{digest[:16]}-{name}"
        with contextlib.suppress(FileNotFoundError):
            os.utime(path)
            return path
        path.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(self.cache / f"{digest[:16]}.lock"):
            if not path.exists():
                self._make_room(size)
                self._download(name, path, size, digest)
        return path

    def _make_room(self, size: int) -> None:
        files = []
        for path in self.cache.glob("*-*"):
            with contextlib.suppress(FileNotFoundError):
                status = path.stat()
                files.append((status.st_mtime, status.st_size, path))
        used = sum(each[1] for each in files)
        for _, freed, path in sorted(files):
            if used + size <= self.limit:
                break
            path.unlink(missing_ok=True)  # a process that has it open can still read it
            used -= freed

    def _download(self, name: str, path: Path, size: int, digest: str) -> None:
        partial = path.with_name(f"{uuid.uuid4().hex}{PARTIAL}")
        try:
            found = hashlib.sha256()
            with partial.open("xb") as file:
                for block in self._blocks(name, size):
                    found.update(block)
                    file.write(block)
            if partial.stat().st_size != size or found.hexdigest() != digest:
                raise UserError(
                    "damaged: its length or its SHA-256 differs from shards.json",
                    where=f"{self.address}/{name}",
                    remedy="Upload it again",
                )
            partial.rename(path)
        except OSError as error:
            raise UserError(
                f"cannot be written ({error.strerror or error})", where=path, remedy="Set data.shard_cache"
            ) from None
        finally:
            partial.unlink(missing_ok=True)

    def _blocks(self, name: str, most: int) -> Iterator[bytes]:
        """The content of a file; after an error reading continues where it stopped.

        Raises:
            UserError: the file is longer than `most` bytes, or cannot be read.
        """
        place, done, attempt = f"{self.address}/{name}", 0, 0
        while True:
            try:
                files, path = _file_system(place)
                with files.open(path, "rb", block_size=2**22) as file:
                    file.seek(done)
                    while block := file.read(2**20):
                        done += len(block)
                        if done > most:
                            raise UserError(f"longer than {most:,} bytes", where=place)
                        yield block
                return
            except (UserError, FileNotFoundError, GeneratorExit):
                raise
            except Exception as error:  # every kind of storage has its own errors
                attempt += 1
                if attempt == _ATTEMPTS:
                    reason = " ".join(str(error).split())[:200] or type(error).__name__
                    raise UserError(f"cannot be read ({reason})", where=place) from None
                time.sleep(2**attempt)


def _file_system(address: str) -> tuple[Any, str]:
    """The fsspec file system of an address, and the path in it."""
    try:
        from fsspec.core import url_to_fs

        files, path = url_to_fs(address)
    except ImportError as error:
        raise UserError(
            f"a package is missing ({error})", where=address, remedy="pip install 'retort-asr[storage]'"
        ) from None
    except ValueError as error:
        raise UserError(f"unknown kind of storage ({error})", where=address) from None
    return files, path
