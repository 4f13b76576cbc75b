"""Outputs of frozen lower encoder layers, computed once per utterance and stored on disk.

With `training.stored_layers: N` the front end and the first N layers are frozen, so that their output for an utterance
does not change. It is written once to `exp/cache/hidden/KEY` as float16, and training starts from layer N + 1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import accumulate
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from lhotse import CutSet
from lhotse.cut import Cut
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from retort.common.errors import BadUtterance, UserError
from retort.common.files import write_whole
from retort.common.json_reader import parse_json, read_json
from retort.common.locks import one_at_a_time
from retort.common.progress import CountProgress, StageProgress
from retort.config.schema import FeatureConfig, Recipe
from retort.corpora.cuts import Rejected
from retort.corpora.features import CutFeatures, features_key
from retort.engine.parameters import freeze
from retort.nn.encoder import Encoder
from retort.students.student import Student, check_length
from retort.training.data import Data

BATCH_SECONDS = 60.0
"""Audio in one batch of the encoder while the store is filled."""



class HiddenStore:
    """Concatenated frames of many utterances in one memory-mapped file.

    Args:
        folder: made by :func:`store_hidden`.

    Attributes:
        dim: dimension of a frame.
        subsampling: feature frames per frame.

    Raises:
        OSError, ValueError, KeyError, TypeError: a file is missing or damaged, or the files do not match.
    """

    def __init__(self, folder: Path) -> None:
        about = read_json(folder / "about.json")
        self.dim = int(about["dim"])
        self.subsampling = int(about["subsampling"])
        self.path = folder / "frames.float16"
        self._places: dict[str, tuple[int, int]] = {}
        start = 0
        for name, frames in _index(folder):
            self._places[name] = (start, frames)
            start += frames
        if self.path.stat().st_size != start * self.dim * 2:
            raise ValueError("the number of frames differs from the index")
        self._frames: np.ndarray | None = None
        self._size = start

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, name: object) -> bool:
        return name in self._places

    def __getitem__(self, name: str) -> Tensor:
        """`(T', dim)` float32 of the utterance `name`.

        Raises:
            BadUtterance: it is not in the store.
        """
        if name not in self._places:
            raise BadUtterance("no stored encoder layers", where=name)
        if self._frames is None:  # opened in the reading process, since data loaders are separate processes
            self._frames = np.memmap(self.path, np.float16, "r", shape=(self._size, self.dim))
        start, frames = self._places[name]
        return torch.from_numpy(self._frames[start : start + frames].astype(np.float32))

    def __getstate__(self) -> dict[str, object]:
        return {**self.__dict__, "_frames": None}


def open_stored_layers(
    recipe: Recipe,
    student: Student,
    data: Data,
    root: Path,
    progress: StageProgress,
    accelerator: Accelerator,
) -> HiddenStore | None:
    """Open the store of the layers in `training.stored_layers`, and fill it if necessary; None for 0.

    These layers are frozen, and the student's training then uses stored frames. Cuts that cannot be
    encoded are added to `data.rejected`.
    """
    layers = recipe.training.stored_layers
    if not layers:
        return None
    freeze(student, [f"encoder.{part}" for part in lower_parts(student.encoder, layers)])
    encoder = student.encoder.to(accelerator.device)
    with accelerator.main_process_first():
        store, rejected = store_hidden(
            data.train,
            root / "cache" / "hidden",
            recipe.features,
            encoder,
            layers,
            "bf16" if accelerator.mixed_precision == "bf16" else "fp32",
            partial(progress, "lower layers"),
        )
    data.rejected.extend(rejected)
    student.train()
    encoder.stored = layers
    return store


def store_hidden(
    cuts: CutSet,
    cache: Path,
    config: FeatureConfig,
    encoder: Encoder,
    layers: int,
    precision: str,
    progress: CountProgress | None = None,
) -> tuple[HiddenStore, list[Rejected]]:
    """Encode every cut with the first `layers` layers; cuts that are already in the store are not encoded again.

    Args:
        cuts: cuts at all speeds.
        cache: folder of all such stores; the name of a store is a hash of weights, features and audio.
        encoder: on the CPU or a GPU; it is switched to evaluation mode.
        precision: `bf16` computes under autocast.

    A damaged or incomplete store is repaired: its valid part is kept.

    Returns:
        The store, and the cuts that could not be encoded.

    Raises:
        UserError: the disk is full, no cut can be encoded, or the output of a layer does not fit float16.
    """
    folder = cache / _key(cuts, config, encoder, layers, precision)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(folder / "lock"):
            if (found := _opened(folder, cuts)) is None:
                rejected = _fill(folder, cuts, config, encoder, layers, precision, progress)
                write_whole(folder / "rejected.json", json.dumps(rejected))
                found = HiddenStore(folder), [Rejected(*each) for each in rejected]
    except OSError as error:
        raise UserError(
            f"encoder layers cannot be stored ({error})", where=folder, remedy="Free space and run again"
        ) from None
    if not len(found[0]):
        first = f"; the first is {found[1][0].id}: {found[1][0].reason}" if found[1] else ""
        raise UserError(f"none of {len(found[1])} utterances can be encoded{first}", where=folder)
    return found


def _opened(folder: Path, cuts: CutSet) -> tuple[HiddenStore, list[Rejected]] | None:
    """A complete store and the cuts that could not be encoded; None if anything is missing or damaged."""
    try:
        rejected = [Rejected(*each) for each in read_json(folder / "rejected.json")]
        store = HiddenStore(folder)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    without = {each.id for each in rejected}
    return (store, rejected) if all(cut.id in store or cut.id in without for cut in cuts) else None


def _key(cuts: CutSet, config: FeatureConfig, encoder: Encoder, layers: int, precision: str) -> str:
    settings = [features_key("hidden", cuts, config), config.kind, config.cmvn, layers, precision]
    architecture = {
        **asdict(encoder.config),
        "model": "",
        "dropout": 0.0,
        "attention_dropout": 0.0,
        "layers": 0,
    }
    architecture["pool_after"] = sorted(number for number in encoder.pool_after if number <= layers)
    digest = hashlib.sha256(json.dumps([settings, architecture]).encode())
    for name, tensor in _lower_weights(encoder, layers):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def lower_parts(encoder: Encoder, layers: int) -> list[str]:
    """Name prefixes of the encoder's parameters that a store of this many layers depends on."""
    numbers = range(layers)
    pooled = encoder.pools
    return [
        "frontend",
        *(["input_projection"] if encoder.input_projection is not None else []),
        *(f"layers.{number}" for number in numbers),
        *(f"pools.{number + 1}" for number in numbers if str(number + 1) in pooled),
    ]


def _lower_weights(encoder: Encoder, layers: int) -> Iterator[tuple[str, Tensor]]:
    parts = tuple(f"{part}." for part in lower_parts(encoder, layers))
    for name, tensor in sorted(encoder.state_dict().items()):
        if name.startswith(parts):
            yield name, tensor


def _index(folder: Path) -> list[tuple[str, int]]:
    """Names and numbers of frames, up to the first damaged line."""
    path = folder / "index.jsonl"
    if not path.exists():
        return []
    found: list[tuple[str, int]] = []
    for line in path.read_text(errors="replace").split("\n")[
        :-1
    ]:  # an incomplete last line is ignored
        try:
            name, frames = parse_json(line)
            found.append((str(name), int(frames)))
        except (ValueError, TypeError):
            break
    return found


def _whole_entries(folder: Path, dim: int) -> list[tuple[str, int]]:
    """The entries of the index before the first one that is damaged or lacks frames."""
    there = _index(folder)
    frames_path = folder / "frames.float16"
    size = frames_path.stat().st_size // (2 * dim) if frames_path.exists() else 0
    ends = accumulate(frames for _, frames in there)
    return [entry for entry, end in zip(there, ends) if end <= size]


@torch.inference_mode()
def _fill(
    folder: Path,
    cuts: CutSet,
    config: FeatureConfig,
    encoder: Encoder,
    layers: int,
    precision: str,
    progress: CountProgress | None,
) -> list[tuple[str, str]]:
    """Append the missing cuts; return those that cannot be encoded, with the reason."""
    features, device = CutFeatures(config), next(encoder.parameters()).device
    encoder.eval()
    dim = _width(encoder, config.bins, layers, device)
    there = _whole_entries(folder, dim)
    frames_path, index_path = folder / "frames.float16", folder / "index.jsonl"
    about = {"dim": dim, "subsampling": encoder.subsampling_after(layers)}
    (folder / "rejected.json").unlink(missing_ok=True)  # its presence marks a complete store
    write_whole(folder / "about.json", json.dumps(about))
    write_whole(index_path, "".join(json.dumps(each) + "\n" for each in there))
    frames_path.touch()
    with frames_path.open("r+b") as frames_file:
        frames_file.truncate(sum(frames for _, frames in there) * dim * 2)
    known, rejected, done = {name for name, _ in there}, [], 0
    with frames_path.open("ab") as frames_file, index_path.open("a") as index_file:
        for group in _groups((each for each in cuts if each.id not in known), config.pad_seconds):
            made: list[tuple[str, Tensor]] = []
            for cut in group:
                try:
                    each = features(cut)
                    check_length(encoder, len(each), cut.id)
                    made.append((cut.id, each))
                except BadUtterance as error:
                    rejected.append((cut.id, error.what))
            if made:
                lengths = torch.tensor([len(each) for _, each in made], device=device)
                padded = pad_sequence([each for _, each in made], batch_first=True).to(device)
                with torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16"):
                    hidden, after = encoder.lower(padded, lengths, layers)
                for (name, _), each, count in zip(made, hidden.cpu().to(torch.float16), after.tolist()):
                    if not bool(each[:count].isfinite().all()):
                        raise UserError(
                            f"layer {layers} has output values that do not fit float16",
                            where=name,
                            remedy="Set training.stored_layers to another number, or 0",
                        )
                    frames_file.write(each[:count].contiguous().numpy().tobytes())
                    index_file.write(json.dumps([name, count]) + "\n")
                frames_file.flush()
                index_file.flush()
            done += len(group)
            if progress is not None:
                progress(len(known) + done, len(cuts))
    return rejected


def _width(encoder: Encoder, bins: int, layers: int, device: torch.device) -> int:
    """Dimension of the output of the first `layers` layers."""
    frames = 1
    while int(encoder.output_lengths(torch.tensor([frames]))) < 1:
        frames *= 2
    hidden, _ = encoder.lower(
        torch.zeros(1, frames, bins, device=device), torch.tensor([frames], device=device), layers
    )
    return hidden.shape[-1]


def _groups(cuts: Iterable[Cut], least: float) -> Iterator[list[Cut]]:
    """Groups of cuts of similar durations, at most `BATCH_SECONDS` with padding; shorter ones count as `least` seconds."""
    group: list[Cut] = []
    for cut in sorted(cuts, key=lambda each: each.duration):
        if group and max(cut.duration, least) * (len(group) + 1) > BATCH_SECONDS:
            yield group
            group = []
        group.append(cut)
    if group:
        yield group
