"""`retort.load`: a trained model in torch, or an exported one in ONNX Runtime."""

from __future__ import annotations

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retort.common.errors import UserError
from retort.decoding.options import make_options
from retort.pretrained.released import find_release
from retort.runtime.folder import is_export
from retort.runtime.recogniser import ExportedRecogniser, load_export

if TYPE_CHECKING:
    import torch

    from retort.decoding.transcriber import Transcriber
    from retort.streaming.utterances import StreamOptions, Streams


def load(folder: str | Path, device: torch.device | str = "cpu", **decoding: Any) -> Transcriber:
    """Open a model: an experiment, a model folder, a release, or an export for ONNX Runtime.

    Args:
        folder: folder of the model, or a release on the hub (`USER/NAME@REVISION`).
        device: device of the computation; an export runs on the CPU.
        decoding: default decoding options by name, such as `beam=10` (:class:`DecodingOptions`).

    Raises:
        UserError: as :func:`retort.decoding.recogniser.load` and :func:`load_export`; or torch is not installed.
    """
    folder = find_release(folder)
    if is_export(folder):
        return load_export(folder, options=make_options(decoding))
    require_torch(folder)
    from retort.decoding.recogniser import load as load_trained

    return load_trained(folder, device, **decoding)


def can_stream(transcriber: Transcriber) -> bool:
    """Whether a loaded model recognises audio while it arrives: it was trained in chunks."""
    if isinstance(transcriber, ExportedRecogniser):
        return transcriber.streams_folder is not None
    from retort.decoding.recogniser import Recogniser

    return isinstance(transcriber, Recogniser) and any(transcriber.student.encoder.config.chunk)


def open_streams(transcriber: Transcriber, options: StreamOptions) -> Streams[Any, Any]:
    """Streams of a loaded model; none is open yet.

    Args:
        options: latency and division; a chunk of 0 selects the smallest of the training.

    Raises:
        UserError: the model needs whole utterances, or has no such chunk.
    """
    if isinstance(transcriber, ExportedRecogniser):
        from retort.runtime.streamer import ExportedStreamBatch

        return ExportedStreamBatch(transcriber, options)
    from retort.decoding.recogniser import Recogniser
    from retort.streaming.streamer import StreamBatch

    assert isinstance(transcriber, Recogniser)
    trained = [each for each in transcriber.student.encoder.config.chunk if each]
    return StreamBatch(transcriber, replace(options, chunk=options.chunk or min(trained, default=1)), 0)


def require_torch(folder: str | Path) -> None:
    """Check that torch is installed, for a model that is not exported.

    Raises:
        UserError: it is not.
    """
    if find_spec("torch") is None:
        raise UserError(
            "this model requires torch, which is not installed",
            where=folder,
            remedy="Run: pip install 'retort-asr[train]', or give a model that retort export --for onnx wrote",
        )
