"""CTC heads, stateless transducers and parallel CIF students in the layouts of sherpa-onnx.

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
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retort.audio.fbank import FbankConfig
from retort.common.errors import UserError
from retort.common.files import write_whole
from retort.decoding.options import DecodingOptions
from retort.decoding.recogniser import Recogniser
from retort.export.graphs import EncoderGraph
from retort.export.paraformer import (
    OUTPUTS,
    ParaformerGraph,
    check_paraformer,
    is_paraformer,
    paraformer_metadata,
    paraformer_notes,
    paraformer_symbols,
)
from retort.export.record import record, require
from retort.export.scores import Recognise
from retort.nn.predictor import StatelessPredictor
from retort.students.cif import CifStudent
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
MODEL, _TOKENS = "model.onnx", "tokens.txt"
ENCODER = "encoder.onnx"
_PARTS = ("encoder", "decoder", "joiner")
"""Files of a transducer, without their suffix."""
_ZIPFORMER = 4
"""Feature frames per output frame in sherpa-onnx's `zipformer_ctc` models, by which it computes times."""


@dataclass(frozen=True)
class SherpaExport:
    """An export for sherpa-onnx.

    Attributes:
        folder: folder of the files.
        kind: `zipformer_ctc`, `wenet_ctc`, `transducer` or `paraformer`.
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
        return ["pip install sherpa-onnx-bin", f"sherpa-onnx-offline {self.flags} recording.wav"]

    @property
    def flags(self) -> str:
        """Options of the commands of sherpa-onnx."""
        flags = f"--{self.kind.replace('_', '-')}-model={MODEL}"
        if self.kind == "paraformer":
            flags = f"--paraformer={MODEL}"
        if self.kind == "transducer":
            flags = " ".join(f"--{part}={part}.onnx" for part in _PARTS)
        return f"--tokens={_TOKENS} {flags}"

    def open(self, recogniser: Any) -> Any:
        """An instance of a class of recognisers of sherpa-onnx."""
        make = getattr(recogniser, f"from_{self.kind}")
        files = {"transducer": _PARTS, "paraformer": ("paraformer",)}.get(self.kind, ("model",))
        names = {"paraformer": MODEL}
        return make(
            **{part: str(self.folder / names.get(part, f"{part}.onnx")) for part in files},
            tokens=str(self.folder / _TOKENS),
            num_threads=1,
            sample_rate=self.sampling_rate,
            feature_dim=self.bins,
        )

    def recognise(self) -> Recognise:
        """The texts of sherpa-onnx.

        Raises:
            UserError: sherpa-onnx is not installed.
        """
        require("sherpa_onnx")
        import sherpa_onnx

        recogniser = self.open(sherpa_onnx.OfflineRecognizer)

        def text(samples: np.ndarray) -> str:
            stream = recogniser.create_stream()
            stream.accept_waveform(self.sampling_rate, samples)
            recogniser.decode_stream(stream)
            return str(stream.result.text)

        return text


class CtcGraph(EncoderGraph):
    """Features of sherpa-onnx to the scores of a CTC head (:func:`ctc_scores`).

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
        return ctc_scores(self.head, encoded.hidden), encoded.lengths


def ctc_scores(head: nn.Module, hidden: Tensor) -> Tensor:
    """Log-probabilities `(N, F, V)` of a CTC head for sherpa-onnx, where padding and EOS count as blanks."""
    log_probs = head(hidden).log_softmax(-1)
    blank = log_probs[..., [BLANK, PAD, EOS]].amax(-1, keepdim=True)
    never = torch.full_like(log_probs[..., :1], _NEVER)
    return torch.cat((blank, never, never, log_probs[..., UNKNOWN:]), -1)


class TransducerEncoder(EncoderGraph):
    """Features of sherpa-onnx to the joiner's projection of the encoder output.

    Args:
        shift: added to the features.
    """

    def __init__(self, recogniser: Recogniser, student: TransducerStudent, shift: float) -> None:
        super().__init__(student, recogniser.features)
        self.joiner, self.shift = student.joiner, shift

    def forward(self, features: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """`features (N, T, bins)` and `lengths (N,)` int64 to `(N, F, C)` and lengths `(N,)`."""
        encoded = self.encode(features + self.shift, lengths)
        return self.joiner.project_encoder(encoded.hidden), encoded.lengths


class TransducerDecoder(nn.Module):
    """The joiner's projection `(N, C)` of a stateless predictor for the last tokens `y (N, context)`; sherpa-onnx's
    start symbols, -1 and 0, are Retort's, EOS."""

    def __init__(self, student: TransducerStudent) -> None:
        super().__init__()
        self.predictor, self.joiner = student.predictor, student.joiner

    def forward(self, y: Tensor) -> Tensor:
        predictor = self.predictor
        assert isinstance(predictor, StatelessPredictor)
        return self.joiner.project_predictor(predictor._read(torch.where(y <= 0, EOS, y)))


class TransducerJoiner(nn.Module):
    """Logits `(N, V)` of two projections `(N, C)`; padding, EOS and the unknown token are never emitted."""

    def __init__(self, student: TransducerStudent) -> None:
        super().__init__()
        self.joiner = student.joiner

    def forward(self, encoder_out: Tensor, decoder_out: Tensor) -> Tensor:
        logits = self.joiner(encoder_out, decoder_out)[1]
        never = torch.full_like(logits[..., :3], _NEVER)
        return torch.cat((logits[..., :1], never, logits[..., len(SPECIAL) :]), -1)


def export_sherpa(recogniser: Recogniser, out: Path) -> SherpaExport:
    """Write `tokens.txt`, and `model.onnx` of a CTC head or a parallel CIF student, or `encoder.onnx`, `decoder.onnx` and
    `joiner.onnx`.

    Args:
        recogniser: with a CTC student, another one with a CTC head, a transducer with a stateless predictor, or a parallel
            CIF student with `features.convention: paraformer`.
        out: created if missing.

    Raises:
        UserError: the student has no CTC head, its features or tokens cannot be computed by sherpa-onnx, or a package
            is missing.
    """
    require("onnx")
    check_sherpa(recogniser)
    parallel = is_paraformer(recogniser.student, recogniser.features)
    symbols = (paraformer_symbols if parallel else sherpa_symbols)(recogniser.tokenizer)
    student = copy.deepcopy(recogniser.student).float().eval()
    subsampling = student.encoder.subsampling
    kind = "zipformer_ctc" if subsampling == _ZIPFORMER else "wenet_ctc"
    out.mkdir(parents=True, exist_ok=True)
    frames = max(8 * subsampling, 4 * recogniser.fewest_frames) + 3
    features = torch.randn(2, frames, recogniser.features.bins, generator=torch.Generator().manual_seed(0))
    inputs = {"x": features, "x_lens": torch.tensor([frames, frames - 2])}
    other = {"x": features[:1, :-3], "x_lens": torch.tensor([frames - 3])}
    metadata = {"model_type": kind, "vocab_size": str(len(symbols)), "subsampling_factor": str(subsampling)}
    if isinstance(student, TransducerStudent):
        kind = "transducer"
        encoder = TransducerEncoder(recogniser, student, RANGE).eval()
        outputs = ["encoder_out", "encoder_out_lens"]
        metadata = {"model_type": "zipformer2"}
        record(encoder, inputs, outputs, {"x": [2]}, out / ENCODER, metadata, other=other)
        record_predictor(student, out, len(symbols))
    elif parallel:
        kind = "paraformer"
        assert isinstance(student, CifStudent)
        record(
            ParaformerGraph(recogniser, student).eval(),
            {"speech": features, "lengths": inputs["x_lens"].int()},
            OUTPUTS,
            {"speech": [2]},
            out / MODEL,
            paraformer_metadata(recogniser),
            other={"speech": other["x"], "lengths": other["x_lens"].int()},
        )
    else:
        graph = CtcGraph(recogniser, student, RANGE if kind == "zipformer_ctc" else 0.0).eval()
        record(graph, inputs, ["log_probs", "log_probs_lens"], {"x": [2]}, out / MODEL, metadata, other=other)
    write_symbols(symbols, out)
    options = whole_options(recogniser.student, own=parallel)
    return SherpaExport(
        out,
        kind,
        recogniser.features.bins,
        recogniser.sampling_rate,
        lambda samples: recogniser.transcribe_samples(samples, options=options).text,
        engine_notes(recogniser, kind),
    )


def write_symbols(symbols: Sequence[str], out: Path) -> None:
    """Write `tokens.txt`."""
    write_whole(out / _TOKENS, "".join(f"{symbol} {number}\n" for number, symbol in enumerate(symbols)))


def whole_options(student: Student, own: bool = False) -> DecodingOptions:
    """Greedy decoding in torch of what sherpa-onnx recognises: the CTC head of students that have another decoder.

    Args:
        own: use that decoder.
    """
    own = own or isinstance(student, CtcStudent | TransducerStudent)
    return DecodingOptions(vad="none", no_speech_threshold=1.0, mode="own" if own else "ctc")


def record_predictor(student: TransducerStudent, out: Path, size: int) -> None:
    """Write `decoder.onnx` and `joiner.onnx` of a transducer with `size` symbols."""
    metadata = {"vocab_size": str(size), "context_size": str(student.config.transducer.context)}
    decoder, joiner = TransducerDecoder(student).eval(), TransducerJoiner(student).eval()
    last = torch.full((2, student.config.transducer.context), EOS)
    record(
        decoder,
        {"y": last},
        ["decoder_out"],
        {"y": [1]},
        out / "decoder.onnx",
        metadata,
        other={"y": last[:1] + 3},
    )
    both = {
        name: torch.randn(2, student.config.transducer.joiner_dim) for name in ("encoder_out", "decoder_out")
    }
    record(
        joiner,
        both,
        ["logit"],
        {name: [1] for name in both},
        out / "joiner.onnx",
        other={name: each[:1] for name, each in both.items()},
    )


def check_sherpa(recogniser: Recogniser) -> None:
    """Check that sherpa-onnx can run the model.

    Raises:
        UserError: it cannot; the error names the nearest format that can.
    """
    student, features = recogniser.student, recogniser.features
    if is_paraformer(student, features):
        check_paraformer(recogniser.tokenizer, recogniser.separator)
        return
    if isinstance(student, TransducerStudent):
        if not isinstance(student.predictor, StatelessPredictor):
            raise UserError(
                "the predictor of this transducer is an LSTM, but that of sherpa-onnx's transducers is stateless",
                remedy="Train with student.transducer.predictor: stateless",
            )
    elif not isinstance(student, HasCtc):
        nearest = {"cif": "onnx", "whisper": "transformers"}.get(student.config.kind)
        raise UserError(
            f"this {student.config.kind} student is no transducer and has no CTC head, which sherpa-onnx would run",
            remedy=f"Export it with --for {nearest}; sherpa-onnx also runs students with a parallel decoder that were "
            "trained with features.convention: paraformer"
            if nearest == "onnx"
            else f"Export it with --for {nearest}"
            if nearest
            else "Train it with student.ctc_weight above 0",
        )
    if features.kind != "fbank" or not isinstance(features, FbankConfig):
        nearest = "onnx" if student.config.kind == "cif" else "transformers"
        raise UserError(
            f"features.kind is {features.kind}, but sherpa-onnx computes fbank for a CTC model",
            remedy=f"Export it with --for {nearest}, or train with features.kind: fbank",
        )
    if features.convention != "kaldi":
        raise UserError(
            f"features.convention is {features.convention}, which sherpa-onnx does not compute for a {student.config.kind} "
            "student",
            remedy="Train with features.convention: kaldi",
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


def engine_notes(recogniser: Recogniser, kind: str) -> list[str]:
    """Differences of sherpa-onnx that remain for a layout."""
    if kind == "paraformer":
        return paraformer_notes(recogniser.tokenizer)
    notes = []
    features = recogniser.features
    if isinstance(features, FbankConfig) and features.floor < FLOOR - 0.01:
        notes.append(
            f"sherpa-onnx does not compute log energies below {FLOOR:.3f}; this model was trained with lower ones "
            f"(features.floor: {features.floor:g}), so single texts differ."
        )
    if kind in ("transducer", "zipformer2_ctc") and recogniser.student.encoder.subsampling != _ZIPFORMER:
        notes.append("sherpa-onnx computes times for 40 ms per output frame; those of this model are wrong.")
    if kind == "wenet_ctc":
        notes.append("sherpa-onnx adds noise to the samples of wenet ctc models, so single texts may differ.")
    if isinstance(recogniser.tokenizer, TeacherTokenizer):
        notes.append("Spaces around apostrophes follow the pieces, not the rules of the tokenizer.")
    return notes
