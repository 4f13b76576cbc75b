"""The recogniser of an exported model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from retort.audio.features import make_extractor
from retort.common.checksums import verify
from retort.common.errors import BadUtterance, UserError
from retort.common.files import check_local
from retort.decoding.hypothesis import Hypothesis
from retort.decoding.options import GREEDY, DecodingOptions
from retort.decoding.segment import SpeechSegment
from retort.decoding.signals import ctc_path, signals
from retort.decoding.transcriber import Transcriber
from retort.decoding.transcript import ScoredTranscript
from retort.runtime.folder import AGAIN, ENCODER, STEP, ExportedModel, is_export, read_export
from retort.runtime.search import Decoder, beam_search, greedy
from retort.runtime.session import Arrays, Session
from retort.runtime.stream_folder import has_streams
from retort.text.tokenizer_io import open_tokenizer
from retort.text.tokenizers import Tokenizer

_SUPPORTED = {"beam", "nbest", "vad", "no_speech_threshold", "mode"}
"""Decoding options that need no other model."""


class ExportedRecogniser(Transcriber):
    """A CIF model in ONNX Runtime, with the results of the model that it was exported from.

    Args:
        encoder: graph of the encoder.
        step: graph of a step of the decoder, or None for a parallel one.
        model: description of the model.
        tokenizer: the model's.
        options: default decoding options.
        streams_folder: folder of the export, if the model recognises audio while it arrives.
    """

    def __init__(
        self,
        encoder: Session,
        step: Session | None,
        model: ExportedModel,
        tokenizer: Tokenizer,
        options: DecodingOptions = GREEDY,
        streams_folder: Path | None = None,
    ) -> None:
        super().__init__(
            tokenizer, model.features, model.normaliser, model.subsampling, model.no_speech, options
        )
        self.model, self.calibration = model, model.confidence
        self.fewest_frames, self.most_frames = model.fewest_frames, model.most_frames
        self._encoder, self._step = encoder, step
        self._extract = make_extractor(model.features)
        self.streams_folder = streams_folder

    def notes(self, options: DecodingOptions = GREEDY) -> list[str]:
        for name in DecodingOptions.__dataclass_fields__:
            if name not in _SUPPORTED and getattr(options, name) != getattr(GREEDY, name):
                raise UserError(
                    f"an exported model has no {name.replace('_', ' ')}",
                    remedy="Leave the option out, or decode the experiment itself",
                )
        if options.mode not in ("own", "ctc") or (options.mode == "ctc" and options.beam > 1):
            raise UserError(
                f"mode is {options.mode}, beam {options.beam}, which an exported model does not support",
                remedy="Leave --mode out, or give --mode ctc without --beam",
            )
        if options.mode == "ctc" and "ctc_log_probs" not in self._encoder.outputs:
            raise UserError("mode is ctc, but this model has no CTC head", remedy="Leave --mode out")
        return []

    def recognise_segments(
        self, segments: Sequence[SpeechSegment], options: DecodingOptions = GREEDY
    ) -> list[list[ScoredTranscript] | BadUtterance]:
        self.notes(options)
        fired = self._fire([segment.features for segment in segments])
        found: list[list[Hypothesis]]
        if options.mode == "ctc":
            paths = [ctc_path(row[:count]) for row, count in zip(fired["ctc_log_probs"], fired["frames"])]
            found = [[each] for each in paths]
        elif options.beam == 1:
            found = greedy(Decoder(self._step, fired), fired)
        else:
            found = beam_search(Decoder(self._step, fired), fired, options.beam, self.model.spare)
        values = signals(
            [each[0] for each in found],
            [segment.duration for segment in segments],
            fired["quantity"].tolist() if "quantity" in fired else None,
            fired.get("ctc_log_probs"),
            fired["frames"].tolist(),
        )
        return self._timed(segments, found, values, options)

    def _fire(self, features: Sequence[NDArray[np.float32]]) -> Arrays:
        """Outputs of the encoder for a batch of `(T, bins)`."""
        lengths = np.array([len(each) for each in features], np.int64)
        padded = np.zeros((len(features), int(lengths.max()), features[0].shape[1]), np.float32)
        for row, each in zip(padded, features):
            row[: len(each)] = each
        return self._encoder({"features": padded, "lengths": lengths})

    def _features(self, samples: np.ndarray) -> NDArray[np.float32]:
        return self._extract(samples)


def load_export(
    folder: str | Path, threads: int = 1, options: DecodingOptions = GREEDY
) -> ExportedRecogniser:
    """Open the output of `retort export --for onnx`.

    Args:
        folder: the folder.
        threads: CPU threads.
        options: default decoding options.

    Raises:
        UserError: there is no exported model, onnxruntime is missing, or a file is missing or damaged.
    """
    check_local(str(folder))
    root = Path(folder)
    if not is_export(root):
        raise UserError("there is no exported model here", where=folder, remedy=AGAIN)
    model = read_export(root)
    verify(root, remedy=AGAIN)
    tokenizer = open_tokenizer(root / "tokenizer", decode_only=True)
    if tokenizer.size != model.vocabulary:
        raise UserError(
            f"the tokenizer has {tokenizer.size} ids, the model a vocabulary of {model.vocabulary}",
            where=root,
            remedy=AGAIN,
        )
    step = Session(root / STEP, threads) if (root / STEP).is_file() else None
    streams = root if has_streams(root) else None
    return ExportedRecogniser(Session(root / ENCODER, threads), step, model, tokenizer, options, streams)
