"""Fields that we know, do not support, and that would change the answer: each is a 400 that names it.

A value that changes nothing (null, an empty list, the default) passes. What is in neither this table nor the
schemas is unknown: it is ignored and listed in the response header `x-motet-ignored`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from motet.core.errors import InvalidRequest

_OFF = (None, False)
_EMPTY: tuple[object, ...] = (None, [], {})

# Field -> the values that change nothing.
_BOTH: Mapping[str, tuple[object, ...]] = {
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
    "regex": (None, ""),
    "ebnf": (None, ""),
    "json_schema": (None, ""),
    "watermark": _OFF,
    "lora_path": _EMPTY,
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
    "messages": _EMPTY,
    "add_special_tokens": (None, True),
    "embed_dtype": (None, "float32"),
    "endianness": (None, "little", "native"),
    "use_activation": (None,),
    "parameters": _EMPTY,
}
RESPONSES: Mapping[str, tuple[object, ...]] = {
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
_INSTEAD: Mapping[str, str] = {
    **dict.fromkeys(("structured_outputs", "guided_json", "guided_regex", "guided_choice"), "response_format"),
    **dict.fromkeys(("guided_grammar", "regex", "ebnf", "json_schema", "allowed_token_ids"), "response_format"),
    "prompt_logprobs": "echo and logprobs of /v1/completions",
    "logprob_token_ids": "top_logprobs",
    "bad_words": "logit_bias",
    "lora_path": "model to name the adapter",
    "functions": "tools",
    "function_call": "tool_choice",
    "messages[].function_call": "tool_calls",
    "best_of": "n",
    "messages": "input",
    "parameters": "model to name the adapter",
    "conversation": "previous_response_id",
    "context_management": "truncation",
}
"""What does the same here, of fields for which there is such a thing."""


def refuse_unsupported(body: Mapping[str, object], table: Mapping[str, tuple[object, ...]], where: str = "") -> None:
    """Raise InvalidRequest naming the first field of `body` that has an effect which we do not offer.

    `where` is the path of `body` in the request, such as `messages[0].`.
    """
    for field, neutral in table.items():
        if field in body and body[field] not in neutral:
            raise _unsupported(f"{where}{field}")


def refuse_parts(message: Mapping[str, object], where: str) -> None:
    """Refuse content that is not text (images, audio, files)."""
    content = message.get("content")
    for index, part in enumerate(content) if isinstance(content, list) else ():
        kind = part.get("type") if isinstance(part, dict) else None
        if isinstance(kind, str) and kind not in ("text", "refusal"):
            raise InvalidRequest(
                "this server reads text parts only",
                param=f"{where}content[{index}].type",
                code="unsupported_value",
            )


def _unsupported(field: str) -> InvalidRequest:
    if field == "store":
        message = "chat completions and completions are not stored; leave store out, or use /v1/responses"
    else:
        instead = _INSTEAD.get(re.sub(r"\d+", "", field))
        mend = f"use {instead}, or leave it out" if instead else "leave it out"
        message = f"{field} is not supported and would change the answer; {mend}"
    return InvalidRequest(
        message,
        param=field,
        code="unsupported_parameter",
    )
