"""Parses a request's body into its struct; every mistake is a 400 (or 415) that names the field."""

from __future__ import annotations

import codecs
import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Generic, TypeVar

import msgspec

from motet.api.schema import unsupported_fields
from motet.api.schema.adapter_fields import AdapterChoice
from motet.api.schema.chat_messages import MAX_CONTENT_PARTS, MAX_MESSAGES
from motet.api.schema.chat_request import ChatRequest
from motet.api.schema.completion_request import CompletionRequest
from motet.api.schema.ignored_fields_header import MAX_IGNORED_NAMES
from motet.api.schema.struct_types import choices, with_integers
from motet.api.schema.unknown_fields import unknown_names
from motet.core import error_codes
from motet.core.errors import InvalidRequest, JsonInvalid, UnsupportedMediaType
from motet.core.excerpt import shortened

MAX_CONTAINERS = 100_000
MAX_VALUES = 500_000
"""Limits per body; a string counts as one value."""

_PATH = re.compile(r" - at (?:`key` in )?`\$\.?([^`]*)`$")
# Possessive, and an unclosed string extends to the end: invalid JSON takes no longer than valid JSON.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_INVALID_VALUE = re.compile(r"Invalid (?:enum )?value (.+)", re.DOTALL)
_DEFAULT_WHEN_ABSENT = dict.fromkeys(
    ("max_tokens", "max_completion_tokens", "max_output_tokens"), "to use the rest of the context"
)
_MISSING = re.compile(r"missing required field `([^`]+)`")

T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True)
class Parsed(Generic[T]):
    """A request, and the names of its unknown fields."""

    request: T
    ignored: tuple[str, ...]


def decode_object(content: bytes, mimetype: str) -> dict[str, Any]:
    """The JSON object in a body. Raises UnsupportedMediaType, or JsonInvalid naming the position."""
    if mimetype != "application/json":
        raise UnsupportedMediaType(
            "send the body as JSON, with the header content-type: application/json", param="content-type"
        )
    content = content.removeprefix(codecs.BOM_UTF8)  # editors and shells on Windows add it
    if not content.strip():
        raise JsonInvalid("the body is empty; send a JSON object")
    _check_size(content)
    try:
        body = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise JsonInvalid(f"the body is not JSON: {error}") from None
    except RecursionError:
        raise JsonInvalid("the body is nested too deeply") from None
    if not isinstance(body, dict):
        raise InvalidRequest("the body must be a JSON object", code=error_codes.INVALID_TYPE)
    return body


def _check_size(content: bytes) -> None:
    """Raise InvalidRequest for a body with so many values that handling it would block other requests."""
    if not _is_too_large(content) or not _is_too_large(_STRING.sub(b"", content)):
        return
    raise InvalidRequest(
        f"the body may have {MAX_CONTAINERS} lists and objects and {MAX_VALUES} values at most; send several requests"
    )


def _is_too_large(content: bytes) -> bool:
    return content.count(b"[") + content.count(b"{") > MAX_CONTAINERS or content.count(b",") > MAX_VALUES


def parse_chat(body: dict[str, Any]) -> Parsed[ChatRequest]:
    """A chat request, checked except for what depends on the model. Raises InvalidRequest."""
    unsupported_fields.refuse_unsupported(body, unsupported_fields.CHAT)
    for index, message in enumerate(_checked_messages(body.get("messages"))):
        if isinstance(message, dict):
            where = f"messages[{index}]."
            unsupported_fields.refuse_unsupported(message, unsupported_fields.MESSAGE, where)
            unsupported_fields.refuse_unsupported_parts(message, where)
    request = convert(body, ChatRequest)
    check_chat_fields(request)
    return Parsed(request, unknown_fields(body, ChatRequest, unsupported_fields.CHAT))


def _checked_messages(messages: object) -> list[object]:
    """`messages`, if it is a list. Raises InvalidRequest if there are too many messages or parts."""
    if not isinstance(messages, list):
        return []
    if len(messages) > MAX_MESSAGES:
        raise InvalidRequest(f"there are {len(messages)} messages; {MAX_MESSAGES} are allowed", param="messages")
    objects = [message for message in messages if isinstance(message, dict)]
    lists = [message.get(name) for message in objects for name in ("content", "tool_calls")]
    part_count = sum(len(entry) for entry in lists if isinstance(entry, list))
    if part_count > MAX_CONTENT_PARTS:
        raise InvalidRequest(
            f"the messages have {part_count} content parts and tool calls; {MAX_CONTENT_PARTS} are allowed",
            param="messages",
        )
    return messages


def parse_completion(body: dict[str, Any]) -> Parsed[CompletionRequest]:
    """A completion request, checked except for what depends on the model. Raises InvalidRequest."""
    unsupported_fields.refuse_unsupported(body, unsupported_fields.COMPLETIONS)
    request = convert(body, CompletionRequest)
    check_completion_fields(request)
    return Parsed(request, unknown_fields(body, CompletionRequest, unsupported_fields.COMPLETIONS))


def check_chat_fields(request: ChatRequest) -> None:
    """Check the rules between fields of a chat request. Raises InvalidRequest."""
    _check_shared(request)
    if request.continue_final_message:
        if request.add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message and add_generation_prompt cannot be combined", param="add_generation_prompt"
            )
        if request.messages[-1].role != "assistant":
            raise InvalidRequest(
                "continue_final_message requires the last message to be an assistant's", param="continue_final_message"
            )
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequest("top_logprobs requires logprobs to be true", param="top_logprobs")
    if request.max_tokens != request.max_completion_tokens and None not in (
        request.max_tokens,
        request.max_completion_tokens,
    ):
        raise InvalidRequest("max_tokens and max_completion_tokens differ; send one of them", param="max_tokens")
    if request.reasoning is not None and request.reasoning.effort not in (None, request.effort):
        raise InvalidRequest("reasoning_effort and reasoning.effort differ; send one of them", param="reasoning.effort")
    for index, message in enumerate(request.messages):
        if message.content is None and message.role != "assistant":
            raise InvalidRequest(
                f"messages[{index}].content is missing",
                param=f"messages[{index}].content",
                code=error_codes.MISSING_REQUIRED_PARAMETER,
            )
        if message.tool_calls and message.role != "assistant":
            raise InvalidRequest("only assistant messages may have tool_calls", param=f"messages[{index}].tool_calls")
        for number, call in enumerate(message.tool_calls or ()):
            if getattr(call, call.type) is None:
                param = f"messages[{index}].tool_calls[{number}].{call.type}"
                raise InvalidRequest(f"{param} is missing", param=param, code=error_codes.MISSING_REQUIRED_PARAMETER)


def check_completion_fields(request: CompletionRequest) -> None:
    """Check the rules between fields of a completion request. Raises InvalidRequest."""
    _check_shared(request)
    if request.best_of is not None and request.best_of < (request.n or 1):
        raise InvalidRequest("best_of must be at least n", param="best_of")
    if request.stream and (request.best_of or 1) > (request.n or 1):
        raise InvalidRequest("best_of greater than n cannot be streamed", param="best_of")
    if request.max_tokens == 0 and not request.echo:
        raise InvalidRequest("max_tokens may be 0 only with echo", param="max_tokens")
    if request.suffix and request.echo:
        raise InvalidRequest("suffix and echo cannot be combined", param="suffix")


def _check_shared(request: ChatRequest | CompletionRequest) -> None:
    check_adapters(request)
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("stream_options requires stream to be true", param="stream_options")


def check_adapters(request: AdapterChoice) -> None:
    """Check the fields that name adapters against each other. Raises InvalidRequest."""
    if request.adapter_id and request.merged_adapters is not None:
        raise InvalidRequest("adapter_id and merged_adapters cannot be combined", param="merged_adapters")
    merged = request.merged_adapters
    if merged is not None and merged.merge_strategy not in (None, "linear"):
        raise InvalidRequest(
            f"merge_strategy {shortened(merged.merge_strategy)!r} is not supported; only linear is",
            param="merged_adapters.merge_strategy",
            code=error_codes.UNSUPPORTED_VALUE,
        )
    if merged is not None and merged.weights and len(merged.weights) != len(merged.ids):
        raise InvalidRequest(
            f"there are {len(merged.ids)} ids and {len(merged.weights)} weights", param="merged_adapters.weights"
        )


def unknown_fields(
    body: Mapping[str, object], kind: type[msgspec.Struct], table: Mapping[str, object]
) -> tuple[str, ...]:
    """The paths of unknown fields in `body`; at most one more than the header may contain."""
    unknown = (name for name in unknown_names(body, kind) if name not in table)
    return tuple(islice(unknown, MAX_IGNORED_NAMES + 1))


def convert(body: Mapping[str, object], kind: type[T]) -> T:
    """Convert `body` to `kind`. Raises InvalidRequest; its param is the path of the field at fault."""
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        if ", got `float`" not in str(error):
            raise field_error(str(error), kind) from None
    try:  # some languages write every number as a float
        return msgspec.convert(with_integers(body, kind), kind)
    except msgspec.ValidationError as error:
        raise field_error(str(error), kind) from None


def field_error(message: str, kind: type[msgspec.Struct]) -> InvalidRequest:
    """The error for msgspec's message about a `kind`; its path (`$.messages[0].role`) becomes the param."""
    path = _PATH.search(message)
    text = shortened(message[: path.start()] if path else message)
    param = (path[1] if path else "").removesuffix("[...]")
    missing = _MISSING.search(text)
    if missing:
        param = f"{param}.{missing[1]}" if param else missing[1]
        return InvalidRequest(f"{param} is missing", param=param, code=error_codes.MISSING_REQUIRED_PARAMETER)
    if (invalid := _INVALID_VALUE.search(text)) and (allowed := choices(kind, param)):
        return InvalidRequest(f"{param}: {invalid[1]} is not one of {', '.join(allowed)}", param=param)
    code = error_codes.INVALID_TYPE if ", got `" in text else error_codes.INVALID_VALUE
    if code == error_codes.INVALID_VALUE and (limit := _DEFAULT_WHEN_ABSENT.get(param)) and ">= " in text:
        text += f"; leave it out {limit if kind is not CompletionRequest else 'for the default of 16'}"
    return InvalidRequest(f"{param}: {text[:1].lower()}{text[1:]}", param=param or None, code=code)
