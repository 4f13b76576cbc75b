"""CIF students as ONNX files for :mod:`retort.runtime`."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch

from retort.common.checksums import seal
from retort.common.errors import UserError
from retort.decoding.recogniser import Recogniser
from retort.export.graphs import FiredGraph, step_of
from retort.export.quantise import quantise
from retort.export.record import record, require
from retort.export.stream_model import export_streams
from retort.runtime.folder import ENCODER, STEP, ExportedModel, is_export, read_export
from retort.students.attention import AttentionStudent
from retort.students.cif import CifStudent
from retort.students.ctc import CtcStudent
from retort.students.transducer import TransducerStudent
from retort.students.whisper import WhisperStudent

_EXTRACTED = ("fbank", "whisper", "wave")
"""Kinds of features that need neither torch nor transformers."""
_BATCH, _BEAM, _FRAMES, _PAST = 2, 3, 40, 4


def cif_student(recogniser: Recogniser) -> CifStudent:
    """The student, if ONNX Runtime can run it.

    Raises:
        UserError: it cannot; the error names another format.
    """
    student = recogniser.student
    nearest = {
        CtcStudent: "--for sherpa-onnx",
        TransducerStudent: "--for sherpa-onnx",
        WhisperStudent: "--for transformers or --for ctranslate2",
    }
    if not isinstance(student, CifStudent):
        remedy = next((flag for kind, flag in nearest.items() if isinstance(student, kind)), "")
        remedy = remedy or (
            "--for sherpa-onnx, its CTC head alone" if isinstance(student, AttentionStudent) else ""
        )
        raise UserError(
            f"a {student.config.kind} student has no graphs for ONNX Runtime, which runs CIF students",
            remedy=f"Export it with {remedy}" if remedy else "Export a CIF student",
        )
    if recogniser.features.kind not in _EXTRACTED:
        raise UserError(
            f"features.kind is {recogniser.features.kind}, which the runtime cannot compute without transformers",
            remedy=f"Export a model with features.kind: {', '.join(_EXTRACTED)}",
        )
    return student


def export_onnx(recogniser: Recogniser, out: Path) -> ExportedModel:
    """Write a folder that :func:`retort.load` opens without torch.

    Args:
        recogniser: with a CIF student.
        out: created if missing.

    Raises:
        UserError: the student cannot be exported, or a package is missing.
    """
    require("onnx", "onnxruntime")
    student = copy.deepcopy(cif_student(recogniser)).float().eval()
    out.mkdir(parents=True, exist_ok=True)
    graph = FiredGraph(student, recogniser.features).eval()
    frames = max(8 * student.encoder.subsampling, 4 * recogniser.fewest_frames) + 3
    if recogniser.most_frames is not None:
        frames = min(frames, recogniser.most_frames)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        features = torch.randn(_BATCH, frames, recogniser.features.bins)
        inputs = {"features": features, "lengths": torch.tensor([frames, frames - 2])}
        other = {
            "features": torch.randn(3, frames - 3, features.shape[2]),
            "lengths": frames - torch.tensor([3, 5, 6]),
        }
        record(graph, inputs, graph.outputs, {"features": [2]}, out / ENCODER, other=other)
        step = step_of(student.decoder)
        if step is not None:
            example = step.eval().example(_BATCH, _BEAM, _FRAMES, _PAST)
            record(
                step,
                example,
                step.outputs,
                step.fixed,
                out / STEP,
                other=step.example(1, 2, _FRAMES + 3, 1),
            )
        else:
            (out / STEP).unlink(missing_ok=True)
    model = ExportedModel(
        features=recogniser.features,
        normaliser=recogniser.normalise.config,
        vocabulary=recogniser.tokenizer.size,
        subsampling=student.encoder.subsampling,
        fewest_frames=recogniser.fewest_frames,
        most_frames=recogniser.most_frames,
        spare=bool(student.config.cif.spare),
        no_speech=recogniser.no_speech,
        confidence=recogniser.calibration,
    )
    export_streams(recogniser, out)
    recogniser.tokenizer.save(out / "tokenizer", decode_only=True)
    model.save(out)
    seal(out)
    return model


def quantise_folder(out: Path) -> None:
    """Quantise all graphs of an export (:func:`retort.export.quantise.quantise`), in place."""
    for path in sorted(out.glob("*.onnx")):
        quantise(path)
    if is_export(out):
        replace(read_export(out), weights="int8").save(out)
        seal(out)
