"""Words the error for a prompt, or a prompt and its answer, that exceed the context.

Clients recognise it by OpenAI's words ("maximum context length is") or by the code, and many see only the message,
so it contains both. The numbers are where OpenAI has them, for clients that parse them.
"""

from __future__ import annotations

from motet.core.errors import ContextExceeded


def prompt_too_long(context: int, size: int | str, param: str, advice: str = "") -> ContextExceeded:
    """The error for a prompt that leaves no room for an answer.

    `size` is the number of its tokens, or a phrase; `param` is its field; `advice` is an alternative to shortening it.
    """
    what = param.partition("[")[0]
    tokens = f"{size} tokens" if isinstance(size, int) else size
    return _exceeded(context, f"your {what} resulted in {tokens}", f"{what}{advice}", param)


def answer_too_long(context: int, prompt_tokens: int, answer_tokens: int, what: str, param: str) -> ContextExceeded:
    """The error for a prompt in the field `what` together with the tokens that `param` requests."""
    total = prompt_tokens + answer_tokens
    requested = f"you requested {total} tokens ({prompt_tokens} in the {what}, {answer_tokens} in the completion)"
    return _exceeded(
        context, requested, f"{what} or completion: {param} can be {context - prompt_tokens} at most", param
    )


def _exceeded(context: int, requested: str, shorten: str, param: str) -> ContextExceeded:
    return ContextExceeded(
        f"This model's maximum context length is {context} tokens. However, {requested}. Please reduce the length of "
        f"the {shorten}. ({ContextExceeded.code})",
        param=param,
    )
