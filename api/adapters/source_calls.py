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

from motet.core.adapters import AdapterRef
from motet.core.errors import InvalidRequest, MotetError, Unavailable, from_info

T = TypeVar("T")


async def call_source(ref: AdapterRef, token: str | None, seconds: float, call: Callable[[], Awaitable[T]]) -> T:
    """The result of `call()`, which is about `ref`. Raises MotetError; Unavailable after `seconds`."""
    try:
        async with asyncio.timeout(seconds):
            return await call()
    except MotetError as error:
        raise presentable(error, token) from None
    except TimeoutError:
        raise unavailable(f"{ref}: the source did not answer within {seconds:g} s") from None
    except Exception as error:
        lines = "".join(traceback.format_exception(error))
        logger.error("adapter source {} failed for {}\n{}", ref.source, ref, _without(lines, token))
        raise MotetError(
            f"the adapter source failed for {ref} ({type(error).__name__}); the server's log says more",
            param="model",
        ) from None


def presentable(error: MotetError, secret: str | None = None) -> MotetError:
    """A fresh copy of `error` without `secret` (a token, a path) in it, and with a `param` if a field is at fault."""
    info = error.info()
    param = info.param or ("model" if isinstance(error, InvalidRequest) else None)
    return from_info(msgspec.structs.replace(info, message=_without(info.message, secret), param=param))


def unavailable(message: str) -> Unavailable:
    """A source, or the way to it, is away."""
    return Unavailable(message, param="model", code="source_unavailable")


def _without(text: str, secret: str | None) -> str:
    return text.replace(secret, "[…]") if secret else text
