"""Files: uploaded for batches, read back, listed and deleted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, BinaryIO, Literal, cast

import msgspec
from quart import Blueprint, Response, request

from motet.api.answers import ENCODER
from motet.api.caller import current_caller
from motet.api.file_store import FileObject, FileStore
from motet.api.operations import Operation, path_parameter, query_parameter
from motet.api.paging import Page
from motet.api.services import Services
from motet.core.errors import InvalidRequest, UnsupportedMediaType

PURPOSES = ("batch", "user_data", "assistants", "evals", "fine-tune", "vision")
MAX_NAME = 255
MAX_PAGE = 10_000
_PIECE = 256 << 10


class FileList(msgspec.Struct, frozen=True, kw_only=True):
    """A page of files."""

    object: Literal["list"] = "list"
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class DeletedFile(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is gone."""

    id: str
    object: Literal["file"] = "file"
    deleted: bool = True


_UPLOAD: dict[str, Any] = {
    "type": "object",
    "required": ["file", "purpose"],
    "properties": {
        "file": {"type": "string", "format": "binary"},
        "purpose": {"enum": list(PURPOSES), "description": "batch for the input of batches; others are only kept."},
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
        errors=(400, 401, 413, 415, 503),
    ),
    Operation(
        "get",
        "/v1/files",
        "The caller's files",
        "files",
        FileList,
        errors=(400, 401, 503),
        parameters=(
            query_parameter("purpose", "Only these.", {"type": "string"}),
            query_parameter("limit", "At most this many.", {"type": "integer", "minimum": 1, "maximum": MAX_PAGE}),
            query_parameter("order", "By age; desc unless said otherwise.", {"enum": ["asc", "desc"]}),
            _AFTER,
        ),
    ),
    Operation(
        "get", "/v1/files/{file_id}", "A file's facts", "files", FileObject, errors=(401, 404), parameters=(_ID,)
    ),
    Operation(
        "delete", "/v1/files/{file_id}", "Forget a file", "files", DeletedFile, errors=(401, 404), parameters=(_ID,)
    ),
    Operation(
        "get",
        "/v1/files/{file_id}/content",
        "A file's content",
        "files",
        None,
        media="application/octet-stream",
        errors=(401, 404),
        parameters=(_ID,),
        says="The bytes.",
    ),
)


def file_store(services: Services) -> FileStore:
    """The files of this server."""
    return FileStore(services.database)


def routes(services: Services) -> Blueprint:
    """The routes, bound to `services`."""
    blueprint = Blueprint("files", __name__)
    store = file_store(services)

    @blueprint.post("/v1/files")
    async def upload() -> Response:
        name, purpose, content = await _uploaded()
        return _json(await store.put(current_caller().owner, name, purpose, content))

    @blueprint.get("/v1/files")
    async def listing() -> Response:
        page = Page.of(request.args, MAX_PAGE, MAX_PAGE)
        data, more = await store.list(current_caller().owner, request.args.get("purpose"), page)
        first, last = (data[0].id, data[-1].id) if data else (None, None)
        return _json(FileList(data=data, first_id=first, last_id=last, has_more=more))

    @blueprint.get("/v1/files/<file_id>")
    async def retrieve(file_id: str) -> Response:
        return _json(await store.get(current_caller().owner, file_id))

    @blueprint.delete("/v1/files/<file_id>")
    async def delete(file_id: str) -> Response:
        await store.delete(current_caller().owner, file_id)
        return _json(DeletedFile(id=file_id))

    @blueprint.get("/v1/files/<file_id>/content")
    async def content(file_id: str) -> Response:
        file = await store.get(current_caller().owner, file_id)
        response = Response(_pieces(store, file), content_type="application/octet-stream")
        response.headers["content-length"] = str(file.bytes)
        response.timeout = None
        return response

    return blueprint


async def _uploaded() -> tuple[str, str, BinaryIO]:
    """The upload's file name, purpose and content. Raises InvalidRequest, UnsupportedMediaType."""
    if request.mimetype != "multipart/form-data":
        raise UnsupportedMediaType("send the file as multipart/form-data", param="content-type")
    if request.content_length is None:
        raise InvalidRequest("an upload needs the header content-length", param="content-length")
    form, files = await request.form, await request.files
    purpose = form.get("purpose")
    if purpose not in PURPOSES:
        code = "missing_required_parameter" if purpose is None else "invalid_value"
        raise InvalidRequest(f"purpose must be one of {', '.join(PURPOSES)}", param="purpose", code=code)
    file = files.get("file")
    if file is None:
        raise InvalidRequest("file is missing", param="file", code="missing_required_parameter")
    name = "".join(letter for letter in file.filename or "file" if letter.isprintable())[:MAX_NAME]
    return name or "file", purpose, cast(BinaryIO, file.stream)


async def _pieces(store: FileStore, file: FileObject) -> AsyncIterator[bytes]:
    with store.path(file.id).open("rb") as content:
        while piece := content.read(_PIECE):
            yield piece


def _json(answer: msgspec.Struct) -> Response:
    return Response(ENCODER.encode(answer), content_type="application/json")
