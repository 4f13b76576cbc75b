"""How to decode: the options of `retort evaluate` and `retort transcribe`."""

from __future__ import annotations

from dataclasses import dataclass

from retort.errors import UserError


@dataclass(frozen=True)
class DecodingOptions:
    """How wide to search and how much of what was found to tell.

    Attributes:
        beam: hypotheses kept of an utterance; 1 is greedy decoding.
        nbest: readings told of an utterance, the best first; at most `beam`.

    Raises:
        UserError: a number below 1, or more readings than the search keeps.
    """

    beam: int = 1
    nbest: int = 1

    def __post_init__(self) -> None:
        for name, value in (("beam", self.beam), ("nbest", self.nbest)):
            if value < 1:
                raise UserError(f"{name} is {value}", remedy="Give a number from 1 up")
        if self.nbest > self.beam:
            raise UserError(
                f"nbest {self.nbest} is more than the beam of {self.beam} keeps",
                remedy=f"Give a beam of at least {self.nbest}",
            )


GREEDY = DecodingOptions()
