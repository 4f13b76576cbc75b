"""The description of an exported model's streams, `streaming.json`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path

from retort.common.errors import UserError
from retort.common.files import check_format, write_whole
from retort.common.json_reader import read_json
from retort.runtime.folder import AGAIN
from retort.streaming.feature_buffer import FrontendSizes

FILE = "streaming.json"
FORMAT = 1
CHUNK, PROMPT = "chunk.onnx", "prompt.onnx"
_MOST = 1 << 28


@dataclass(frozen=True)
class ExportedStreams:
    """What a runtime needs for streams besides the graphs.

    Attributes:
        chunks: sizes of the training in encoder frames, without 0.
        left: frames before a chunk that self-attention is limited to.
        frontend: sizes of the front end.
        dim: width of the encoder's output.
        states: shapes of the states of one stream.
        past: layers, heads and width of the decoder's keys; None if there is the graph of a prompt.
        attends: whether the decoder attends to encoder frames.
        tail: weight above which a remainder is a token.
        spare: tokens after the last fire.
    """

    chunks: list[int]
    left: int
    frontend: FrontendSizes
    dim: int
    states: list[list[int]]
    past: list[int] | None
    attends: bool
    tail: float
    spare: int

    def save(self, folder: Path) -> None:
        """Write `streaming.json` into the folder."""
        content = {"format": FORMAT, **asdict(replace(self, frontend=FrontendSizes(*self.frontend)))}
        content["frontend"] = self.frontend._asdict()
        write_whole(folder / FILE, json.dumps(content, indent=2) + "\n")


def has_streams(folder: Path) -> bool:
    """Whether an exported model recognises audio while it arrives."""
    return (folder / FILE).is_file()


def read_streams(folder: Path) -> ExportedStreams:
    """Read `streaming.json`.

    Raises:
        UserError: it is damaged, or was written by a later version.
    """
    path = folder / FILE
    try:
        content = read_json(path)
        check_format(content.pop("format"), FORMAT, path)
        frontend = FrontendSizes(**content.pop("frontend"))
        found = ExportedStreams(frontend=frontend, **content)
        sizes = [
            *found.chunks,
            found.left,
            found.dim,
            *(found.past or [1]),
            *(prod(each) for each in found.states),
        ]
        if not found.chunks or not all(isinstance(each, int) and 0 < each < _MOST for each in sizes):
            raise ValueError("a size is out of range")
        counts = [frontend.subsampling - 1, frontend.before, frontend.after, found.spare]
        if not all(isinstance(each, int) and 0 <= each < 10_000 for each in counts):
            raise ValueError("a size is out of range")
        return found
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(
            f"damaged description of the streams of an export ({error})", where=path, remedy=AGAIN
        ) from None
