"""Known fields that are not supported and would change the answer: each is a 400 that names it.

A value without effect (null, an empty list, the default) is accepted. A field in neither these tables nor the structs
is unknown: it is ignored and named in the response header `x-motet-ignored`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from motet.core import error_codes
from motet.core.errors import InvalidRequest

TEXT_PARTS = ("text", "input_text", "output_text", "refusal")
_OFF = (None, False)
_EMPTY: tuple[object, ...] = (None, [], {})

# Field -> the values that have no effect.
# Fields of llama.cpp, Ollama, vLLM, SGLang, mlx-lm, TGI and Dynamo, on all of OpenAI's routes.
_OTHER_SERVERS: Mapping[str, tuple[object, ...]] = {
    "extra_body": _EMPTY,
    "nvext": _EMPTY,
    "options": _EMPTY,
    "lora": _EMPTY,
    "lora_request": _EMPTY,
    "lora_path": _EMPTY,
    "adapters": (None, ""),
}
_GENERATING: Mapping[str, tuple[object, ...]] = {
    **_OTHER_SERVERS,
    "grammar": (None, "", {}),
    "format": (None, ""),
    "regex": (None, ""),
    "ebnf": (None, ""),
    "json_schema": (None, "", {}),
    "stop_regex": (None, "", []),
    "no_stop_trim": _OFF,
    "n_predict": (None, -1),
    "num_predict": (None, -1),
    "max_new_tokens": (None,),
    "min_new_tokens": (None, 0),
    "repeat_penalty": (None, 1),
    "truncation_side": (None, "left"),
    "thinking_token_budget": (None,),
    "custom_logit_processor": (None, ""),
    "logits_processors": _EMPTY,
    "mirostat": (None, 0),
    "dynatemp_range": (None, 0),
    "xtc_probability": (None, 0),
    "dry_multiplier": (None, 0),
    "top_n_sigma": (None, -1, 0),
    "top_a": (None, 0),
    "tfs_z": (None, 1),
}
_BOTH: Mapping[str, tuple[object, ...]] = {
    **_GENERATING,
    "store": _OFF,
    "use_beam_search": _OFF,
    "length_penalty": (None, 1),
    "prompt_logprobs": (None,),
    "logprob_token_ids": _EMPTY,
    "allowed_token_ids": _EMPTY,
    "bad_words": _EMPTY,
    "include_stop_str_in_output": _OFF,
    "skip_special_tokens": (None, True),
    "spaces_between_special_tokens": (None, True),
    "structured_outputs": _EMPTY,
    "guided_json": _EMPTY,
    "guided_regex": (None, ""),
    "guided_choice": _EMPTY,
    "guided_grammar": (None, ""),
    "watermark": _OFF,
    "system": (None, ""),
    "max_output_tokens": (None,),
    "instructions": (None, ""),
    "text": (None, {}, {"format": {"type": "text"}}),
}
CHAT: Mapping[str, tuple[object, ...]] = {
    **_BOTH,
    "functions": _EMPTY,
    "function_call": (None, "none", "auto"),
    "audio": (None,),
    "modalities": (None, [], ["text"]),
    "moderation": _EMPTY,
    "web_search_options": (None,),
    "chat_template": (None,),
    "add_special_tokens": _OFF,
    "best_of": (None, 1),
}
COMPLETIONS: Mapping[str, tuple[object, ...]] = {
    **_BOTH,
    "prompt_embeds": (None,),
    "add_special_tokens": (None, True),
}
EMBEDDINGS: Mapping[str, tuple[object, ...]] = {
    **_OTHER_SERVERS,
    "messages": _EMPTY,
    "add_special_tokens": (None, True),
    "embed_dtype": (None, "float32"),
    "endianness": (None, "little", "native"),
    "use_activation": (None,),
    "parameters": _EMPTY,
}
RESPONSES: Mapping[str, tuple[object, ...]] = {
    **_GENERATING,
    "max_tokens": (None,),
    "max_completion_tokens": (None,),
    "n": (None, 1),
    "logprobs": _OFF,
    "logit_bias": _EMPTY,
    "response_format": (None, {"type": "text"}),
    "functions": _EMPTY,
    "system": (None, ""),
    "conversation": (None,),
    "prompt": (None,),
    "context_management": _EMPTY,
    "background_options": _EMPTY,
    "moderation": _EMPTY,
    "access_programs": _EMPTY,
    "image": _EMPTY,
}
MESSAGE: Mapping[str, tuple[object, ...]] = {
    "audio": (None,),
    "function_call": (None,),
}
_SYNONYMS: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("n_predict", "num_predict", "max_new_tokens"), ("max_tokens", "max_completion_tokens")),
    "max_output_tokens": ("max_tokens", "max_completion_tokens"),
    "max_tokens": ("max_output_tokens",),
    "max_completion_tokens": ("max_output_tokens",),
    "min_new_tokens": ("min_tokens",),
    "repeat_penalty": ("repetition_penalty",),
}
"""Synonyms of supported fields. Clients send several names at once; the same value twice is accepted."""

_NAME_IN_MODEL = "model to name the adapter"
_ALTERNATIVES: Mapping[str, str] = {
    **dict.fromkeys(("structured_outputs", "guided_json", "guided_regex", "guided_choice"), "response_format"),
    **dict.fromkeys(("guided_grammar", "regex", "ebnf", "json_schema", "allowed_token_ids"), "response_format"),
    "format": 'response_format, such as {"type": "json_object"}',
    "grammar": 'response_format: {"type": "grammar", "grammar": …}, in Lark syntax instead of GBNF',
    **dict.fromkeys(("lora", "lora_request", "lora_path", "adapters", "parameters"), _NAME_IN_MODEL),
    **dict.fromkeys(("nvext", "options"), "the fields at the top level of the body"),
    **dict.fromkeys(("n_predict", "num_predict", "max_new_tokens", "max_output_tokens"), "max_tokens"),
    "min_new_tokens": "min_tokens",
    "repeat_penalty": "repetition_penalty",
    "stop_regex": "stop",
    "prompt_logprobs": "echo and logprobs of /v1/completions",
    "logprob_token_ids": "top_logprobs",
    "bad_words": "logit_bias",
    "functions": "tools",
    "function_call": "tool_choice",
    "messages[].function_call": "tool_calls",
    "system": 'a message with the role "system"',
    "instructions": 'a message with the role "system"',
    "text": "response_format",
    "best_of": "n",
    "messages": "input",
    "conversation": "previous_response_id",
    "context_management": "truncation",
}
"""The supported alternatives of unsupported fields."""

_RESPONSES_ALTERNATIVES: Mapping[str, str] = {
    **dict.fromkeys(("max_tokens", "max_completion_tokens"), "max_output_tokens"),
    **dict.fromkeys(("n_predict", "num_predict", "max_new_tokens"), "max_output_tokens"),
    **dict.fromkeys(("regex", "ebnf", "json_schema", "format", "response_format"), "text.format"),
    "grammar": 'text.format: {"type": "grammar", "grammar": …}, in Lark syntax instead of GBNF',
    "logprobs": 'include: ["message.output_text.logprobs"]',
    "system": "instructions",
}
_MESSAGES: Mapping[str, str] = {
    "store": "chat completions and completions are not stored; leave store out, or use /v1/responses",
    "extra_body": "extra_body is an argument of OpenAI's SDK, which sends its fields at the top level of the body; "
    "send them there",
}


def refuse_unsupported(body: Mapping[str, object], table: Mapping[str, tuple[object, ...]], where: str = "") -> None:
    """Raise InvalidRequest naming the first field of `body` that is not supported and has an effect.

    `where` is the path of `body` in the request, such as `messages[0].`.
    """
    alternatives = {**_ALTERNATIVES, **_RESPONSES_ALTERNATIVES} if table is RESPONSES else _ALTERNATIVES
    for field, neutral in table.items():
        synonyms = (body[other] for other in _SYNONYMS.get(field, ()) if other in body)
        if field in body and body[field] not in neutral and body[field] not in synonyms:
            raise _unsupported(f"{where}{field}", alternatives)


def refuse_unsupported_parts(message: Mapping[str, object], where: str) -> None:
    """Refuse content that is not text (images, audio, files)."""
    content = message.get("content")
    for index, part in enumerate(content) if isinstance(content, list) else ():
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind not in TEXT_PARTS:
            raise InvalidRequest(
                f"{kind[:64]!r} parts are not supported, since the model reads text only; supported parts are "
                f"{', '.join(TEXT_PARTS)}",
                param=f"{where}content[{index}].type",
                code=error_codes.UNSUPPORTED_VALUE,
            )


def _unsupported(field: str, alternatives: Mapping[str, str]) -> InvalidRequest:
    message = _MESSAGES.get(field)
    if message is None:
        known = alternatives.get(re.sub(r"\d+", "", field))
        advice = f"use {known}, or leave it out" if known else "leave it out"
        message = f"{field} is not supported and would change the answer; {advice}"
    return InvalidRequest(message, param=field, code=error_codes.UNSUPPORTED_PARAMETER)
