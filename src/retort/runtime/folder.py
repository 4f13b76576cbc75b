"""The description of an exported model, `export.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from retort.common.errors import UserError
from retort.common.files import check_format, write_whole
from retort.common.json_reader import read_json
from retort.config.earlier_formats import by_kind
from retort.config.kinds import of_kind
from retort.config.loading import read_saved
from retort.config.schema import FeatureConfig, NormaliserConfig
from retort.decoding.confidence import AS_DECODED, Calibration
from retort.decoding.no_speech import UNCALIBRATED, NoSpeech

FILE = "export.json"
FORMAT = 2
ENCODER, STEP = "encoder.onnx", "step.onnx"
AGAIN = "Export it again: retort export EXP OUT --for onnx"
_MOST = 1 << 24


@dataclass(frozen=True)
class ExportedModel:
    """What a runtime needs besides the graphs and the tokenizer.

    Attributes:
        vocabulary: number of ids.
        subsampling: feature frames per encoder frame.
        fewest_frames: smallest number of feature frames of an utterance.
        most_frames: largest number, or None.
        spare: whether hypotheses end at EOS although fires are left (`cif.spare`).
        weights: `float32` or `int8`.
        confidence: calibration of word confidences.
        scores: results of the export's own evaluation, by engine.
    """

    features: FeatureConfig
    normaliser: NormaliserConfig
    vocabulary: int
    subsampling: int
    fewest_frames: int
    most_frames: int | None
    spare: bool
    weights: str = "float32"
    no_speech: NoSpeech = UNCALIBRATED
    confidence: Calibration = AS_DECODED
    scores: Mapping[str, Any] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        """Write `export.json` into the folder."""
        content = {each.name: getattr(self, each.name) for each in fields(self)}
        content |= {"features": asdict(self.features), "normaliser": asdict(self.normaliser)}
        content["confidence"] = self.confidence.to_dict()
        content["no_speech"] = None if self.no_speech is UNCALIBRATED else self.no_speech.to_dict()
        write_whole(folder / FILE, json.dumps({"format": FORMAT, "kind": "cif", **content}, indent=2) + "\n")


@dataclass
class _Settings:
    """What an export has of a recipe."""

    features: FeatureConfig = of_kind("features", "fbank")
    normaliser: NormaliserConfig = field(default_factory=NormaliserConfig)


def is_export(folder: str | Path) -> bool:
    """Whether the folder has an exported model for ONNX Runtime."""
    return (Path(folder) / FILE).is_file()


def read_export(folder: Path) -> ExportedModel:
    """Read `export.json`.

    Raises:
        UserError: it is damaged, or was written by a later version.
    """
    path = folder / FILE
    try:
        content = read_json(path)
        if (version := content.pop("format")) != 1:
            check_format(version, FORMAT, path)
        if content.pop("kind") != "cif":
            raise ValueError("an unknown kind of model")
        parts = {name: content.pop(name) for name in ("features", "normaliser")}
        settings = read_saved(_Settings, parts if version == FORMAT else by_kind(parts, _Settings), str(path))
        no_speech, confidence = content.pop("no_speech", None), content.pop("confidence", None)
        sizes = [content[name] for name in ("vocabulary", "subsampling", "fewest_frames")]
        if not all(isinstance(each, int) and 0 < each < _MOST for each in sizes):
            raise ValueError("a size is out of range")
        return ExportedModel(
            settings.features,
            settings.normaliser,
            no_speech=UNCALIBRATED if no_speech is None else NoSpeech.from_dict(no_speech),
            confidence=AS_DECODED if confidence is None else Calibration.from_dict(confidence),
            **content,
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"damaged description of an export ({error})", where=path, remedy=AGAIN) from None
