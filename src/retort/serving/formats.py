"""Response formats of `/v1/audio/transcriptions`."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from typing import Any

from starlette.responses import JSONResponse, PlainTextResponse, Response

from retort.decoding.transcript import TimedText, join_transcripts, to_srt, to_vtt
from retort.serving.models import Piece, ServedModel
from retort.serving.uploads import Wanted


def respond(wanted: Wanted, model: ServedModel, pieces: Sequence[Piece], duration: float) -> Response:
    """The response in the wanted format.

    Args:
        duration: of the audio, seconds.
    """
    transcript = join_transcripts([piece.transcript for piece in pieces], model.separator)
    if wanted.format == "text":
        return PlainTextResponse(transcript.text + "\n")
    if wanted.format == "srt":
        return PlainTextResponse(to_srt(transcript, model.separator), media_type="application/x-subrip")
    if wanted.format == "vtt":
        return PlainTextResponse(to_vtt(transcript, model.separator), media_type="text/vtt")
    usage = {"type": "duration", "seconds": round(duration, 3)}
    content: dict[str, Any] = {"text": transcript.text, "usage": usage}
    if wanted.format == "verbose_json":
        content = {
            "task": "transcribe",
            "language": wanted.language or model.language,
            "duration": round(duration, 3),
            **content,
            "no_speech_prob": transcript.no_speech,
        }
        if "segment" in wanted.granularities:
            content["segments"] = segments(model, pieces)
        if "word" in wanted.granularities:
            content["words"] = words(transcript.words)
    if wanted.logprobs:
        content["logprobs"] = logprobs(transcript.tokens)
    return JSONResponse(content)


def segments(model: ServedModel, pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """The segments of a recording in OpenAI's schema; those without words are left out."""
    spoken = [piece for piece in pieces if piece.transcript.text]
    return [
        {
            "id": number,
            "seek": round(piece.start * 100),  # frames of 10 ms
            "start": round(piece.start, 3),
            "end": round(piece.end, 3),
            "text": piece.transcript.text,
            "tokens": model.token_ids(piece.transcript.text),
            "temperature": 0.0,
            "avg_logprob": average_logprob(piece.transcript.tokens),
            "compression_ratio": compression_ratio(piece.transcript.text),
            "no_speech_prob": piece.transcript.no_speech,
        }
        for number, piece in enumerate(spoken)
    ]


def words(timed: Sequence[TimedText], offset: float = 0.0) -> list[dict[str, Any]]:
    """Words in OpenAI's schema, with the confidence in addition."""
    return [
        {
            "word": each.text,
            "start": round(each.start + offset, 3),
            "end": round(each.end + offset, 3),
            "confidence": round(each.confidence, 4),
        }
        for each in timed
    ]


def logprobs(tokens: Sequence[TimedText]) -> list[dict[str, Any]]:
    """Log-probabilities of tokens in OpenAI's schema."""
    return [
        {"token": each.text, "bytes": list(each.text.encode()), "logprob": _log(each.confidence)}
        for each in tokens
    ]


def average_logprob(tokens: Sequence[TimedText]) -> float:
    """Mean log-probability of the tokens, 0 without tokens."""
    return sum(_log(each.confidence) for each in tokens) / len(tokens) if tokens else 0.0


def compression_ratio(text: str) -> float:
    """Bytes of a text per byte of its zlib compression, as Whisper computes it; high for repeated text."""
    data = text.encode()
    return len(data) / len(zlib.compress(data))


def _log(confidence: float) -> float:
    return math.log(max(confidence, 1e-10))
