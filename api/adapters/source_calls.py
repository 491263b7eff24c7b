"""Calls into adapter sources, which are foreign code: with a time-out, and with failures fit to be shown.

Whatever a source does, what leaves here is a MotetError that does not hold the caller's token.
"""

from __future__ import annotations

import asyncio
import traceback
from collections.abc import Awaitable, Callable
from typing import TypeVar

import msgspec
from loguru import logger

from motet.core import error_codes
from motet.core.adapters import AdapterRef, AdapterSource
from motet.core.errors import InvalidRequest, MotetError, Unavailable, from_info

T = TypeVar("T")


async def call_source(
    source: AdapterSource, ref: AdapterRef, token: str | None, seconds: float, call: Callable[[], Awaitable[T]]
) -> T:
    """The result of `call()`, a call of `source` about `ref`. Raises MotetError; Unavailable after `seconds`.

    Unavailable, too, for every exception that is not a MotetError: the source failed, and the caller did not.
    """
    try:
        async with asyncio.timeout(seconds):
            return await call()
    except MotetError as error:
        raise presentable(error, token) from None
    except TimeoutError:
        raise unavailable(f"{ref}: the source did not answer within {seconds:g} s") from None
    except Exception as error:
        lines = "".join(traceback.format_exception(error))
        logger.error(
            "adapter source {} ({}) failed for {}\n{}", ref.source, class_name(source), ref, _without(lines, token)
        )
        raise unavailable(
            f"{ref}: the adapter source failed ({type(error).__name__}); the server's log has the details"
        ) from None


def check_result(source: AdapterSource, method: str, result: object, expected: type) -> None:
    """Raise MotetError, naming the plugin's class, unless its `method` returned an `expected`."""
    if isinstance(result, expected):
        return
    message = f"{class_name(source)}.{method} returned {type(result).__name__}; expected {expected.__name__}"
    logger.error("adapter source: {}", message)
    raise MotetError(message, code=error_codes.INVALID_SOURCE)


def class_name(source: AdapterSource) -> str:
    """The class of `source` with its module, which names the plugin."""
    return f"{type(source).__module__}.{type(source).__qualname__}"


def presentable(error: MotetError, secret: str | None = None) -> MotetError:
    """A fresh copy of `error` without `secret` (a token, a path) in it, and with a `param` if a field is at fault."""
    info = error.info()
    param = info.param or ("model" if isinstance(error, InvalidRequest) else None)
    return from_info(msgspec.structs.replace(info, message=_without(info.message, secret), param=param))


def unavailable(message: str) -> Unavailable:
    """A source, or the way to it, is away."""
    return Unavailable(message, param="model", code=error_codes.SOURCE_UNAVAILABLE)


def _without(text: str, secret: str | None) -> str:
    return text.replace(secret, "[…]") if secret else text
