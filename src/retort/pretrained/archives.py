"""Extraction of members of downloaded packages: wheels and .tgz files are read as archives, and nothing is
installed."""

from __future__ import annotations

import fnmatch
import hashlib
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from retort.common.errors import UserError
from retort.pretrained.catalogue import File, Folder

_BLOCK = 1 << 20


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def join_members(
    file: File, archives: list[Path], out: Path, step: Callable[[int], None] = lambda count: None
) -> None:
    """Assemble a file of the catalogue from members of archives.

    Args:
        archives: archives of the entry's packages, in order.
        step: called with the number of bytes of every block.

    Raises:
        UserError: an archive cannot be read or lacks a member, or the checksum of the result differs.
    """
    digest, size = hashlib.sha256(), 0
    with out.open("wb") as target:
        for member in file.members:
            number, path = member.split(":", 1)
            archive = archives[int(number)]
            with _open_archive(archive, path) as source:
                while block := source.read(_BLOCK):
                    size += len(block)
                    if size > file.bytes:
                        raise _other(out.name, archive, f"more than {file.bytes:,} bytes")
                    digest.update(block)
                    target.write(block)
                    step(len(block))
    if digest.hexdigest() != file.sha256:
        raise _other(
            out.name, archives[0], f"SHA-256 {digest.hexdigest()[:12]}..., not {file.sha256[:12]}..."
        )


def unzip_members(archive: Path, members: dict[str, str], out: Path, most: int) -> None:
    """Extract named members of a zip archive.

    Args:
        members: path in the archive -> SHA-256 of the content; the file is written to `out` under its last name.
        most: maximum total size in bytes.

    Raises:
        UserError: it cannot be read or lacks a member, or a checksum differs.
    """
    left = most
    for path, sha256 in members.items():
        target = out / Path(path).name
        digest = hashlib.sha256()
        with _open_archive(archive, path) as source, target.open("wb") as file:
            while block := source.read(_BLOCK):
                left -= len(block)
                if left < 0:
                    raise _other(target.name, archive, f"more than {most:,} bytes")
                digest.update(block)
                file.write(block)
        if digest.hexdigest() != sha256:
            raise _other(target.name, archive, f"SHA-256 {digest.hexdigest()[:12]}..., not {sha256[:12]}...")


def take_members(folder: Folder, archives: list[Path], out: Path) -> None:
    """Extract the members of a folder of the catalogue into `out`.

    Raises:
        UserError: the archive cannot be read, or the number or size of the members differs.
    """
    number, pattern = folder.members.split(":", 1)
    archive = archives[int(number)]
    members = [name for name in _names(archive) if fnmatch.fnmatchcase(name, pattern)]
    if len(members) != folder.count:
        raise _other(out.name, archive, f"{len(members)} files, not {folder.count}")
    for member in members:
        with _open_archive(archive, member) as source:
            content = source.read(folder.bytes + 1)
        if len(content) != folder.bytes:
            raise _other(Path(member).name, archive, f"not {folder.bytes:,} bytes")
        (out / Path(member).name).write_bytes(content)


def _names(archive: Path) -> list[str]:
    with _opened(archive) as opened:
        return opened.getnames() if isinstance(opened, tarfile.TarFile) else opened.namelist()


def _other(name: str, archive: Path, what: str) -> UserError:
    return UserError(
        f"{name} is not the file of the catalogue ({what})",
        where=archive,
        remedy="The package was changed: do not use it and report it, or give the folder of another model",
    )


_BROKEN = (
    OSError,
    zipfile.BadZipFile,
    tarfile.TarError,
    KeyError,
    EOFError,
    RuntimeError,
    NotImplementedError,
    zlib.error,
)


@contextmanager
def _opened(archive: Path) -> Iterator[tarfile.TarFile | zipfile.ZipFile]:
    """Context manager that converts errors of an archive to UserError."""
    try:
        if archive.suffix == ".tgz":
            with tarfile.open(archive, "r:gz") as tar:
                yield tar
        else:
            with zipfile.ZipFile(archive) as wheel:
                yield wheel
    except _BROKEN as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # an error of the disk, not of the archive
        reason = str(error.args[0]) if error.args else type(error).__name__
        raise UserError(
            f"the archive cannot be used: {reason}",
            where=archive,
            remedy="Delete it and run the command again",
        ) from None


@contextmanager
def _open_archive(archive: Path, member: str) -> Iterator[IO[bytes]]:
    with _opened(archive) as opened:
        if isinstance(opened, zipfile.ZipFile):
            there = member in opened.namelist()
            source: IO[bytes] | None = opened.open(member) if there else None
        else:
            # A link could point anywhere, and folders and devices have no content.
            there = member in opened.getnames() and opened.getmember(member).isfile()
            source = opened.extractfile(member) if there else None
        if source is None:
            raise KeyError(f"it has no {member}")
        with source:
            yield source
