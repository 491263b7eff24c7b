"""What requests may say: the bodies of POST /v1/chat/completions and /v1/completions.

Types and limits stand here once; parsing (api/schema/parsing.py) and GET /openapi.json both read them. A field that is
null is a field that is absent. Fields that we know and do not support are in api/schema/unsupported_fields.py.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeAlias

import msgspec
from msgspec import Meta

from motet.core.messages import MAX_PARTS
from motet.core.sampling_params import MAX_LOGIT_BIAS, MAX_TOP_LOGPROBS

MAX_CHOICES = 128
MAX_MESSAGES = 4096
MAX_PIECES = 4096
MAX_STOP_STRINGS = 16
MAX_TOOLS = 128
MAX_DEFINITION = 64 * 1024
"""Characters of a custom tool's grammar."""
MAX_TEMPLATE_VARIABLES = 64
MAX_DOCUMENTS = 256
MAX_STOP_CHARACTERS = 512
MAX_STOP_TOKEN_IDS = 128

Fraction: TypeAlias = Annotated[float, Meta(ge=0, le=1)]
Penalty: TypeAlias = Annotated[float, Meta(ge=-2, le=2)]
Positive: TypeAlias = Annotated[int, Meta(ge=1, le=2**31 - 1)]
TokenId: TypeAlias = Annotated[int, Meta(ge=0, le=2**31 - 1)]
Bias: TypeAlias = Annotated[float, Meta(ge=-100, le=100)]
ServiceTier: TypeAlias = Literal["auto", "default", "flex", "scale", "priority"]
Effort: TypeAlias = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]
Verbosity: TypeAlias = Literal["low", "medium", "high"]
Text64: TypeAlias = Annotated[str, Meta(max_length=64)]
Text512: TypeAlias = Annotated[str, Meta(max_length=512)]
StopString: TypeAlias = Annotated[str, Meta(min_length=1, max_length=MAX_STOP_CHARACTERS)]


def _says(text: str, *examples: object) -> Meta:
    return Meta(description=text, examples=list(examples) or None)


class StreamOptions(msgspec.Struct, frozen=True):
    """How to stream."""

    include_usage: Annotated[bool | None, _says("Send one more chunk, with `usage`, at the end.")] = None
    include_obfuscation: Annotated[bool | None, _says("Accepted; has no effect.")] = None


class Reasoning(msgspec.Struct, frozen=True):
    """How to think: a hint for chat templates that read it, and else named in `x-motet-ignored`."""

    effort: Effort | None = None
    summary: Annotated[str | None, _says("Accepted; there are no summaries.")] = None
    generate_summary: Annotated[str | None, _says("Accepted; there are no summaries.")] = None


class TextPart(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """A piece of a message's text."""

    text: str


class InputTextPart(TextPart, frozen=True, tag_field="type", tag="input_text"):
    """The Responses API's name for a piece of text that was sent."""


class OutputTextPart(TextPart, frozen=True, tag_field="type", tag="output_text"):
    """The Responses API's name for a piece of text that was answered."""


class RefusalPart(msgspec.Struct, frozen=True, tag_field="type", tag="refusal"):
    """What an assistant said when it refused; text as any other."""

    refusal: str


class FunctionCall(msgspec.Struct, frozen=True):
    """The function that an earlier assistant message called."""

    name: str
    arguments: Annotated[str, _says("A JSON object, as text.", '{"city": "Bergen"}')]


class CustomCall(msgspec.Struct, frozen=True):
    """The custom tool that an earlier assistant message called."""

    name: str
    input: str


class ToolCall(msgspec.Struct, frozen=True):
    """A call that an earlier assistant message made, of a `function` or of a `custom` tool."""

    id: str
    function: FunctionCall | None = None
    type: Literal["function", "custom"] = "function"
    custom: CustomCall | None = None

    def as_function(self) -> FunctionCall:
        """The call as one of a function; a custom tool's has one argument, `input`."""
        if self.function is not None:
            return self.function
        assert self.custom is not None, "check_chat_fields has seen to it"
        return FunctionCall(self.custom.name, json.dumps({"input": self.custom.input}, ensure_ascii=False))


class Message(msgspec.Struct, frozen=True):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[
        str | list[TextPart | InputTextPart | OutputTextPart | RefusalPart] | None,
        _says("Text, or a list of text parts, which are joined; null from an assistant is empty.", "Ahoy!"),
    ] = None
    refusal: Annotated[str | None, _says("What an assistant said when it refused.")] = None
    name: Annotated[str | None, _says("Who speaks; most chat templates ignore it.")] = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: Annotated[str | None, _says("Which call a `tool` message answers.")] = None

    def text(self) -> str:
        """The content as one text; the refusal, where there is nothing else."""
        if isinstance(self.content, str):
            return self.content
        parts = (part.text if isinstance(part, TextPart) else part.refusal for part in self.content or ())
        return "".join(parts) or self.refusal or ""


class MergedAdapters(msgspec.Struct, frozen=True):
    """Several adapters merged into one: the weighted sum of their deltas, exactly."""

    ids: Annotated[list[str], Meta(min_length=1, max_length=MAX_PARTS)]
    weights: Annotated[list[float], _says("One for each id; without any, all are 1.")] = []
    merge_strategy: Annotated[str | None, _says("Only `linear`.")] = None
    density: Annotated[Annotated[float, Meta(ge=0, le=1)] | None, _says("Has no effect on `linear`.")] = None
    majority_sign_method: Annotated[Literal["total", "frequency"] | None, _says("Has no effect on `linear`.")] = None


class FunctionDefinition(msgspec.Struct, frozen=True):
    """A function that the model may call."""

    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}$", examples=["get_weather"])]
    description: str | None = None
    parameters: Annotated[dict[str, Any] | None, _says("A JSON schema of the arguments, an object.")] = None
    strict: Annotated[bool | None, _says("Arguments must be of that shape whenever the function is called.")] = None


class FunctionTool(msgspec.Struct, frozen=True, tag_field="type", tag="function"):
    """A function as a tool."""

    function: FunctionDefinition


class Grammar(msgspec.Struct, frozen=True):
    """A grammar of a custom tool's input."""

    syntax: Literal["lark", "regex"]
    definition: Annotated[str, Meta(min_length=1, max_length=MAX_DEFINITION)]


class TextInput(msgspec.Struct, frozen=True, tag_field="type", tag="text"):
    """Input that may be any text."""


class GrammarInput(msgspec.Struct, frozen=True, tag_field="type", tag="grammar"):
    """Input that follows a grammar."""

    grammar: Grammar


class CustomDefinition(msgspec.Struct, frozen=True):
    """A tool whose input is text."""

    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,64}$", examples=["run_sql"])]
    description: str | None = None
    format: Annotated[TextInput | GrammarInput | None, _says("What the input is like; absent: any text.")] = None


class CustomTool(msgspec.Struct, frozen=True, tag_field="type", tag="custom"):
    """A custom tool."""

    custom: CustomDefinition


class AdapterChoice(msgspec.Struct, frozen=True, kw_only=True):
    """The fields by which every request names its model, and a few that all have."""

    model: Annotated[
        str,
        Meta(
            max_length=1024,
            description='"" or the base model\'s name for the base, else an adapter: an alias, '
            "`source:id@revision`, or an id of the default source.",
            examples=["", "demo:pirate", "hub:org/name@main"],
        ),
    ]
    adapter_id: Annotated[
        Annotated[str, Meta(max_length=1024)] | None,
        _says("The adapter, if `model` names the base.", "demo:pirate"),
    ] = None
    merged_adapters: Annotated[MergedAdapters | None, _says("Several adapters, if `model` names the base.")] = None
    adapter_source: Annotated[
        str | None, _says("Where the adapters come from, unless they say so themselves.", "hub", "local", "demo")
    ] = None
    api_token: Annotated[
        str | None, _says("Token for the adapter source (also: header x-adapter-token). Never logged.")
    ] = None
    truncate_prompt_tokens: Annotated[
        Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None,
        _says("Keep only the prompt's last tokens, this many; -1: as many as fit."),
    ] = None
    priority: Annotated[
        Annotated[int, Meta(ge=-128, le=127)] | None, _says("Lower goes first; below 0 needs an admin's key.")
    ] = None

    def __repr__(self) -> str:
        """Nothing but the model: prompts and tokens reach no log."""
        return f"{type(self).__name__}(model={self.model!r}, ...)"


class GenerateRequest(AdapterChoice, frozen=True, kw_only=True):
    """The fields that chat and completions share."""

    max_tokens: Annotated[Positive | None, _says("Longest answer, in tokens.", 64)] = None
    temperature: Annotated[Annotated[float, Meta(ge=0, le=2)] | None, _says("0 is greedy.", 0.7)] = None
    top_p: Annotated[Fraction | None, _says("Sample from the most likely tokens of this total mass.")] = None
    top_k: Annotated[
        Annotated[int, Meta(ge=-1, le=2**31 - 1)] | None, _says("Sample from the k likeliest; 0 or -1: all.")
    ] = None
    min_p: Annotated[Fraction | None, _says("Drop tokens less likely than this share of the likeliest.")] = None
    typical_p: Annotated[
        Annotated[float, Meta(gt=0, le=1)] | None, _says("Sample from the locally typical tokens of this total mass.")
    ] = None
    repetition_penalty: Annotated[
        Annotated[float, Meta(gt=0, le=100)] | None, _says("Over 1: avoid tokens of prompt and answer.", 1.1)
    ] = None
    presence_penalty: Annotated[Penalty | None, _says("Over 0: avoid tokens of the answer.")] = None
    frequency_penalty: Annotated[Penalty | None, _says("The same, times how often they came.")] = None
    logit_bias: Annotated[
        Annotated[dict[str, Bias], Meta(max_length=MAX_LOGIT_BIAS)] | None,
        _says("Token id (as a string) to what is added to its logit.", {"42": -100}),
    ] = None
    seed: Annotated[
        Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] | None,
        _says("The same seed gives the same answer; absent: a random one.", 7),
    ] = None
    n: Annotated[Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None, _says("Choices for each prompt.")] = None
    stop: Annotated[
        StopString | Annotated[list[StopString], Meta(max_length=MAX_STOP_STRINGS)] | None,
        _says("The answer ends before the first of these.", ["\n\n"]),
    ] = None
    stop_token_ids: Annotated[
        Annotated[list[TokenId], Meta(max_length=MAX_STOP_TOKEN_IDS)] | None, _says("Tokens that end the answer.")
    ] = None
    min_tokens: Annotated[
        Annotated[int, Meta(ge=0, le=2**31 - 1)] | None, _says("The answer does not end by a token before this many.")
    ] = None
    ignore_eos: Annotated[bool | None, _says("Go on past the model's end-of-text token.")] = None
    ignore_eos_token: Annotated[bool | None, _says("Another name for `ignore_eos`.")] = None
    return_token_ids: Annotated[
        bool | None, _says("Report the ids of the prompt's and the answer's tokens, of those too that ended it.")
    ] = None
    return_tokens_as_token_ids: Annotated[
        bool | None, _says("Name tokens in logprobs as `token_id:ID`, and report those too that ended the answer.")
    ] = None
    response_format: Annotated[
        dict[str, Any] | None,
        _says("`type` is `text`, `json_object` or a format that a plugin adds.", {"type": "json_object"}),
    ] = None
    stream: Annotated[bool | None, _says("Answer as server-sent events.")] = None
    stream_options: Annotated[StreamOptions | None, _says("Only with `stream`.")] = None
    user: Annotated[str | None, _says("Accepted; has no effect.")] = None
    metadata: Annotated[dict[str, Any] | None, _says("Accepted; has no effect.")] = None
    store: Annotated[bool | None, _says("Only false: nothing is stored.")] = None
    service_tier: Annotated[ServiceTier | None, _says("Accepted; there is one tier, `default`.")] = None
    prompt_cache_key: Annotated[str | None, _says("Accepted; has no effect.")] = None
    prompt_cache_retention: Annotated[str | None, _says("Accepted; has no effect.")] = None
    prompt_cache_options: Annotated[dict[str, Any] | None, _says("Accepted; has no effect.")] = None
    safety_identifier: Annotated[str | None, _says("Accepted; has no effect.")] = None

    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that carries `usage`."""
        return self.stream_options is not None and bool(self.stream_options.include_usage)


class ChatRequest(GenerateRequest, frozen=True, kw_only=True):
    """Body of POST /v1/chat/completions. Without `max_tokens`, the answer may fill the rest of the context."""

    messages: Annotated[
        Annotated[list[Message], Meta(min_length=1, max_length=MAX_MESSAGES)],
        _says("The conversation so far.", [{"role": "user", "content": "Tell me about the sea."}]),
    ]
    max_completion_tokens: Annotated[Positive | None, _says("The newer name of `max_tokens`.")] = None
    tools: Annotated[
        Annotated[list[FunctionTool | CustomTool], Meta(max_length=MAX_TOOLS)] | None,
        _says("Functions and custom tools that the model may call."),
    ] = None
    tool_choice: Annotated[
        Literal["none", "auto", "required"] | dict[str, Any] | None,
        _says(
            "`required`: at least one call. An object names one function or custom tool, or the `allowed_tools`.",
            "auto",
            {"type": "function", "function": {"name": "get_weather"}},
        ),
    ] = None
    parallel_tool_calls: Annotated[bool | None, _says("False: one call at the most.")] = None
    add_generation_prompt: Annotated[
        bool | None, _says("Whether the prompt ends with the beginning of an answer; true unless said otherwise.")
    ] = None
    continue_final_message: Annotated[
        bool | None, _says("Go on with the last message, an assistant's, instead of beginning an answer.")
    ] = None
    echo: Annotated[bool | None, _says("Begin the answer with the last message's text, if that is an assistant's.")] = (
        None
    )
    chat_template_kwargs: Annotated[
        Annotated[dict[str, Any], Meta(max_length=MAX_TEMPLATE_VARIABLES)] | None,
        _says("More variables for the chat template.", {"enable_thinking": False}),
    ] = None
    documents: Annotated[
        Annotated[list[dict[str, Any]], Meta(max_length=MAX_DOCUMENTS)] | None,
        _says("Texts for chat templates that take them.", [{"title": "Sea", "text": "It is wide."}]),
    ] = None
    reasoning_effort: Annotated[
        Effort | None,
        _says("How long to think: a hint for chat templates that read it, and else named in `x-motet-ignored`."),
    ] = None
    reasoning: Annotated[Reasoning | None, _says("`effort` is another place for `reasoning_effort`.")] = None
    verbosity: Annotated[
        Verbosity | None,
        _says("How much to write: a hint for chat templates that read it, and else named in `x-motet-ignored`."),
    ] = None
    prediction: Annotated[
        dict[str, Any] | None, _says("Accepted; nothing is predicted with it, and the usage says so.")
    ] = None
    logprobs: Annotated[bool | None, _says("Report each token's logprob.")] = None
    top_logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None,
        _says("Report this many alternatives for each token; needs `logprobs`."),
    ] = None

    @property
    def effort(self) -> str | None:
        """How long to think, from whichever field says so."""
        return self.reasoning_effort or (self.reasoning.effort if self.reasoning else None)


class CompletionRequest(GenerateRequest, frozen=True, kw_only=True):
    """Body of POST /v1/completions. Without `max_tokens`, the answer has at most 16 tokens."""

    prompt: Annotated[
        str | list[str | TokenId | list[TokenId]],
        _says(
            "A text, a list of texts, a list of token ids, or a list of such lists (no mixture).",
            "Once upon a time",
            ["One prompt", "and another"],
        ),
    ]
    logprobs: Annotated[
        Annotated[int, Meta(ge=0, le=MAX_TOP_LOGPROBS)] | None,
        _says("Report each token's logprob and this many alternatives."),
    ] = None
    max_tokens: Annotated[
        Annotated[int, Meta(ge=0, le=2**31 - 1)] | None, _says("Longest answer, in tokens; 0 only with `echo`.", 16)
    ] = None
    best_of: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_CHOICES)] | None,
        _says("Make this many choices for each prompt, and answer with the n likeliest by token."),
    ] = None
    echo: Annotated[bool | None, _says("Begin with the prompt; with `logprobs`, its tokens' too.")] = None
    suffix: Annotated[
        str | None, _says("What follows the text to be written; needs a model with fill-in-the-middle tokens.")
    ] = None
