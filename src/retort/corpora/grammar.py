"""Sentences of a small English grammar for the synthetic corpus.

The language is small enough for training in minutes (about a hundred words) and large enough that the sentences
of the test data are unseen.
"""

from __future__ import annotations

import random

from retort.common.errors import UserError

RULES: dict[str, tuple[str, ...]] = {
    "SENTENCE": (
        "ACTION",
        "ACTION DAY",
        "ACTION PLACE",
        "ACTION PLACE DAY",
        "COMMAND",
        "COMMAND PLACE",
        "please COMMAND DAY",
        "PLAN",
        "PLAN DAY",
        "STATE",
        "STATE",
        "STATE DAY",
        "LIKING",
    ),
    "ACTION": ("SOMEONE DID SOMETHING",),
    "PLAN": ("SOMEONE will DO SOMETHING", "SOMEONE will never DO SOMETHING", "we DO SOMETHING"),
    "COMMAND": ("DO SOMETHING", "never DO SOMETHING", "help SOMEONE", "wait for SOMEONE"),
    "STATE": (
        "the SPOT was STATED",
        "SOMEONE was STATED",
        "the COLOUR THING was PLACED",
        "SOMEONE was not STATED",
        "there were NUMBER THINGS PLACED",
    ),
    "LIKING": ("SOMEONE likes COLOUR THINGS", "SOMEONE likes COLOUR THINGS and COLOUR THINGS"),
    "SOMEONE": ("the PERSON", "the AGED PERSON", "my PERSON", "every PERSON"),
    "PERSON": ("captain", "farmer", "doctor", "teacher", "sailor", "baker", "brother", "sister"),
    "AGED": ("old", "young", "tall", "happy"),
    "DID": ("sold", "bought", "found", "lost", "painted", "carried", "washed"),
    "DO": ("sell", "buy", "find", "paint", "carry", "wash", "bring"),
    "SOMETHING": (
        "the THING",
        "the COLOUR THING",
        "the SIZED COLOUR THING",
        "a SIZED THING",
        "NUMBER THINGS",
        "NUMBER COLOUR THINGS",
    ),
    "NUMBER": ("two", "three", "four", "five", "seven", "nine", "twelve"),
    "COLOUR": ("red", "green", "blue", "yellow", "black", "white"),
    "SIZED": ("small", "big", "heavy"),
    "THING": ("boat", "lamp", "chair", "basket", "horse", "window", "letter"),
    "THINGS": ("boats", "lamps", "chairs", "baskets", "horses", "windows", "letters"),
    "PLACE": ("near the SPOT", "behind the SPOT", "from the SPOT"),
    "PLACED": ("near the SPOT", "behind the SPOT", "in the SPOT"),
    "SPOT": ("harbour", "market", "river", "garden", "kitchen", "bridge", "village"),
    "STATED": ("quiet", "ready", "late", "busy", "warm", "dirty"),
    "DAY": ("on WEEKDAY", "today", "tomorrow", "every morning", "before noon"),
    "WEEKDAY": ("monday", "tuesday", "friday", "sunday"),
}
"""Rules; upper-case symbols are expanded, lower-case ones are words."""

SHORTEST, LONGEST = 3, 10
"""Range of the number of words of a sentence."""

_PATIENCE = 2000
"""Number of draws without a new sentence after which the language is considered exhausted."""


def vocabulary() -> set[str]:
    """Every word of the grammar."""
    return {
        word for options in RULES.values() for option in options for word in option.split() if word.islower()
    }


def sentences(count: int, seed: int) -> list[str]:
    """Distinct sentences of 3 to 10 lower-case words, in random order.

    Raises:
        UserError: the grammar has fewer sentences.
    """
    generator = random.Random(seed)
    found: dict[str, None] = {}
    vain = 0
    while len(found) < count:
        words = _expand("SENTENCE", generator)
        sentence = " ".join(words)
        if SHORTEST <= len(words) <= LONGEST and sentence not in found:
            found[sentence] = None
            vain = 0
            continue
        vain += 1
        if vain > _PATIENCE:
            raise UserError(
                f"the grammar yields about {len(found)} sentences, {count} were requested",
                remedy="Request fewer, or use a text file with one sentence per line",
            )
    # Rejection of duplicates puts rare, long sentences at the end, so that the order must be shuffled.
    result = list(found)
    generator.shuffle(result)
    return result


def splits(train: int, validation: int, test: int, seed: int) -> dict[str, list[str]]:
    """Sentences for `train`, `validation` and `test`; without overlap.

    Raises:
        UserError: the grammar has fewer sentences.
    """
    drawn = sentences(train + validation + test, seed)
    return {
        "train": drawn[:train],
        "validation": drawn[train : train + validation],
        "test": drawn[train + validation :],
    }


def _expand(symbol: str, generator: random.Random) -> list[str]:
    if symbol not in RULES:
        return [symbol]
    option = generator.choice(RULES[symbol])
    return [word for part in option.split() for word in _expand(part, generator)]
