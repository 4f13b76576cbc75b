"""Students that were trained in chunks, in sherpa-onnx's layouts for audio that arrives.

Graphs of sherpa-onnx's online models get the features of the next chunk and the states, which are zeros at first. Two of
its layouts compute Kaldi's filter banks, process several streams in a batch, and have states of any size, given in the
metadata: the `zipformer2_ctc` models for CTC heads, and the `lstm` transducers. Here, of the caches of a Zipformer of one
layer the keys hold the states of all layers, and the values the sums of running CMVN; of an LSTM, h and c do.
A `wenet_ctc` model computes one stream at a time and leaves the size of a chunk to its user, and the features of
`nemo_ctc` models depend on the version of sherpa-onnx.

sherpa-onnx computes complete chunks only, and no others when the audio ends.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from retort.audio.fbank import FRAME_SHIFT
from retort.common.errors import UserError
from retort.decoding.options import DecodingOptions
from retort.decoding.recogniser import Recogniser
from retort.export.graphs import normalise_running
from retort.export.record import record, require
from retort.export.scores import Recognise
from retort.export.sherpa import (
    ENCODER,
    MODEL,
    RANGE,
    SherpaExport,
    check_sherpa,
    ctc_scores,
    engine_notes,
    record_predictor,
    sherpa_symbols,
    whole_options,
    write_symbols,
)
from retort.export.stream_graphs import ChunkGraph
from retort.export.stream_model import smallest_chunk, stream_chunks
from retort.nn.chunks import Chunks, StreamCache
from retort.nn.frontend import Conv2dFrontend
from retort.students.ctc import HasCtc
from retort.students.student import Student
from retort.students.transducer import TransducerStudent

_WIDTH = 4
"""Width of the Zipformer whose caches hold the states, the smallest that sherpa-onnx has."""
_EMBEDDING = 128, 3, 19
"""Shape of a state of any Zipformer, which is not used."""
_PIECE = 0.1
"""Seconds of audio that the engine gets at a time when it is scored."""


@dataclass(frozen=True)
class OnlineExport(SherpaExport):
    """An export for sherpa-onnx's recogniser of audio that arrives.

    Attributes:
        window: feature frames that a chunk depends on.
        shift: feature frames of a chunk.
    """

    window: int
    shift: int

    @property
    def lead(self) -> str:
        layout = "lstm transducers" if self.kind == "transducer" else "zipformer2 ctc models"
        return (
            f"A model for sherpa-onnx that recognises audio while it arrives, in chunks of {10 * self.shift} ms, in the "
            f"layout of its online {layout}."
        )

    @property
    def commands(self) -> list[str]:
        return [
            "pip install sherpa-onnx-bin",
            f"sherpa-onnx {self.flags} recording.wav",
            f"sherpa-onnx-microphone {self.flags}",
        ]

    def completed(self, samples: np.ndarray) -> np.ndarray:
        """`samples (N,)` float32 with silence after them, so that all of them are in complete chunks and no more
        frames are left than sherpa-onnx waits for."""
        return completed(samples, self.window, self.shift, self.sampling_rate)

    def recognise(self) -> Recognise:
        require("sherpa_onnx")
        import sherpa_onnx

        recogniser = self.open(sherpa_onnx.OnlineRecognizer)
        size = round(_PIECE * self.sampling_rate)

        def text(samples: np.ndarray) -> str:
            stream, samples = recogniser.create_stream(), self.completed(samples)
            for start in range(0, len(samples), size):
                stream.accept_waveform(self.sampling_rate, samples[start : start + size])
                if start + size >= len(samples):
                    stream.input_finished()
                while recogniser.is_ready(stream):
                    recogniser.decode_stream(stream)
            return str(recogniser.get_result(stream))

        return text


class OnlineEncoder(ChunkGraph):
    """Features of sherpa-onnx of the next chunk of N streams to the encoder's output; all states are two tensors.

    Args:
        recogniser: features of the model.
        student: in eval mode; it is changed.
        chunks: limits of context, in frames of the output.

    Attributes:
        layers: number of values of the states of the layers of one stream.
        sums: number of values of the state of CMVN of one stream; one that is not used without CMVN.
        shift: feature frames of a chunk.

    Raises:
        UserError: the front end has no graph.
    """

    def __init__(self, recogniser: Recogniser, student: Student, chunks: Chunks) -> None:
        super().__init__(student, chunks, recogniser.features.bins)
        self.cmvn = recogniser.features.cmvn
        self.sizes = [math.prod(each) for each in self.shapes]
        self.layers = sum(self.sizes)
        self.sums = 4 * self.bins if self.cmvn else 1
        self.shift = chunks.size * student.encoder.subsampling

    def random_features(self, batch: int) -> Tensor:
        """Features `(batch, T, bins)` of a chunk, in the range of sherpa-onnx's, of samples in [-1, 1]."""
        return 2.0 * torch.randn(batch, self.window(self.chunks.size), self.bins) - 8.0

    def forward(
        self, features: Tensor, layers: Tensor, sums: Tensor, number: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Encode a chunk.

        Args:
            features: `(N, T, bins)` float32, of the chunk and after it.
            layers: `(N, layers)` float32.
            sums: `(N, sums)` float32: sums and sums of squares of the features so far, as values rounded to float32
                and the rest.
            number: `(N,)` int64, chunks so far.

        Returns:
            The output `(N, F, D)`, and the next `layers` and `sums`.
        """
        features = features + RANGE
        if self.cmvn:
            before = sums.reshape(-1, 2, 2, self.bins).double().sum(2)
            features, after = normalise_running(features, before, number * self.shift)
            last = after[:, :, self.shift - 1]
            rounded = last.float()
            sums = torch.stack((rounded, (last - rounded.double()).float()), 2).flatten(1)
        states = layers.split(self.sizes, 1)
        cache = StreamCache(
            number,
            {key: each.reshape(-1, *shape) for key, each, shape in zip(self.keys, states, self.shapes)},
        )
        valid = torch.full_like(number, features.shape[1])
        count = torch.full_like(number, self.front_frames(self.chunks.size))
        hidden = self._encoded(features, valid, count, number * self.chunks.size, cache)[0]
        return hidden, torch.cat([cache.tensors[key].flatten(1) for key in self.keys], 1), sums


class OnlineCtcGraph(nn.Module):
    """A CTC head in the layout of sherpa-onnx's online `zipformer2_ctc` models, as a Zipformer of one layer.

    Args:
        encoder: with its states.
        student: with a CTC head.
    """

    streams: ClassVar[dict[str, int]] = {
        "x": 0, "key": 1, "nonlinear": 1, "value_1": 1, "value_2": 1, "convolution_1": 0, "convolution_2": 0,
        "embedding": 0, "number": 0,
    }  # fmt: skip
    """The axis of the streams of each input."""
    outputs = ("log_probs", *(f"next_{name}" for name in list(streams)[1:]))

    def __init__(self, encoder: OnlineEncoder, student: HasCtc) -> None:
        super().__init__()
        self.encoder, self.head = encoder, student.ctc

    def start(self, batch: int) -> dict[str, Tensor]:
        """Random features, and the states of new streams."""
        encoder = self.encoder
        return {
            "x": encoder.random_features(batch),
            "key": torch.zeros(1, batch, encoder.layers),
            "nonlinear": torch.zeros(1, batch, 1, 3 * _WIDTH // 4),
            "value_1": torch.zeros(1, batch, encoder.sums),
            "value_2": torch.zeros(1, batch, encoder.sums),
            "convolution_1": torch.zeros(batch, _WIDTH, 1),
            "convolution_2": torch.zeros(batch, _WIDTH, 1),
            "embedding": torch.zeros(batch, *_EMBEDDING),
            "number": torch.zeros(batch, dtype=torch.int64),
        }

    def metadata(self) -> dict[str, str]:
        """The metadata of the model."""
        encoder = self.encoder
        found = {
            "encoder_dims": _WIDTH,
            "num_encoder_layers": 1,
            "num_heads": 1,
            "query_head_dims": encoder.layers,
            "value_head_dims": encoder.sums,
            "cnn_module_kernels": 3,
            "left_context_len": 1,
            "T": encoder.window(encoder.chunks.size),
            "decode_chunk_len": encoder.shift,
        }
        return {"model_type": "zipformer2", **{name: str(each) for name, each in found.items()}}

    def forward(self, x: Tensor, key: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
        """`x (N, T, bins)`, `key (1, N, layers)`, and as `others` those of :meth:`start`: the second is `(1, N, sums)`, the
        last `(N,)` int64, the chunks so far. Returns the scores `(N, F, V)` and the next states."""
        nonlinear, sums, *unused, number = others
        hidden, layers, after = self.encoder(x, key[0], sums[0], number)
        passed = [each.clone() for each in unused]
        scores = ctc_scores(self.head, hidden)
        return scores, layers[None], nonlinear.clone(), after[None], *passed, number + 1


class OnlineTransducerEncoder(nn.Module):
    """The encoder of a transducer, with the joiner's projection, in the layout of sherpa-onnx's `lstm` transducers.

    Args:
        encoder: with its states.
        student: with a joiner.
    """

    streams: ClassVar[dict[str, int]] = {"x": 0, "h": 1, "c": 1}
    """The axis of the streams of each input."""
    outputs = ("encoder_out", "next_h", "next_c")

    def __init__(self, encoder: OnlineEncoder, student: TransducerStudent) -> None:
        super().__init__()
        self.encoder, self.joiner = encoder, student.joiner

    def start(self, batch: int) -> dict[str, Tensor]:
        """Random features, and the states of new streams."""
        encoder = self.encoder
        return {
            "x": encoder.random_features(batch),
            "h": torch.zeros(1, batch, encoder.layers),
            "c": torch.zeros(1, batch, encoder.sums + 1),
        }

    def metadata(self) -> dict[str, str]:
        """The metadata of the encoder."""
        encoder = self.encoder
        found = {
            "num_encoder_layers": 1,
            "T": encoder.window(encoder.chunks.size),
            "decode_chunk_len": encoder.shift,
            "rnn_hidden_size": encoder.sums + 1,
            "d_model": encoder.layers,
        }
        return {"model_type": "lstm", **{name: str(each) for name, each in found.items()}}

    def forward(self, x: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, ...]:
        """`x (N, T, bins)`, `h (1, N, layers)` and `c (1, N, 1 + sums)`, the number of chunks and the sums, to `(N, F, C)`
        and the next states."""
        number = c[0, :, 0].long()
        hidden, layers, sums = self.encoder(x, h[0], c[0, :, 1:], number)
        after = torch.cat(((number + 1).float()[:, None], sums), 1)
        return self.joiner.project_encoder(hidden), layers[None], after[None]


def completed(samples: np.ndarray, window: int, shift: int, sampling_rate: int) -> np.ndarray:
    """`samples (N,)` with zeros after them, up to the first number of frames of which sherpa-onnx computes the last chunk
    that has one of `samples`: it waits for one frame more than the window of the chunk.

    Args:
        window, shift: feature frames that a chunk depends on, and of a chunk.
    """
    hop = round(FRAME_SHIFT * sampling_rate)
    chunks = max(-(-len(samples) // (hop * shift)), 1)
    return np.pad(samples, (0, ((chunks - 1) * shift + window + 1) * hop - len(samples)))


def online_chunk(recogniser: Recogniser, chunk: int | None) -> int:
    """The size of the chunks of an export in frames of the encoder's output; 0 for a model of whole utterances.

    Args:
        chunk: the size that is asked for; None selects the smallest of the training.
    """
    return smallest_chunk(recogniser.student) if chunk is None else chunk


def check_online(recogniser: Recogniser, chunk: int) -> Chunks:
    """The limits of context of an export.

    Args:
        chunk: frames of a chunk, above 0.

    Raises:
        UserError: sherpa-onnx cannot run the model on audio that arrives.
    """
    chunks = stream_chunks(recogniser, chunk)
    check_sherpa(recogniser)
    whole = "or export it for whole utterances with --chunk 0"
    if not recogniser.features.streams:
        raise UserError(
            "features.statistics is utterance: CMVN needs the whole utterance, which chunks do not have",
            remedy=f"Train with features.statistics: running, {whole}",
        )
    if not isinstance(recogniser.student.encoder.frontend, Conv2dFrontend):
        raise UserError(
            "only chunks of the front end conv2d have a graph for sherpa-onnx",
            remedy=f"Train with student.frontend.kind: conv2d, {whole}",
        )
    return chunks


def export_online(recogniser: Recogniser, out: Path, chunk: int) -> OnlineExport:
    """Write `tokens.txt`, and `model.onnx` of a CTC head or `encoder.onnx`, `decoder.onnx` and `joiner.onnx`.

    Args:
        recogniser: as of :func:`retort.export.sherpa.export_sherpa`, trained in chunks.
        out: created if missing.
        chunk: frames of the encoder's output in a chunk.

    Raises:
        UserError: sherpa-onnx cannot run the model on audio that arrives, or a package is missing.
    """
    require("onnx")
    chunks = check_online(recogniser, chunk)
    symbols = sherpa_symbols(recogniser.tokenizer)
    student = copy.deepcopy(recogniser.student).float().eval()
    out.mkdir(parents=True, exist_ok=True)
    kind = "transducer" if isinstance(student, TransducerStudent) else "zipformer2_ctc"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = OnlineEncoder(recogniser, student, chunks)
        if isinstance(student, TransducerStudent):
            _record(OnlineTransducerEncoder(encoder, student).eval(), out / ENCODER)
            record_predictor(student, out, len(symbols))
        else:
            assert isinstance(student, HasCtc)
            _record(OnlineCtcGraph(encoder, student).eval(), out / MODEL)
    write_symbols(symbols, out)
    window = encoder.window(chunks.size)
    return OnlineExport(
        out,
        kind,
        recogniser.features.bins,
        recogniser.sampling_rate,
        limited(recogniser, chunks, window, whole_options(recogniser.student)),
        _notes(recogniser, kind, window),
        window,
        encoder.shift,
    )


def _record(graph: OnlineCtcGraph | OnlineTransducerEncoder, path: Path) -> None:
    """Record a graph, whose only dynamic size is the number of streams, with states of its own second chunk."""

    def second(batch: int) -> dict[str, Tensor]:
        begun = graph.start(batch)
        with torch.no_grad():
            states = graph(*begun.values())[1:]
        return {**begun, **dict(zip(list(begun)[1:], states)), "x": graph.encoder.random_features(batch)}

    example = second(2)
    fixed = {
        name: [axis for axis in range(each.dim()) if axis != graph.streams[name]]
        for name, each in example.items()
    }
    record(graph, example, graph.outputs, fixed, path, graph.metadata(), other=second(3))


def limited(recogniser: Recogniser, chunks: Chunks, window: int, options: DecodingOptions) -> Recognise:
    """The texts of the model in torch with the same limits of context, of the same chunks."""
    shift = chunks.size * recogniser.student.encoder.subsampling

    def text(samples: np.ndarray) -> str:
        recogniser.limit(chunks.size, chunks.left)
        try:
            whole = completed(samples, window, shift, recogniser.sampling_rate)
            return recogniser.transcribe_samples(whole, options=options).text
        finally:
            recogniser.limit(0)

    return text


def _notes(recogniser: Recogniser, kind: str, window: int) -> list[str]:
    return [
        f"sherpa-onnx computes complete chunks only: let {(window + 1) / 100:.2f} s of silence follow the last word.",
        *engine_notes(recogniser, kind),
    ]
