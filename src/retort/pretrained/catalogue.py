"""The catalogue of pretrained models: what each short name is, which packages carry it, and its checksums."""

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
        name: with its version, as the registry's client takes it.
        bytes, sha256: of the archive.
    """

    registry: str = "pip"
    name: str = ""
    bytes: int = 0
    sha256: str = ""


@dataclass
class File:
    """A file that is put together from members of packages.

    Attributes:
        members: `PACKAGE:PATH`, the position of the package in the list and a path in its archive; joined in order.
        bytes, sha256: of the result.
        inside: a zip archive whose members `files` are wanted rather than itself: path in it -> SHA-256.
    """

    members: list[str] = field(default_factory=list)
    bytes: int = 0
    sha256: str = ""
    inside: dict[str, str] = field(default_factory=dict)


@dataclass
class Folder:
    """Many files of one size from one package, which its checksum alone covers.

    Attributes:
        members: `PACKAGE:PATTERN`, as in :class:`File`; each keeps its last name.
        count: how many there are.
        bytes: of each.
    """

    members: str = ""
    count: int = 0
    bytes: int = 0


@dataclass
class Entry:
    """One pretrained model.

    Attributes:
        about: one line for people.
        licence: SPDX identifier, with the origin where it is another upload's.
        format: which converter of `retort.pretrained.convert` makes the folder of the cache.
        hub: its name on Hugging Face's hub.
        revision: the commit of the hub's repository, empty for its newest.
        hub_files: patterns of the files that are fetched from there; empty where the packages alone are used.
        hub_sha256: file -> SHA-256 of what the hub gives.
        packages, files, folders: the same model in package registries.
        needs: modules that the conversion from packages imports, beyond what is always installed.
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
        """Of all packages."""
        return sum(each.bytes for each in self.packages)


@cache
def load_catalogue(path: Path = CATALOGUE) -> dict[str, Entry]:
    """Short name -> entry, in the order of the file.

    Raises:
        UserError: the file cannot be read, or an entry has an unknown key or a value of a wrong type.
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
