"""A trained model, opened: what `retort.load` gives."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from retort.audio.fbank import FRAME_SHIFT
from retort.audio.features import EXTRACTORS, normalised
from retort.audio.files import check_wave, read_audio
from retort.audio.pauses import cut_at_pauses
from retort.config import FeatureConfig, NormaliserConfig, Recipe
from retort.decoding.beam import Candidate
from retort.decoding.greedy import Hypothesis
from retort.decoding.hybrid_search import ScaledGraph
from retort.decoding.nbest import Alternative, join_alternatives, time_candidates
from retort.decoding.options import GREEDY, DecodingOptions
from retort.decoding.search import Found, Search
from retort.decoding.searches import open_search
from retort.decoding.transcript import Transcript
from retort.decoding.workplace import Workplace
from retort.errors import BadUtterance, UserError
from retort.files import opening_model
from retort.hybrid.graph import Graph
from retort.recipe import differing
from retort.students.factory import build_student
from retort.students.student import Encoded, Student
from retort.text.normalise import Normaliser
from retort.text.opening import open_tokenizer
from retort.text.tokenizers import Tokenizer

SHORTEST = 3
"""Encoder frames under which audio is too short to be recognised."""
FORMAT = 1


class Recogniser:
    """A student with its tokenizer, features and normaliser.

    Attributes:
        student: in eval mode.
        graph: what a hybrid student is heard through; its words are then the tokenizer's.
        sampling_rate: of the samples it takes, Hz.
    """

    def __init__(
        self,
        student: Student,
        tokenizer: Tokenizer,
        features: FeatureConfig,
        normaliser: NormaliserConfig,
        device: torch.device | str = "cpu",
        graph: ScaledGraph | None = None,
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
        self._workplace = Workplace()
        self._extract = EXTRACTORS[features.kind](features)
        self._opened: Search | None = None

    def at(self, workplace: Workplace) -> Recogniser:
        """Itself, its searches through decoding graphs from now on there."""
        self._workplace, self._opened = workplace, None
        return self

    def transcribe(
        self, path: str | Path, longest: float = 30.0, options: DecodingOptions = GREEDY
    ) -> Transcript:
        """Recognise a file of any rate and channel count that soundfile reads.

        Args:
            path: the audio file.
            longest: seconds; a longer file is cut at its pauses into stretches no longer than this.
            options: how to decode.

        Raises:
            UserError: the file is missing, not audio, empty, silent or too short.
        """
        return self.alternatives(path, longest, options)[0].transcript

    def transcribe_samples(
        self,
        samples: np.ndarray,
        longest: float = 30.0,
        where: str = "samples",
        options: DecodingOptions = GREEDY,
    ) -> Transcript:
        """Recognise `samples (N,)` float32 in [-1, 1] at :attr:`sampling_rate`; times are of the whole.

        Raises:
            UserError: the samples are none, silent, not finite or too few.
        """
        return self._alternatives(samples, longest, where, options)[0].transcript

    def alternatives(
        self, path: str | Path, longest: float = 30.0, options: DecodingOptions = GREEDY
    ) -> list[Alternative]:
        """Up to `options.nbest` readings of a file, all different, best first; else as :meth:`transcribe`."""
        samples = read_audio(path, self.sampling_rate)
        return self._alternatives(samples, longest, str(path), options)

    def _alternatives(
        self, samples: np.ndarray, longest: float, where: str, options: DecodingOptions
    ) -> list[Alternative]:
        check_wave(samples, where)
        stretches, features = [], []
        for start, end in cut_at_pauses(samples, self.sampling_rate, longest):
            made = self._features(samples[start:end])
            if int(self.student.encoder.output_lengths(torch.tensor([made.shape[0]]))) >= SHORTEST:
                stretches.append((start / self.sampling_rate, (end - start) / self.sampling_rate))
                features.append(made)
        if not features:
            shortest = FRAME_SHIFT * self._fewest_frames()
            raise BadUtterance(
                f"shorter than {shortest:.2f} s", where=where, remedy="Give a longer recording"
            )
        parts = []
        for (offset, duration), made in zip(stretches, features):
            (found,) = self.search([made], options)
            if isinstance(found, BadUtterance):
                raise BadUtterance(found.what, where=where, remedy=found.remedy)
            parts.append(self.readings(found, options, offset, duration))
        return join_alternatives(parts, self.separator, options.nbest)

    @property
    def outputs(self) -> int:
        """Classes of the student's output: ids of the tokenizer, or senones of the graph."""
        return self.tokenizer.size if self.graph is None else self.graph.graph.about.inputs

    @property
    def separator(self) -> str:
        """What stands between words of the text."""
        return " " if self.normalise.config.spaces == "keep" else ""

    def decode(self, features: Sequence[Tensor]) -> list[Hypothesis]:
        """Recognise utterances of `(T, bins)` normalised features in one batch, without language models beside it.

        Raises:
            BadUtterance: the search found nothing for one of them.
        """
        hypotheses = []
        for found in self.search(features):
            if isinstance(found, BadUtterance):
                raise found
            hypotheses.append(found[0].hypothesis)
        return hypotheses

    @torch.inference_mode()
    def search(self, features: Sequence[Tensor], options: DecodingOptions = GREEDY) -> Sequence[Found]:
        """What the search keeps of utterances of `(T, bins)` normalised features, decoded in one batch."""
        return self.opened(options)(self.encode(features))

    @torch.inference_mode()
    def encode(self, features: Sequence[Tensor]) -> Encoded:
        """What the encoder makes of utterances of `(T, bins)` normalised features, as one batch."""
        lengths = torch.tensor([each.shape[0] for each in features])
        padded = pad_sequence(list(features), batch_first=True)
        return self.student.encode(padded.to(self.device), lengths.to(self.device))

    def opened(self, options: DecodingOptions) -> Search:
        """The search that the options describe; the last one stays open, so that models are read once.

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
                self._workplace,
            )
        return self._opened

    def readings(
        self, candidates: Sequence[Candidate], options: DecodingOptions, offset: float, duration: float
    ) -> list[Alternative]:
        """The best candidates as texts with times; `offset` and `duration` of the stretch in seconds."""
        return time_candidates(
            candidates, options.nbest, self.tokenizer, self.frame_seconds, offset, duration
        )

    def save(self, folder: Path, *, half: bool = False, link: bool = False) -> None:
        """Write what :func:`load` reads, and nothing else.

        Args:
            folder: made if missing.
            half: weights in float16, rounded; else as they are.
            link: share the bytes of the decoding graph, as :meth:`retort.hybrid.graph.Graph.save` does.

        Raises:
            UserError: a weight is beyond what float16 holds.
        """
        weights = _halved(self._weights()) if half else self._weights()
        folder.mkdir(parents=True, exist_ok=True)
        save_file(weights, folder / "model.safetensors")
        self.tokenizer.save(folder / "tokenizer")
        if self.graph is not None:
            self.graph.graph.save(folder / "graph", link=link)
        (folder / "config.json").write_text(json.dumps(self._config(), indent=2) + "\n")

    def fingerprint(self) -> str:
        """32 hex digits of all that :meth:`save` writes: models of one fingerprint hear alike.

        Keys of the configuration that came after the model was made do not change it.
        """
        digest = hashlib.sha256(json.dumps([self._config(differing), self.tokenizer.symbols]).encode())
        for name, tensor in sorted(self._weights().items()):
            digest.update(name.encode())
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()[:32]

    def _weights(self) -> dict[str, Tensor]:
        return {name: tensor.contiguous().cpu() for name, tensor in self.student.state_dict().items()}

    def _config(self, told: Callable[[Any], dict[str, Any]] = asdict) -> dict[str, Any]:
        student = self.student.config
        # Where its weights began, it need not know.
        decoder = replace(student.decoder, init="", init_layers=[])
        student = replace(student, decoder=decoder, encoder=replace(student.encoder, model=""))
        graph: dict[str, Any] = {}
        if self.graph is not None:
            about = self.graph.graph.about
            graph = {"graph": {"key": about.key, "acoustic_scale": self.graph.acoustic_scale}}
        return {
            "format": FORMAT,
            "vocabulary": self.outputs,
            "student": told(student),
            "features": told(self.features),
            "normaliser": told(self.normalise.config),
            **graph,
        }

    def _fewest_frames(self) -> int:
        """Feature frames that give `SHORTEST` encoder frames."""
        frames = torch.arange(4 * SHORTEST * self.student.encoder.subsampling)
        return int((self.student.encoder.output_lengths(frames) < SHORTEST).sum())

    def _features(self, samples: np.ndarray) -> Tensor:
        return normalised(self._extract(samples), self.features)


def _halved(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    halved = {
        name: tensor.half() if tensor.is_floating_point() else tensor for name, tensor in weights.items()
    }
    for name, tensor in halved.items():
        if not bool(tensor.isfinite().all()):
            raise UserError("it has values that float16 cannot hold", where=name)
    return halved


def load(folder: str | Path, device: torch.device | str = "cpu") -> Recogniser:
    """Open the model of an experiment: `EXP`, or `EXP/model` wherever it was moved; or a release of it.

    Float16 weights become float32.

    Raises:
        UserError: no model there, or files of it are missing, broken or of another format.
    """
    root = Path(folder)
    if (root / "model" / "config.json").is_file():
        root = root / "model"
    if not (root / "config.json").is_file():
        raise UserError(
            "no trained model here",
            where=folder,
            remedy="Give an experiment that `retort train` finished, or a release",
        )
    with opening_model(root, "Export or fetch it again"):
        config = json.loads((root / "config.json").read_text())
        if config["format"] != FORMAT:
            raise UserError(f"its format is {config['format']}, this version reads {FORMAT}", where=root)
        parts: dict[Any, Any] = {key: config[key] for key in ("student", "features", "normaliser")}
        recipe = OmegaConf.to_object(
            OmegaConf.merge(OmegaConf.structured(Recipe), {**parts, "name": str(root)})
        )
        assert isinstance(recipe, Recipe)
        student = build_student(recipe.student, int(config["vocabulary"]), recipe.features.bins)
        student.load_state_dict(load_file(root / "model.safetensors"))
    tokenizer = open_tokenizer(root / "tokenizer")
    graph = None
    if "graph" in config:
        graph = ScaledGraph(Graph.load(root / "graph"), float(config["graph"]["acoustic_scale"]))
    elif tokenizer.size != config["vocabulary"]:
        raise UserError(
            f"the tokenizer has {tokenizer.size} ids, the model a vocabulary of {config['vocabulary']}",
            where=root,
            remedy="Export or fetch it again",
        )
    return Recogniser(student, tokenizer, recipe.features, recipe.normaliser, device, graph)
