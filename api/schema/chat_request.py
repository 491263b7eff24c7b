"""The body of POST /v1/chat/completions.

The structs alone define types and limits; parsing (api/schema/parsing.py) and GET /openapi.json read them. A field that
is null counts as absent. Fields that are known but not supported are in api/schema/unsupported_fields.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from motet.api.schema.chat_messages import MAX_MESSAGES, Message
from motet.api.schema.chat_tools import MAX_TOOLS, CustomTool, FunctionTool
from motet.api.schema.generation_request import GenerateRequest
from motet.api.schema.request_fields import Effort, Positive, Verbosity, described
from motet.core.sampling_params import MAX_TOP_LOGPROBS

MAX_TEMPLATE_VARIABLES = 64
MAX_DOCUMENTS = 256


class Reasoning(msgspec.Struct, frozen=True):
    """How long to think: a hint for chat templates that use it; else it is named in `x-motet-ignored`."""

    effort: Effort | None = None
    summary: Annotated[str | None, described("Accepted; there are no summaries.")] = None
    generate_summary: Annotated[str | None, described("Accepted; there are no summaries.")] = None


class ChatRequest(GenerateRequest, frozen=True, kw_only=True):
    """Body of POST /v1/chat/completions. Without `max_tokens`, the answer may fill the rest of the context."""

    messages: Annotated[
        Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)],
        described("The conversation so far.", [{"role": "user", "content": "Tell me about the sea."}]),
    ]
    max_completion_tokens: Annotated[Positive | None, described("The newer name of `max_tokens`.")] = None
    tools: Annotated[
        Annotated[list[FunctionTool | CustomTool], Meta(max_length=MAX_TOOLS)] | None,
        described("Functions and custom tools that the model may call."),
    ] = None
    tool_choice: Annotated[
        Literal["none", "auto", "required"] | dict[str, Any] | None,
        described(
            "`required`: at least one call. An object names one function or custom tool, or the `allowed_tools`.",
            "auto",
            {"type": "function", "function": {"name": "get_weather"}},
        ),
    ] = None
    parallel_tool_calls: Annotated[bool | None, described("False: at most one call.")] = None
    add_generation_prompt: Annotated[
        bool | None, described("Whether the prompt ends with the start of an answer; default true.")
    ] = None
    continue_final_message: Annotated[
        bool | None,
        described("Continue the last message, which must be an assistant's, instead of starting an answer."),
    ] = None
    echo: Annotated[
        bool | None, described("Start the answer with the last message's text, if it is an assistant's.")
    ] = None
    chat_template_kwargs: Annotated[
        Annotated[dict[str, Any], Meta(max_length=MAX_TEMPLATE_VARIABLES)] | None,
        described("Additional variables for the chat template.", {"enable_thinking": False}),
    ] = None
    documents: Annotated[
        Annotated[list[dict[str, Any]], Meta(max_length=MAX_DOCUMENTS)] | None,
        described("Documents for chat templates that support them.", [{"title": "Sea", "text": "It is wide."}]),
    ] = None
    reasoning_effort: Annotated[
        Effort | None,
        described("How long to think: a hint for chat templates that use it; else it is named in `x-motet-ignored`."),
    ] = None
    reasoning: Annotated[Reasoning | None, described("`effort` is another place for `reasoning_effort`.")] = None
    verbosity: Annotated[
        Verbosity | None,
        described("How much to write: a hint for chat templates that use it; else it is named in `x-motet-ignored`."),
    ] = None
    prediction: Annotated[
        dict[str, Any] | None, described("Accepted; has no effect, and usage reports no predicted tokens.")
    ] = None
    logprobs: Annotated[bool | None, described("Report each token's logprob.")] = None
    top_logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None,
        described("Report this many alternatives for each token; needs `logprobs`."),
    ] = None

    @property
    def effort(self) -> str | None:
        """The reasoning effort, from either field."""
        return self.reasoning_effort or (self.reasoning.effort if self.reasoning else None)
