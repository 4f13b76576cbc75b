"""CIF students that were trained in chunks as ONNX files for streams."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch

from retort.common.errors import UserError
from retort.decoding.recogniser import Recogniser
from retort.export.record import record
from retort.export.stream_graphs import PromptGraph, StreamGraph, past_shape
from retort.nn.chunks import Chunks
from retort.nn.decoder import CifDecoder
from retort.nn.parallel_decoder import ParallelDecoder
from retort.nn.whisper_fired import FiredWhisperDecoder
from retort.runtime.stream_folder import CHUNK, FILE, PROMPT, ExportedStreams
from retort.streaming.encoder import frontend_sizes
from retort.streaming.utterances import LONGEST
from retort.students.cif import CifStudent
from retort.students.student import Student


def can_export_streams(student: CifStudent) -> bool:
    """Whether a student was trained in chunks, and its parts recognise audio while it arrives."""
    whole = student.weights is None or student.context or isinstance(student.decoder, ParallelDecoder)
    return any(student.encoder.config.chunk) and not whole


def smallest_chunk(student: Student) -> int:
    """The smallest chunk of the training in frames; 0 for a student that needs whole utterances."""
    return min((each for each in student.encoder.config.chunk if each), default=0)


def stream_chunks(recogniser: Recogniser, chunk: int) -> Chunks:
    """The limits of context of streams: self-attention reaches at most as far back as an utterance of a stream is long.

    Raises:
        UserError: the model was not trained in chunks, or its layers have no such chunk.
    """
    table = recogniser.student.encoder.longest
    longest = LONGEST if table is None else min(LONGEST, table / 100)
    most = round(longest / recogniser.frame_seconds)
    chunks = recogniser.chunks(chunk)
    return replace(chunks, left=min(chunks.left or most, most))


def export_streams(recogniser: Recogniser, out: Path) -> list[str]:
    """Add the graphs of streams to an export, or remove those of an earlier one.

    Args:
        recogniser: with a CIF student.
        out: folder of the export; the step of the decoder is part of it.

    Returns:
        Limits of the export: why a model that was trained in chunks has no streams.

    Raises:
        UserError: a recorded graph gives other results.
    """
    for name in (FILE, CHUNK, PROMPT):
        (out / name).unlink(missing_ok=True)
    assert isinstance(recogniser.student, CifStudent)
    if not can_export_streams(recogniser.student):
        return []
    student = copy.deepcopy(recogniser.student).float().eval()
    sizes = frontend_sizes(student.encoder)
    chunk = smallest_chunk(student)
    left = stream_chunks(recogniser, chunk).left
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            graph = StreamGraph(student, left, recogniser.features.bins).eval()
        except UserError as error:
            return [f"Without streams: {error.what}."]
        example, other = graph.example(2, max(chunk, 4)), graph.example(3, max(chunk, 4) + 2)
        fixed = {"features": [2], **({} if graph.attended else {"vector": [1]})}
        fixed |= {name: list(range(1, each.dim())) for name, each in example.items() if name in graph.state_names}
        record(graph, example, graph.outputs, fixed, out / CHUNK, other=other)
        decoder = student.decoder
        if isinstance(decoder, FiredWhisperDecoder):
            prompt = PromptGraph(decoder).eval()
            fixed = {"keys": [0, 2, 3], "values": [0, 2, 4]}
            record(
                prompt, prompt.example(2, 8), prompt.outputs, fixed, out / PROMPT, other=prompt.example(1, 11)
            )
    ExportedStreams(
        chunks=sorted(each for each in student.encoder.config.chunk if each),
        left=left,
        frontend=sizes,
        dim=student.encoder.config.dim,
        states=graph.shapes,
        past=past_shape(decoder),
        attends=not (isinstance(decoder, CifDecoder) and decoder.window is None),
        tail=student.config.cif.tail,
        spare=student.config.cif.spare,
    ).save(out)
    return []
