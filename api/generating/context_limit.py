"""The one sentence that says a prompt, or a prompt and its answer, do not fit into the context.

Clients recognise the overflow by OpenAI's words ("maximum context length is") or by the code, and many see the
message alone: both are in it. The numbers stand where OpenAI has them, for clients that read those.
"""

from __future__ import annotations

from motet.core.errors import ContextExceeded


def prompt_too_long(context: int, size: int | str, param: str, advice: str = "") -> ContextExceeded:
    """The error for a prompt that does not fit, however short the answer.

    `size` is the number of its tokens, or a phrase for what is known of it; `param` is the field that holds it;
    `advice` is what can be done beside shortening it.
    """
    what = param.partition("[")[0]
    tokens = f"{size} tokens" if isinstance(size, int) else size
    return _exceeded(context, f"your {what} resulted in {tokens}", f"{what}{advice}", param)


def answer_too_long(context: int, prompt_tokens: int, answer_tokens: int, what: str, param: str) -> ContextExceeded:
    """The error for `what` (the field that holds the prompt) beside the tokens that `param` requests."""
    total = prompt_tokens + answer_tokens
    found = f"you requested {total} tokens ({prompt_tokens} in the {what}, {answer_tokens} in the completion)"
    return _exceeded(context, found, f"{what} or completion: {param} can be {context - prompt_tokens} at most", param)


def _exceeded(context: int, found: str, shorten: str, param: str) -> ContextExceeded:
    return ContextExceeded(
        f"This model's maximum context length is {context} tokens. However, {found}. Please reduce the length of the "
        f"{shorten}. ({ContextExceeded.code})",
        param=param,
    )
