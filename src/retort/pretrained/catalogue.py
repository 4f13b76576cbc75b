"""The catalogue of pretrained models: short names, packages and checksums."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from retort.common.errors import UserError

CATALOGUE = Path(__file__).with_name("catalogue.yaml")


@dataclass
class Package:
    """An archive of a package registry.

    Attributes:
        registry: `pip` (a wheel) or `npm` (a .tgz).
        name: name and version in the syntax of the registry's client.
        bytes, sha256: size and checksum of the archive.
    """

    registry: str = "pip"
    name: str = ""
    bytes: int = 0
    sha256: str = ""


@dataclass
class File:
    """A file that is assembled from members of packages.

    Attributes:
        members: `PACKAGE:PATH`, index of the package in the list and path in its archive; concatenated in order.
        bytes, sha256: size and checksum of the result.
        inside: for a zip archive whose members are needed instead of it: path in it -> SHA-256.
    """

    members: list[str] = field(default_factory=list)
    bytes: int = 0
    sha256: str = ""
    inside: dict[str, str] = field(default_factory=dict)


@dataclass
class Folder:
    """Files of equal size from one package, verified by the package's checksum.

    Attributes:
        members: `PACKAGE:PATTERN`, as in :class:`File`; each file keeps its last name.
        count: number of files.
        bytes: size of each file.
    """

    members: str = ""
    count: int = 0
    bytes: int = 0


@dataclass
class Entry:
    """A pretrained model.

    Attributes:
        about: description in one line.
        licence: SPDX identifier, with the origin if it is that of another upload.
        format: name of the converter in `retort.pretrained.convert`.
        hub: Hugging Face name.
        revision: commit of the hub's repository; empty for the newest.
        hub_files: patterns of the files that are fetched from the hub; empty if only packages are used.
        hub_sha256: file -> SHA-256 of the files from the hub.
        packages, files, folders: the same model in package registries.
        needs: additional modules for the conversion from packages.
    """

    about: str = ""
    licence: str = ""
    format: str = ""
    hub: str = ""
    revision: str = ""
    hub_files: list[str] = field(default_factory=list)
    hub_sha256: dict[str, str] = field(default_factory=dict)
    packages: list[Package] = field(default_factory=list)
    files: dict[str, File] = field(default_factory=dict)
    folders: dict[str, Folder] = field(default_factory=dict)
    needs: list[str] = field(default_factory=list)

    @property
    def download_bytes(self) -> int:
        """Size of all packages."""
        return sum(each.bytes for each in self.packages)


@cache
def load_catalogue(path: Path = CATALOGUE) -> dict[str, Entry]:
    """Entries by short name, in the order of the file.

    Raises:
        UserError: the file cannot be read, or an entry has an unknown key or a wrong type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    try:
        raw: Any = OmegaConf.load(path)
        entries = {
            str(name): OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Entry), raw[name]))
            for name in raw
        }
    except (OSError, YAMLError, OmegaConfBaseException, ValueError) as error:
        reason = " ".join(str(error).split("\n")[0].split())
        raise UserError(f"the catalogue of pretrained models cannot be read: {reason}", where=path) from None
    return entries  # type: ignore[return-value]
