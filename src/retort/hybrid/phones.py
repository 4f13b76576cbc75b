"""The phones of a system and their ids."""

from __future__ import annotations

from collections.abc import Iterable

from retort.errors import UserError

SILENCE = "SIL"


class Phones:
    """Id 0 is silence, then come the phones, sorted.

    Args:
        phones: of the lexicon, without silence.

    Raises:
        UserError: there is none, or one has the name of silence.
    """

    def __init__(self, phones: Iterable[str]) -> None:
        spoken = sorted(set(phones))
        if not spoken:
            raise UserError("no phones", remedy="Give a lexicon with words")
        if SILENCE in spoken:
            raise UserError(
                f"'{SILENCE}' is a phone of the lexicon",
                remedy="Leave silences out: they stand between words anyway",
            )
        self.symbols: tuple[str, ...] = (SILENCE, *spoken)
        self.ids: dict[str, int] = {symbol: index for index, symbol in enumerate(self.symbols)}

    def __len__(self) -> int:
        return len(self.symbols)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Phones) and self.symbols == other.symbols

    def __hash__(self) -> int:
        return hash(self.symbols)
