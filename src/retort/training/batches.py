"""From cuts to padded batches: bucketing, augmentation, and the utterances that cannot be used."""

from __future__ import annotations

import random
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from lhotse import CutSet
from lhotse.cut import Cut
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Dataset

from retort.audio.specaugment import mask_hidden, spec_augment
from retort.common.errors import BadUtterance
from retort.config.distill import compared_by
from retort.config.schema import AugmentConfig, Recipe
from retort.corpora.cuts import Rejected
from retort.corpora.features import CutFeatures
from retort.nn.masks import padded
from retort.students.student import SHORTEST
from retort.text.normalise import Normaliser
from retort.text.tokenizers import EOS, PAD, Piece, Tokenizer
from retort.training.frames import FrameLabels, FrameTexts, UtteranceFrames, collate
from retort.training.hidden_store import HiddenStore
from retort.training.sampling import BucketSampler
from retort.training.sharded import ShardCut, ShardedCuts
from retort.training.shares import Group, ShareSampler

FRAME_STEP, HIDDEN_STEP, TOKEN_STEP = 64, 16, 8
"""Batches are padded to multiples of these, because kernels are prepared once per shape (20 % of a step on a CPU)."""


@dataclass
class Batch:
    """Utterances padded to one size.

    Attributes:
        ids: ids of the cuts.
        texts: normalised transcripts.
        pieces: tokens of each text with their character spans, without EOS.
        features: `(B, T, bins)` float32, zero after `feature_lengths (B,)`; T may exceed their maximum.
        tokens: `(B, U)` int64, EOS last, then padding; `token_lengths (B,)` includes EOS; U may exceed their maximum.
        rejected: utterances of this batch that could not be used.
        senones: `(B, T')` int64, senones of encoder frames, -1 for none; None without
            alignments.
        frames: for each teacher of frames, its input and the pieces of the frames.
    """

    ids: list[str]
    texts: list[str]
    pieces: list[list[Piece]]
    features: Tensor
    feature_lengths: Tensor
    tokens: Tensor
    token_lengths: Tensor
    rejected: list[Rejected]
    senones: Tensor | None = None
    frames: dict[str, FrameTexts] = field(default_factory=dict)

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on `device`."""
        tensors = ("features", "feature_lengths", "tokens", "token_lengths")
        return replace(
            self,
            **{name: getattr(self, name).to(device) for name in tensors},
            senones=None if self.senones is None else self.senones.to(device),
            frames={name: each.to(device) for name, each in self.frames.items()},
        )


class _Utterance(NamedTuple):
    id: str
    text: str
    pieces: list[Piece]
    features: Tensor
    frames: UtteranceFrames | None


class UtteranceDataset(Dataset):
    """Maps the cuts of one batch to a :class:`Batch`, without ids if none of them is usable.

    If a row compares two views of each utterance, the first half of the batch holds the first views and the second half the
    second ones, in the same order, which differ in SpecAugment.

    Augmentation uses a generator seeded with (seed, epoch, cut id), so that it does not depend on the order of
    batches, the number of workers or interruptions.

    Args:
        tokenizer: tokenizer of the student; None if its output is not tokens.
        output_lengths: maps numbers of feature frames, or of stored frames, to numbers of encoder frames.
        labels: labels of frames, for a student that is trained on them.
        stored: stored outputs of the encoder's lower layers, used in place of features.
        longest: maximum number of feature frames of the encoder; None for no limit.
        most_tokens: maximum number of tokens of an utterance, including EOS; None for no limit.
        shards: training cuts, if some of them are in shards.
    """

    def __init__(
        self,
        recipe: Recipe,
        tokenizer: Tokenizer | None,
        output_lengths: Callable[[Tensor], Tensor],
        noise: CutSet | None,
        labels: FrameLabels | None = None,
        stored: HiddenStore | None = None,
        longest: int | None = None,
        most_tokens: int | None = None,
        shards: ShardedCuts | None = None,
    ) -> None:
        self.recipe = recipe
        self.shards = shards
        self.tokenizer = tokenizer
        self.output_lengths = output_lengths
        self.noise = noise
        self.labels = labels
        self.stored = stored
        self.longest = longest
        self.most_tokens = most_tokens
        self.normalise = Normaliser(recipe.normaliser)
        self.features = CutFeatures(recipe.features)
        self.epoch = 0
        self.views = 2 if any(compared_by(row.loss) == "views" for row in recipe.distill) else 1

    def __getitem__(self, cuts: CutSet) -> Batch:
        usable: list[list[_Utterance]] = []
        rejected: list[Rejected] = []
        for cut in cuts:
            try:
                usable.append(self._utterance(self._open(cut)))
            except BadUtterance as error:
                name = str(error.where) if isinstance(cut, ShardCut) else cut.id
                rejected.append(Rejected(name, error.what))
        utterances = [views[number] for number in range(self.views) for views in usable]
        if not utterances:
            width = self.recipe.features.bins if self.stored is None else self.stored.dim
            return empty_batch(width, rejected, labelled=self.labels is not None)
        tokens = [self._tokens(each.pieces) for each in utterances]
        labelled = [each.frames for each in utterances if each.frames is not None]
        senones, frames = collate(labelled) if labelled else (None, {})
        return Batch(
            [each.id for each in utterances],
            [each.text for each in utterances],
            [each.pieces for each in utterances],
            padded(
                [each.features for each in utterances], FRAME_STEP if self.stored is None else HIDDEN_STEP
            ),
            torch.tensor([each.features.shape[0] for each in utterances]),
            padded(tokens, TOKEN_STEP, PAD),
            torch.tensor([each.shape[0] for each in tokens]),
            rejected,
            senones,
            frames,
        )

    def _open(self, cut: Cut | ShardCut) -> Cut:
        """A cut with its audio, read from its shard if it is in one."""
        if not isinstance(cut, ShardCut):
            return cut
        assert self.shards is not None
        return self.shards.open(cut.number)

    def _tokens(self, pieces: list[Piece]) -> Tensor:
        ids = [] if self.tokenizer is None else [*(piece.id for piece in pieces), EOS]
        return torch.tensor(ids, dtype=torch.int64)

    def _utterance(self, cut: Cut) -> list[_Utterance]:
        """The views of an utterance."""
        generator = utterance_generator(self.recipe.seed, self.epoch, cut.id)
        text = self.normalise(cut.supervisions[0].text or "")
        if not text:
            raise BadUtterance("its transcript is empty", where=cut.id)
        pieces = []
        if self.tokenizer is not None:
            pieces = self.tokenizer.pieces(text)
            if unknown := self.tokenizer.unknown(text):
                raise BadUtterance(f"symbols outside the vocabulary: {' '.join(unknown)}", where=cut.id)
        if self.noise is not None:
            cut = cut.resample(self.recipe.features.sampling_rate)
            cut = mix_noise(cut, self.noise, self.recipe.augment, generator)
        features = self.features(cut) if self.stored is None else self.stored[cut.id]
        if self.stored is None and self.longest is not None and features.shape[0] > self.longest:
            reason = f"its {features.shape[0]} frames exceed the encoder's maximum of {self.longest}"
            raise BadUtterance(reason, where=cut.id)
        frames = int(self.output_lengths(torch.tensor([features.shape[0]])))
        if frames < SHORTEST:
            raise BadUtterance(f"it is too short ({features.shape[0]} frames)", where=cut.id)
        if len(pieces) + 1 > frames:
            raise BadUtterance(f"its {len(pieces)} tokens do not fit {frames} encoder frames", where=cut.id)
        if self.most_tokens is not None and len(pieces) + 1 > self.most_tokens:
            raise BadUtterance(
                f"its {len(pieces)} tokens exceed the decoder's maximum of {self.most_tokens - 1}", where=cut.id
            )
        frame_labels = None
        if self.labels is not None:
            rate = 1 if self.stored is None else self.stored.subsampling
            frame_labels = self.labels(cut.id, text, features.shape[0] * rate, frames)
        views = [self._masked(features, generator) for _ in range(self.views)]
        return [_Utterance(cut.id, text, pieces, masked, frame_labels) for masked in views]

    def _masked(self, features: Tensor, generator: Generator) -> Tensor:
        augment = self.recipe.augment
        if self.stored is None:
            return spec_augment(features, augment, generator)
        return mask_hidden(features, augment, generator, self.recipe.features.bins, self.stored.subsampling)


def empty_batch(bins: int, rejected: list[Rejected], labelled: bool = False) -> Batch:
    """A batch without ids: one utterance without frames and tokens, with senones if `labelled`.

    A process without usable utterances still runs every layer, because other processes may wait for its
    collectives; it contributes zero to losses, gradients and counts.
    """
    nothing = torch.zeros(1, dtype=torch.int64)
    features, tokens = torch.zeros(1, 1, bins), torch.zeros(1, 0, dtype=torch.int64)
    senones = tokens if labelled else None
    return Batch([], [], [], features, nothing, tokens, nothing, rejected, senones)


def utterance_generator(seed: int, epoch: int, name: str) -> Generator:
    """Generator of the random numbers of one utterance in one epoch."""
    return torch.Generator().manual_seed(zlib.crc32(f"{seed} {epoch} {name}".encode()))


def mix_noise(cut: Cut, noise: CutSet, config: AugmentConfig, generator: Generator) -> Cut:
    """Mix noise into the cut with the recipe's probability, at a random signal-to-noise ratio.

    Cut and noise have the same sampling rate.
    """
    if float(torch.rand((), generator=generator)) >= config.noise_probability:
        return cut
    draw = random.Random(int(torch.randint(2**31, (), generator=generator)))
    low, high = config.noise_snr
    mixed = CutSet.from_cuts([cut]).mix(
        noise, snr=draw.uniform(low, high), preserve_id="left", seed=draw, random_mix_offset=True
    )
    return next(iter(mixed))


Sampler = BucketSampler | ShareSampler


def make_sampler(
    cuts: CutSet | ShardedCuts, recipe: Recipe, rank: int, world_size: int, groups: Sequence[Group] = ()
) -> Sampler:
    """Sampler of batches of similar durations; rank r gets every world_size-th batch.

    With `groups`, each batch has its share of every group (:class:`ShareSampler`).
    """
    if groups:
        return ShareSampler(groups, recipe, rank, world_size)
    return BucketSampler(cuts if isinstance(cuts, ShardedCuts) else list(cuts), recipe, rank, world_size)


def epoch_batches(
    dataset: UtteranceDataset, sampler: Sampler, epoch: int, skip: int = 0, segment: int = 0
) -> Iterator[Batch]:
    """The batches of a segment of an epoch after the first `skip`, which are not loaded."""
    dataset.epoch = epoch
    sampler.set_epoch(epoch, segment)
    loader = DataLoader(
        dataset,
        sampler=_Skipping(sampler, skip),
        batch_size=None,
        num_workers=dataset.recipe.batches.workers,
        # Its own generator: the loader draws when it starts, which would change the dropout of a resumed run.
        generator=torch.Generator(),
    )
    yield from loader


class _Skipping:
    def __init__(self, sampler: Sampler, skip: int) -> None:
        self.sampler = sampler
        self.skip = skip

    def __iter__(self) -> Iterator[CutSet]:
        for index, cuts in enumerate(self.sampler):
            if index >= self.skip:
                yield cuts
