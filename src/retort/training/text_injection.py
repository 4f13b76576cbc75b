"""Text injection: sentences as pseudo-utterances, so that the decoder is trained on text without audio (ours).

A pseudo-utterance has for each sound of a sentence the encoder frames and the fired embedding of an example from training
speech, with noise. The decoder alone is trained on it. With `sounds: pinyin`, homophones share their examples, so that the
sentence has to decide between them. With `mask: 1` there is no sound at all, and the decoder is trained as a language
model, as in internal language model training (Meng et al. 2021, arXiv 2102.01380).
"""

from __future__ import annotations

import random
import zlib
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from retort.config.schema import TextInjectionConfig
from retort.corpora.sentences import Sentences
from retort.students.fired import (
    FiredUtterances,
    Segment,
    SegmentedUtterances,
    concatenated,
    pad_utterances,
    with_fires,
)
from retort.text.homophones import readings
from retort.text.normalise import Normaliser
from retort.text.sounds import END_SOUND, Unit, units
from retort.text.tokenizers import EOS, UNKNOWN, Tokenizer
from retort.training.batches import HIDDEN_STEP, TOKEN_STEP, Batch
from retort.training.segment_bank import SegmentBank

_TRIES = 10
"""Sentences of usual length that are considered for each one that is wanted, while the bank lacks sounds."""


def check_texts(config: TextInjectionConfig) -> None:
    """Check that the texts exist and that pronunciations are available, without reading the texts.

    Raises:
        UserError: one is missing.
    """
    for source in config.texts:
        Sentences(source)
    if config.texts and config.sounds != "token":
        readings("一", tones=True)


class DrawnText(NamedTuple):
    """Pseudo-utterances for one batch.

    Attributes:
        utterances: None if no sentence was usable.
        considered: number of sentences that were considered.
    """

    utterances: FiredUtterances | None
    considered: int

    @property
    def used(self) -> int:
        """Number of sentences that were used."""
        return 0 if self.utterances is None else len(self.utterances.tokens)


class TextInjection:
    """Fills a bank with training speech, and draws pseudo-utterances of text from it.

    The state is the bank, the position in the texts and the number of draws, which seeds the random numbers of the next
    one; it is part of a checkpoint.

    Args:
        excluded: normalised texts that are not used, such as those of the validation data.
        most_tokens: maximum number of tokens of an utterance, including EOS; None for no limit.

    Raises:
        UserError: a text cannot be read, or pypinyin is not installed and `sounds` needs it.
    """

    def __init__(
        self,
        config: TextInjectionConfig,
        seed: int,
        tokenizer: Tokenizer,
        normalise: Normaliser,
        excluded: Collection[str] = (),
        most_tokens: int | None = None,
    ) -> None:
        self.config, self.seed = config, seed
        self.tokenizer, self.normalise = tokenizer, normalise
        self.excluded, self.most_tokens = frozenset(excluded), most_tokens
        self.sentences = [line for source in config.texts for line in Sentences(source)]
        self.bank = SegmentBank(config.examples, config.longest)
        self.position = self.draws = 0
        self._order: tuple[int, list[int]] = (-1, [])

    def learn(self, batch: Batch, fired: SegmentedUtterances) -> None:
        """Add the tokens of a batch of training speech to the bank."""
        fired = fired.to("cpu")
        for row, (text, pieces) in enumerate(zip(batch.texts, batch.pieces)):
            found = units(text, pieces, self.config.sounds)
            end = len(pieces)
            sounds = [*(unit.sound for unit in found), END_SOUND]
            bounds = [*((unit.first, unit.last) for unit in found), (end, end + 1)]
            for sound, segment in zip(sounds, fired.segments(row, bounds)):
                self.bank.add(sound, segment)

    @torch.autocast("cpu", enabled=False)  # it has no kernels for float16
    def draw(self, tokens: int) -> DrawnText:
        """Pseudo-utterances with about `share` times `tokens` tokens."""
        wanted, draw = self.config.share * tokens, random.Random(f"{self.seed} {self.draws} text")
        generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {self.draws} noise".encode()))
        self.draws += 1
        made: list[Segment] = []
        ids: list[list[int]] = []
        considered = total = 0
        most = _TRIES * (1 + int(wanted) // self.config.tokens[0])
        while total < wanted and considered < most and self.sentences:
            considered += 1
            if (read := self._usable(self._next())) is None:
                continue
            own, found = read
            ids.append([*own, EOS])
            total += len(ids[-1])
            made.append(self._put_together(found, draw, generator))
        if not made:
            return DrawnText(None, considered)
        return DrawnText(pad_utterances(made, ids, HIDDEN_STEP, TOKEN_STEP), considered)

    def tensors(self) -> dict[str, Tensor]:
        """The state for a checkpoint."""
        return {**self.bank.tensors(), "position": torch.tensor([self.position, self.draws])}

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from the state that :meth:`tensors` gave.

        Raises:
            ValueError, KeyError: the tensors do not match.
        """
        position, draws = tensors["position"].tolist()
        self.bank.load(tensors)
        self.position, self.draws = int(position), int(draws)

    def _next(self) -> str:
        """The next sentence; each pass over the texts has a random order of its own."""
        turn, index = divmod(self.position, len(self.sentences))
        if self._order[0] != turn:
            generator = torch.Generator().manual_seed(zlib.crc32(f"{self.seed} {turn} texts".encode()))
            self._order = turn, torch.randperm(len(self.sentences), generator=generator).tolist()
        self.position += 1
        return self.normalise(self.sentences[self._order[1][index]])

    def _usable(self, text: str) -> tuple[list[int], list[Unit]] | None:
        """The tokens and units of a sentence; None if it is not used, or a sound is not in the bank."""
        if not text or text in self.excluded:
            return None
        pieces = self.tokenizer.pieces(text)
        ids = [piece.id for piece in pieces]
        least, most = self.config.tokens
        if not least <= len(ids) <= most or UNKNOWN in ids:
            return None
        if self.most_tokens is not None and len(ids) >= self.most_tokens:
            return None
        found = units(text, pieces, self.config.sounds)
        known = self.config.mask == 1.0 or all(map(self._has_example, found))
        return (ids, found) if known and END_SOUND in self.bank else None

    def _has_example(self, unit: Unit) -> bool:
        return unit.sound in self.bank or (bool(unit.parts) and all(part in self.bank for part in unit.parts))

    def _put_together(self, found: Sequence[Unit], draw: random.Random, generator: torch.Generator) -> Segment:
        parts = []
        for unit in found:
            if not self._has_example(unit):
                parts.append(self._silence(unit.last - unit.first))
                continue
            sounds = (unit.sound,) if unit.sound in self.bank else unit.parts
            own = concatenated([draw.choice(self.bank[sound]) for sound in sounds])
            own = self._noisy(with_fires(own, unit.last - unit.first), generator)
            masked = draw.random() < self.config.mask
            parts.append(Segment(own.frames * 0.0, own.fired * 0.0, own.places) if masked else own)
        parts.append(self._noisy(draw.choice(self.bank[END_SOUND]), generator))
        return concatenated(parts)

    def _silence(self, tokens: int) -> Segment:
        """One frame of zeros per token, for a sound without an example where all sounds are masked."""
        zeros = torch.zeros(tokens, self.bank[END_SOUND][0].frames.shape[1])
        return Segment(zeros, zeros, torch.arange(tokens))

    def _noisy(self, segment: Segment, generator: torch.Generator) -> Segment:
        frames, fired = (_with_noise(each.float(), self.config.noise, generator) for each in segment[:2])
        return Segment(frames, fired, segment.places)


def _with_noise(vectors: Tensor, noise: float, generator: torch.Generator) -> Tensor:
    """`vectors (N, D)` with Gaussian noise of `noise` times the standard deviation of each vector."""
    if noise == 0.0:
        return vectors
    deviations = vectors.std(-1, keepdim=True, correction=0)
    return vectors + noise * deviations * torch.randn(vectors.shape, generator=generator)
