"""From the bytes of a request to its struct; every mistake is a 400 (or 415) that names the field."""

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
from motet.api.schema.ignored_header import MAX_IGNORED_NAMES
from motet.api.schema.struct_types import choices, with_integers
from motet.api.schema.unknown_fields import unknown_names
from motet.core import error_codes
from motet.core.errors import InvalidRequest, JsonInvalid, UnsupportedMediaType
from motet.core.excerpt import shortened

MAX_CONTAINERS = 100_000
MAX_VALUES = 500_000
"""In one body; texts count as one, whatever is in them."""

_PATH = re.compile(r" - at (?:`key` in )?`\$\.?([^`]*)`$")
# Possessive, and one that is never closed goes to the end: what is no JSON takes no longer than what is.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)', re.DOTALL)
_INVALID_VALUE = re.compile(r"Invalid (?:enum )?value (.+)", re.DOTALL)
_DEFAULT_WHEN_ABSENT = dict.fromkeys(
    ("max_tokens", "max_completion_tokens", "max_output_tokens"), "to have no limit but the context's"
)
_MISSING = re.compile(r"missing required field `([^`]+)`")

T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True)
class Parsed(Generic[T]):
    """A request, and the fields of it that nobody knows."""

    request: T
    ignored: tuple[str, ...]


def decode_object(content: bytes, mimetype: str) -> dict[str, Any]:
    """The JSON object in a body. Raises UnsupportedMediaType, or JsonInvalid saying where it breaks."""
    if mimetype != "application/json":
        raise UnsupportedMediaType(
            "send the body as JSON, with the header content-type: application/json", param="content-type"
        )
    content = content.removeprefix(codecs.BOM_UTF8)  # editors and shells of Windows put it there
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
    """Raise InvalidRequest for a body of so many small parts that handling them would hold everybody else up."""
    if not _is_too_large(content) or not _is_too_large(_STRING.sub(b"", content)):
        return
    raise InvalidRequest(
        f"the body may have {MAX_CONTAINERS} lists and objects and {MAX_VALUES} values at most; send several requests"
    )


def _is_too_large(content: bytes) -> bool:
    return content.count(b"[") + content.count(b"{") > MAX_CONTAINERS or content.count(b",") > MAX_VALUES


def parse_chat(body: dict[str, Any]) -> Parsed[ChatRequest]:
    """A chat request, complete but for what only the model knows. Raises InvalidRequest."""
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
    """`messages`, if they are a list. Raises InvalidRequest for more than anybody should have to look through."""
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
    """A completion request, complete but for what only the model knows. Raises InvalidRequest."""
    unsupported_fields.refuse_unsupported(body, unsupported_fields.COMPLETIONS)
    request = convert(body, CompletionRequest)
    check_completion_fields(request)
    return Parsed(request, unknown_fields(body, CompletionRequest, unsupported_fields.COMPLETIONS))


def check_chat_fields(request: ChatRequest) -> None:
    """The rules between fields of a chat request. Raises InvalidRequest."""
    _check_shared(request)
    if request.continue_final_message:
        if request.add_generation_prompt:
            raise InvalidRequest(
                "continue_final_message and add_generation_prompt exclude each other", param="add_generation_prompt"
            )
        if request.messages[-1].role != "assistant":
            raise InvalidRequest(
                "continue_final_message needs the last message to be an assistant's", param="continue_final_message"
            )
    if request.top_logprobs and not request.logprobs:
        raise InvalidRequest("top_logprobs needs logprobs to be true", param="top_logprobs")
    if request.max_tokens != request.max_completion_tokens and None not in (
        request.max_tokens,
        request.max_completion_tokens,
    ):
        raise InvalidRequest(
            "max_tokens and max_completion_tokens say different things; send one of them", param="max_tokens"
        )
    if request.reasoning is not None and request.reasoning.effort not in (None, request.effort):
        raise InvalidRequest(
            "reasoning_effort and reasoning.effort say different things; send one of them", param="reasoning.effort"
        )
    for index, message in enumerate(request.messages):
        if message.content is None and message.role != "assistant":
            raise InvalidRequest(
                f"messages[{index}].content is missing",
                param=f"messages[{index}].content",
                code=error_codes.MISSING_REQUIRED_PARAMETER,
            )
        if message.tool_calls and message.role != "assistant":
            raise InvalidRequest("only assistant messages have tool_calls", param=f"messages[{index}].tool_calls")
        for number, call in enumerate(message.tool_calls or ()):
            if getattr(call, call.type) is None:
                param = f"messages[{index}].tool_calls[{number}].{call.type}"
                raise InvalidRequest(f"{param} is missing", param=param, code=error_codes.MISSING_REQUIRED_PARAMETER)


def check_completion_fields(request: CompletionRequest) -> None:
    """The rules between fields of a completion request. Raises InvalidRequest."""
    _check_shared(request)
    if request.best_of is not None and request.best_of < (request.n or 1):
        raise InvalidRequest("best_of must be n or more", param="best_of")
    if request.stream and (request.best_of or 1) > (request.n or 1):
        raise InvalidRequest("best_of beyond n cannot be streamed", param="best_of")
    if request.max_tokens == 0 and not request.echo:
        raise InvalidRequest("max_tokens may be 0 only with echo", param="max_tokens")
    if request.suffix and request.echo:
        raise InvalidRequest("suffix and echo exclude each other", param="suffix")


def _check_shared(request: ChatRequest | CompletionRequest) -> None:
    check_adapters(request)
    if request.stream_options is not None and not request.stream:
        raise InvalidRequest("stream_options needs stream to be true", param="stream_options")


def check_adapters(request: AdapterChoice) -> None:
    """The rules between the fields that name adapters. Raises InvalidRequest."""
    if request.adapter_id and request.merged_adapters is not None:
        raise InvalidRequest("adapter_id and merged_adapters exclude each other", param="merged_adapters")
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
    """The names in `body`, wherever in it, that nobody knows; one more at most than the header may hold."""
    unknown = (name for name in unknown_names(body, kind) if name not in table)
    return tuple(islice(unknown, MAX_IGNORED_NAMES + 1))


def convert(body: Mapping[str, object], kind: type[T]) -> T:
    """`body` as `kind`. Raises InvalidRequest whose param is the path of the field at fault."""
    try:
        return msgspec.convert(body, kind)
    except msgspec.ValidationError as error:
        if ", got `float`" not in str(error):
            raise field_error(str(error), kind) from None
    try:  # some languages write every number with a fraction
        return msgspec.convert(with_integers(body, kind), kind)
    except msgspec.ValidationError as error:
        raise field_error(str(error), kind) from None


def field_error(message: str, kind: type[msgspec.Struct]) -> InvalidRequest:
    """msgspec's message of a `kind`, with its path (`$.messages[0].role`) as the error's param."""
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
