"""The `Recogniser`: a trained model that transcribes audio, as returned by `retort.load`."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from retort.audio.fbank import FRAME_SHIFT
from retort.audio.features import EXTRACTORS, normalised
from retort.audio.files import MAXIMUM_HOURS, Channel, WaveCheck, log_warning, open_audio
from retort.audio.samples import as_path, as_wave
from retort.audio.segments import LONGEST, segments
from retort.audio.speech import open_detector
from retort.audio.texture import sound_signals
from retort.common.checksums import seal, verify
from retort.common.errors import BadUtterance, UserError
from retort.common.files import check_format, check_local, opening_model, write_whole
from retort.common.json_reader import read_json
from retort.common.weights import AGAIN, fit, pack, read_weights, unpack
from retort.config.checks import check_choices
from retort.config.loading import differing, read_saved
from retort.config.schema import CHOICES, FeatureConfig, NormaliserConfig, Recipe
from retort.config.student_checks import check_sizes
from retort.decoding.channels import channel_nbest
from retort.decoding.factory import open_search
from retort.decoding.graph_search import ScaledGraph
from retort.decoding.greedy import Hypothesis
from retort.decoding.no_speech import UNCALIBRATED, NoSpeech, decoding_signals
from retort.decoding.options import GREEDY, DecodingOptions, make_options
from retort.decoding.search import NBest, Search
from retort.decoding.segment import SpeechSegment
from retort.decoding.speech_times import within_speech
from retort.decoding.transcript import ScoredTranscript, Transcript, join_nbest, time_candidates
from retort.graph.build import Graph
from retort.graph.pool import DecoderPool
from retort.students.factory import build_student
from retort.students.student import SHORTEST, Encoded, Student
from retort.text.normalise import Normaliser
from retort.text.tokenizer_io import open_tokenizer
from retort.text.tokenizers import Tokenizer

FORMAT = 1
FORMATS = {"int8": 2, "int4": 3}
"""Formats of models with quantised weights."""
CONFIG_KEYS = {"format", "vocabulary", "student", "features", "normaliser", "graph", "no_speech"}
"""Keys of `config.json`; another key was written by a later version and may change the result."""
_LARGEST, _MOST_LAYERS = 1 << 24, 1024
_LAYERS = {"layers", "context_layers", "blocks", "num_hidden_layers"}
"""Limits of numbers in a configuration, so that a damaged file cannot request all memory."""


Samples: TypeAlias = "np.ndarray | Tensor | Sequence[float]"
Audio: TypeAlias = "str | Path | Samples"


class Recogniser:
    """A student with its tokenizer, features and normaliser.

    Attributes:
        student: student in eval mode.
        graph: decoding graph of a hybrid student; the tokenizer then contains the words of the graph.
        sampling_rate: sampling rate of the input, Hz.
        no_speech: classifier of segments without speech.
        options: decoding options of :meth:`transcribe` and the like, if none are given.
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
        self.device = torch.device(device)
        self.student = student.to(self.device).eval()
        self.tokenizer = tokenizer
        student.read_tokenizer(tokenizer)
        self.features = features
        self.normalise = Normaliser(normaliser)
        self.sampling_rate = features.sampling_rate
        self.frame_seconds = FRAME_SHIFT * student.encoder.subsampling
        self.graph = graph
        self.no_speech = no_speech
        self.options = options
        self._pool = DecoderPool()
        self._extract = EXTRACTORS[features.kind](features)
        self._opened: Search | None = None

    def use_pool(self, pool: DecoderPool) -> Recogniser:
        """Use these processes for graph searches; returns the recogniser itself."""
        self._pool, self._opened = pool, None
        return self

    def transcribe(
        self,
        audio: Audio,
        longest: float = LONGEST,
        options: DecodingOptions | None = None,
        channel: Channel = "mix",
        maximum_hours: float = MAXIMUM_HOURS,
        **decoding: Any,
    ) -> Transcript:
        """Recognise a file of any sampling rate and number of channels.

        Args:
            audio: path of a file, or samples as in :meth:`transcribe_samples`.
            longest: seconds; a longer file is split at its pauses into segments of at most this length.
            options: decoding options; by default :attr:`options`.
            channel: channel of a file, from 0, or "mix" for the mean of all.
            maximum_hours: a longer file raises an error.
            decoding: single decoding options by name, such as `beam=10`, in place of those in `options`.

        Raises:
            UserError: the file is missing, not audio, empty, silent or too short, or an option is not valid.
        """
        return self.alternatives(audio, longest, options, channel, maximum_hours, **decoding)[0].transcript

    def transcribe_channels(
        self,
        path: str | Path,
        longest: float = LONGEST,
        options: DecodingOptions | None = None,
        maximum_hours: float = MAXIMUM_HOURS,
        **decoding: Any,
    ) -> dict[int, Transcript]:
        """Recognise each channel of a file separately; :func:`retort.decoding.channels.turns` orders them by time.

        Raises:
            UserError: as in :meth:`transcribe`, if no channel can be used.
        """
        found = channel_nbest(self, str(path), longest, self.chosen(options, decoding), maximum_hours)
        return {channel: nbest[0].transcript for channel, nbest in found.items()}

    def transcribe_samples(
        self,
        samples: Samples,
        longest: float = LONGEST,
        where: str = "samples",
        options: DecodingOptions | None = None,
        **decoding: Any,
    ) -> Transcript:
        """Recognise `samples (N,)` of one channel at :attr:`sampling_rate`.

        Args:
            samples: floats in [-1, 1], or integers (int8, int16, int32, uint8), which are divided by their
                full scale, as an array, tensor or list; `(N, 1)` and `(1, N)` are accepted.
            longest: as in :meth:`transcribe`.
            where: name of the samples in error messages.
            options, decoding: as in :meth:`transcribe`.

        Raises:
            UserError: the type or shape is not supported, or the samples are empty, silent, not finite or too
                few.
        """
        chosen = self.chosen(options, decoding)
        return self._nbest([as_wave(samples, where)], longest, where, chosen)[0].transcript

    def chosen(self, options: DecodingOptions | None, decoding: Mapping[str, Any]) -> DecodingOptions:
        """`options`, or the recogniser's own, with the single options of `decoding`.

        Raises:
            UserError: a name or a value is not valid.
        """
        return make_options(decoding, self.options if options is None else options)

    def alternatives(
        self,
        audio: Audio,
        longest: float = LONGEST,
        options: DecodingOptions | None = None,
        channel: Channel = "mix",
        maximum_hours: float = MAXIMUM_HOURS,
        **decoding: Any,
    ) -> list[ScoredTranscript]:
        """The n-best list of a file: up to `options.nbest` different transcripts, best first.

        Arguments and errors are those of :meth:`transcribe`. A file is decoded while it is read, so memory
        does not grow with its length.
        """
        options, path = self.chosen(options, decoding), as_path(audio)
        if path is None:
            return self._nbest([as_wave(audio, "samples")], longest, "samples", options)
        reader = open_audio(path, self.sampling_rate, channel, maximum_hours=maximum_hours)
        found = self._nbest(reader.blocks(), longest, path, options)
        log_warning(reader)
        return found

    @torch.inference_mode()
    def _nbest(
        self, blocks: Iterable[np.ndarray], longest: float, where: str, options: DecodingOptions
    ) -> list[ScoredTranscript]:
        """The n-best list of a recording; segments are decoded while its blocks are read."""
        if not longest >= 1.0:
            raise UserError(f"longest is {longest}", remedy="Give 1 second or more")
        check = WaveCheck(self.sampling_rate)
        parts = []
        for segment in self.speech_segments(_checked(blocks, check, where), options, longest):
            encoded = self.encode([segment.features])
            (found,) = self.opened(options)(encoded)
            (nbest,) = self.segment_nbest([segment], encoded, [found], options)
            if isinstance(nbest, BadUtterance):
                raise BadUtterance(nbest.what, where=where, remedy=nbest.remedy)
            parts.append(nbest)
        check.finish(where)
        if not parts and check.samples < self.fewest_samples:
            shortest = FRAME_SHIFT * self._fewest_frames()
            raise BadUtterance(
                f"shorter than {shortest:.2f} s", where=where, remedy="Give a longer recording"
            )
        return join_nbest(parts, self.separator, options.nbest)

    def speech_segments(
        self, blocks: Iterable[np.ndarray], options: DecodingOptions = GREEDY, longest: float = LONGEST
    ) -> Iterator[SpeechSegment]:
        """The segments of a recording that contain speech, with features (:func:`retort.audio.segments.segments`).

        Segments that are too short to be recognised are left out.

        Args:
            blocks: `(n,)` float32 each, finite, one channel at :attr:`sampling_rate`.
            options: decoding options; only the voice activity detection is used.
            longest: seconds; limited by the positions of the encoder.
        """
        if self.student.encoder.longest is not None:
            longest = min(longest, self.student.encoder.longest * FRAME_SHIFT)
        detector = open_detector(options.vad, self.sampling_rate)
        keep = options.vad == "none"
        rate = self.sampling_rate
        for segment in segments(blocks, rate, detector, longest, keep_silence=keep):
            features = self._features(segment.samples)
            if int(self.student.encoder.output_lengths(torch.tensor([features.shape[0]]))) >= SHORTEST:
                speech = [] if keep else [(start / rate, end / rate) for start, end in segment.speech]
                sound = sound_signals(segment.samples, rate)
                yield SpeechSegment(segment.start / rate, len(segment.samples) / rate, speech, features, sound)

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
        hypotheses = [each[0].hypothesis if each else Hypothesis([], [], []) for each in best]
        signals = decoding_signals(self.student, encoded, hypotheses, [each.duration for each in segments])
        threshold = options.no_speech_threshold or self.no_speech.threshold
        lists: list[list[ScoredTranscript] | BadUtterance] = []
        for segment, candidates, values in zip(segments, found, signals):
            if isinstance(candidates, BadUtterance):
                lists.append(candidates)
                continue
            no_speech = self.no_speech({**values, **segment.sound})
            if no_speech > threshold:
                empty = ScoredTranscript(Transcript("", [], [], no_speech), candidates[0].score)
                lists.append([empty])
                continue
            timed = time_candidates(
                candidates, options.nbest, self.tokenizer, self.frame_seconds, segment.offset, segment.duration
            )
            lists.append(
                [
                    replace(
                        each,
                        transcript=replace(within_speech(each.transcript, segment.speech), no_speech=no_speech),
                    )
                    for each in timed
                ]
            )
        return lists

    @property
    def outputs(self) -> int:
        """Number of output classes: ids of the tokenizer, or senones of the graph."""
        return self.tokenizer.size if self.graph is None else self.graph.graph.about.inputs

    @property
    def separator(self) -> str:
        """Separator between the words of a text."""
        return " " if self.normalise.config.spaces == "keep" else ""

    def decode(self, features: Sequence[Tensor]) -> list[Hypothesis]:
        """Recognise a batch of utterances of `(T, bins)` normalised features, without language models.

        Raises:
            BadUtterance: the search found no hypothesis for one of them.
        """
        hypotheses = []
        for found in self.search(features):
            if isinstance(found, BadUtterance):
                raise found
            hypotheses.append(found[0].hypothesis)
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
        config = self._config()
        config["format"] = FORMATS.get(stored, FORMAT)
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
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
        student = self.student.config
        # The initial weights are not part of the model.
        decoder = replace(student.decoder, init="", init_layers=[])
        student = replace(student, decoder=decoder, encoder=replace(student.encoder, model=""))
        graph: dict[str, Any] = {}
        if self.graph is not None:
            about = self.graph.graph.about
            graph = {"graph": {"key": about.key, "acoustic_scale": self.graph.acoustic_scale}}
        return {
            "format": FORMAT,
            "vocabulary": self.outputs,
            "student": to_dict(student),
            "features": to_dict(self.features),
            "normaliser": to_dict(self.normalise.config),
            **graph,
            **({} if self.no_speech is UNCALIBRATED else {"no_speech": self.no_speech.to_dict()}),
        }

    @property
    def fewest_samples(self) -> int:
        """Smallest number of samples that can be recognised."""
        return int((self._fewest_frames() - 0.5) * FRAME_SHIFT * self.sampling_rate)

    def _fewest_frames(self) -> int:
        """Smallest number of feature frames that gives `SHORTEST` encoder frames."""
        frames = torch.arange(4 * SHORTEST * self.student.encoder.subsampling)
        return int((self.student.encoder.output_lengths(frames) < SHORTEST).sum())

    def _features(self, samples: np.ndarray) -> Tensor:
        return normalised(self._extract(samples), self.features)


def _checked(blocks: Iterable[np.ndarray], check: WaveCheck, where: str) -> Iterator[np.ndarray]:
    """Pass the blocks through `check`; invalid values raise an error."""
    blocks = iter(blocks)
    for block in blocks:
        check.add(block)
        if check.damaged:
            for rest in blocks:
                check.add(rest)
            check.finish(where)
        yield block


@cache
def _work_after_fork() -> None:
    """Make forked child processes compute with one thread.

    Threads do not survive a fork, so a child would wait forever for PyTorch's thread pool.
    """
    if hasattr(os, "register_at_fork"):
        os.register_at_fork(after_in_child=partial(torch.set_num_threads, 1))


def store_no_speech(folder: str | Path, no_speech: NoSpeech) -> Path:
    """Write the no-speech classifier into the `config.json` of the model in `folder`; returns the path.

    Raises:
        UserError: there is no model, or the file cannot be written.
    """
    path = _model_root(folder) / "config.json"
    try:
        config = read_json(path)
        config["no_speech"] = no_speech.to_dict()
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
        folder: folder of the model.
        device: device of the computation.
        decoding: default decoding options by name, such as `beam=10` (:class:`DecodingOptions`).

    Raises:
        UserError: there is no model, files are missing, damaged or of another format, or an option is not valid.
    """
    options = make_options(decoding)
    _work_after_fork()
    root = _model_root(folder)
    with opening_model(root, AGAIN):
        config = _read_config(root)
        verify(root, "config.json", "tokenizer", "graph", editable=("config.json",), remedy=AGAIN)
        parts = {key: config[key] for key in ("student", "features", "normaliser")}
        recipe = read_saved(Recipe, {**parts, "name": "model"}, str(root))
        _check_supported(recipe, config, root)
        weights = unpack(read_weights(root / "model.safetensors"))
        sizes = recipe.student, int(config["vocabulary"]), recipe.features.bins
        with torch.device("meta"):
            fit(build_student(*sizes), weights)  # before any memory is asked for
        student = build_student(*sizes)
        student.load_state_dict(weights)
        no_speech = NoSpeech.from_dict(config["no_speech"]) if "no_speech" in config else UNCALIBRATED
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
    return Recogniser(student, tokenizer, recipe.features, recipe.normaliser, device, graph, no_speech, options)


def _read_config(root: Path) -> dict[str, Any]:
    """Read `config.json` and check that this version supports its format and keys.

    Raises:
        UserError: it was written by a later version.
        OSError, ValueError, KeyError: it cannot be read.
    """
    config = read_json(root / "config.json")
    if not isinstance(config, dict):
        raise ValueError("config.json is not a table")
    if config["format"] not in (FORMAT, *FORMATS.values()):
        check_format(config["format"], max(FORMATS.values()), root)
    if unknown := sorted(map(str, config.keys() - CONFIG_KEYS)):
        raise UserError(
            f"its configuration has '{unknown[0]}', which this version does not support",
            where=root / "config.json",
            remedy="Install a later version of retort-asr",
        )
    return config


def _check_supported(recipe: Recipe, config: dict[str, Any], root: Path) -> None:
    """Raise an error for values that this version does not support."""
    try:
        check_choices(recipe, CHOICES, str(root / "config.json"))
    except UserError as error:
        raise UserError(
            f"{error.what}, which this version does not support",
            where=error.where,
            remedy="Install a later version of retort-asr",
        ) from None
    check_sizes(recipe.student, str(root / "config.json"))
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
