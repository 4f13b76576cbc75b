"""Events of the Realtime socket: what clients send, and names of what they get."""

from __future__ import annotations

import base64
import binascii
import uuid
from typing import Any

import numpy as np
from numpy.typing import NDArray

from retort.common.json_reader import parse_json
from retort.serving.errors import ApiError


def parsed(text: str | None) -> dict[str, Any]:
    """The event of a message.

    Raises:
        ApiError: it is not an event.
    """
    if text is None:
        raise ApiError(400, "The message is binary. Send events as JSON text.", code="invalid_event")
    try:
        event = parse_json(text)
    except ValueError:
        raise ApiError(400, "The message is not JSON.", code="invalid_event") from None
    if not isinstance(event, dict) or not isinstance(event.get("type"), str):
        raise ApiError(
            400, "The message is not an event: it has no type.", param="type", code="invalid_event"
        )
    return event


def event_samples(audio: object) -> NDArray[np.float32]:
    """Base64 of PCM16 (little endian, 24 kHz, one channel) as `(n,)` float32.

    Raises:
        ApiError: it is something else.
    """
    if not isinstance(audio, str):
        raise ApiError(
            400, "The event has no audio. Send base64 of PCM16.", param="audio", code="invalid_audio"
        )
    try:
        data = base64.b64decode(audio, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "The audio is not valid base64.", param="audio", code="invalid_audio") from None
    if len(data) % 2:
        message = "The audio has an odd number of bytes. Send samples of 16 bit."
        raise ApiError(400, message, param="audio", code="invalid_audio")
    return (np.frombuffer(data, "<i2") / np.float32(32768)).astype(np.float32)


def new_id(kind: str) -> str:
    """A new identifier, such as `item_...`."""
    return f"{kind}_{uuid.uuid4().hex[:20]}"
