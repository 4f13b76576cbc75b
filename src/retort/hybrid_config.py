"""What a recipe may say of a hybrid system: alignments, lexicon, graph. The text under a field is its documentation."""

from __future__ import annotations

from dataclasses import dataclass, field

from retort.errors import UserError
from retort.ranges import BILLION, MILLION, check_ranges, number, numbers


@dataclass
class AlignConfig:
    """From transcripts to senones: a flat-start monophone GMM-HMM, a tree, a GMM-HMM of tied triphones.

    Raises:
        UserError: a number that cannot be.
    """

    senones: int = number(1000, 1, MILLION)
    """Leaves of the tree at most; fewer where `minimum_frames` forbids more."""
    subsampling: int = number(1, 1, 4)
    """Frames of 10 ms to one frame of labels: 1, 3 for 30 ms, 4 for the 40 ms of two convolutions of stride 2. Tree,
    triphones and alignment are then of such frames; the monophones that start it are always of 10 ms."""
    states: int = number(3, 1, 3)
    """Of a phone in the tree: 3 for frames of 10 ms, 1 for longer ones, for a phone may last 30 ms."""
    monophone_passes: int = number(14, 1, 1000)
    """Of Viterbi training over all utterances, after the flat start."""
    monophone_mixtures: int = number(4, 1, 1024)
    """Gaussians a state at most, reached by doubling."""
    passes: int = number(10, 1, 1000)
    """Of the tied triphones."""
    mixtures: int = number(8, 1, 1024)
    minimum_frames: int = number(100, 1, BILLION)
    """Frames below which a leaf of the tree is not divided off."""
    silence_probability: float = number(0.5, 0, 1, above=True, below=True)
    """Of a silence between two words and at both ends, before anything was heard."""
    misfit: float = number(8.0, 0, MILLION)
    """Utterances whose transcripts fit their audio so much worse than half of the others, in robust standard
    deviations, are left out of the tree and of what follows; 0 keeps all."""
    processes: int = number(0, 0, 1024)
    """0 for one a core. They do not change the result."""

    def __post_init__(self) -> None:
        check_ranges(self)
        if self.states != (3 if self.subsampling == 1 else 1):
            raise UserError(
                f"{self.states} states a phone and subsampling {self.subsampling} do not go together",
                remedy="Give 3 states to frames of 10 ms and 1 to longer ones",
            )


@dataclass
class HybridConfig:
    """Of `student.kind: hybrid`: what it is aligned by, and what it can hear."""

    lexicon: list[str] = field(default_factory=list)
    """Pronunciations in CMU style; of a word that several files have, those of the first hold. Stress is stripped."""
    pronounce: bool = True
    """Whether English words that no file has are said by pocketsphinx's dictionary, then by espeak-ng's rules."""
    alignments: str = ""
    """Folder of the alignments; made from `data.train` if nothing is there. Language models over senones and phones
    name the same. Empty: of the experiment's own."""
    align: AlignConfig = field(default_factory=AlignConfig)
    lm: str = ""
    """Recipe of an n-gram model over words (`tokenizer.kind: words`), trained first if it is missing: what the decoding
    graph holds likely."""
    silence_probability: float = number(0.5, 0, 1, above=True, below=True)
    """Of a silence at the start and behind every word, in the graph."""
    acoustic_scales: list[float] = numbers([0.05, 0.07, 0.1, 0.14, 0.2, 0.3], 0, 1000, above=True)
    """Tried on the validation data when training is done, and further ones while the best is the first or the last; the
    model keeps the best. Of the middle one are the errors that are told meanwhile. These are for frames of 10 ms; of
    longer ones, which are fewer, each counts for more."""
