"""The units of a language model, stored with its weights."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from retort.alignment.tree import SenoneTree
from retort.alignment.unit_text import AcousticUnit, unit_symbols
from retort.common.errors import UserError
from retort.common.json_reader import read_json

FILE = "units.json"


@dataclass(frozen=True)
class LmUnits:
    """Description of the symbols of a language model over senones or phones.

    Attributes:
        unit: `senone` or `phone`.
        inventory: hash (32 hex digits) of the tree of senones, or of the phones.
    """

    unit: str
    inventory: str

    @staticmethod
    def of(unit: AcousticUnit, tree: SenoneTree) -> LmUnits:
        """The description of a unit in a system with this tree."""
        content = str(tree) if unit == "senone" else " ".join(unit_symbols(tree, unit))
        return LmUnits(unit, hashlib.sha256(content.encode()).hexdigest()[:32])

    def save(self, folder: Path) -> None:
        """Write the description into the folder of a model."""
        (folder / FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")


def read_units(folder: str | Path) -> LmUnits | None:
    """Read the units of the model in a folder; None for a model over text or if the folder does not exist.

    Raises:
        UserError: the file is damaged.
    """
    path = Path(folder) / FILE
    if not path.is_file():
        return None
    try:
        return LmUnits(**read_json(path))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"cannot be read ({error})", where=path, remedy="Train the model again") from None
