"""The `Recogniser`: a trained model that transcribes audio, as returned by `retort.load`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from retort.audio.cmvn import normalised
from retort.audio.features import make_extractor
from retort.common.checksums import seal, verify
from retort.common.errors import BadUtterance, UserError
from retort.common.files import check_format, check_local, opening_model, write_whole
from retort.common.json_reader import read_json
from retort.common.weights import AGAIN, fit, pack, read_weights, unpack
from retort.config.earlier_formats import by_kind
from retort.config.loading import differing, read_saved
from retort.config.schema import FeatureConfig, NormaliserConfig, Recipe
from retort.decoding.confidence import AS_DECODED, Calibration
from retort.decoding.factory import open_search
from retort.decoding.graph_search import ScaledGraph
from retort.decoding.hypothesis import Hypothesis, NBest
from retort.decoding.no_speech import UNCALIBRATED, NoSpeech
from retort.decoding.options import GREEDY, DecodingOptions, make_options
from retort.decoding.search import Search
from retort.decoding.segment import SpeechSegment
from retort.decoding.signals import decoding_signals
from retort.decoding.transcriber import Transcriber
from retort.decoding.transcript import ScoredTranscript
from retort.graph.build import Graph
from retort.graph.pool import DecoderPool
from retort.nn.chunks import Chunks
from retort.pretrained.released import find_release
from retort.students.factory import build_student
from retort.students.student import SHORTEST, Encoded, Student
from retort.text.tokenizer_io import open_tokenizer
from retort.text.tokenizers import Tokenizer

FORMAT = 6
"""Format of new models; earlier ones have a configuration with fewer kinds (`config/earlier_formats.py`)."""
CONFIG_KEYS = {"format", "vocabulary", "student", "features", "normaliser", "graph", "no_speech", "confidence"}
"""Keys of `config.json`; another key was written by a later version and may change the result."""
_LARGEST, _MOST_LAYERS = 1 << 24, 1024
_LAYERS = {"layers", "context_layers", "blocks", "num_hidden_layers"}
"""Limits of numbers in a configuration, so that a damaged file cannot request all memory."""


class Recogniser(Transcriber):
    """A student with its tokenizer, features and normaliser.

    Attributes:
        student: student in eval mode.
        graph: decoding graph of a hybrid student; the tokenizer then contains the words of the graph.
    """

    def __init__(
        self,
        student: Student,
        tokenizer: Tokenizer,
        features: FeatureConfig,
        normaliser: NormaliserConfig,
        device: torch.device | str = "cpu",
        graph: ScaledGraph | None = None,
        no_speech: NoSpeech = UNCALIBRATED,
        options: DecodingOptions = GREEDY,
    ) -> None:
        super().__init__(tokenizer, features, normaliser, student.encoder.subsampling, no_speech, options)
        self.device = torch.device(device)
        self.student = student.to(self.device).eval()
        student.read_tokenizer(tokenizer)
        frames = torch.arange(4 * SHORTEST * student.encoder.subsampling)
        self.fewest_frames = int((student.encoder.output_lengths(frames) < SHORTEST).sum())
        self.most_frames = student.encoder.longest
        self.graph = graph
        self._pool = DecoderPool()
        self._extract = make_extractor(features)
        self._opened: Search | None = None

    def limit(self, chunk: int, left: int = 0) -> Recogniser:
        """Limit the context of the encoder as in a stream with chunks; returns the recogniser itself.

        Args:
            chunk: frames of the encoder's output in a chunk; 0 for the whole utterance.
            left: frames before a chunk that self-attention is limited to; 0 selects the largest of the training.

        Raises:
            UserError: the model was not trained in chunks.
        """
        self.student.encoder.chunks = self.chunks(chunk, left) if chunk else None
        return self

    def chunks(self, chunk: int, left: int = 0) -> Chunks:
        """The limits of context of :meth:`limit`, which are only checked.

        Raises:
            UserError: the model was not trained in chunks, or its layers have no such chunk.
        """
        encoder = self.student.encoder
        config, step = encoder.config, encoder.chunk_step
        if not any(config.chunk):
            raise UserError(
                "this model was not trained in chunks, so it needs whole utterances",
                remedy="Leave out --stream and --chunk, or use a model that was trained with student.encoder.chunk",
            )
        if chunk < 1 or chunk % step:
            raise UserError(
                f"the chunk is {chunk} frames",
                remedy="Choose a number from 1 on" if step == 1 else f"Choose a multiple of {step}",
            )
        return Chunks(chunk, left or (0 if 0 in config.left_context else max(config.left_context)))

    def use_pool(self, pool: DecoderPool) -> Recogniser:
        """Use these processes for graph searches; returns the recogniser itself."""
        self._pool, self._opened = pool, None
        return self

    @torch.inference_mode()
    def recognise_segments(
        self, segments: Sequence[SpeechSegment], options: DecodingOptions = GREEDY
    ) -> list[list[ScoredTranscript] | BadUtterance]:
        encoded = self.encode([segment.features for segment in segments])
        return self.segment_nbest(segments, encoded, self.opened(options)(encoded), options)

    @torch.inference_mode()
    def segment_nbest(
        self,
        segments: Sequence[SpeechSegment],
        encoded: Encoded,
        found: Sequence[NBest],
        options: DecodingOptions = GREEDY,
    ) -> list[list[ScoredTranscript] | BadUtterance]:
        """N-best lists of a batch of segments as texts with times; a segment without speech has no words."""
        best = [[] if isinstance(each, BadUtterance) else each[:1] for each in found]
        hypotheses = [each[0] if each else Hypothesis([], [], []) for each in best]
        signals = decoding_signals(self.student, encoded, hypotheses, [each.duration for each in segments])
        return self._timed(segments, found, signals, options)

    def notes(self, options: DecodingOptions = GREEDY) -> list[str]:
        return self.opened(options).notes

    @property
    def outputs(self) -> int:
        """Number of output classes: ids of the tokenizer, or senones of the graph."""
        return self.tokenizer.size if self.graph is None else self.graph.graph.about.inputs

    def decode(self, features: Sequence[Tensor]) -> list[Hypothesis]:
        """Recognise a batch of utterances of `(T, bins)` normalised features, without language models.

        Raises:
            BadUtterance: the search found no hypothesis for one of them.
        """
        hypotheses = []
        for found in self.search(features):
            if isinstance(found, BadUtterance):
                raise found
            hypotheses.append(found[0])
        return hypotheses

    @torch.inference_mode()
    def search(self, features: Sequence[Tensor], options: DecodingOptions = GREEDY) -> Sequence[NBest]:
        """N-best lists of a batch of utterances of `(T, bins)` normalised features."""
        return self.opened(options)(self.encode(features))

    @torch.inference_mode()
    def encode(self, features: Sequence[Tensor]) -> Encoded:
        """Encode a batch of utterances of `(T, bins)` normalised features."""
        lengths = torch.tensor([each.shape[0] for each in features])
        padded = pad_sequence(list(features), batch_first=True)
        return self.student.encode(padded.to(self.device), lengths.to(self.device))

    def opened(self, options: DecodingOptions) -> Search:
        """The search for the options; the last one is cached, so that models are read once.

        Raises:
            UserError: a language model cannot be opened, or an option or a model does not fit the student.
        """
        if self._opened is None or self._opened.options != options:
            self._opened = open_search(
                self.student,
                self.tokenizer,
                self.normalise,
                options,
                self._opened,
                self.graph,
                self._pool,
            )
        return self._opened

    def save(self, folder: Path, *, stored: str = "float32", link: bool = False) -> None:
        """Save the model in the format of :func:`load`.

        Args:
            folder: output folder, created if missing.
            stored: format of the weights: `float32`, `float16`, `int8` or `int4`
                (:func:`retort.common.weights.pack`).
            link: hard-link the decoding graph, as in :meth:`retort.graph.build.Graph.save`.

        Raises:
            UserError: a weight is out of the range of float16.
        """
        weights = pack(self._weights(), stored)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / "model.safetensors")
        self.tokenizer.save(folder / "tokenizer")
        if self.graph is not None:
            self.graph.graph.save(folder / "graph", link=link)
        (folder / "config.json").write_text(json.dumps(self._config(), indent=2) + "\n")
        seal(folder)

    def fingerprint(self) -> str:
        """Hash (32 hex digits) of all that :meth:`save` writes: models with equal fingerprints give equal results.

        New configuration keys of later versions do not change it.
        """
        digest = hashlib.sha256(json.dumps([self._config(differing), self.tokenizer.symbols]).encode())
        for name, tensor in sorted(self._weights().items()):
            digest.update(name.encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:32]

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.contiguous().cpu() for name, tensor in self.student.state_dict().items()}

    def _config(self, to_dict: Callable[[Any], dict[str, Any]] = asdict) -> dict[str, Any]:
        graph: dict[str, Any] = {}
        if self.graph is not None:
            about = self.graph.graph.about
            graph = {"graph": {"key": about.key, "acoustic_scale": self.graph.acoustic_scale}}
        return {
            "format": FORMAT,
            "vocabulary": self.outputs,
            "student": to_dict(self.student.config.without_initial_model),  # initial weights are not part of it
            "features": to_dict(self.features),
            "normaliser": to_dict(self.normalise.config),
            **graph,
            **({} if self.no_speech is UNCALIBRATED else {"no_speech": self.no_speech.to_dict()}),
            **({} if self.calibration == AS_DECODED else {"confidence": self.calibration.to_dict()}),
        }

    def _features(self, samples: np.ndarray) -> Tensor:
        return normalised(torch.from_numpy(self._extract(samples)), self.features)


@cache
def _work_after_fork() -> None:
    """Make forked child processes compute with one thread.

    Threads do not survive a fork, so a child would wait forever for PyTorch's thread pool.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))


def store_calibration(
    folder: str | Path, *, no_speech: NoSpeech | None = None, confidence: Calibration | None = None
) -> Path:
    """Write the no-speech classifier, the calibration of confidences, or both into the `config.json` of a model.

    Returns:
        The path of the file.

    Raises:
        UserError: there is no model, or the file cannot be written.
    """
    path = _model_root(folder) / "config.json"
    try:
        config = read_json(path)
        for key, part in (("no_speech", no_speech), ("confidence", confidence)):
            if part is not None:
                config[key] = part.to_dict()
        write_whole(path, json.dumps(config, indent=2) + "\n")
        seal(path.parent)
    except OSError as error:
        raise UserError(
            f"cannot be written ({error.strerror or error})",
            where=path,
            remedy="Copy the model to a folder with write access",
        ) from None
    return path


def _model_root(folder: str | Path) -> Path:
    check_local(str(folder))
    root = Path(folder)
    if (root / "model" / "config.json").is_file():
        root = root / "model"
    if not (root / "config.json").is_file():
        raise UserError(
            "there is no trained model here",
            where=folder,
            remedy="Give an experiment that `retort train` finished, or a release",
        )
    return root


def load(folder: str | Path, device: torch.device | str = "cpu", **decoding: Any) -> Recogniser:
    """Load a trained model: `EXP`, `EXP/model`, or a release.

    Float16, int8 and int4 weights are converted to float32.

    Args:
        folder: folder of the model, or a release on the hub (`USER/NAME@REVISION`).
        device: device of the computation.
        decoding: default decoding options by name, such as `beam=10` (:class:`DecodingOptions`).

    Raises:
        UserError: there is no model, files are missing, damaged or of another format, or an option is not valid.
    """
    options = make_options(decoding)
    _work_after_fork()
    root = _model_root(find_release(folder))
    with opening_model(root, AGAIN):
        config = _read_config(root)
        verify(root, "config.json", "tokenizer", "graph", editable=("config.json",), remedy=AGAIN)
        parts = {key: config[key] for key in ("student", "features", "normaliser")}
        if config["format"] < FORMAT:
            parts = by_kind(parts, Recipe)
        recipe = read_saved(Recipe, {**parts, "name": "model"}, str(root))
        _check_numbers(config)
        weights = unpack(read_weights(root / "model.safetensors"))
        sizes = recipe.student, int(config["vocabulary"]), recipe.features.bins
        with torch.device("meta"):
            fit(build_student(*sizes), weights)  # before any memory is asked for
        student = build_student(*sizes)
        student.load_state_dict(weights)
        no_speech = NoSpeech.from_dict(config["no_speech"]) if "no_speech" in config else UNCALIBRATED
        calibration = Calibration.from_dict(config["confidence"]) if "confidence" in config else AS_DECODED
    tokenizer = open_tokenizer(root / "tokenizer")
    graph = None
    if "graph" in config:
        with opening_model(root, AGAIN):
            graph = ScaledGraph(Graph.load(root / "graph"), float(config["graph"]["acoustic_scale"]))
    elif tokenizer.size != config["vocabulary"]:
        raise UserError(
            f"the tokenizer has {tokenizer.size} ids, the model a vocabulary of {config['vocabulary']}",
            where=root,
            remedy="Export or fetch it again",
        )
    made = Recogniser(student, tokenizer, recipe.features, recipe.normaliser, device, graph, no_speech, options)
    made.calibration = calibration
    return made


def _read_config(root: Path) -> dict[str, Any]:
    """Read `config.json` and check that this version supports its format and keys.

    Raises:
        UserError: it was written by a later version.
        OSError, ValueError, KeyError: it cannot be read.
    """
    config = read_json(root / "config.json")
    if not isinstance(config, dict):
        raise ValueError("config.json is not a table")
    if config["format"] not in range(1, FORMAT + 1):
        check_format(config["format"], FORMAT, root)
    if unknown := sorted(map(str, config.keys() - CONFIG_KEYS)):
        raise UserError(
            f"its configuration has '{unknown[0]}', which this version does not support",
            where=root / "config.json",
            remedy="Install a later version of retort-asr",
        )
    return config


def _check_numbers(config: dict[str, Any]) -> None:
    """Raise an error for numbers that no model has; a damaged file could otherwise ask for any amount of memory."""
    for name, number in _numbers(config):
        if abs(number) > (_MOST_LAYERS if name in _LAYERS else _LARGEST):
            raise ValueError(f"{name} is {number}")


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float]]:
    """All numbers of a configuration with their keys."""
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _numbers(each, str(key))
    elif isinstance(value, list):
        for each in value:
            yield from _numbers(each, name)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value
