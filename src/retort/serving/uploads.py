"""The form of a transcription request, checked, and its file on disk."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import FormData, UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import Request

from retort.common.json_reader import parse_json
from retort.serving.errors import ApiError

FORMATS = ("json", "text", "srt", "vtt", "verbose_json")
GRANULARITIES = ("segment", "word")
MOST_KEYWORDS, LONGEST_KEYWORD = 1000, 200
_FIELD_BYTES = 1 << 18


@dataclass(frozen=True)
class Wanted:
    """The fields of a request.

    Attributes:
        file: uploaded file.
        model: name of the model, or "".
        language: ISO 639 code given by the client, or "".
        format: one of `FORMATS`.
        granularities: of `verbose_json`.
        logprobs: whether log-probabilities of tokens are wanted.
        stream: whether the text is sent segment by segment.
        keywords: hotwords.
    """

    file: UploadFile
    model: str
    language: str
    format: str
    granularities: Sequence[str]
    logprobs: bool
    stream: bool
    keywords: Sequence[str]


async def read_form(request: Request) -> FormData:
    """The form of a request.

    Raises:
        ApiError: the body is not a form.
    """
    kind = request.headers.get("content-type", "")
    if kind.partition(";")[0].strip().lower() != "multipart/form-data":
        stated = f"'{kind[:100]}'" if kind else "not stated"
        raise ApiError(
            400,
            f"The content type is {stated}. Send the file as multipart/form-data.",
            code="invalid_content_type",
        )
    try:
        return await request.form(max_files=4, max_fields=MOST_KEYWORDS + 100, max_part_size=_FIELD_BYTES)
    except HTTPException as error:
        raise _broken(error.detail) from None
    except (
        KeyError,
        ValueError,
        UnicodeError,
        LookupError,
    ) as error:  # an unknown charset, a damaged boundary
        raise _broken(str(error)) from None


def _broken(reason: str) -> ApiError:
    reason = " ".join(reason.split())[:200].rstrip(".")
    return ApiError(400, f"The body is not valid multipart/form-data ({reason}).", code="invalid_body")


def read_fields(form: FormData) -> Wanted:
    """Check the fields of a form.

    Raises:
        ApiError: names the field that is wrong.
    """
    file = form.get("file")
    if file is None:
        raise ApiError(400, "The request has no file. Send the audio as the field 'file'.", param="file")
    if isinstance(file, str):
        message = (
            "The field 'file' is text, not a file. Send it with a file name, as curl -F file=@a.flac does."
        )
        raise ApiError(400, message, param="file")
    if not file.size:
        raise ApiError(400, "The file is empty (0 bytes).", param="file")
    format = _text(form, "response_format") or "json"
    if format not in FORMATS:
        raise _choice("response_format", format, FORMATS)
    granularities = _list(form, "timestamp_granularities")
    for each in granularities:
        if each not in GRANULARITIES:
            raise _choice("timestamp_granularities[]", each, GRANULARITIES)
    include = _list(form, "include")
    for each in include:
        if each != "logprobs":
            raise _choice("include[]", each, ("logprobs",))
    _check_temperature(_text(form, "temperature"))
    stream = _text(form, "stream").lower()
    if stream not in ("", "true", "false", "1", "0"):
        raise _choice("stream", stream, ("true", "false"))
    keywords = [text for each in _list(form, "keywords") if (text := " ".join(each.split()))]
    if len(keywords) > MOST_KEYWORDS or any(len(each) > LONGEST_KEYWORD for each in keywords):
        message = f"At most {MOST_KEYWORDS} keywords of at most {LONGEST_KEYWORD} characters are accepted."
        raise ApiError(400, message, param="keywords[]")
    return Wanted(
        file,
        _text(form, "model"),
        _text(form, "language"),
        format,
        granularities or ("segment",),
        "logprobs" in include,
        stream in ("true", "1"),
        keywords,
    )


def _text(form: FormData, name: str) -> str:
    value = form.get(name, "")
    if not isinstance(value, str):
        raise ApiError(400, f"The field '{name}' is a file, not text.", param=name)
    return value.strip()


def _list(form: FormData, name: str) -> list[str]:
    """The values of a list, given as `name[]` or `name`, several times or as one JSON list."""
    values = [each for key in (f"{name}[]", name) for each in form.getlist(key)]
    found: list[str] = []
    for each in values:
        if not isinstance(each, str):
            raise ApiError(400, f"The field '{name}' is a file, not text.", param=name)
        if len(values) == 1 and each.startswith("["):
            try:
                parsed = parse_json(each)
            except ValueError:
                parsed = None
            if isinstance(parsed, list) and all(isinstance(item, str) for item in parsed):
                return parsed
        found.append(each)
    return found


def _check_temperature(text: str) -> None:
    try:
        fits = not text or 0.0 <= float(text) <= 1.0
    except ValueError:
        fits = False
    if not fits:
        raise ApiError(
            400, f"The temperature is '{text[:40]}'. Give a number from 0 to 1.", param="temperature"
        )


def _choice(name: str, value: str, allowed: Sequence[str]) -> ApiError:
    message = f"{name} is '{value[:40]}'. Choose one of {', '.join(allowed)}."
    return ApiError(400, message, param=name, code="invalid_value")


@contextmanager
def on_disk(upload: UploadFile) -> Iterator[Path]:
    """The upload as a temporary file, which is removed afterwards; its name says nothing about its content."""
    with tempfile.NamedTemporaryFile(prefix="retort-upload-") as copy:
        upload.file.seek(0)
        shutil.copyfileobj(upload.file, copy, 1 << 20)
        copy.flush()
        yield Path(copy.name)
