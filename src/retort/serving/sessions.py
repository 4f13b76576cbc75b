"""The configuration of a Realtime session."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from retort.serving.errors import ApiError
from retort.serving.state import State
from retort.serving.uploads import LONGEST_KEYWORD, MOST_KEYWORDS

RATE = 24_000
"""Sampling rate of the input, Hz: OpenAI's protocol has no other for PCM."""
LOGPROBS = "item.input_audio_transcription.logprobs"


@dataclass(frozen=True)
class SessionConfig:
    """Settings that a client may change.

    Attributes:
        model: name of the model.
        language: ISO 639 code as given by the client; the models of this server have one language.
        prompt: as given by the client; not used.
        keywords: hotwords.
        vad: whether the server finds the turns.
        threshold: as given by the client; the project's detector has its own thresholds.
        prefix_ms: milliseconds before the speech that belong to a turn.
        silence_ms: milliseconds without speech that end a turn.
        logprobs: whether log-probabilities of tokens are sent.
    """

    model: str = ""
    language: str = ""
    prompt: str = ""
    keywords: tuple[str, ...] = ()
    vad: bool = True
    threshold: float = 0.5
    prefix_ms: int = 300
    silence_ms: int = 500
    logprobs: bool = False

    @property
    def audio(self) -> tuple[object, ...]:
        """What the audio buffer depends on."""
        return self.model, self.vad, self.prefix_ms, self.silence_ms

    def to_dict(self) -> dict[str, Any]:
        """The session in OpenAI's schema."""
        turns = {
            "type": "server_vad",
            "threshold": self.threshold,
            "prefix_padding_ms": self.prefix_ms,
            "silence_duration_ms": self.silence_ms,
        }
        transcription: dict[str, Any] = {
            "model": self.model,
            "language": self.language or None,
            "prompt": self.prompt,
        }
        if self.keywords:
            transcription["keywords"] = list(self.keywords)
        return {
            "type": "transcription",
            "object": "realtime.transcription_session",
            "audio": {
                "input": {
                    "format": {"type": "audio/pcm", "rate": RATE},
                    "transcription": transcription,
                    "noise_reduction": None,
                    "turn_detection": turns if self.vad else None,
                }
            },
            "include": [LOGPROBS] if self.logprobs else [],
        }


def updated(config: SessionConfig, session: object, state: State) -> SessionConfig:
    """The configuration after `session.update`; what is not mentioned stays.

    Raises:
        ApiError: names the field that is wrong.
    """
    session = _table(session, "session")
    if session.get("type", "transcription") != "transcription":
        raise _wrong("session.type", "This server has transcription sessions only")
    source = _table(_table(session.get("audio"), "session.audio").get("input"), "session.audio.input")
    _check_format(source.get("format"))
    transcription = _table(source.get("transcription"), "session.audio.input.transcription")
    if "model" in transcription:
        config = replace(config, model=state.model(_text(transcription, "model")).name)
    if "language" in transcription:
        config = replace(config, language=_text(transcription, "language"))
    if "prompt" in transcription:
        config = replace(config, prompt=_text(transcription, "prompt"))
    if "keywords" in transcription:
        config = replace(config, keywords=_keywords(transcription["keywords"]))
    if "turn_detection" in source:
        config = _with_turns(config, source["turn_detection"])
    if "include" in session:
        config = replace(config, logprobs=_logprobs(session["include"]))
    return config


def _with_turns(config: SessionConfig, turns: object) -> SessionConfig:
    if turns is None:
        return replace(config, vad=False)
    field = "session.audio.input.turn_detection"
    turns = _table(turns, field)
    if turns.get("type", "server_vad") != "server_vad":
        raise _wrong(f"{field}.type", "Give server_vad, or null to commit the audio yourself")
    return replace(
        config,
        vad=True,
        threshold=_number(turns, "threshold", config.threshold, 0.0, 1.0),
        prefix_ms=round(_number(turns, "prefix_padding_ms", config.prefix_ms, 0, 5000)),
        silence_ms=round(_number(turns, "silence_duration_ms", config.silence_ms, 100, 10_000)),
    )


def _check_format(value: object) -> None:
    if value is None:
        return
    field = "session.audio.input.format"
    if value == "pcm16":
        return
    table = _table(value, field)
    if table.get("type") != "audio/pcm" or table.get("rate", RATE) != RATE:
        raise _wrong(field, f"Send audio/pcm with a rate of {RATE}: 16 bit, little endian, one channel")


def _keywords(value: object) -> tuple[str, ...]:
    fits = isinstance(value, list) and len(value) <= MOST_KEYWORDS
    if not fits or not all(isinstance(each, str) and len(each) <= LONGEST_KEYWORD for each in value):  # type: ignore[attr-defined]
        raise _wrong("session.audio.input.transcription.keywords", "Give a list of texts")
    return tuple(text for each in value if (text := " ".join(each.split())))  # type: ignore[attr-defined]


def _logprobs(value: object) -> bool:
    if value is not None and (not isinstance(value, list) or any(each != LOGPROBS for each in value)):
        raise _wrong("session.include", f"Give a list with {LOGPROBS} or nothing")
    return bool(value)


def _table(value: object, field: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise _wrong(field, "Give an object")
    return value


def _text(table: Mapping[str, Any], name: str) -> str:
    value = table[name]
    if value is not None and (not isinstance(value, str) or len(value) > 10_000):
        raise _wrong(f"session.audio.input.transcription.{name}", "Give a text")
    return value or ""


def _number(table: Mapping[str, Any], name: str, default: float, low: float, high: float) -> float:
    value = table.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= high:
        raise _wrong(f"session.audio.input.turn_detection.{name}", f"Give a number from {low:g} to {high:g}")
    return value


def _wrong(field: str, remedy: str) -> ApiError:
    return ApiError(
        400, f"The value of {field} is not supported. {remedy}.", param=field, code="invalid_value"
    )
