"""The interface of recognisers, and what does not depend on the library that runs the model: reading, segmentation,
times, and the decision about speech.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from retort.audio.fbank import FRAME_SHIFT
from retort.audio.files import MAXIMUM_HOURS, Channel, WaveCheck, log_warning, open_audio
from retort.audio.samples import as_path, as_wave
from retort.audio.segments import LONGEST, segments
from retort.audio.speech import open_detector
from retort.audio.texture import sound_signals
from retort.common.errors import BadUtterance, UserError
from retort.config.schema import FeatureConfig, NormaliserConfig
from retort.decoding.channels import channel_nbest
from retort.decoding.confidence import AS_DECODED
from retort.decoding.hypothesis import NBest
from retort.decoding.no_speech import UNCALIBRATED, NoSpeech
from retort.decoding.options import GREEDY, DecodingOptions, make_options
from retort.decoding.segment import SpeechSegment
from retort.decoding.speech_times import within_speech
from retort.decoding.transcript import ScoredTranscript, Transcript, join_nbest, time_candidates
from retort.text.normalise import Normaliser
from retort.text.tokenizers import Tokenizer

Samples: TypeAlias = "np.ndarray | Any | Sequence[float]"
"""An array, a tensor or a list."""
Audio: TypeAlias = "str | Path | Samples"


class Transcriber(ABC):
    """Base class of recognisers.

    Args:
        tokenizer: tokenizer of the model.
        features: features of the model.
        normaliser: settings of the normaliser of texts.
        subsampling: feature frames per encoder frame.
        no_speech: classifier of segments without speech.
        options: decoding options of :meth:`transcribe` and the like, if none are given.

    Attributes:
        sampling_rate: sampling rate of the input, Hz.
        frame_seconds: duration of an encoder frame.
        calibration: of word confidences; :data:`AS_DECODED` if the model has none.
        fewest_frames: smallest number of feature frames that can be recognised.
        most_frames: largest number of feature frames of a segment; None without a limit.
    """

    fewest_frames: int
    most_frames: int | None

    def __init__(
        self,
        tokenizer: Tokenizer,
        features: FeatureConfig,
        normaliser: NormaliserConfig,
        subsampling: int,
        no_speech: NoSpeech = UNCALIBRATED,
        options: DecodingOptions = GREEDY,
    ) -> None:
        self.tokenizer = tokenizer
        self.features = features
        self.normalise = Normaliser(normaliser)
        self.sampling_rate = features.sampling_rate
        self.frame_seconds = FRAME_SHIFT * subsampling
        self.no_speech = no_speech
        self.options = options
        self.calibration = AS_DECODED

    @abstractmethod
    def recognise_segments(
        self, segments: Sequence[SpeechSegment], options: DecodingOptions = GREEDY
    ) -> list[list[ScoredTranscript] | BadUtterance]:
        """N-best lists of a batch of segments, which may be of several recordings.

        Each is that of the segment by itself, whatever else is in the batch. Join those of a recording with
        :func:`retort.decoding.transcript.join_nbest`.
        """

    @abstractmethod
    def notes(self, options: DecodingOptions = GREEDY) -> list[str]:
        """Messages for the user about limitations of the search with these options.

        Raises:
            UserError: an option does not fit the model.
        """

    @abstractmethod
    def _features(self, samples: np.ndarray) -> Any:
        """Features `(T, bins)` of `samples (N,)` for :meth:`recognise_segments`."""

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

    def _nbest(
        self, blocks: Iterable[np.ndarray], longest: float, where: str, options: DecodingOptions
    ) -> list[ScoredTranscript]:
        """The n-best list of a recording; segments are decoded while its blocks are read."""
        if not longest >= 1.0:
            raise UserError(f"longest is {longest}", remedy="Give 1 second or more")
        check = WaveCheck(self.sampling_rate)
        parts = []
        for segment in self.speech_segments(_checked(blocks, check, where), options, longest):
            (nbest,) = self.recognise_segments([segment], options)
            if isinstance(nbest, BadUtterance):
                raise BadUtterance(nbest.what, where=where, remedy=nbest.remedy)
            parts.append(nbest)
        check.finish(where)
        if not parts and check.samples < self.fewest_samples:
            shortest = FRAME_SHIFT * self.fewest_frames
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
        if self.most_frames is not None:
            longest = min(longest, self.most_frames * FRAME_SHIFT)
        detector = open_detector(options.vad, self.sampling_rate)
        keep = options.vad == "none"
        rate = self.sampling_rate
        for segment in segments(blocks, rate, detector, longest, keep_silence=keep):
            features = self._features(segment.samples)
            if len(features) >= self.fewest_frames:
                speech = [] if keep else [(start / rate, end / rate) for start, end in segment.speech]
                sound = sound_signals(segment.samples, rate)
                yield SpeechSegment(segment.start / rate, len(segment.samples) / rate, speech, features, sound)

    def _timed(
        self,
        segments: Sequence[SpeechSegment],
        found: Sequence[NBest],
        signals: Sequence[Mapping[str, float]],
        options: DecodingOptions,
    ) -> list[list[ScoredTranscript] | BadUtterance]:
        """N-best lists of segments as texts with times; a segment without speech has no words.

        Args:
            signals: of the decoder, for the no-speech classifier (:mod:`retort.decoding.signals`).
        """
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
                        transcript=replace(
                            within_speech(self.calibration.words(each.transcript), segment.speech), no_speech=no_speech
                        ),
                    )
                    for each in timed
                ]
            )
        return lists

    @property
    def separator(self) -> str:
        """Separator between the words of a text."""
        return " " if self.normalise.config.spaces == "keep" else ""

    @property
    def fewest_samples(self) -> int:
        """Smallest number of samples that can be recognised."""
        return int((self.fewest_frames - 0.5) * FRAME_SHIFT * self.sampling_rate)


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
