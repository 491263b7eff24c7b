"""The routes below /v1/files: upload, list, read and delete files, such as the input of batches."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, BinaryIO, Literal, cast

import msgspec
from quart import Blueprint, Response, request

from motet.api.http.body_limits import FORM_BYTES, LimitedRequest, discard_body
from motet.api.http.caller import current_caller
from motet.api.http.json_response import json_response
from motet.api.schema.ignored_fields_header import note_ignored
from motet.api.schema.operations import Operation, path_parameter, query_parameter
from motet.api.schema.parsing import Parsed, field_error
from motet.api.services import Services
from motet.api.storage.batch_input_tokens import ADVICE, line_with_token
from motet.api.storage.files import ExpiresAfter, FileObject, FileStore, new_file
from motet.api.storage.paging import Page
from motet.api.storage.upload_reservations import UploadReservations
from motet.core import error_codes
from motet.core.disk_space import disk_full_as_unavailable
from motet.core.errors import InvalidRequest, MotetError, PayloadTooLarge, UnsupportedMediaType

PURPOSES = ("batch", "user_data", "assistants", "evals", "fine-tune", "vision")
EXPIRES_AFTER = {f"expires_after[{name}]": name for name in ExpiresAfter.__struct_fields__}
"""Form fields of an upload -> fields of ExpiresAfter."""

MAX_NAME = 255
MAX_PAGE = 10_000
_CHUNK_BYTES = 256 << 10


class FileList(msgspec.Struct, frozen=True, kw_only=True):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that was deleted."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


class UploadForm(msgspec.Struct, frozen=True, kw_only=True):
    """The form of an upload, without the file."""

    purpose: str
    expires_after: ExpiresAfter | None = None


_UPLOAD: dict[str, Any] = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"enum": list(PURPOSES), "description": "batch for the input of batches; others are only stored."},
        "expires_after[anchor]": {"enum": ["created_at"]},
        "expires_after[seconds]": {
            "type": "integer",
            "minimum": 3600,
            "maximum": 2_592_000,
            "description": "The file is deleted this long after its upload; without it, never.",
        },
    },
}
_ID = path_parameter("file_id", "The file's id.")
_AFTER = query_parameter("after", "Begin after the entry of this id.", {"type": "string"})

OPERATIONS = (
    Operation(
        "post",
        "/v1/files",
        "Upload a file",
        "files",
        FileObject,
        multipart=_UPLOAD,
        statuses=(400, 401, 413, 415, 429, 503),
        status_descriptions={
            413: "The file exceeds --max-file, or the files would exceed --max-files.",
            415: "The body is not declared as multipart/form-data.",
            429: "Too many uploads are in progress.",
        },
    ),
    Operation(
        "get",
        "/v1/files",
        "The caller's files",
        "files",
        FileList,
        statuses=(400, 401, 503),
        parameters=(
            query_parameter("purpose", "Only these.", {"type": "string"}),
            query_parameter("limit", "At most this many.", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE}),
            query_parameter("order", "By age; desc by default.", {"enum": ["asc", "desc"]}),
            _AFTER,
        ),
    ),
    Operation(
        "get", "/v1/files/{file_id}", "A file's metadata", "files", FileObject, statuses=(401, 404), parameters=(_ID,)
    ),
    Operation(
        "delete", "/v1/files/{file_id}", "Delete a file", "files", DeletedFile, statuses=(401, 404), parameters=(_ID,)
    ),
    Operation(
        "get",
        "/v1/files/{file_id}/content",
        "A file's content",
        "files",
        None,
        media_type="application/octet-stream",
        statuses=(401, 404),
        parameters=(_ID,),
        description="The bytes.",
    ),
)


def file_store(services: Services) -> FileStore:
    """The files of this server."""
    return FileStore(services.database)


def routes(services: Services) -> Blueprint:
    """The routes, bound to `services`."""
    blueprint = Blueprint("files", __name__)
    store, uploads = file_store(services), UploadReservations(services.database)
    max_file = services.settings.size("max_file") or 0

    @blueprint.post("/v1/files")
    async def upload() -> Response:
        owner = current_caller().owner
        try:
            async with uploads.reserved(owner, _content_length(max_file)) as upload_id:
                with disk_full_as_unavailable(), store.temporary_files(upload_id) as create:
                    cast(LimitedRequest, request).spool = create
                    file, content = await _read_upload(max_file)
                    return json_response(await store.add_written(owner, file, Path(content.name)))
        except MotetError:
            await discard_body(request)
            raise

    @blueprint.get("/v1/files")
    async def listing() -> Response:
        page = Page.of(request.args, MAX_PAGE, MAX_PAGE)
        data, more = await store.list(current_caller().owner, request.args.get("purpose"), page)
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return json_response(FileList(data=data, first_id=first, last_id=last, has_more=more))

    @blueprint.get("/v1/files/<file_id>")
    async def retrieve(file_id: str) -> Response:
        return json_response(await store.get(current_caller().owner, file_id))

    @blueprint.delete("/v1/files/<file_id>")
    async def delete(file_id: str) -> Response:
        await store.delete(current_caller().owner, file_id)
        return json_response(DeletedFile(id=file_id))

    @blueprint.get("/v1/files/<file_id>/content")
    async def content(file_id: str) -> Response:
        file, content = await store.open(current_caller().owner, file_id)
        response = Response(_chunks(content), content_type="application/octet-stream")
        response.headers["content-length"] = str(file.bytes)
        response.timeout = None
        return response

    return blueprint


def _content_length(max_file: int) -> int:
    """The upload's content-length. Raises InvalidRequest, UnsupportedMediaType, PayloadTooLarge."""
    if request.mimetype != "multipart/form-data":
        raise UnsupportedMediaType("send the file as multipart/form-data", param="content-type")
    if request.content_length is None:
        raise InvalidRequest("an upload needs a content-length header", param="content-length")
    if request.content_length > max_file + FORM_BYTES:
        raise _too_large(max_file)
    return request.content_length


async def _read_upload(max_file: int) -> tuple[FileObject, BinaryIO]:
    """The uploaded file's metadata and content. Raises InvalidRequest, PayloadTooLarge.

    Unknown form fields are listed in the response's header.
    """
    fields_sent, files = await request.form, await request.files
    unknown = [name for name in (*fields_sent, *files) if name not in ("file", "purpose", *EXPIRES_AFTER)]
    fields: dict[str, Any] = {"purpose": fields_sent.get("purpose")}
    if fields["purpose"] not in PURPOSES:
        code = error_codes.MISSING_REQUIRED_PARAMETER if fields["purpose"] is None else error_codes.INVALID_VALUE
        raise InvalidRequest(f"purpose must be one of {', '.join(PURPOSES)}", param="purpose", code=code)
    if expires := {name: fields_sent[field] for field, name in EXPIRES_AFTER.items() if field in fields_sent}:
        fields["expires_after"] = expires
    try:
        parsed = Parsed(msgspec.convert(fields, UploadForm, strict=False), tuple(unknown))
    except msgspec.ValidationError as error:
        raise field_error(str(error), UploadForm) from None
    sent, form = files.get("file"), parsed.request
    if sent is None:
        message = "file must have a file name" if "file" in fields_sent else "file is missing"
        raise InvalidRequest(message, param="file", code=error_codes.MISSING_REQUIRED_PARAMETER)
    content = cast(BinaryIO, sent.stream)
    if content.seek(0, os.SEEK_END) > max_file:
        raise _too_large(max_file)
    if form.purpose == "batch":
        await asyncio.to_thread(_refuse_token, content)
    note_ignored(parsed.ignored)
    name = "".join(letter for letter in sent.filename or "" if letter.isprintable())[:MAX_NAME]
    return new_file(name or "file", form.purpose, form.expires_after), content


def _refuse_token(content: BinaryIO) -> None:
    """Raise InvalidRequest if a line of a batch's input has an adapter source's token."""
    if (number := line_with_token(content)) is not None:
        raise InvalidRequest(f"line {number}: {ADVICE}", param="file", code=error_codes.TOKEN_IN_FILE)


def _too_large(max_file: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the file is larger than {max_file} bytes (--max-file)", param="file")


async def _chunks(content: BinaryIO) -> AsyncIterator[bytes]:
    with content:
        while piece := await asyncio.to_thread(content.read, _CHUNK_BYTES):
            yield piece
