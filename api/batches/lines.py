"""Reads, checks and runs the lines of a batch; each line runs like a request to its route."""

from __future__ import annotations

import uuid
from codecs import BOM_UTF8
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from motet.api.batches.objects import BatchError, Line
from motet.api.http.access_log import finish_record
from motet.api.http.caller import Caller
from motet.api.http.errors import internal_error, note_failure
from motet.api.metrics.request_metrics import BATCH
from motet.api.responses.chat_conversion import parse_response
from motet.api.responses.routes import answer_response
from motet.api.routes.chat import answer_chat
from motet.api.routes.completions import answer_completion
from motet.api.routes.embeddings import answer_embedding, parse_embedding
from motet.api.schema.openai_objects import ENCODER, error_body
from motet.api.schema.parsing import parse_chat, parse_completion
from motet.api.services import Services
from motet.api.storage.batch_input_tokens import ADVICE
from motet.core import error_codes
from motet.core.errors import ErrorInfo, InvalidRequest, MotetError, Overloaded, Unavailable

MAX_LINES = 50_000
MAX_LINE_BYTES = 4 << 20
MAX_ERRORS = 100

# The functions that parse and answer a line, by endpoint; the answering one takes the result of parsing.
_ENDPOINTS: dict[str, tuple[Callable[[dict[str, Any]], Any], Callable[[Services, Any, Caller], Awaitable[Any]]]] = {
    "/v1/chat/completions": (parse_chat, answer_chat),
    "/v1/completions": (parse_completion, answer_completion),
    "/v1/embeddings": (parse_embedding, answer_embedding),
    "/v1/responses": (parse_response, answer_response),
}


class TryAgain(Exception):
    """The engine or a source is unavailable: run the line again later."""


def read_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """The lines that are not empty, with their numbers from 1; a line over the limit is cut.

    A byte order mark at the beginning of the file, which some editors write, is skipped.
    """
    with path.open("rb") as file:
        if file.read(len(BOM_UTF8)) != BOM_UTF8:
            file.seek(0)
        number = 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            if line.strip():
                yield number, line
            while not line.endswith(b"\n") and (line := file.readline(MAX_LINE_BYTES + 1)):
                pass


def check_lines(path: Path, endpoint: str) -> tuple[int, list[BatchError]]:
    """The number of lines, and the first MAX_ERRORS errors in them."""
    errors: list[BatchError] = []
    seen: set[str] = set()
    count = 0
    for number, raw in read_lines(path):
        count += 1
        if count > MAX_LINES or len(errors) >= MAX_ERRORS:
            break
        if (error := _line_error(number, raw, endpoint, seen)) is not None:
            errors.append(error)
    if count == 0:
        errors.append(BatchError(code=error_codes.EMPTY_FILE, message="the input file has no lines"))
    if count > MAX_LINES:
        errors.append(BatchError(code=error_codes.TOO_MANY_LINES, message=f"a batch has at most {MAX_LINES} lines"))
    return count, errors


def _line_error(number: int, raw: bytes, endpoint: str, seen: set[str]) -> BatchError | None:
    if len(raw) > MAX_LINE_BYTES:
        message = f"a line has at most {MAX_LINE_BYTES} bytes"
        return BatchError(code=error_codes.LINE_TOO_LONG, message=message, line=number)
    try:
        line = msgspec.json.decode(raw, type=Line)
    except msgspec.ValidationError as error:
        message = f"the line is not a request: {str(error)[:200]}"
        return BatchError(code=error_codes.INVALID_LINE, message=message, line=number)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        return BatchError(
            code=error_codes.INVALID_JSON_LINE, message=f"the line is not JSON: {str(error)[:200]}", line=number
        )
    if line.url != endpoint:
        message = f"url must be the batch's endpoint, {endpoint}"
        return BatchError(code=error_codes.MISMATCHED_ENDPOINT, message=message, line=number, param="url")
    if not line.custom_id or line.custom_id in seen:
        message = "custom_id must be a string that no other line has"
        return BatchError(code=error_codes.DUPLICATE_CUSTOM_ID, message=message, line=number, param="custom_id")
    seen.add(line.custom_id)
    if not isinstance(line.body.get("model"), str):
        return BatchError(
            code=error_codes.MISSING_MODEL, message="body.model is missing", line=number, param="body.model"
        )
    if line.body.get("api_token") is not None:
        return BatchError(code=error_codes.TOKEN_IN_FILE, message=ADVICE, line=number, param="body.api_token")
    return None


async def run_line(services: Services, caller: Caller, raw: bytes) -> tuple[bool, bytes]:
    """Run a line. Returns whether it failed, and its line of output. Raises TryAgain."""
    try:
        line = msgspec.json.decode(raw, type=Line)
    except RecursionError:
        error = {"code": error_codes.INVALID_JSON, "message": "the line is nested too deeply"}
        return True, _output(_custom_id(raw), None, error)
    parse, answer = _ENDPOINTS[line.url]
    request_id = caller.request_id
    try:
        request = parse(line.body).request
        for field in ("stream", "background"):
            if getattr(request, field, None):
                raise InvalidRequest(
                    "a batch cannot stream or run in the background; omit the field", param=f"body.{field}"
                )
        body = ENCODER.encode(await answer(services, request, caller))
        status = 200
    except (Unavailable, Overloaded) as error:
        raise TryAgain from error
    except MotetError as error:
        note_failure(error.info(), caller.record)
        status, body = error.status, ENCODER.encode(error_body(error.info()))
    except Exception as error:
        info = internal_error(error)
        caller.record.error_code = info.code
        status, body = info.status, ENCODER.encode(error_body(info))
    record = caller.record
    record.method, record.route, record.status = BATCH, line.url, status
    record.request_id, record.key = request_id, caller.owner
    finish_record(record, services.settings.access_log == "on")
    response = {"status_code": status, "request_id": request_id, "body": msgspec.Raw(body)}
    return status != 200, _output(line.custom_id, response, None)


def expired_line(raw: bytes) -> bytes:
    """The line of output for a line that did not run before the batch expired."""
    error = ErrorInfo("the batch expired before this line ran", "", error_codes.BATCH_EXPIRED, 0)
    return _output(_custom_id(raw), None, {"code": error.code, "message": error.message})


def no_room_line(raw: bytes, error: MotetError) -> bytes:
    """The line of output for a line whose answer could not be stored for lack of room."""
    return _output(_custom_id(raw), None, {"code": error.code, "message": error.message})


class _CustomId(msgspec.Struct):
    custom_id: str


def _custom_id(raw: bytes) -> str:
    """The custom_id of a line; "" if the line cannot be parsed."""
    try:
        return msgspec.json.decode(raw, type=_CustomId).custom_id
    except (msgspec.DecodeError, RecursionError):
        return ""


def _output(custom_id: str, response: object, error: object) -> bytes:
    id = f"batch_req_{uuid.uuid4().hex}"
    return ENCODER.encode({"id": id, "custom_id": custom_id, "response": response, "error": error})
