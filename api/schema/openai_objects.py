"""OpenAI's response objects as structs (chat completions, completions, models, errors), and the encoder for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias

import msgspec
from msgspec import UNSET, Meta, UnsetType

from motet.core.errors import ErrorInfo
from motet.core.messages import EngineStats, FinishReason

ENCODER = msgspec.json.Encoder()

_TOKEN_IDS = Meta(
    description="With return_token_ids: the ids that were sampled, including those that ended the answer."
)
_PROMPT_IDS = Meta(description="With return_token_ids: the prompt's ids; in a stream, with its first chunks.")

ChatFinishReason: TypeAlias = Literal["stop", "length", "tool_calls"]
CallKind: TypeAlias = Literal["function", "custom"]


class PromptTokensDetails(msgspec.Struct, frozen=True):
    """Where the prompt's tokens came from."""

    cached_tokens: int = 0


class CompletionTokensDetails(msgspec.Struct, frozen=True):
    """Kinds of the answer's tokens; all of these are 0, since none is hidden or predicted."""

    reasoning_tokens: int = 0
    audio_tokens: int = 0
    accepted_prediction_tokens: int = 0
    rejected_prediction_tokens: int = 0


class Usage(msgspec.Struct, frozen=True):
    """Token counts of one request: each prompt once, and all choices."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails = PromptTokensDetails()
    completion_tokens_details: CompletionTokensDetails = CompletionTokensDetails()


class TopLogprob(msgspec.Struct, frozen=True):
    """An alternative at one position."""

    token: Annotated[str, Meta(description="Its text; bytes that are not a complete character are written as \\xNN.")]
    logprob: float
    bytes: list[int]


class TokenLogprob(msgspec.Struct, frozen=True):
    """A token of the answer; the logprob is the model's, before temperature and penalties."""

    token: str
    logprob: float
    bytes: list[int]
    top_logprobs: list[TopLogprob]


class ChatLogprobs(msgspec.Struct, frozen=True):
    """Logprobs of an answer's tokens."""

    content: list[TokenLogprob]
    refusal: None = None


class CalledFunction(msgspec.Struct, frozen=True):
    """A function's name and its arguments, a JSON object as a string."""

    name: str
    arguments: str


class CalledCustomTool(msgspec.Struct, frozen=True):
    """A custom tool's name and its input, which is plain text."""

    name: str
    input: str


class AnsweredCall(msgspec.Struct, frozen=True, kw_only=True):
    """A call that the model made: `function` or `custom`, as the type says."""

    id: str
    type: CallKind = "function"
    function: CalledFunction | UnsetType = UNSET
    custom: CalledCustomTool | UnsetType = UNSET


class ChatMessage(msgspec.Struct, frozen=True, kw_only=True):
    """The assistant's message; `content` is null if there are only calls."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    refusal: None = None
    tool_calls: list[AnsweredCall] | UnsetType = UNSET


class ChatChoice(msgspec.Struct, frozen=True):
    """One answer."""

    index: int
    message: ChatMessage
    logprobs: ChatLogprobs | None
    finish_reason: ChatFinishReason
    token_ids: Annotated[list[int] | UnsetType, _TOKEN_IDS] = UNSET


class ChatCompletion(msgspec.Struct, frozen=True, kw_only=True):
    """The whole answer to a chat request."""

    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage
    system_fingerprint: str
    service_tier: Literal["default"] = "default"
    prompt_token_ids: Annotated[Sequence[int] | UnsetType, _PROMPT_IDS] = UNSET


class FunctionDelta(msgspec.Struct, frozen=True):
    """What a chunk adds to a call: first its name, then pieces of its arguments."""

    name: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET


class CustomDelta(msgspec.Struct, frozen=True):
    """What a chunk adds to a custom tool's call: first its name, then pieces of its input."""

    name: str | UnsetType = UNSET
    input: str | UnsetType = UNSET


class ToolCallDelta(msgspec.Struct, frozen=True, kw_only=True):
    """What a chunk adds to call number `index`; id and type come once, in its first chunk."""

    index: int
    id: str | UnsetType = UNSET
    type: CallKind | UnsetType = UNSET
    function: FunctionDelta | UnsetType = UNSET
    custom: CustomDelta | UnsetType = UNSET


class Delta(msgspec.Struct, frozen=True):
    """What a chunk adds to the message: first the role, then text and calls, then nothing."""

    role: Literal["assistant"] | UnsetType = UNSET
    content: str | UnsetType = UNSET
    tool_calls: list[ToolCallDelta] | UnsetType = UNSET


class ChatChunkChoice(msgspec.Struct, frozen=True):
    """A chunk's part of one choice."""

    index: int
    delta: Delta
    logprobs: ChatLogprobs | None = None
    finish_reason: ChatFinishReason | None = None
    token_ids: Annotated[list[int] | UnsetType, _TOKEN_IDS] = UNSET


class ChatChunk(msgspec.Struct, frozen=True, kw_only=True):
    """One event of a streamed chat answer. `usage` is present only with stream_options.include_usage."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    choices: tuple[ChatChunkChoice, ...]
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET
    prompt_token_ids: Annotated[Sequence[int] | UnsetType, _PROMPT_IDS] = UNSET


class CompletionLogprobs(msgspec.Struct, frozen=True):
    """Logprobs of a completion's tokens, as parallel lists; `text_offset` counts characters of `text`."""

    text_offset: list[int]
    token_logprobs: Annotated[list[float | None], Meta(description="Null for the first token of an echoed prompt.")]
    tokens: list[str]
    top_logprobs: list[dict[str, float] | None]


class CompletionChoice(msgspec.Struct, frozen=True):
    """One completion; choice i of prompt p has index n·p + i."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None
    prompt_token_ids: Annotated[Sequence[int] | UnsetType, _PROMPT_IDS] = UNSET
    token_ids: Annotated[list[int] | UnsetType, _TOKEN_IDS] = UNSET


class Completion(msgspec.Struct, frozen=True, kw_only=True):
    """A whole completion, or one event of a streamed one."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    choices: tuple[CompletionChoice, ...]
    system_fingerprint: str
    usage: Usage | UnsetType | None = UNSET


class ModelCard(msgspec.Struct, frozen=True, kw_only=True):
    """The base model, or an adapter."""

    id: str
    object: Literal["model"] = "model"
    created: int
    owned_by: str = "motet"
    root: Annotated[str, Meta(description="The id.")]
    parent: Annotated[str | None, Meta(description="The base model's name; null for the base itself.")] = None
    alias: Annotated[str | None, Meta(description="A shorter name that requests may use.")] = None
    max_model_len: Annotated[int | None, Meta(description="Longest prompt and answer, in tokens.")] = None


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """The base model and every adapter that can be listed."""

    object: Literal["list"] = "list"
    data: list[ModelCard]


class Live(msgspec.Struct, frozen=True):
    """The process responds; GET /ready reports whether the engine does."""

    status: Literal["ok"] = "ok"


class Health(msgspec.Struct, frozen=True, kw_only=True):
    """Whether requests can be answered now, and the engine's statistics."""

    status: Literal["ok", "unavailable", "draining"]
    model: str
    reason: str | None = None
    engine: EngineStats | None = None


class ErrorObject(msgspec.Struct, frozen=True):
    """OpenAI's error object."""

    message: str
    type: str
    param: Annotated[str | None, Meta(description="The field at fault.")]
    code: Annotated[str, Meta(description="A short name of the kind of error.")]


class ErrorBody(msgspec.Struct, frozen=True):
    """The body of every response that is not 2xx (except GET /health)."""

    error: ErrorObject


Answer: TypeAlias = ChatCompletion | Completion | ModelCard | ModelList | Health | ErrorBody


def error_body(info: ErrorInfo) -> ErrorBody:
    """`info` in OpenAI's shape."""
    return ErrorBody(ErrorObject(info.message, info.type, info.param, info.code))
