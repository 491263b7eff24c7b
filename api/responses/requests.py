"""The bodies of POST /v1/responses and POST /v1/responses/input_tokens."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from motet.api.schema.adapter_fields import AdapterChoice
from motet.api.schema.chat_request import Reasoning
from motet.api.schema.chat_tools import MAX_TOOL_GRAMMAR_CHARACTERS, MAX_TOOLS, TextInput
from motet.api.schema.generation_request import StreamOptions
from motet.api.schema.request_fields import (
    MAX_STOP_STRINGS,
    Fraction,
    Penalty,
    Positive,
    ServiceTier,
    StopString,
    Text64,
    Text512,
    Verbosity,
)
from motet.core.sampling_params import MAX_TOP_LOGPROBS

MAX_ITEMS = 4096
MAX_METADATA = 16

ToolName: TypeAlias = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
Include: TypeAlias = Literal[
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "message.input_image.image_url",
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
]


def _says(text: str) -> Meta:
    return Meta(description=text)


class TextConfig(msgspec.Struct, frozen=True):
    """The format of the text."""

    format: Annotated[
        dict[str, Any] | None,
        _says("`type` is text, json_object, json_schema (with `name` and `schema` beside it) or a plugin's."),
    ] = None
    verbosity: Annotated[
        Verbosity | None, _says("A hint for chat templates that read it; otherwise named in `x-motet-ignored`.")
    ] = None


class FlatTool(msgspec.Struct, frozen=True, tag_field="type", tag="function"):
    """A function that the model may call."""

    name: ToolName
    parameters: dict[str, Any] | None = None
    strict: bool | None = None
    description: str | None = None


class FlatGrammarInput(msgspec.Struct, frozen=True, tag_field="type", tag="grammar"):
    """Input that follows a grammar."""

    syntax: Literal["lark", "regex"]
    definition: Annotated[str, Meta(min_length=1, max_length=MAX_TOOL_GRAMMAR_CHARACTERS)]


class FlatCustomTool(msgspec.Struct, frozen=True, tag_field="type", tag="custom"):
    """A tool whose input is text."""

    name: ToolName
    description: str | None = None
    format: Annotated[TextInput | FlatGrammarInput | None, _says("The input's format; without it, any text.")] = None


class NamespaceTool(msgspec.Struct, frozen=True, tag_field="type", tag="namespace"):
    """Tools that share a name prefix; their calls have `namespace` and `name` as separate fields."""

    name: Annotated[str, Meta(min_length=1, max_length=256)]
    tools: Annotated[list[FlatTool | FlatCustomTool | None], Meta(max_length=MAX_TOOLS)]
    description: str | None = None


class _ResponseFields(AdapterChoice, frozen=True, kw_only=True):
    """The fields of a response request except its input."""

    instructions: Annotated[str | None, _says("A system message before the input; not carried over to later ones.")] = (
        None
    )
    previous_response_id: Annotated[str | None, _says("A stored response that this one continues.")] = None
    store: Annotated[bool | None, _says("Store the response for 30 days; true by default.")] = None
    background: Annotated[bool | None, _says("Return at once and generate in the background; needs `store`.")] = None
    stream: Annotated[bool | None, _says("Answer as server-sent events.")] = None
    stream_options: StreamOptions | None = None
    max_output_tokens: Annotated[Positive | None, _says("Longest answer, in tokens.")] = None
    max_tool_calls: Annotated[int | None, _says("Accepted; it limits built-in tools, which are not offered.")] = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Fraction | None = None
    top_k: Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None = None
    min_p: Fraction | None = None
    repetition_penalty: Annotated[float, Meta(gt=0, le=100)] | None = None
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    seed: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None = None
    stop: StopString | Annotated[list[StopString], Meta(max_length=MAX_STOP_STRINGS)] | None = None
    top_logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None,
        _says("Alternatives per token, if `include` has message.output_text.logprobs."),
    ] = None
    include: Annotated[
        list[Include] | None,
        _says("Additional output: message.output_text.logprobs; the other values have no effect."),
    ] = None
    tools: Annotated[
        Annotated[list[FlatTool | FlatCustomTool | NamespaceTool | None], Meta(max_length=MAX_TOOLS)] | None,
        _says("Tools that the model may call. Hosted tools, such as web_search, are left out and named in the header."),
    ] = None
    tool_choice: Literal["none", "auto", "required"] | dict[str, Any] | None = None
    parallel_tool_calls: Annotated[bool | None, _says("False: at most one call.")] = None
    reasoning: Reasoning | None = None
    text: TextConfig | None = None
    truncation: Annotated[
        Literal["auto", "disabled"] | None, _says("auto: the earliest messages are dropped until the rest fits.")
    ] = None
    metadata: Annotated[
        Annotated[dict[Text64, Text512], Meta(max_length=MAX_METADATA)] | None, _says("Stored and returned.")
    ] = None
    user: Annotated[str | None, _says("Accepted; has no effect.")] = None
    safety_identifier: Annotated[str | None, _says("Accepted; has no effect.")] = None
    prompt_cache_key: Annotated[str | None, _says("Accepted; has no effect.")] = None
    prompt_cache_retention: Annotated[str | None, _says("Accepted; has no effect.")] = None
    prompt_cache_options: Annotated[dict[str, Any] | None, _says("Accepted; has no effect.")] = None
    service_tier: Annotated[ServiceTier | None, _says("Accepted; there is one tier, `default`.")] = None

    @property
    def stores(self) -> bool:
        """Whether to store the response."""
        return self.store is not False

    @property
    def wants_logprobs(self) -> bool:
        """Whether to return the tokens' logprobs."""
        return "message.output_text.logprobs" in (self.include or ())


class ResponseRequest(_ResponseFields, frozen=True, kw_only=True):
    """Body of POST /v1/responses."""

    input: Annotated[
        str | Annotated[list[dict[str, Any]], Meta(min_length=1, max_length=MAX_ITEMS)],
        _says("A string, or a list of items: messages, function calls, their outputs and references to stored items."),
    ]


class CountedRequest(_ResponseFields, frozen=True, kw_only=True):
    """Body of POST /v1/responses/input_tokens."""

    model: Annotated[str, Meta(max_length=1024, description='As for a response; "" by default.')] = ""
    input: Annotated[
        str | Annotated[list[dict[str, Any]], Meta(max_length=MAX_ITEMS)] | None, _says("As for a response.")
    ] = None


AnyResponseRequest: TypeAlias = ResponseRequest | CountedRequest
