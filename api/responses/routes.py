"""OpenAI's Responses: made, streamed, made in the background, stored, continued and taken back."""

from __future__ import annotations

from contextlib import suppress

from msgspec.structs import replace
from quart import Blueprint, Response, request

from motet.api.http.caller import Caller, current_caller
from motet.api.http.json_response import json_response
from motet.api.http.request_body import read_body
from motet.api.http.stream_response import stream_response
from motet.api.responses.background import Background
from motet.api.responses.chat_conversion import parse_counted, parse_response, start_response
from motet.api.responses.conversations import RUNNING
from motet.api.responses.generation import ResponseGeneration
from motet.api.responses.objects import DeletedResponse, InputTokens, ItemList, ResponseEvent, ResponseObject
from motet.api.responses.requests import AnyResponseRequest, CountedRequest, ResponseRequest
from motet.api.responses.retention import stored_if_room
from motet.api.responses.store import ResponseStore, StoredResponse
from motet.api.responses.stored_stream import StoredStream
from motet.api.responses.stream import ResponseStream
from motet.api.schema.ignored_fields_header import note_ignored
from motet.api.schema.operations import GENERATION_STATUSES, TOKEN_HEADER, Operation, path_parameter, query_parameter
from motet.api.schema.unsupported_fields import RESPONSES
from motet.api.services import Services
from motet.api.storage.paging import Page, page_of
from motet.core.errors import Conflict, InvalidRequest, Unavailable

_ID = path_parameter("response_id", "The response's id.")

_WHOLE = {"type": "integer", "minimum": 0, "maximum": 999_999_999}

OPERATIONS = (
    Operation(
        "post",
        "/v1/responses",
        "Make a response",
        "responses",
        ResponseObject,
        body=ResponseRequest,
        event=ResponseEvent,
        example={"model": "", "input": "Tell me about the sea.", "max_output_tokens": 32},
        unsupported=RESPONSES,
        statuses=GENERATION_STATUSES,
        parameters=(TOKEN_HEADER,),
    ),
    Operation(
        "post",
        "/v1/responses/input_tokens",
        "Count a request's input",
        "responses",
        InputTokens,
        body=CountedRequest,
        unsupported=RESPONSES,
        statuses=GENERATION_STATUSES,
        parameters=(TOKEN_HEADER,),
    ),
    Operation(
        "get",
        "/v1/responses/{response_id}",
        "A stored response",
        "responses",
        ResponseObject,
        event=ResponseEvent,
        statuses=(400, 401, 404, 503),
        parameters=(
            _ID,
            query_parameter(
                "stream",
                "As events, if it was made with `background` and `stream`.",
                {"type": "boolean"},
            ),
            query_parameter("starting_after", "With `stream`: only the events after this one.", _WHOLE),
        ),
    ),
    Operation(
        "delete",
        "/v1/responses/{response_id}",
        "Forget a stored response",
        "responses",
        DeletedResponse,
        statuses=(401, 404, 503),
        parameters=(_ID,),
    ),
    Operation(
        "post",
        "/v1/responses/{response_id}/cancel",
        "End a response in the background",
        "responses",
        ResponseObject,
        statuses=(400, 401, 404, 409, 503),
        parameters=(_ID,),
    ),
    Operation(
        "get",
        "/v1/responses/{response_id}/input_items",
        "The input items of a stored response",
        "responses",
        ItemList,
        statuses=(400, 401, 404, 503),
        parameters=(
            _ID,
            query_parameter("limit", "At most this many.", {"type": "integer", "minimum": 1, "maximum": 100}),
            query_parameter("order", "By age; desc by default.", {"enum": ["asc", "desc"]}),
            query_parameter("after", "Begin after the item of this id.", {"type": "string"}),
        ),
    ),
)


def routes(services: Services) -> Blueprint:
    """The routes, bound to `services`."""
    blueprint = Blueprint("responses", __name__)
    store, background = ResponseStore(services.database), Background(services)

    async def replayed(id: str, after: int) -> Response:
        replay = StoredStream(store, background, current_caller().owner, id, after)
        await replay.check()
        return await stream_response(replay.frames(), services.drain, replay.failure)

    @blueprint.post("/v1/responses")
    async def create() -> Response:
        async with services.drain.interruptible():
            parsed = await read_body(parse_response)
            if parsed.background:
                with background.reserve_place():
                    generation = await _started(services, parsed)
                    await background.begin(generation, bool(parsed.stream))
                return (
                    await replayed(generation.response.id, -1) if parsed.stream else json_response(generation.response)
                )
            generation = await _started(services, parsed)
            if parsed.stream:
                stream = ResponseStream(generation, services, parsed.stores)
                return await stream_response(stream.frames(), services.drain, stream.failure)
            return json_response(await _whole(services, generation, parsed.stores))

    @blueprint.post("/v1/responses/input_tokens")
    async def input_tokens() -> Response:
        parsed = await read_body(parse_counted)
        generation = await _started(services, parsed)
        return json_response(InputTokens(input_tokens=generation.chat.generation.prompt_tokens))

    @blueprint.get("/v1/responses/<response_id>")
    async def retrieve(response_id: str) -> Response:
        if _flag("stream"):
            return await replayed(response_id, _number("starting_after", -1))
        return json_response((await store.get(current_caller().owner, response_id)).response)

    @blueprint.delete("/v1/responses/<response_id>")
    async def delete(response_id: str) -> Response:
        await store.delete(current_caller().owner, response_id)
        await _stop_generation(services, response_id)
        return json_response(DeletedResponse(id=response_id))

    @blueprint.post("/v1/responses/<response_id>/cancel")
    async def cancel(response_id: str) -> Response:
        return json_response(await cancel_response(services, current_caller(), response_id))

    @blueprint.get("/v1/responses/<response_id>/input_items")
    async def items(response_id: str) -> Response:
        page = Page.of(request.args)
        stored = await store.get(current_caller().owner, response_id)
        data, more = page_of(stored.items, page, lambda item: str(item["id"]))
        ids = [str(item["id"]) for item in data]
        first, last = (ids[0], ids[-1]) if ids else (None, None)
        return json_response(ItemList(data=data, first_id=first, last_id=last, has_more=more))

    return blueprint


def _flag(name: str) -> bool:
    """A boolean query parameter. Raises InvalidRequest."""
    value = request.args.get(name, "false")
    if value not in ("true", "false"):
        raise InvalidRequest(f"{name} must be true or false", param=name)
    return value == "true"


def _number(name: str, default: int) -> int:
    """A query parameter that is a number, 0 or more. Raises InvalidRequest."""
    value = request.args.get(name)
    if value is None:
        return default
    if not (value.isascii() and value.isdigit() and len(value) < 10):
        raise InvalidRequest(f"{name} must be a number, 0 or more", param=name)
    return int(value)


async def answer_response(services: Services, parsed: ResponseRequest, caller: Caller) -> ResponseObject:
    """The whole response, stored if the request says so. Raises MotetError."""
    return await _whole(services, await start_response(services, parsed, caller), parsed.stores)


async def _started(services: Services, parsed: AnyResponseRequest) -> ResponseGeneration:
    """The generation of the current request. Raises MotetError."""
    generation = await start_response(services, parsed, current_caller())
    note_ignored(generation.ignored)
    return generation


async def _whole(services: Services, generation: ResponseGeneration, stores: bool) -> ResponseObject:
    """The whole response; its `store` is false if the disk is full at the end. Raises MotetError."""
    store, owner = ResponseStore(services.database), generation.caller.owner
    if stores:
        await store.check_room(owner, StoredResponse(generation.response, generation.items))
    response = await generation.whole()
    if stores and not await stored_if_room(response.id, store.add(owner, StoredResponse(response, generation.items))):
        return replace(response, store=False)
    return response


async def cancel_response(services: Services, caller: Caller, id: str) -> ResponseObject:
    """Cancel a response; returns it. Raises NotFound, InvalidRequest, Conflict."""
    store = ResponseStore(services.database)
    stored = await store.get(caller.owner, id)
    if not stored.response.background:
        raise InvalidRequest("only a response in the background can be cancelled", param="response_id")
    if stored.response.status == "cancelled":
        return stored.response
    if stored.response.status not in RUNNING:
        raise Conflict(f"the response is already {stored.response.status}", param="response_id")
    if not await store.update(replace(stored.response, status="cancelled")):
        now = (await store.get(caller.owner, id)).response.status
        raise Conflict(f"the response is already {now}", param="response_id")
    await _stop_generation(services, id)
    return (await store.get(caller.owner, id)).response


async def _stop_generation(services: Services, id: str) -> None:
    """End the generation of the response, if it is running."""
    with suppress(Unavailable):  # without an engine, nothing is running
        await services.engine.cancel(id)
