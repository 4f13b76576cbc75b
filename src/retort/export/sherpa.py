"""CTC heads and stateless transducers in the layouts of sherpa-onnx.

sherpa-onnx computes Kaldi's filter banks of samples in [-1, 1] and takes inputs and outputs by their order. The graphs
add the constant of Retort's 16-bit range and normalise the utterance. What it cannot compute are energies below the
floor of its own range, 2^-23: train with `features.floor: 4.852`, log 2^-23 + 2 log 32768, and both compute the same.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from retort.common.errors import UserError
from retort.common.files import write_whole
from retort.decoding.options import DecodingOptions
from retort.decoding.recogniser import Recogniser
from retort.export.graphs import EncoderGraph
from retort.export.record import record, require
from retort.export.scores import Recognise
from retort.students.ctc import CtcStudent, HasCtc
from retort.students.student import Encoded, Student
from retort.students.transducer import TransducerStudent
from retort.text.normalise import UNKNOWN_TEXT
from retort.text.teacher_pieces import TeacherTokenizer
from retort.text.tokenizers import BLANK, EOS, PAD, SPACE, SPECIAL, UNKNOWN, Tokenizer
from retort.text.whisper_pieces import WhisperTokenizer

RANGE = 2.0 * math.log(32768.0)
"""Difference of log energies between samples in the 16-bit range and in [-1, 1]."""
FLOOR = math.log(2.0**-23) + RANGE
"""Smallest log energy that sherpa-onnx computes, in the range of Retort's features."""
_NEVER = -1e30
_MODEL, _TOKENS = "model.onnx", "tokens.txt"
_ZIPFORMER = 4
"""Feature frames per output frame in sherpa-onnx's `zipformer_ctc` models, by which it computes times."""


@dataclass(frozen=True)
class SherpaExport:
    """An export for sherpa-onnx.

    Attributes:
        folder: folder of the files.
        kind: `zipformer_ctc` or `wenet_ctc`.
        bins: filter banks.
        sampling_rate: Hz.
        torch: the texts of the model in torch, of complete waves.
        notes: differences that remain.
    """

    folder: Path
    kind: str
    bins: int
    sampling_rate: int
    torch: Recognise
    notes: Sequence[str]

    @property
    def lead(self) -> str:
        """A sentence for the README."""
        return f"A model for sherpa-onnx, in the layout of its {self.kind.replace('_', ' ')} models."

    @property
    def commands(self) -> list[str]:
        """Command lines for the README."""
        flag = f"--{self.kind.replace('_', '-')}-model={_MODEL}"
        return ["pip install sherpa-onnx-bin", f"sherpa-onnx-offline --tokens={_TOKENS} {flag} recording.wav"]

    def recognise(self) -> Recognise:
        """The texts of sherpa-onnx.

        Raises:
            UserError: sherpa-onnx is not installed.
        """
        require("sherpa_onnx")
        import sherpa_onnx

        make = getattr(sherpa_onnx.OfflineRecognizer, f"from_{self.kind}")
        recogniser = make(
            model=str(self.folder / _MODEL),
            tokens=str(self.folder / _TOKENS),
            num_threads=1,
            sample_rate=self.sampling_rate,
            feature_dim=self.bins,
        )

        def text(samples: np.ndarray) -> str:
            stream = recogniser.create_stream()
            stream.accept_waveform(self.sampling_rate, samples)
            recogniser.decode_stream(stream)
            return str(stream.result.text)

        return text


class CtcGraph(EncoderGraph):
    """Features of sherpa-onnx to the log-probabilities of a CTC head; padding and EOS count as blanks.

    Args:
        shift: added to the features.
    """

    def __init__(self, recogniser: Recogniser, student: Student, shift: float) -> None:
        super().__init__(student, recogniser.features)
        assert isinstance(student, HasCtc)
        self.head, self.shift = student.ctc, shift

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`features (N, T, bins)` and `lengths (N,)` int64 to `log_probs (N, F, V)` and lengths `(N,)`."""
        encoded: Encoded = self.encode(features + self.shift, lengths)
        log_probs = self.head(encoded.hidden).log_softmax(-1)
        blank = log_probs[..., [BLANK, PAD, EOS]].amax(-1, keepdim=True)
        never = torch.full_like(log_probs[..., :1], _NEVER)
        return torch.cat((blank, never, never, log_probs[..., UNKNOWN:]), -1), encoded.lengths


def export_sherpa(recogniser: Recogniser, out: Path) -> SherpaExport:
    """Write `model.onnx` and `tokens.txt`.

    Args:
        recogniser: with a CTC student, or another one with a CTC head.
        out: created if missing.

    Raises:
        UserError: the student has no CTC head, its features or tokens cannot be computed by sherpa-onnx, or a package
            is missing.
    """
    require("onnx", "onnxscript")
    check_sherpa(recogniser)
    symbols = sherpa_symbols(recogniser.tokenizer)
    student = copy.deepcopy(recogniser.student).float().eval()
    kind = "zipformer_ctc" if student.encoder.subsampling == _ZIPFORMER else "wenet_ctc"
    out.mkdir(parents=True, exist_ok=True)
    graph: nn.Module = CtcGraph(recogniser, student, RANGE if kind == "zipformer_ctc" else 0.0).eval()
    frames = max(8 * student.encoder.subsampling, 4 * recogniser.fewest_frames) + 3
    features = torch.randn(2, frames, recogniser.features.bins, generator=torch.Generator().manual_seed(0))
    metadata = {
        "model_type": kind,
        "vocab_size": str(len(symbols)),
        "subsampling_factor": str(student.encoder.subsampling),
    }
    inputs = {"x": features, "x_lens": torch.tensor([frames, frames - 2])}
    record(graph, inputs, ["log_probs", "log_probs_lens"], {"x": [2]}, out / _MODEL, metadata)
    write_whole(out / _TOKENS, "".join(f"{symbol} {number}\n" for number, symbol in enumerate(symbols)))
    mode = "own" if isinstance(student, CtcStudent) else "ctc"
    options = DecodingOptions(vad="none", no_speech_threshold=1.0, mode=mode)
    return SherpaExport(
        out,
        kind,
        recogniser.features.bins,
        recogniser.sampling_rate,
        lambda samples: recogniser.transcribe_samples(samples, options=options).text,
        _notes(recogniser, kind),
    )


def check_sherpa(recogniser: Recogniser) -> None:
    """Check that sherpa-onnx can run the model.

    Raises:
        UserError: it cannot; the error names the nearest format that can.
    """
    student, features = recogniser.student, recogniser.features
    if isinstance(student, TransducerStudent) or not isinstance(student, HasCtc):
        nearest = {"cif": "onnx", "whisper": "transformers"}.get(student.config.kind)
        raise UserError(
            f"this {student.config.kind} student has no CTC head, which sherpa-onnx would run",
            remedy=f"Export it with --for {nearest}"
            if nearest
            else "Train it with student.ctc_weight above 0",
        )
    if features.kind != "fbank":
        nearest = "onnx" if student.config.kind == "cif" else "transformers"
        raise UserError(
            f"features.kind is {features.kind}, but sherpa-onnx computes fbank for a CTC model",
            remedy=f"Export it with --for {nearest}, or train with features.kind: fbank",
        )


def sherpa_symbols(tokenizer: Tokenizer) -> list[str]:
    """The names of all ids in `tokens.txt`.

    Raises:
        UserError: the pieces are not text.
    """
    if isinstance(tokenizer, WhisperTokenizer):
        raise UserError(
            "Whisper's pieces are bytes, which sherpa-onnx cannot join to text in a CTC model",
            remedy="Export it with --for onnx or --for transformers",
        )
    pieces = tokenizer.symbols[len(SPECIAL) :]
    if isinstance(tokenizer, TeacherTokenizer):
        pieces = [_teacher_piece(each) for each in pieces]
    return ["<blk>", "<pad>", "</s>", UNKNOWN_TEXT, *(each if each.strip() else SPACE for each in pieces)]


def _teacher_piece(piece: str) -> str:
    """A piece of WordPiece or byte-pair encoding with sentencepiece's mark of a word's start."""
    if piece.startswith("##"):
        return piece[2:]
    return SPACE + piece.removeprefix("Ġ") if not piece.startswith(SPACE) else piece


def _notes(recogniser: Recogniser, kind: str) -> list[str]:
    notes = []
    if recogniser.features.floor < FLOOR - 0.01:
        notes.append(
            f"sherpa-onnx does not compute log energies below {FLOOR:.3f}; this model was trained with lower ones "
            f"(features.floor: {recogniser.features.floor:g}), so single texts differ."
        )
    if kind == "wenet_ctc":
        notes.append("sherpa-onnx adds noise to the samples of wenet ctc models, so single texts may differ.")
    if isinstance(recogniser.tokenizer, TeacherTokenizer):
        notes.append("Spaces around apostrophes follow the pieces, not the rules of the tokenizer.")
    return notes
