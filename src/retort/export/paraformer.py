"""Parallel CIF students in the layout of sherpa-onnx's Paraformer models.

sherpa-onnx takes the most probable token of every position up to the first `</s>`, and times from the peaks of a track with
cells of 20 ms, if their number, without the last one, is that of the tokens. It puts spaces between tokens in ASCII.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from retort.audio.fbank import FbankConfig
from retort.common.errors import UserError
from retort.config.schema import FeatureConfig
from retort.decoding.hypothesis import NEVER_EMITTED
from retort.decoding.recogniser import Recogniser
from retort.export.graphs import FiredGraph
from retort.nn.parallel_decoder import ParallelDecoder
from retort.students.cif import CifStudent
from retort.students.student import Student
from retort.text.normalise import UNKNOWN_TEXT
from retort.text.teacher_pieces import TeacherTokenizer
from retort.text.tokenizers import EOS, SPACE, SPECIAL, CharacterTokenizer, Tokenizer

CONVENTION = "paraformer"
"""`features.convention` of models that sherpa-onnx can run as Paraformer models."""
OUTPUTS = ["logits", "token_num", "us_alphas", "us_cif_peak"]
_NEVER = -1e30
_CELL = 2
"""Feature frames per cell of the track of fires."""


def is_paraformer(student: Student, features: FeatureConfig) -> bool:
    """Whether a model is exported in this layout."""
    parallel = isinstance(student, CifStudent) and isinstance(student.decoder, ParallelDecoder)
    return parallel and isinstance(features, FbankConfig) and features.convention == CONVENTION


def check_paraformer(tokenizer: Tokenizer, separator: str) -> None:
    """Check that sherpa-onnx would join the tokens to the model's texts.

    Args:
        separator: separator between the words of a text.

    Raises:
        UserError: it would not; the error names the nearest format.
    """
    if separator or not isinstance(tokenizer, CharacterTokenizer | TeacherTokenizer):
        reason = "the texts have spaces" if separator else f"the tokens are of the kind {tokenizer.kind}"
        raise UserError(
            f"{reason}, but sherpa-onnx joins the tokens of a Paraformer model as Chinese characters",
            remedy="Export it with --for onnx",
        )


def paraformer_metadata(recogniser: Recogniser) -> dict[str, str]:
    """The metadata that sherpa-onnx reads: its features are neither stacked nor normalised by it."""
    bins = recogniser.features.bins
    return {
        "model_type": "paraformer",
        "vocab_size": str(recogniser.tokenizer.size),
        "lfr_window_size": "1",
        "lfr_window_shift": "1",
        "neg_mean": ",".join(["0"] * bins),
        "inv_stddev": ",".join(["1"] * bins),
    }


class ParaformerGraph(nn.Module):
    """Features of sherpa-onnx to scores of all tokens, and the track of their fires.

    Args:
        recogniser: features and tokenizer.
        student: with a parallel decoder, in eval mode; it is changed.
    """

    def __init__(self, recogniser: Recogniser, student: CifStudent) -> None:
        super().__init__()
        self.fired = FiredGraph(student, recogniser.features)
        self.subsampling = student.encoder.subsampling

    def forward(self, speech: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Recognise a batch.

        Args:
            speech: `(N, T, bins)` float32, before CMVN.
            lengths: `(N,)` int32, valid feature frames.

        Returns:
            `logits (N, U, V)`: log-probabilities, of `</s>` alone beyond the fires of an utterance; `token_num (N,)`
            int32; `us_alphas (N, C)`, which sherpa-onnx does not use; and `us_cif_peak (N, C)`, 1 in the cell of each
            fire and in one more after the last, else 0.
        """
        found: dict[str, Any] = dict(zip(self.fired.outputs, self.fired(speech, lengths.long())))
        counts, log_probs = found["counts"], found["log_probs"]
        units = torch.arange(log_probs.shape[1], device=counts.device)
        inside = (units < counts[:, None])[..., None]
        tokens = torch.arange(log_probs.shape[2], device=counts.device)
        banned = torch.zeros_like(tokens, dtype=torch.bool)
        for each in NEVER_EMITTED:
            banned = banned | (tokens == each)
        end = torch.where(tokens == EOS, 0.0, _NEVER)
        logits = torch.where(inside, torch.where(banned, _NEVER, log_probs), end)
        # The text ends before EOS, which has a fire of its own.
        ended = (logits.argmax(-1) == EOS).long().cumsum(1) > 0
        texts = (~ended).long().sum(1)
        peaks = self._track(found["times"], texts, speech.shape[1])
        return logits, counts.int(), torch.zeros_like(peaks), peaks

    def _track(self, times: Tensor, counts: Tensor, frames: Any) -> Tensor:
        """Cells `(N, C)` with a 1 for each of `counts (N,)` fires at `times (N, U)`, and for one more.

        Fires of the same cell are moved to the following ones.
        """
        size = times.shape[1]
        units = torch.arange(size, device=times.device)
        cells = (times * (self.subsampling / _CELL)).floor().long().clamp(min=0)
        earlier = units[None, :] <= units[:, None]
        ahead = torch.where(earlier, (cells - units)[:, None], -1).amax(2).clamp(min=0) + units
        one_more = torch.where(units < counts[:, None], ahead + 1, 0).amax(1)
        track = torch.arange(frames // _CELL + size + 2, device=times.device)
        drawn = (ahead[..., None] == track) & (units < counts[:, None])[..., None]
        return (drawn.any(1) | (track == one_more[:, None])).float()


def paraformer_symbols(tokenizer: Tokenizer) -> list[str]:
    """The names of all ids in `tokens.txt`."""
    pieces = [each.removeprefix("##").removeprefix(SPACE) for each in tokenizer.symbols[len(SPECIAL) :]]
    return ["<blank>", "<pad>", "</s>", UNKNOWN_TEXT, *pieces]


def paraformer_notes(tokenizer: Tokenizer) -> list[str]:
    """Differences that remain between the texts of sherpa-onnx and those of the model."""
    if any(each.isascii() for each in tokenizer.symbols[len(SPECIAL) :]):
        return ["sherpa-onnx separates tokens in ASCII, such as Latin letters, by spaces."]
    return []
