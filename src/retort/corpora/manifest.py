"""Safe parsing of lines of manifests into cuts: external content is data, never code.

lhotse would construct anything in a line: audio from shell commands or URLs, pickled features, transforms
with further recordings. Here every field has a known name and type, audio comes from files, features from
`.npy` files, and transforms from a fixed list, at every depth of the line.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeAlias

from lhotse import Features, MonoCut, MultiCut, Recording, SupervisionSegment
from lhotse.audio import AudioSource
from lhotse.cut import Cut
from lhotse.supervision import AlignmentItem

from retort.common.errors import BadUtterance
from retort.common.json_reader import parse_json

STORAGE = "numpy_files"
"""Storage type of features: one `.npy` file per utterance."""
SHARD = "shar"
"""Type of the source of audio that is in a shard."""
LONGEST_LINE = 16 * 2**20
"""Maximum bytes of a line of a manifest; kilobytes of compressed data may contain a line of gigabytes."""
_HIGHEST_RATE = 1_000_000
_FACTOR = (0.1, 10.0)
"""Maximum factor of a change of speed, tempo or volume."""
_ROUNDING = 0.1
"""Maximum difference in seconds between the stated duration of a recording and that of its samples."""

Check: TypeAlias = Callable[[str, Any], Any]


class _Wrong(Exception):
    """A field that is missing, unknown or of a wrong type."""


def read_cut(line: str | bytes, *, in_shard: bool = False) -> Cut | Recording:
    """The cut or recording that a line of a manifest describes.

    Paths are not changed, and files are not checked.

    Args:
        in_shard: the line belongs to a shard; the one source of its audio is a placeholder and gets an empty path.

    Raises:
        BadUtterance: it is not JSON or not a cut, a field has a wrong type, or the content is not allowed.
    """
    try:
        content = parse_json(line)
    except (ValueError, RecursionError) as error:
        raise BadUtterance(f"not valid JSON ({str(error).split(': line')[0]})") from None
    if not isinstance(content, dict) or "id" not in content:
        raise BadUtterance("not a cut")
    try:
        if in_shard:
            _fill_placeholder(content)
        check_harmless(content)
        return _item(content)
    except (_Wrong, RecursionError) as error:
        raise BadUtterance(f"cut {name_of(content)} is invalid ({error})") from None


def _fill_placeholder(content: dict[str, Any]) -> None:
    """Replace the placeholder of lhotse's Shar format by a file with an empty path."""
    recording = content.get("recording")
    sources = recording.get("sources") if isinstance(recording, dict) else None
    if not isinstance(sources, list) or len(sources) != 1 or not isinstance(sources[0], dict):
        raise _Wrong("it has not one source of audio")
    if sources[0].get("type") != SHARD:
        raise _Wrong("its audio is not in the shard")
    sources[0].update(type="file", source="")


def name_of(content: Mapping[str, Any]) -> str:
    """The id of a line, or its replacement, as valid text."""
    return str(content.get("id", "")).encode("utf-8", "backslashreplace").decode()[:200]


def check_harmless(content: Any) -> None:
    """Check all sources, storages and transforms in a line of a manifest, at any depth.

    Raises:
        BadUtterance: one of them is not a file, or is not allowed.
    """
    for each in _tables(content):
        if {"type", "channels", "source"} <= each.keys() and each["type"] != "file":
            raise BadUtterance(f"its audio is a {_shown(each['type'])}, not a file")
        if "storage_type" in each and each["storage_type"] != STORAGE:
            raise BadUtterance(
                f"its features are stored as {_shown(each['storage_type'])}, which is not read from a manifest",
                remedy="Remove the features: they are computed from the audio",
            )
        transforms = each.get("transforms") or []
        for transform in transforms if isinstance(transforms, list) else [transforms]:
            name = transform.get("name") if isinstance(transform, dict) else transform
            if not isinstance(name, str) or name not in TRANSFORMS:
                raise BadUtterance(
                    f"its recording has the transform {_shown(name)}",
                    remedy=f"Apply the transform to the audio; supported are {', '.join(TRANSFORMS)}",
                )


def _tables(content: Any) -> Iterator[dict[str, Any]]:
    """Every JSON object within `content`, including itself."""
    waiting = [content]
    while waiting:
        each = waiting.pop()
        if isinstance(each, dict):
            yield each
            waiting.extend(each.values())
        elif isinstance(each, list):
            waiting.extend(each)


def _shown(value: object) -> str:
    return str(value).encode("utf-8", "backslashreplace").decode()[:60]


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str):
        raise _Wrong(f"{name} is not text")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise _Wrong(f"{name} has half of a character (a lone surrogate)") from None
    if "\0" in value:
        raise _Wrong(f"{name} has a null character")
    return value


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Wrong(f"{name} is not a number")
    try:
        if not math.isfinite(value):
            raise _Wrong(f"{name} is {value}")
    except OverflowError:
        raise _Wrong(f"{name} is too large") from None
    return value


def _whole(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise _Wrong(f"{name} is not a whole number")
    if not abs(value) < 1 << 53:
        raise _Wrong(f"{name} is too large")
    return value


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise _Wrong(f"{name} is neither true nor false")
    return value


def _list_of(check: Check) -> Check:
    def checked(name: str, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise _Wrong(f"{name} is not a list")
        return [check(f"{name}[{index}]", each) for index, each in enumerate(value)]

    return checked


def _or_list(check: Check) -> Check:
    whole = _list_of(check)
    return lambda name, value: whole(name, value) if isinstance(value, list) else check(name, value)


def _within(low: float, high: float, check: Check = _number) -> Check:
    def checked(name: str, value: Any) -> Any:
        found = check(name, value)
        if not low <= found <= high:
            raise _Wrong(f"{name} is {found}")
        return found

    return checked


def _plain(name: str, value: Any) -> dict[str, Any]:
    """A field that is not used and not changed."""
    if not isinstance(value, dict):
        raise _Wrong(f"{name} is not a table")
    return value


def _fields(name: str, value: Any, known: Mapping[str, Check], needed: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a JSON object; null counts as missing.

    Raises:
        _Wrong: a required field is missing, or a field is unknown or has a wrong type.
    """
    if not isinstance(value, dict):
        raise _Wrong(f"{name} is not a table")
    if unknown := value.keys() - known.keys():
        raise _Wrong(f"{name} has an unknown field {_shown(min(unknown))}")
    found = {
        key: check(f"{name}.{key}", value[key]) for key, check in known.items() if value.get(key) is not None
    }
    if missing := [key for key in needed if key not in found]:
        raise _Wrong(f"{name} has no {missing[0]}")
    return found


_RATE = _within(1, _HIGHEST_RATE, _whole)


def _source(name: str, value: Any) -> AudioSource:
    known = {"type": _text, "channels": _list_of(_whole), "source": _text, "video": _plain}
    fields = _fields(name, value, known, ("type", "channels", "source"))
    if fields.pop("type") != "file":
        raise _Wrong(f"{name} is not a file")
    fields.pop("video", None)
    return AudioSource(type="file", **fields)


def _recording(name: str, value: Any) -> Recording:
    known: dict[str, Check] = {
        "id": _text,
        "sources": _list_of(_source),
        "sampling_rate": _RATE,
        "num_samples": _within(0, 1 << 48, _whole),
        "duration": _within(0, math.inf),
        "channel_ids": _list_of(_whole),
        "transforms": _list_of(_transform),
    }
    fields = _fields(name, value, known, ("id", "sources", "sampling_rate", "num_samples", "duration"))
    stated = fields["num_samples"] / fields["sampling_rate"]
    if not fields["sources"]:
        raise _Wrong(f"{name} has no source")
    if abs(stated - fields["duration"]) > _ROUNDING:
        raise _Wrong(f"{name} has {stated:.2f} s of samples, but its duration is {fields['duration']} s")
    return Recording(**fields)


def _impulse_response(name: str, value: Any) -> dict[str, Any]:
    """Check a recording or cut, which is returned as JSON for lhotse."""
    if not isinstance(value, dict):
        raise _Wrong(f"{name} is not a table")
    if "sources" in value:
        _recording(name, value)
    elif value.get("type") == "MonoCut":
        _cut(name, value)
    else:
        raise _Wrong(f"{name} is neither a recording nor a MonoCut")
    return value


TRANSFORMS: dict[str, tuple[dict[str, Check], tuple[str, ...]]] = {
    "Speed": ({"factor": _within(*_FACTOR)}, ("factor",)),
    "Tempo": ({"factor": _within(*_FACTOR)}, ("factor",)),
    "Volume": ({"factor": _within(*_FACTOR)}, ("factor",)),
    "Resample": (
        {"source_sampling_rate": _RATE, "target_sampling_rate": _RATE},
        ("source_sampling_rate", "target_sampling_rate"),
    ),
    "ReverbWithImpulseResponse": (
        {
            "rir": _impulse_response,
            "normalize_output": _flag,
            "early_only": _flag,
            "rir_channels": _list_of(_within(0, 64, _whole)),
        },
        ("rir",),
    ),
}
"""Supported transforms of the audio: their arguments, and the required ones."""


def _transform(name: str, value: Any) -> dict[str, Any]:
    fields = _fields(name, value, {"name": _text, "kwargs": _plain}, ("name",))
    if fields["name"] not in TRANSFORMS:
        raise _Wrong(f"{name} is {_shown(fields['name'])}, which is not supported")
    known, needed = TRANSFORMS[fields["name"]]
    given = dict(fields.get("kwargs", {}))
    given = {key: each for key, each in given.items() if each is not None}
    return {"name": fields["name"], "kwargs": _fields(f"{name}.kwargs", given, known, needed)}


def _alignment(name: str, value: Any) -> dict[str, list[AlignmentItem]]:
    """Symbols of each kind (`word`, `phone`) with start and duration in seconds."""
    item: tuple[Check, ...] = (_text, _number, _number, _number)
    found: dict[str, list[AlignmentItem]] = {}
    for kind, rows in _plain(name, value).items():
        found[_text(name, kind)] = []
        for index, row in enumerate(_list_of(lambda _, each: each)(f"{name}.{kind}", rows)):
            values = list(row.values()) if isinstance(row, dict) else row
            if not isinstance(values, list) or not 3 <= len(values) <= 4:
                raise _Wrong(f"{name}.{kind}[{index}] is not a symbol with start and duration")
            if len(values) == 4 and values[3] is None:
                values = values[:3]
            checked = [check(f"{name}.{kind}[{index}]", each) for check, each in zip(item, values)]
            found[kind].append(AlignmentItem(*checked))
    return found


def _supervision(name: str, value: Any) -> SupervisionSegment:
    known: dict[str, Check] = {
        "id": _text,
        "recording_id": _text,
        "start": _number,
        "duration": _number,
        "channel": _or_list(_whole),
        "text": _text,
        "language": _text,
        "speaker": _text,
        "gender": _text,
        "custom": _plain,
        "alignment": _alignment,
    }
    return SupervisionSegment(**_fields(name, value, known, ("id", "recording_id", "start", "duration")))


def read_features(name: str, value: Any) -> Features:
    """Parse the entry of stored features.

    Raises:
        BadUtterance: a field is missing, unknown, of a wrong type, or has another storage.
    """
    try:
        check_harmless(value)
        return _features(name, value)
    except _Wrong as error:
        raise BadUtterance(f"its features are invalid ({error})") from None


def _features(name: str, value: Any) -> Features:
    known: dict[str, Check] = {
        "type": _text,
        "num_frames": _within(0, 1 << 40, _whole),
        "num_features": _within(1, 1 << 20, _whole),
        "frame_shift": _within(1e-6, 1e6),
        "sampling_rate": _RATE,
        "start": _number,
        "duration": _number,
        "storage_type": _text,
        "storage_path": _text,
        "storage_key": _text,
        "recording_id": _text,
        "channels": _or_list(_whole),
    }
    needed = tuple(key for key in known if key not in ("recording_id", "channels"))
    fields = _fields(name, value, known, needed)
    if fields["storage_type"] != STORAGE:
        raise _Wrong(f"{name}.storage_type is {_shown(fields['storage_type'])}")
    return Features(**fields)


_CUT: dict[str, Check] = {
    "id": _text,
    "type": _text,
    "start": _within(0, math.inf),
    "duration": _number,
    "channel": _or_list(_whole),
    "supervisions": _list_of(_supervision),
    "recording": _recording,
    "features": _features,
    "custom": _plain,
}


def _cut(name: str, value: Any) -> MonoCut | MultiCut:
    fields = _fields(name, value, _CUT, ("id", "type", "start", "duration", "channel"))
    many = fields.pop("type") == "MultiCut"
    if many != isinstance(fields["channel"], list):
        raise _Wrong(f"{name}.channel is {'not ' if many else ''}a list")
    return MultiCut(**fields) if many else MonoCut(**fields)


def _item(content: dict[str, Any]) -> Cut | Recording:
    if "sources" in content:
        return _recording("it", content)
    if "num_features" in content:
        raise BadUtterance("not a MonoCut but a Features")
    if "type" not in content:
        raise BadUtterance("not a MonoCut but a SupervisionSegment")
    kind = content["type"]
    if kind in ("MixedCut", "PaddingCut"):
        raise BadUtterance(f"not a MonoCut but a {kind}")
    if kind not in ("MonoCut", "MultiCut", "Cut"):
        raise _Wrong(f"its type is {_shown(kind)}")
    return _cut("it", {**content, "type": "MonoCut" if kind == "Cut" else kind})
